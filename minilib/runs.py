"""Run records: writing one from a notebook's last cell, and reading them back as a table.

A run is one chapter executed once with one set of parameters. It lives in
`runs/<preset>/<chapter>/<run_id>/` as `notebook.ipynb` (executed) and `run.json` (the record,
written last, so that a record with status "ok" always stands beside the notebook it describes).
Records of published runs are committed under `results/<chapter>/<run_id>.json`.

Nothing heavy is imported at the top, and torch never: a record says what a run used, it does not
load it.
"""

import contextlib
import dataclasses
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
from pathlib import Path

from minilib import stats
from minilib.fingerprint import PACKAGE, fingerprint

_IMPORTED = time.perf_counter()
_written: list[Path] = []  # by this process, as JSON: whatever it computed for the cache among it


class UsageError(ValueError):
    """Something the user asked for cannot be done; one line that names what is accepted."""


def find_root(start: Path | None = None) -> Path:
    """The nearest folder upwards with `notebooks/` and `presets/`, else the one of the package."""
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "presets").is_dir():
            return folder
    return PACKAGE.parent


def write_json(path: Path, value) -> None:
    """Write strict JSON so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _written.append(path)
    except BaseException:  # a full disk: what was written of it would only fill it more
        part.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> dict | None:
    """The run record at `path`, or None where there is none or it was cut off in writing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"run_id", "status"} <= record.keys() else None


