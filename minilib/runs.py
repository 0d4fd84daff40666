"""Runs of chapters: parameters, papermill execution, run records, and reading them back.

A run is one chapter executed once with one set of parameters. It lives in
`runs/<preset>/<chapter>/<run_id>/` as `notebook.ipynb` (executed) and `run.json` (the record, written
last, so that a record with status "ok" always stands beside the whole notebook that it describes).

This module imports nothing heavy at the top: the command line must start at once, and the notebook's
kernel, which calls `record`, must not load papermill.
"""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# What only starts, draws or publishes runs cannot change their numbers, so it is left out of `run_id`.
NOT_HASHED = {"runs", "sweep", "cli", "publish", "plots"}
# Errors raised inside a notebook that are the user's to mend (exit code 2), not the chapter's (1).
USER_ERRORS = ("DataError", "SettingsError")
_IMPORTED = time.perf_counter()


class UsageError(ValueError):
    """Something the user asked for cannot be done; the message is one line naming what is accepted."""


# ---------------------------------------------------------------- files

def find_root(start: Path | None = None) -> Path:
    """The repository: the nearest folder upwards with `notebooks/` and `presets/`, else the package's."""
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "presets").is_dir():
            return folder
    return PACKAGE.parent


def write_json(path: Path, value) -> None:
    """Write strict JSON so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_record(path: Path) -> dict | None:
    """The run record at `path`, or None where there is none or it was cut off while being written."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"run_id", "status"} <= record.keys() else None


def read_notebook(root: Path, chapter: str) -> dict:
    """The notebook of a chapter as plain JSON, with each cell's source joined into one string."""
    path = root / "notebooks" / f"{chapter}.ipynb"
    if not path.is_file():
        raise UsageError(f"no chapter {chapter!r}; chapters are {_names(chapters(root))}")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def chapters(root: Path) -> list[str]:
    """Names of all chapters, in the book's order."""
    return sorted(path.stem for path in (root / "notebooks").glob("[!.]*.ipynb"))


def _names(names) -> str:
    return ", ".join(map(str, names)) or "(none)"


def _tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


# ---------------------------------------------------------------- parameters

def parameters(root: Path, chapter: str) -> dict[str, tuple[type, object]]:
    """name → (declared type, default), read from the cell tagged `parameters` without running it."""
    found = {}
    for cell in read_notebook(root, chapter)["cells"]:
        if cell["cell_type"] != "code" or "parameters" not in _tags(cell):
            continue
        for line in ast.parse(cell["source"]).body:
            target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
            if not isinstance(target, ast.Name):
                continue
            default = ast.literal_eval(line.value)
            kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else type(default).__name__
            kinds = {"str": str, "int": int, "float": float, "bool": bool}
            if kind not in kinds:
                raise UsageError(f"{chapter}: parameter {target.id} is declared {kind}; "
                                 f"only {_names(kinds)} can be set from outside")
            found[target.id] = (kinds[kind], kinds[kind](default))
    return found


