"""Where runs are kept: a folder, or a place that fsspec reaches, such as `s3://bucket/runs`.

Runs are always made in a local folder. One kept elsewhere has a mirror here: before planning, the
records that are there and not here are fetched (one listing, however many runs there are); after a
run, its folder is copied, the record last, so that there too a record stands for a whole run.
"""

import hashlib
import re
from pathlib import Path


def is_url(out: Path | str | None) -> bool:
    """Whether `out` names a place that only fsspec reaches."""
    return "://" in str(out or "")


def local(out: Path | str | None, root: Path) -> tuple[Path, str | None]:
    """The local folder of runs for `out` (`runs/` when None) and the URL it mirrors, if any."""
    if not is_url(out):
        return Path(out or root / "runs").absolute(), None
    url = str(out).rstrip("/")
    name = re.sub(r"\W+", "-", url)[-40:] + "-" + hashlib.sha256(url.encode()).hexdigest()[:8]
    return root / "runs" / ".mirrors" / name, url


def _open(url: str):
    """The file system behind a URL and the path in it. Raises UsageError if there is none."""
    import fsspec

    from minilib.runs import UsageError

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"cannot reach {url}: {str(error).strip().splitlines()[0]}") from None


def pull(out: Path | str, root: Path, preset: str, chapter: str) -> None:
    """Fetch the records of one chapter that are at `out` and not in its mirror."""
    folder, url = local(out, root)
    system, base = _open(url)
    base = base.rstrip("/")
    try:
        there = system.find(f"{base}/{preset}/{chapter}")
    except FileNotFoundError:
        there = []
    for path in there:
        target = folder / path.removeprefix(base).lstrip("/")
        if target.name == "run.json" and not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(".run.json.fetched")
            system.get_file(path, str(part))
            part.replace(target)


def push(folder: Path, url: str) -> None:
    """Copy a run's files to `url`, the record last."""
    system, base = _open(url)
    system.makedirs(base, exist_ok=True)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    for path in sorted(files, key=lambda path: (path.name == "run.json", path)):
        system.put_file(str(path), f"{base}/{path.relative_to(folder).as_posix()}")