def run_id(chapter: str, code: str, params: dict) -> str:
    """Identity of a run (12 hex digits): what is run, with what code, with which parameters."""
    text = json.dumps([chapter, code, params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------- writing


def record(chapter: str, settings, metrics: list[dict], data: list[dict]) -> dict:
    """Record a run; the last cell of every chapter calls this.

    Args:
        chapter: its name, such as "03_ga_rga".
        settings: the chapter's frozen dataclass, or a dict.
        metrics: one flat dict per row; percentages in 0–100, losses in nats. A number that is not
            finite becomes null.
        data: one dict per data set (`TextDataset.info()`).

    Returns the record. Under `minilib run` the runner gets it; by hand it is written to
    `runs/manual/<chapter>/<run_id>/run.json` below the working directory.

    Raises:
        TypeError: something that is not a number, text or bool.
        ValueError: called in the run of another chapter.
    """
    import minilib

    params = dict(settings) if isinstance(settings, dict) else dataclasses.asdict(settings)
    told = json.loads(os.environ.get("MINILIB_RUN", "{}"))
    if told and told["chapter"] != chapter:
        raise ValueError(f"record({chapter!r}, …) was called in the run of {told['chapter']!r}")
    result = {
        "run_id": told.get("run_id"),
        "chapter": chapter,
        "preset": told.get("preset", "manual"),
        "status": "ok",
        "params": plain(params),
        "metrics": plain(metrics),
        "data": plain(data),
        "env": environment(),
        "seconds": round(time.perf_counter() - (minilib.started or _IMPORTED), 1),
        "computed": computed(),
        "peak_mib": peak_mib(),
        "code": told.get("code"),
    }
    for row in result["metrics"]:
        if any(isinstance(value, (dict, list)) for value in row.values()):
            raise TypeError(f"a row of metrics is flat: name → number or text, not {row}")
    if told:
        write_json(Path(os.environ["MINILIB_RUN_DIR"]) / "part.json", result)
        return result
    root = find_root()
    result["code"] = fingerprint(root, chapter)
    result["run_id"] = run_id(chapter, result["code"], result["params"])
    result["env"]["commit"] = git_commit(root)
    result["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(Path("runs", "manual", chapter, result["run_id"], "run.json"), result)
    return result


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
    raise TypeError(f"a run record holds numbers, texts and bools, not {type(value).__name__}")


def environment() -> dict:
    """The conditions of a measurement: hardware and versions, no host, user or folder."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy", "minilib")},
    }


def computed() -> int:
    """How many results this process put in the cache; a run that has them finds them there."""
    cache = sys.modules.get("minilib.cache")
    return sum(cache.cache_dir() in path.parents for path in _written) if cache else 0


def version(name: str) -> str | None:
    """Installed version of a package, without importing it."""
    if name == "minilib":
        import minilib

        return minilib.__version__
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


def git_commit(root: Path) -> str | None:
    """Short commit of the checkout, `+dirty` where files that runs depend on are not committed."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        dirty = git("status", "--porcelain", "--", "minilib", "notebooks", "presets")
        return git("rev-parse", "--short=12", "HEAD") + ("+dirty" if dirty else "")


# ---------------------------------------------------------------- reading


def records(
    root: Path | None = None, chapter: str | None = None, preset: str | None = None
) -> list[dict]:
    """Records with status ok, committed (`results/`) and local (`runs/`), in order of time.

    Each set of parameters counts once: where it was run several times, with other code or under
    another preset, the last one stands. Runs by hand count only if asked for (`preset="manual"`).
    """
    places = {root or find_root(), Path.cwd()}  # by hand, records lie below the working directory
    files = [file for place in places for file in place.glob("runs/*/*/*/run.json")]
    files += [file for place in places for file in place.glob("results/*/*.json")]
    found = [item for item in map(read_record, files) if item and item["status"] == "ok"]
    newest: dict[str, dict] = {}
    for item in sorted(found, key=lambda item: (item.get("finished", ""), item["run_id"])):
        wanted = item["preset"] == preset or (preset is None and item["preset"] != "manual")
        if wanted and chapter in (None, item["chapter"]):
            newest[json.dumps([item["chapter"], item["params"]], sort_keys=True)] = item
    return list(newest.values())


def load(chapter: str | None = None, preset: str | None = None, **params):
    """Tidy DataFrame of run records: one row per entry of `metrics`.

    Columns: run_id, preset, chapter, code, seconds, the parameters, the metric's own entries (which
    win over a parameter of the same name), and the environment as `env_device`, `env_torch` …
    Keywords select runs by parameter: `load("03_ga_rga", "small", attack="badnets")`.
    """
    import pandas as pd

    found = [
        row
        for item in records(chapter=chapter, preset=preset)
        if all(item["params"].get(name) == value for name, value in params.items())
        for row in rows(item)
    ]
    return (
        pd.DataFrame(found)
        if found
        else pd.DataFrame(columns=["run_id", "preset", "chapter", "seed"])
    )


def rows(item: dict) -> list[dict]:
    """One flat dict per entry of a record's `metrics`: run, parameters, metric, environment."""
    head = {name: item.get(name) for name in ("run_id", "preset", "chapter", "code", "seconds")}
    env = {f"env_{name}": value for name, value in item["env"].items()}
    return [{**head, **item["params"], **metric, **env} for metric in item["metrics"]]


def describing(frame, params) -> list[str]:
    """Columns that say what a metric row is about (method, epoch …), not what was measured."""
    told = {"run_id", "preset", "chapter", "code", *params}
    return [
        name
        for name in frame.columns
        if name not in told
        and not name.startswith("env_")
        and (frame[name].dtype.kind in "iubO" or str(frame[name].dtype) in ("str", "string"))
        and name not in ("steps",)
    ]


def summary(frame, by: list[str], values: list[str], level: float = 0.95):
    """Mean, standard deviation, n and a bootstrap interval of the mean, per group.

    Columns are (value, statistic) with the statistics mean, std (ddof 1; NaN for a single run), n,
    low and high (percentiles of resampled means; NaN for a single run). This is the one place where
    runs are averaged for tables; `minilib.stats` does the arithmetic.
    """
    import pandas as pd

    found = {}
    for key, part in frame.groupby(by, dropna=False):
        found[key if len(by) > 1 else key[0]] = {
            (value, name): number
            for value in values
            for name, number in stats.summary(part[value].dropna(), level).items()
        }
    index = (
        pd.MultiIndex.from_tuples(found, names=by) if len(by) > 1 else pd.Index(found, name=by[0])
    )
    table = pd.DataFrame(list(found.values()), index=index)
    return table.set_axis(pd.MultiIndex.from_tuples(table.columns), axis=1)


def shown(table, digits: int = 2):
    """A `summary` for reading: `mean ± std (n)` in one column per value."""
    import pandas as pd

    names = list(dict.fromkeys(value for value, _ in table.columns))
    return pd.DataFrame(
        {name: [stats.text(row, digits) for _, row in table[name].iterrows()] for name in names},
        index=table.index,
    )
