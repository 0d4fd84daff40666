"""Where a number comes from: checkout, commit, machine, versions. Never imports torch."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
# What the package is called on an index; another one has the name that is imported.
DISTRIBUTION = "backdoor-minilib"
# Folders and modules that show, run or keep numbers; all others decide them.
SHOWING = (
    "__init__", "book", "cache", "chapters", "cli", "ledger", "names", "provenance",
    "runs", "settings",
)  # fmt: skip

REPORTS = (
    "report",
    "image_report",
    "chat_report",
)  # of the audit, whose other files search and judge


started = time.perf_counter()  # a run's seconds count from here, or from its hello()


def hello() -> None:
    """Print machine and versions, and start the clock of this run.

    Called by the first cell of every chapter. Imports no PyTorch: a chapter whose trials are all in
    the ledger needs none.
    """
    global started
    started = time.perf_counter()
    # tqdm's complaint about missing widgets, which some dependency provokes on import
    warnings.filterwarnings("ignore", message="IProgress not found")
    versions = {"minilib": VERSION, "Python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "transformers")}
    known = (f"{name} {number}" for name, number in versions.items() if number)
    print(" | ".join([*known, processor()]))


class UsageError(ValueError):
    """Something the user asked for cannot be done; one line that names what is accepted."""


def one_line(text: object, most: int = 300) -> str:
    """A message in one line: control characters escaped, the middle of a long one cut."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    half = most // 2 - 2
    return line if len(line) <= most else f"{line[:half]} … {line[-half:]}"


def warn_in_lines() -> None:
    """Make each warning of this process one line: what it says, not where in the code."""
    warnings.formatwarning = lambda message, *_, **__: f"{one_line(message)}\n"


def shown(value: object, most: int = 80) -> str:
    """A value for a message; a number of thousands of digits has no text of its own."""
    try:
        return one_line(repr(value), most)
    except ValueError:
        return f"a {type(value).__name__} of more digits than Python writes"


def counted(number: int, what: str) -> str:
    """A number of things as a person writes it."""
    return f"{number} {what}" + "s" * (number != 1)


def first_fault(error) -> str:
    """What pydantic's ValidationError says first: the place, and what is wrong there."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


def now() -> str:
    """The time in UTC, to the microsecond: texts that sort as the moments do."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def find_root(start: Path | None = None) -> Path:
    """The nearest folder upwards with `notebooks/` and `presets/`, else the one of the package."""
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "presets").is_dir():
            return folder
    return PACKAGE.parent


