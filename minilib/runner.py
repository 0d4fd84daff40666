"""Executing a chapter: decide the run, check it, execute it with papermill, leave a whole record.

Everything that can be wrong with a request is found before a kernel starts. papermill is imported
only when something is executed, so that the command line answers at once.
"""

import ast
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from minilib import places
from minilib.fingerprint import PACKAGE, fingerprint
from minilib.runs import UsageError, find_root, git_commit, read_record, run_id, write_json

# Errors raised inside a notebook that are the user's to mend (exit code 2), not the chapter's (1).
USER_ERRORS = ("DataError", "SettingsError")
# Parameters that split a batch into pieces without changing what is computed; 0 is "do not".
MICRO = ("micro_batch", "micro")
OUT_OF_MEMORY = r"out of memory|can't allocate memory|[Uu]nable to allocate"
FULL = "No space left on device"
# What a machine does to a run, as opposed to what the run does: another try may mend it.
OUTSIDE = rf"{FULL}|[Kk]ernel (did not answer|didn't respond|died)"
CPU_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
START_TIMEOUT = 600  # seconds for a kernel to answer; a busy machine may need minutes


# ---------------------------------------------------------------- parameters


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


def parameters(root: Path, chapter: str) -> dict[str, tuple[type, object]]:
    """name → (declared type, default), read from the cell tagged `parameters`, which is not run."""
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    found = {}
    for cell in read_notebook(root, chapter)["cells"]:
        if cell["cell_type"] != "code" or "parameters" not in _tags(cell):
            continue
        for line in ast.parse(cell["source"]).body:
            try:
                name, kind = line.target.id, kinds[ast.unparse(line.annotation)]
                found[name] = kind, coerce(name, ast.literal_eval(line.value), kind)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise UsageError(
                    f"{chapter}: {ast.unparse(line)!r} in the parameters cell is not of the form "
                    f"`name: type = value` with a type of {_names(kinds)}"
                ) from None
    return found


def coerce(name: str, value, kind: type):
    """`value`, from YAML or typed as text, as the declared type; refused where that would guess."""
    if kind is str and isinstance(value, str):
        return value
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in known:
            return known[value.strip().lower()]
        raise UsageError(f"{name} must be a bool (true/false, yes/no, 1/0), not {value!r}")
    # YAML reads 1e-4 as text too; a whole number will do for a float, but not the other way round.
    accepted = {int: (int, str), float: (int, float, str), str: ()}[kind]
    if isinstance(value, accepted) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(kind(value)):
                return kind(value)
    raise UsageError(
        f"{name} must be {'an' if kind is int else 'a'} {kind.__name__}, not {value!r}"
    )


def load_preset(root: Path, preset: str) -> dict[str, dict]:
    """chapter → parameters, from `presets/<preset>.yml`."""
    import yaml

    known = sorted(path.stem for path in (root / "presets").glob("*.yml"))
    if preset not in known:
        raise UsageError(f"no preset {preset!r}; presets are {_names(known)}")
    try:
        content = (
            yaml.safe_load((root / "presets" / f"{preset}.yml").read_text(encoding="utf-8")) or {}
        )
    except yaml.YAMLError as error:
        raise UsageError(
            f"presets/{preset}.yml is not YAML: {str(error).splitlines()[0]}"
        ) from None
    for chapter, values in content.items():
        if not isinstance(values or {}, dict):
            raise UsageError(f"presets/{preset}.yml: {chapter} must map parameters to values")
    return {chapter: values or {} for chapter, values in content.items()}


@dataclasses.dataclass(frozen=True)
class Chapter:
    """What planning a run of a chapter needs, read once for any number of runs."""

    root: Path
    name: str
    preset: str
    known: dict[str, tuple[type, object]]
    values: dict  # the preset's
    code: str


def chapter_at(root: Path, name: str, preset: str) -> Chapter:
    """Read a chapter's parameters, its preset and its code's hash. Raises UsageError."""
    known = parameters(root, name)
    values = load_preset(root, preset)
    if name not in values:
        raise UsageError(f"presets/{preset}.yml has no entry for {name}; add `{name}: {{}}`")
    return Chapter(root, name, preset, known, values[name], fingerprint(root, name))