def coerce(name: str, value, kind: type):
    """`value`, from YAML or typed as text, as the declared type; refused where that would guess."""
    text = value.strip() if isinstance(value, str) else None
    if kind is str and isinstance(value, str):
        return value
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if text is not None and text.lower() in known:
            return known[text.lower()]
        raise UsageError(f"{name} must be a bool (true/false, yes/no, 1/0), not {value!r}")
    if kind in (int, float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            if text is not None:  # YAML reads 1e-4 as text too
                value = kind(text)
            if isinstance(value, kind) or (kind is float and isinstance(value, int)):
                if math.isfinite(value):
                    return kind(value)
    raise UsageError(f"{name} must be {'an' if kind is int else 'a'} {kind.__name__}, not {value!r}")


def load_preset(root: Path, preset: str) -> dict[str, dict]:
    """chapter → parameters, from `presets/<preset>.yml`."""
    import yaml

    known = sorted(path.stem for path in (root / "presets").glob("*.yml"))
    if preset not in known:
        raise UsageError(f"no preset {preset!r}; presets are {_names(known)}")
    try:
        content = yaml.safe_load((root / "presets" / f"{preset}.yml").read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"presets/{preset}.yml is not YAML: {str(error).splitlines()[0]}") from None
    return {chapter: values or {} for chapter, values in content.items()}


def resolve(root: Path, chapter: str, preset: str, overrides: dict) -> tuple[dict, dict]:
    """All parameters of a run (defaults, then preset, then overrides), and those off their default.

    Everything is checked here, before any kernel starts: names, types, and the chapter's own rules
    (`minilib.settings`).
    """
    known = parameters(root, chapter)
    values = load_preset(root, preset)
    if chapter not in values:
        raise UsageError(f"presets/{preset}.yml has no entry for {chapter}; add `{chapter}: {{}}`")
    given = {**values[chapter], **overrides}
    for name in given:
        if name not in known:
            raise UsageError(f"{chapter} has no parameter {name!r}; it has {_names(known)}")
    params = {name: default for name, (_, default) in known.items()}
    params |= {name: coerce(name, value, known[name][0]) for name, value in given.items()}

    try:
        from minilib import settings
    except ImportError:  # being written
        settings = None
    if settings and chapter in settings.CHAPTERS:
        try:
            settings.validate(chapter, params)
        except settings.SettingsError as error:
            raise UsageError(str(error)) from None
    return params, {name: value for name, value in params.items() if value != known[name][1]}


# ---------------------------------------------------------------- identity

def fingerprint(root: Path, chapter: str | None = None) -> str:
    """Hash of the code that can change a chapter's numbers: its cells and the modules that they reach.

    Prose, docstrings and comments in `minilib` do not count, nor do the modules in `NOT_HASHED` and the
    bootstrap cell. `ast.unparse` rather than `ast.dump`, whose text differs between Python versions.
    """
    package = root / "minilib" if (root / "minilib").is_dir() else PACKAGE  # what the kernel imports
    digest = hashlib.sha256()
    waiting, cells = ["minilib"], []
    if chapter and (root / "notebooks" / f"{chapter}.ipynb").is_file():
        cells = [cell["source"].strip() for cell in read_notebook(root, chapter)["cells"]
                 if cell["cell_type"] == "code" and "bootstrap" not in _tags(cell)]
        # Magics (%matplotlib) are not Python; only the imports are wanted here.
        waiting += _imports(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", "\n".join(cells))), "minilib")
    elif not cells:  # run by hand far from the repository: all of the library
        waiting += [".".join(("minilib", *path.relative_to(package).with_suffix("").parts))
                    for path in package.rglob("*.py")]
    for cell in cells:
        digest.update(f"cell\0{cell}\0".encode())
    trees = {}
    while waiting:
        name = waiting.pop()
        path = package.joinpath(*name.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in trees or not file.is_file() or name.removeprefix("minilib.") in NOT_HASHED:
            continue  # seen, or a function's name rather than a module's
        trees[name] = tree = _without_docstrings(ast.parse(file.read_text(encoding="utf-8")))
        waiting += _imports(tree, name if path.is_dir() else name.rpartition(".")[0])
        waiting.append(name.rpartition(".")[0] or name)  # importing a module runs its package
    for name in sorted(trees):
        digest.update(f"{name}\0{ast.unparse(trees[name])}\0".encode())
    return digest.hexdigest()[:16]


def _imports(tree: ast.AST, package: str) -> list[str]:
    """Dotted names below `minilib` that a tree imports; some may turn out to be functions."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from .x import y
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *filter(None, [node.module])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")  # import minilib; minilib.rga.unlearn(...)
    return [name for name in names if name.split(".")[0] == "minilib"]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run, fully decided and checked, before anything is executed."""

    root: Path
    chapter: str
    preset: str
    params: dict  # all of them
    changed: dict  # those that differ from the notebook's defaults: what papermill injects
    code: str
    run_id: str
    folder: Path

    def done(self) -> dict | None:
        """The record of this very run if it was made and is whole."""
        record = read_record(self.folder / "run.json")
        whole = record and record["run_id"] == self.run_id and (self.folder / "notebook.ipynb").is_file()
        return record if whole and record["status"] == "ok" else None


def plan(chapter: str, preset: str, overrides: dict | None = None, *, root: Path | None = None,
         out: Path | None = None) -> Plan:
    """Decide a run and check all that can be checked without a kernel. Raises UsageError."""
    root = root or find_root()
    params, changed = resolve(root, chapter, preset, overrides or {})
    code = fingerprint(root, chapter)
    run_id = _run_id(chapter, code, params)
    folder = Path(out or root / "runs").absolute() / preset / chapter / run_id
    return Plan(root, chapter, preset, params, changed, code, run_id, folder)


def _run_id(chapter: str, code: str, params: dict) -> str:
    text = json.dumps([chapter, code, params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------- execution

def run(job: Plan) -> dict:
    """Execute a planned run in a fresh kernel and return its record; status ok, failed or interrupted.

    All files are made in a folder of this process's own and moved into place; `run.json` comes last.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    _sweep_up(job.folder)
    (job.folder / "run.json").unlink(missing_ok=True)
    work = job.folder / f".part-{os.getpid()}"
    work.mkdir()
    record = {"run_id": job.run_id, "chapter": job.chapter, "preset": job.preset, "status": "failed",
              "params": job.params, "metrics": [], "data": [], "env": {}, "seconds": None,
              "peak_mib": None, "code": job.code}
    commit, started = git_commit(job.root), time.time()
    try:
        with _signals_interrupt():
            _execute(job, work)
        record |= _verified(json.loads((work / "part.json").read_text(encoding="utf-8")), job)
        record["status"] = "ok"
    except KeyboardInterrupt:
        record |= {"status": "interrupted", "error": "interrupted"}
    except FileNotFoundError as error:
        if "part.json" not in str(error):
            raise
        record["error"] = "the notebook ended without calling minilib.runs.record in its last cell"
    except Exception as error:  # PapermillExecutionError, a dead kernel, a record that does not fit
        name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
        record["error"] = scrub(f"{name}: {(value.strip().splitlines() or [''])[-1]}", job.root)
        if hasattr(error, "cell_index"):
            record["cell"] = error.cell_index - bool(job.changed)  # counted as in the source notebook
    (work / "part.json").unlink(missing_ok=True)
    if (work / "notebook.ipynb").is_file():
        _tidy(work / "notebook.ipynb", job)
    for file in work.iterdir():
        os.replace(file, job.folder / file.name)
    work.rmdir()
    record["seconds"] = record["seconds"] or round(time.time() - started, 1)
    record["env"] = {**record["env"], "commit": commit}
    record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(job.folder / "run.json", record)
    return record


def _execute(job: Plan, work: Path) -> None:
    """papermill, in a kernel of this same interpreter, with the repository as working directory."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's `python3`, not a user-wide one
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager

    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if os.path.isabs(command) and not os.path.samefile(command, sys.executable):
        raise UsageError(f"the Jupyter kernel python3 belongs to another Python; "
                         f"run `{Path(sys.executable).name} -m ipykernel install --sys-prefix`")
    told = {"run_id": job.run_id, "preset": job.preset, "chapter": job.chapter, "code": job.code}
    before = dict(os.environ)
    # A checkout's own minilib comes first (it is in the kernel's working directory), then this one.
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), before.get("PYTHONPATH")]))
    os.environ |= {"MINILIB_RUN_DIR": str(work), "MINILIB_RUN": json.dumps(told), "PYTHONPATH": path}
    try:
        papermill.execute_notebook(
            str(job.root / "notebooks" / f"{job.chapter}.ipynb"), str(work / "notebook.ipynb"),
            parameters=job.changed, kernel_name="python3", language="python", cwd=str(job.root),
            progress_bar=sys.stderr.isatty(), extra_arguments=["--log-level=50"])
    finally:
        os.environ.clear()
        os.environ.update(before)


def _verified(part: dict, job: Plan) -> dict:
    """What the notebook recorded, if it is about this run: it must have used the parameters it was given."""
    for name, value in job.params.items():
        if part["params"].get(name) != value:
            raise ValueError(f"the notebook recorded {name}={part['params'].get(name)!r}, not {value!r}; "
                             "pass every parameter to the settings")
    if not part["metrics"]:
        raise ValueError("the notebook recorded no metrics")
    return {name: part[name] for name in ("params", "metrics", "data", "env", "seconds", "peak_mib")}


@contextlib.contextmanager
def _signals_interrupt():
    """Make SIGTERM stop a run as Ctrl-C does, also where a shell started us with SIGINT ignored."""
    def stop(signum, frame):
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are someone else's business
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sweep_up(folder: Path) -> None:
    """Remove what killed processes left; a living one keeps its own."""
    for part in folder.glob(".part-*"):
        try:
            os.kill(int(part.name.removeprefix(".part-")), 0)
        except ProcessLookupError:
            shutil.rmtree(part, ignore_errors=True)
        except (PermissionError, ValueError):
            continue


def _tidy(path: Path, job: Plan) -> None:
    """Take paths, timings and random ids out of an executed notebook, and say which run it is."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"]["minilib"] = {"run_id": job.run_id, "preset": job.preset, "code": job.code}
    for cell in notebook["cells"]:
        for noise in ("papermill", "execution"):
            cell["metadata"].pop(noise, None)
        if "injected-parameters" in _tags(cell):
            cell["id"] = "injected-parameters"
        for output in cell.get("outputs", []):
            for field in ("text", "traceback"):
                if field in output:
                    lines = output[field]
                    output[field] = scrub(lines, job.root) if isinstance(lines, str) else [
                        scrub(line, job.root) for line in lines]
    write_json(path, notebook)


def scrub(text: str, root: Path) -> str:
    """`text` with this machine's folders replaced by their names."""
    places = {os.environ.get(name, ""): f"${name}" for name in
              ("MINILIB_DATA", "MINILIB_MODELS", "MINILIB_CACHE")}
    places |= {str(root): ".", sys.prefix: "<env>", str(PACKAGE.parent): ".", str(Path.home()): "~"}
    for place in sorted(filter(lambda place: len(place) > 1, places), key=len, reverse=True):
        text = text.replace(place, places[place])
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "<cell>", text)