def cache_dir() -> Path:
    """Where large things are kept: MINILIB_CACHE, or the user's cache folder."""
    if named := os.environ.get("MINILIB_CACHE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("minilib"))


def parsed(text: str | bytes):
    """Strict JSON, in UTF-8, as Python's values.

    Raises:
        ValueError: NaN, infinity, nesting too deep, or another encoding.
    """

    def refuse(name: str):
        raise ValueError(f"{name} is no number of JSON")

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path) -> dict | None:
    """The mapping in a JSON file; None where there is none, or it was cut off in writing."""
    try:
        value = parsed(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """ "no preset 'smal' (did you mean 'small'?); presets are …", for an error."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(str(name)[:80], known, 1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no {what} {name!r}{guess}; {what}s are {', '.join(known) or '(none)'}"


YAML_BYTES, YAML_DEPTH, YAML_ALIASES = 2**20, 20, 100


def read_yaml(path: Path, kind: type = dict):
    """What a YAML file holds: a mapping, or whatever ``kind`` says; an empty file is an empty one.

    Nothing is built but plain values, and nothing that a small file could blow up: at most 1 MiB,
    20 levels, and 100 aliases, none of which stands inside something that has an alias itself.

    Raises:
        UsageError: one line: the file, the place, what is wrong.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := {name for name in names if names.count(name) > 1}:
                line = node.start_mark.line + 1
                raise ValueError(f"{min(twice)!r} stands twice in the mapping of line {line}")
            return super().construct_mapping(node, deep)

    try:
        with open(path, "rb") as file:
            content = file.read(YAML_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(one_line(f"cannot read {path}: {reason}")) from None
    try:
        if len(content) > YAML_BYTES:
            raise ValueError("it is longer than 1 MiB")
        text = content.decode("utf-8-sig")
        _harmless(yaml.parse(text, Loader=Loader))
        value = yaml.load(text, Loader=Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(one_line(f"{path} is not YAML as it is accepted: {error}")) from None
    value = kind() if value is None else value
    if not isinstance(value, kind):
        accepted = {dict: "a mapping", list: "a list"}.get(kind, kind.__name__)
        raise UsageError(one_line(f"{path} holds {value!r}; accepted: {accepted}"))
    return value


def _harmless(events: Iterable) -> None:
    """Raise ValueError for YAML that is too deep, grows when it is read, or is no text."""
    import yaml

    inside_anchor, aliases = [], 0
    for event in events:
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            inside_anchor.append(event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            inside_anchor.pop()
        elif isinstance(event, yaml.ScalarEvent):
            event.value.encode()  # a lone surrogate is no text; UnicodeEncodeError is a ValueError
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > YAML_ALIASES or any(inside_anchor):
                raise ValueError(f"{line} has an alias inside an anchor, or is one of too many")
        if len(inside_anchor) > YAML_DEPTH:
            raise ValueError(f"{line} is more than {YAML_DEPTH} levels deep")


def write_json(path: Path, value) -> None:
    """Write strict JSON so that a reader sees the old file or the new one, never half of it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temp_path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp_path, path)
    except BaseException:  # a full disk: what was written of it would only fill it more
        temp_path.unlink(missing_ok=True)
        raise


def plain(value):
    """`value` as JSON can hold it: NumPy and torch scalars as Python's, no NaN or infinity."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"a record holds numbers, texts and bools, not {type(value).__name__}")


# ---------------------------------------------------------------- the machine


# A condition → what tells it; added by the module that knows it, when that is imported.
KNOWN_ABOVE: dict[str, Callable[[], str]] = {}
# By which oneDNN and PyTorch compute as on a lesser processor.
LIMITS = ("DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def environment() -> dict:
    """The conditions of a measurement: hardware and versions, no host, user or folder.

    ``isa`` is there only where the processor passes for a lesser one (``LIMITS``).
    """
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    limits = dict.fromkeys(os.environ[name].upper() for name in LIMITS if os.environ.get(name))
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": cpu(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "precision": precision() if (precision := KNOWN_ABOVE.get("precision")) else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy", "minilib")},
        **({"isa": " ".join(limits)} if limits else {}),
    }


def cpu() -> str:
    """The model of this machine's processor."""
    with contextlib.suppress(OSError):
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def processor() -> str:
    """What would compute here: the first GPU, or the CPU. Asks the driver, not PyTorch."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        if names.stdout.strip():
            return names.stdout.splitlines()[0]
    return cpu()


def version(name: str) -> str | None:
    """Installed version of a package, without importing it."""
    if name == "minilib":
        return VERSION
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)


def peak_mib() -> int | None:
    """Peak memory in MiB: allocations on the GPU where one was used, else the resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


# ---------------------------------------------------------------- the checkout


def _git(root: Path, *words: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
    return None


def git_commit(root: Path | None = None) -> str | None:
    """Short commit of the checkout; `+dirty` where files of the package are not committed."""
    root = root or PACKAGE.parent
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+dirty" if _git(root, "status", "--porcelain", "--", "minilib") else "")


@functools.cache
def changed_since(commit: str | None) -> tuple[str, ...]:
    """Files that decide numbers and differ from those of ``commit``, committed or not.

    Empty where that cannot be told: no checkout, no git, an unknown commit.
    """
    if not commit:
        return ()
    listed = _git(PACKAGE.parent, "diff", "--name-only", commit.partition("+")[0], "--", "minilib")
    untracked = _git(PACKAGE.parent, "ls-files", "--others", "--exclude-standard", "--", "minilib")
    names = sorted({*(listed or "").splitlines(), *(untracked or "").splitlines()} - {""})
    return tuple(name for name in names if decides_numbers(name))


PROVEN = Path("tests", "golden", "code.txt")


def code_of(root: Path | None = None) -> str:
    """A digest of the files that decide numbers, as they lie in the checkout."""
    root = root or PACKAGE.parent
    names = sorted(path.relative_to(root).as_posix() for path in (root / "minilib").rglob("*.py"))
    digest = hashlib.sha256()
    for name in filter(decides_numbers, names):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def proven() -> bool:
    """Whether the golden numbers came out the same with the code as it lies here."""
    path = PACKAGE.parent / PROVEN
    return path.is_file() and path.read_text(encoding="utf-8").split()[0] == code_of()


def decides_numbers(name: str) -> bool:
    """Whether a file of the checkout can change what a trial measures."""
    parts = Path(name).with_suffix("").parts
    shows = len(parts) < 2 or parts[1] in SHOWING or parts[-1] in REPORTS
    return name.endswith(".py") and not shows


def named(names: Iterable[str], most: int = 3) -> str:
    """A list of names for one line: the first few, and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