def resolve(chapter: Chapter, overrides: dict) -> tuple[dict, dict]:
    """All parameters of a run (defaults, then preset, then overrides), and those off their default.

    Everything is checked here, before any kernel starts: names, types, and the chapter's own rules
    (`minilib.settings`).
    """
    known = chapter.known
    given = {**chapter.values, **overrides}
    for name in given:
        if name not in known:
            raise UsageError(f"{chapter.name} has no parameter {name!r}; it has {_names(known)}")
    params = {name: default for name, (_, default) in known.items()}
    params |= {name: coerce(name, value, known[name][0]) for name, value in given.items()}

    from minilib import settings  # pydantic: not needed to print help

    if chapter.name in settings.CHAPTERS:
        try:
            settings.CHAPTERS[chapter.name](**params)
        except (ValueError, TypeError):
            try:
                settings.validate(chapter.name, params)  # says it in one line
            except settings.SettingsError as error:
                raise UsageError(str(error)) from None
    return params, {name: value for name, value in params.items() if value != known[name][1]}


# ---------------------------------------------------------------- planning


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
    remote: str | None = None  # where the folder is copied to, if runs are kept elsewhere

    def record(self) -> dict | None:
        """The record of this very run, whatever became of it, if it can be read."""
        found = read_record(self.folder / "run.json")
        return found if found and found["run_id"] == self.run_id else None

    def done(self) -> dict | None:
        """The record of this very run if it was made and is whole."""
        found = self.record()
        return found if found and found["status"] == "ok" and self._whole(found) else None

    def _whole(self, found: dict) -> bool:
        """Whether the notebook is there, to its last byte."""
        if self.remote:  # the record is copied there last, and such a copy is whole or not there
            return True
        path = self.folder / "notebook.ipynb"
        size = found.get("notebook_bytes")
        return path.is_file() and size in (None, path.stat().st_size)


def plan(
    chapter: str,
    preset: str,
    overrides: dict | None = None,
    *,
    root: Path | None = None,
    out: Path | str | None = None,
) -> Plan:
    """Decide a run and check all that can be checked without a kernel. Raises UsageError."""
    return plan_at(chapter_at(root or find_root(), chapter, preset), overrides or {}, out)


def plan_at(chapter: Chapter, overrides: dict, out: Path | str | None = None) -> Plan:
    """As `plan`, for a chapter that was read before."""
    params, changed = resolve(chapter, overrides)
    name = run_id(chapter.name, chapter.code, params)
    place, url = places.local(out, chapter.root)
    inner = (chapter.preset, chapter.name, name)
    return Plan(
        chapter.root,
        chapter.name,
        chapter.preset,
        params,
        changed,
        chapter.code,
        name,
        place.joinpath(*inner),
        "/".join((url, *inner)) if url else None,
    )


# ---------------------------------------------------------------- execution


def run(job: Plan, warm: bool = False) -> dict:
    """Execute a run in a kernel of its own and return its record: ok, failed or interrupted.

    warm: fork the kernel from a process that has done its imports (`minilib.warm`).

    A failed record says why under `cause`: "chapter" (a cell raised something), "memory" or
    "outside" (the kernel was killed, the disk is full: nothing that another try might not mend).
    All files are made in a folder of this process's own, then moved; `run.json` comes last.
    Raises UsageError when the code is no longer what was planned, or there is no kernel.
    """
    if fingerprint(job.root, job.chapter) != job.code:
        raise UsageError(f"{job.chapter}: its code changed since this run was planned; start again")
    _check_kernel()
    commit, started = git_commit(job.root), time.time()
    record, work = blank(job), job.folder / f"{_part()}{os.getpid()}"
    try:
        with signals_interrupt():
            (job.folder / "run.json").unlink(missing_ok=True)
            record |= _attempts(job, work, warm)
        record["notebook_bytes"] = _hand_over(job, work)
    except KeyboardInterrupt:
        record |= {"status": "interrupted", "error": "stopped by a signal"}
    except Exception as error:  # a failed cell, a dead kernel, a record that does not fit
        record |= _failure(error, job)
    if record["status"] != "ok":
        # The notebook shows where it stopped, if it got so far and is whole.
        with contextlib.suppress(OSError, ValueError):
            _hand_over(job, work)
    shutil.rmtree(work, ignore_errors=True)
    record["seconds"] = record["seconds"] or round(time.time() - started, 1)
    record["env"]["commit"] = commit
    return keep(job, record)


