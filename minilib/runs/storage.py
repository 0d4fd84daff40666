"""Where runs are kept: a folder, or a place that fsspec reaches, such as `s3://bucket/runs`.

Runs are always made in a local folder. One kept elsewhere has a mirror here: before planning, the
records that are there are fetched (one listing, however many runs there are); after a run, its
folder is copied, the record last, so that there too a record stands for a whole run. A run that
could not be copied is marked and copied by the next command.
"""

import contextlib
import hashlib
import re
import uuid
from pathlib import Path

from minilib.provenance import UsageError

RECORD = re.compile(r"[0-9a-f]{12}/run\.json")  # what is fetched, below preset and chapter
UNSENT = ".unsent"  # stands in the folder of a run that is not yet there


def is_url(out: Path | str | None) -> bool:
    """Whether `out` names a place that only fsspec reaches."""
    return "://" in str(out or "")


def place(text: str) -> Path | str:
    """What `--out` names: a folder, or a URL. Raises UsageError for what is half of one."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?=/)", text)  # a drive of Windows has one letter
    if not scheme:
        return Path(text)
    if not re.fullmatch(r"(file:///|(?!file:)[A-Za-z0-9+.-]+://)[^\s?#/:][^\s?#]*", text):
        raise UsageError(f"--out is {text!r}; accepted: a folder, or a URL as s3://bucket/runs")
    return text


def local(out: Path | str | None, root: Path) -> tuple[Path, str | None]:
    """The local folder of runs for `out` (`runs/` when None) and the URL it mirrors, if any."""
    if not is_url(out):
        return Path(out or root / "runs").absolute(), None
    url = str(out).rstrip("/")
    name = re.sub(r"\W+", "-", url)[-40:] + "-" + hashlib.sha256(url.encode()).hexdigest()[:8]
    return root / "runs" / ".mirrors" / name, url


def _open(url: str):
    """The file system behind a URL and the path in it."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    return system, path.rstrip("/")


@contextlib.contextmanager
def _refusing(what: str, remedy: str = ""):
    """Turn whatever a file system raises, which is what it likes, into one UsageError."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{what}: {reason}{remedy}") from None


def probe(out: Path | str | None, root: Path) -> None:
    """Write a file where runs are to be kept, and remove it: before hours are spent, not after.

    Raises:
        UsageError: it cannot be written.
    """
    folder, url = local(out, root)
    name = f".probe-{uuid.uuid4().hex}"
    with _refusing(f"runs cannot be kept in {url or folder}", "; give another --out"):
        system, base = _open(url or str(folder))
        system.makedirs(base, exist_ok=True)
        system.pipe_file(f"{base}/{name}", b"x")
        system.rm_file(f"{base}/{name}")


def pull(out: Path | str, root: Path, preset: str, chapter: str) -> None:
    """Send what could not be sent, then make the mirror's records of one chapter those at `out`.

    Raises:
        UsageError: the place does not answer.
    """
    folder, url = local(out, root)
    here = folder / preset / chapter
    with _refusing(f"cannot reach {out}"):
        for mark in here.glob(f"*/{UNSENT}"):
            push(mark.parent, f"{url}/{preset}/{chapter}/{mark.parent.name}")
        system, base = _open(f"{url}/{preset}/{chapter}")
        system.invalidate_cache()  # what others have sent meanwhile
        names = []
        with contextlib.suppress(FileNotFoundError):
            names = [path.removeprefix(base).lstrip("/") for path in system.find(base)]
        names = [name for name in names if RECORD.fullmatch(name)]  # none that leads elsewhere
        for path in here.glob("*/run.json"):
            is_unsent = (path.parent / UNSENT).exists()  # by another process, just now
            if path.relative_to(here).as_posix() not in names and not is_unsent:
                path.unlink()
        for name in names:
            temp_path = here / name.replace("run.json", ".run.json.fetched")
            temp_path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{base}/{name}", str(temp_path))
            temp_path.replace(here / name)


def push(folder: Path, url: str) -> None:
    """Copy a run's files to `url`, the record last."""
    system, base = _open(url)
    system.makedirs(base, exist_ok=True)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    for path in sorted(files, key=lambda path: (path.name == "run.json", path)):
        system.put_file(str(path), f"{base}/{path.relative_to(folder).as_posix()}")
    with contextlib.suppress(OSError):
        (folder / UNSENT).unlink(missing_ok=True)