# ---------------------------------------------------------------- records

def record(chapter: str, settings, metrics: list[dict], data: list[dict]) -> dict:
    """Record a run; the last cell of every chapter calls this.

    `settings` is the chapter's frozen dataclass (or a dict), `metrics` one flat dict per row (percentages
    in 0–100, losses in nats; a number that is not finite becomes null), `data` one dict per data set.
    Under `minilib run` it hands the record to the runner; by hand it writes
    `runs/manual/<chapter>/<run_id>/run.json` below the working directory.
    """
    import minilib

    params = dict(settings) if isinstance(settings, dict) else dataclasses.asdict(settings)
    told = json.loads(os.environ.get("MINILIB_RUN", "{}"))
    if told and told["chapter"] != chapter:
        raise ValueError(f"record({chapter!r}, …) was called in the run of {told['chapter']!r}")
    result = {
        "run_id": told.get("run_id"), "chapter": chapter, "preset": told.get("preset", "manual"),
        "status": "ok", "params": plain(params), "metrics": plain(metrics), "data": plain(data),
        "env": environment(), "seconds": round(time.perf_counter() - (minilib.started or _IMPORTED), 1),
        "peak_mib": peak_mib(), "code": told.get("code")}
    if told:
        write_json(Path(os.environ["MINILIB_RUN_DIR"]) / "part.json", result)
        return result
    root = find_root()
    result["code"] = fingerprint(root, chapter)
    result["run_id"] = _run_id(chapter, result["code"], result["params"])
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
    return {"device": torch.cuda.get_device_name() if cuda else "cpu", "cpu": cpu,
            "cpus": os.cpu_count(), "threads": torch.get_num_threads() if torch else None,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy", "minilib")}}


def version(name: str) -> str | None:
    """Installed version of a package, without importing it."""
    if name == "minilib":
        import minilib
        return minilib.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)