def blank(job: Plan) -> dict:
    """The record of a run of which nothing is known yet."""
    return {
        "run_id": job.run_id,
        "chapter": job.chapter,
        "preset": job.preset,
        "status": "failed",
        "params": job.params,
        "metrics": [],
        "data": [],
        "env": {},
        "seconds": None,
        "peak_mib": None,
        "code": job.code,
    }


def keep(job: Plan, record: dict) -> dict:
    """Write a run's record, here and where runs are kept; one that cannot be kept has failed."""
    record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = json.loads(scrub(json.dumps(record), job.root))
    try:
        write_json(job.folder / "run.json", record)
        if job.remote:
            places.push(job.folder, job.remote)
    except Exception as error:  # a full disk, or a store that cannot be reached
        with contextlib.suppress(OSError):
            (job.folder / "run.json").unlink(missing_ok=True)
        record |= _failure(error, job) | {"status": "failed", "cause": "outside"}
    return record


def _attempts(job: Plan, work: Path, warm: bool) -> dict:
    """Execute; once more, in smaller pieces, if memory ran out and the chapter can do that.

    Halving the batch would be another experiment. Only a parameter that splits a batch without
    changing what is computed from it will do, and the record says that it was used.
    """
    try:
        return _attempt(job, work, warm)
    except Exception as error:
        first = _failure(error, job)
        name = next((name for name in MICRO if name in job.params), None)
        if first["cause"] != "memory" or name is None:
            raise
        size = (job.params[name] or job.params.get("batch_size", 0)) // 2
        if size < 1:
            raise
    again = dataclasses.replace(
        job, params={**job.params, name: size}, changed={**job.changed, name: size}
    )
    told = {"because": first["error"], name: size}
    return _attempt(again, work, warm) | {"params": job.params, "retried": told}


def _attempt(job: Plan, work: Path, warm: bool) -> dict:
    """One execution in a folder of its own: what the notebook recorded."""
    job.folder.mkdir(parents=True, exist_ok=True)
    _sweep_up(job.folder)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    _execute(job, work, warm)
    return _recorded(work / "part.json", job) | {"status": "ok"}


def _hand_over(job: Plan, work: Path) -> int | None:
    """Move what a run left into its folder; return the size of its notebook in bytes."""
    if not work.is_dir():
        return None
    (work / "part.json").unlink(missing_ok=True)
    if (work / "notebook.ipynb").is_file():
        _tidy(work / "notebook.ipynb", job)
    for file in work.iterdir():
        if (job.folder / file.name).is_dir():
            shutil.rmtree(job.folder / file.name)
        os.replace(file, job.folder / file.name)
    notebook = job.folder / "notebook.ipynb"
    return notebook.stat().st_size if notebook.is_file() else None


def _check_kernel() -> None:
    """Refuse a kernel named `python3` that would start another Python than this one."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernels before user-wide ones
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    mend = f"install it with: {Path(sys.executable).name} -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        raise UsageError(f"there is no Jupyter kernel python3; {mend}") from None
    # A bare `python` means the interpreter that asks.
    if os.path.isabs(command) and not os.path.samefile(command, sys.executable):
        raise UsageError(f"the Jupyter kernel python3 belongs to another Python; {mend}")


def _execute(job: Plan, work: Path, warm: bool) -> None:
    """papermill, in a kernel of this interpreter, with the repository as working directory."""
    import papermill

    more = {}
    if sys.platform == "linux":
        from minilib.warm import Manager, Named

        more["kernel_manager_class"] = Manager if warm else Named

    told = {name: getattr(job, name) for name in ("run_id", "preset", "chapter", "code")}
    # A checkout's own minilib comes first, then this one.
    own = str(job.root) if (job.root / "minilib").is_dir() else None
    path = os.pathsep.join(filter(None, [own, str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    # A CPU kernel is compiled for each shape of batch, and a thousand of them are kept: gigabytes
    # after an hour of batches that differ in length. Few of them come again soon.
    cache = os.environ.get(CPU_KERNELS, "64")
    given = {"MINILIB_RUN_DIR": str(work), "MINILIB_RUN": json.dumps(told), "PYTHONPATH": path}
    with _environ(**given, **{CPU_KERNELS: cache}):
        papermill.execute_notebook(
            str(job.root / "notebooks" / f"{job.chapter}.ipynb"),
            str(work / "notebook.ipynb"),
            parameters=job.changed,
            kernel_name="python3",
            language="python",
            cwd=str(job.root),
            start_timeout=START_TIMEOUT,
            progress_bar=sys.stderr.isatty() and not warm,
            extra_arguments=["--log-level=50"],  # the kernel's own chatter, not the notebook's
            **more,
        )


@contextlib.contextmanager
def _environ(**values: str):
    """Set environment variables for a while; the kernel inherits them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _failure(error: Exception, job: Plan) -> dict:
    """Last line of what went wrong, its cause and, if a cell failed, its index in the notebook."""
    name, value = type(error).__name__, str(error)
    if hasattr(error, "ename"):  # papermill's report of an exception in a cell
        name, value = error.ename, error.evalue
    found = {"error": f"{name}: {(value.strip().splitlines() or [''])[-1]}"}
    if name in ("MemoryError", "OutOfMemoryError") or re.search(OUT_OF_MEMORY, value):
        found["cause"] = "memory"
    elif name == "DeadKernelError" or isinstance(error, OSError) or re.search(OUTSIDE, value):
        found["cause"] = "outside"
    else:
        found["cause"] = "chapter"
    sources = [cell["source"] for cell in read_notebook(job.root, job.chapter)["cells"]]
    with contextlib.suppress(ValueError):  # not a cell of ours, or edited meanwhile
        found["cell"] = sources.index(getattr(error, "source", None))
    return found


def _recorded(part: Path, job: Plan) -> dict:
    """What the notebook recorded, if that was made with the parameters it was given."""
    if not part.is_file():
        raise ValueError("the notebook ended without calling minilib.runs.record in its last cell")
    found = json.loads(part.read_text(encoding="utf-8"))
    for name, value in job.params.items():
        if found["params"].get(name) != value:
            other = found["params"].get(name)
            raise ValueError(f"the notebook recorded {name}={other!r} but was given {value!r}")
    if not found["metrics"]:
        raise ValueError("the notebook recorded no metrics")
    kept = ("params", "metrics", "data", "env", "seconds", "peak_mib", "computed")
    return {key: found[key] for key in kept if key in found}


@contextlib.contextmanager
def signals_interrupt():
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


def at_work(folder: Path) -> bool:
    """Whether a living process of this machine is making the run of this folder."""
    return any(_alive(part) for part in folder.glob(f"{_part()}*"))


def _alive(part: Path) -> bool:
    pid = int(part.name.removeprefix(_part()))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    with contextlib.suppress(OSError):  # dead, and in a container perhaps never collected
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _sweep_up(folder: Path) -> None:
    """Remove what killed processes of this machine left; a living one keeps its own."""
    for part in folder.glob(f"{_part()}*"):
        if not _alive(part):
            shutil.rmtree(part, ignore_errors=True)


def _part() -> str:
    """Prefix of this machine's unfinished runs: several may share the folder."""
    return f".part-{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}-"


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
        if "outputs" in cell:
            cell["outputs"] = [_scrub_output(output, job.root) for output in cell["outputs"]]
    write_json(path, notebook)


def _scrub_output(output: dict, root: Path) -> dict:
    """Clean what is text in an output; pictures stay as they are."""
    texts = {name: item for name, item in output.items() if name in ("text", "traceback", "evalue")}
    shown = {kind: item for kind, item in output.get("data", {}).items() if kind[:5] == "text/"}
    texts, shown = json.loads(scrub(json.dumps([texts, shown]), root))
    return {**output, **texts, **({"data": {**output["data"], **shown}} if shown else {})}


def scrub(text: str, root: Path) -> str:
    """`text` with this machine's folders replaced by their names."""
    places = {
        os.environ.get(name, ""): f"${name}"
        for name in ("MINILIB_DATA", "MINILIB_MODELS", "MINILIB_CACHE")
    }
    places |= {str(root): ".", sys.prefix: "<env>", str(PACKAGE.parent): ".", str(Path.home()): "~"}
    for place in sorted(filter(lambda place: len(place) > 1, places), key=len, reverse=True):
        text = text.replace(place, places[place])
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "<cell>", text)