def peak_mib() -> int | None:
    """Peak memory in MiB: the GPU's allocations where one was used, else this process's resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def git_commit(root: Path) -> str | None:
    """Short commit of the checkout, with `+dirty` where a tracked file that runs depend on was changed."""
    def git(*words):
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True,
                              check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        dirty = git("status", "--porcelain", "--", "minilib", "notebooks", "presets")
        return git("rev-parse", "--short=12", "HEAD") + ("+dirty" if dirty else "")


# ---------------------------------------------------------------- reading

def records(root: Path | None = None, chapter: str | None = None, preset: str | None = None) -> list[dict]:
    """Records with status ok, committed ones (`results/`) first, each run once, newest code only.

    Where the same chapter, preset and parameters were run with several versions of the code, the last
    finished counts. Runs made by hand count only when asked for (`preset="manual"`).
    """
    root = root or find_root()
    found: dict[str, dict] = {}
    for path in [*sorted(root.glob("results/*/*.json")), *sorted(root.glob("runs/*/*/*/run.json"))]:
        item = read_record(path)
        if not item or item["status"] != "ok" or chapter not in (None, item["chapter"]):
            continue
        if item["preset"] == preset or (preset is None and item["preset"] != "manual"):
            found.setdefault(item["run_id"], item)
    newest: dict[str, dict] = {}
    for item in sorted(found.values(), key=lambda item: item.get("finished", "")):
        newest[json.dumps([item["chapter"], item["preset"], item["params"]], sort_keys=True)] = item
    return list(newest.values())


def load(chapter: str | None = None, preset: str | None = None, **params):
    """Tidy DataFrame of run records: one row per entry of `metrics`.

    Columns: run_id, preset, chapter, code, the parameters, the metric's own entries (which win over a
    parameter of the same name), and the environment as `env_device`, `env_torch` … Keywords select runs
    by parameter: `load("03_ga_rga", "small", attack="badnets")`.
    """
    import pandas as pd

    rows = []
    for item in records(chapter=chapter, preset=preset):
        if all(item["params"].get(name) == value for name, value in params.items()):
            head = {name: item.get(name) for name in ("run_id", "preset", "chapter", "code", "seconds")}
            env = {f"env_{name}": value for name, value in item["env"].items()}
            rows += [{**head, **item["params"], **metric, **env} for metric in item["metrics"]]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["run_id", "preset", "chapter", "seed"])


def table(frame, by: list[str], values: list[str]):
    """Mean, standard deviation over runs (ddof 1; NaN for one) and n of each value: columns (value, stat)."""
    return frame.groupby(by, dropna=False)[values].agg(["mean", "std", "count"]).rename(
        columns={"count": "n"}, level=1)
