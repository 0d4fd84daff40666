"""Executing a chapter: decide the run, check it, execute it with papermill, leave a whole record.

A chapter run is an executed notebook and the keys of the trials that it read. Everything that can
be wrong with a request is found before a kernel starts. papermill is imported only when something
is executed, so that the command line answers at once.
"""

import ast
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from minilib import ledger, provenance
from minilib.provenance import (
    PACKAGE,
    UsageError,
    find_root,
    git_commit,
    now,
    read_json,
    write_json,
)
from minilib.runs import storage

# Errors raised inside a notebook that are the user's to mend (exit code 2), not the chapter's (1).
USER_ERRORS = ("DataError", "SettingsError")
OUT_OF_MEMORY = r"out of memory|can't allocate memory|[Uu]nable to allocate"
FULL = "No space left on device"
# What a machine does to a run, as opposed to what the run does: another try may mend it.
OUTSIDE = rf"{FULL}|[Kk]ernel (did not answer|didn't respond|died)"
CPU_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
PRINTED_MAX = 200_000  # characters of what a cell prints that are kept
START_TIMEOUT = 600  # seconds for a kernel to answer; a busy machine may need minutes


# ---------------------------------------------------------------- parameters


def read_notebook(root: Path, chapter: str) -> dict:
    """The notebook of a chapter as plain JSON, with each cell's source joined into one string."""
    names = chapters(root)
    if chapter not in names:  # and so no path that leads elsewhere
        raise UsageError(provenance.unknown("chapter", chapter, names))
    notebook = json.loads((root / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
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
    """name → (declared type, default), from the chapter's settings class.

    The cell tagged `parameters`, which is not run, must say the same; it is all there is where a
    chapter has no settings class. Raises UsageError.
    """
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    cell_params = {}
    for cell in read_notebook(root, chapter)["cells"]:
        if cell["cell_type"] != "code" or "parameters" not in _tags(cell):
            continue
        for line in ast.parse(cell["source"]).body:
            try:
                name, kind = line.target.id, kinds[ast.unparse(line.annotation)]
                cell_params[name] = kind, coerce(name, ast.literal_eval(line.value), kind)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise UsageError(
                    f"{chapter}: {ast.unparse(line)!r} in the parameters cell is not of the form "
                    f"`name: type = value` with a type of {_names(kinds)}"
                ) from None
    from minilib import settings  # pydantic: not needed to print help

    if chapter not in settings.CHAPTERS:
        return cell_params
    class_params = {
        name: declaration[:2] for name, declaration in settings.declared(chapter).items()
    }
    names = [
        n for n in {**class_params, **cell_params} if class_params.get(n) != cell_params.get(n)
    ]
    if names:
        raise UsageError(
            f"{chapter}: its parameters cell and its settings class differ in {_names(names)}; "
            "`make sync` writes the cell"
        )
    return class_params


def coerce(name: str, value, kind: type):
    """`value`, from YAML or typed as text, as the declared type; refused where that would guess."""
    if kind is str and isinstance(value, str):
        if value.isprintable():
            return value
        raise UsageError(f"{name} must be a str in one line of printable characters, not {value!r}")
    if kind is bool:
        bools = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in bools:
            return bools[value.strip().lower()]
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
    presets = sorted(path.stem for path in (root / "presets").glob("*.yml"))
    if preset not in presets:
        raise UsageError(provenance.unknown("preset", preset, presets))
    content = provenance.read_yaml(root / "presets" / f"{preset}.yml")
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
    code: str  # hash of its code cells


def chapter_at(root: Path, name: str, preset: str) -> Chapter:
    """Read a chapter's parameters, its preset and its code cells. Raises UsageError."""
    params = parameters(root, name)
    values = load_preset(root, preset)
    if name not in values:
        raise UsageError(f"presets/{preset}.yml has no entry for {name}; add `{name}: {{}}`")
    return Chapter(root, name, preset, params, values[name], _code(root, name))


def _code(root: Path, chapter: str) -> str:
    """Hash of a notebook's code cells but the bootstrap cell, which carries an address."""
    cells = [
        cell["source"].strip()
        for cell in read_notebook(root, chapter)["cells"]
        if cell["cell_type"] == "code" and "bootstrap" not in _tags(cell)
    ]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:16]


def settings_of(chapter: str, params: dict):
    """A chapter's settings from all its parameters; a plain namespace where it has no class."""
    from minilib import settings

    if chapter not in settings.CHAPTERS:
        return SimpleNamespace(**params)
    try:
        return settings.validate(chapter, params)
    except settings.SettingsError as error:
        raise UsageError(str(error)) from None


def recipes_of(chapter: str, cfg) -> list:
    """The recipes of all trials that a chapter needs; none where it is no view of the ledger."""
    from minilib import chapters

    return chapters.chapter(chapter).trials(cfg) if chapter in chapters.CHAPTERS else []


def run_id(chapter: str, code: str, params: dict, recipes: Iterable) -> str:
    """Identity of a run (12 hex digits): its cells, its parameters, the trials that it needs."""
    keys = sorted({ledger.key_of(one) for one in recipes})
    text = json.dumps([chapter, code, params, keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def resolve(chapter: Chapter, overrides: dict) -> tuple[dict, dict]:
    """All parameters of a run (defaults, then preset, then overrides), and those off their default.

    Names and types are checked here; the chapter's own rules by `settings_of`.
    """
    declarations = chapter.known
    values = {**chapter.values, **overrides}
    for name in values:
        if name not in declarations:
            raise UsageError(
                f"{chapter.name}: {provenance.unknown('parameter', name, declarations)}"
            )
    params = {name: default for name, (_, default) in declarations.items()}
    params |= {name: coerce(name, value, declarations[name][0]) for name, value in values.items()}
    return params, {name: value for name, value in params.items() if value != declarations[name][1]}


# ---------------------------------------------------------------- planning


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run, fully decided and checked, before anything is executed."""

    root: Path
    chapter: str
    preset: str
    params: dict  # all of them
    changed: dict  # those that differ from the notebook's defaults: what papermill injects
    run_id: str
    folder: Path
    remote: str | None = None  # where the folder is copied to, if runs are kept elsewhere

    @property
    def lock(self) -> Path:
        """Held by the process that executes this run."""
        return self.folder.parent / ".locks" / self.run_id

    @property
    def cfg(self):
        """The chapter's settings."""
        return settings_of(self.chapter, self.params)

    def recipes(self) -> list:
        """The recipes of all trials that the run needs."""
        return recipes_of(self.chapter, self.cfg)

    def record(self) -> dict | None:
        """The record of this very run, whatever became of it, if it can be read."""
        path = self.folder / "run.json"
        record = read_json(path)
        if record is None:
            return None
        if record.get("run_id") == self.run_id and is_record(record):
            return record
        warnings.warn(f"{path} is no record of this run, and put aside", stacklevel=2)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        return None

    def done(self, fresh: bool = False) -> dict | None:
        """The record of this very run if it was made and is whole.

        fresh: also of one that computed trials anew, beside those of the ledger.
        """
        record = self.record()
        is_whole = record and record["status"] == "ok" and self._whole(record)
        return record if is_whole and (fresh or not record.get("fresh")) else None

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
    at = chapter_at(root or find_root(), chapter, preset)
    if storage.is_url(out):
        storage.pull(out, at.root, preset, chapter)
    return plan_at(at, overrides or {}, out)


def plan_at(chapter: Chapter, overrides: dict, out: Path | str | None = None) -> Plan:
    """As `plan`, for a chapter that was read before."""
    params, changed_params = resolve(chapter, overrides)
    try:
        recipes = recipes_of(chapter.name, settings_of(chapter.name, params))
    except UsageError:
        raise
    except ValueError as error:  # a rule of a recipe
        raise UsageError(f"{chapter.name}: {error}") from None
    name = run_id(chapter.name, chapter.code, params, recipes)
    place, url = storage.local(out, chapter.root)
    path_names = (chapter.preset, chapter.name, name)
    return Plan(
        chapter.root,
        chapter.name,
        chapter.preset,
        params,
        changed_params,
        name,
        place.joinpath(*path_names),
        "/".join((url, *path_names)) if url else None,
    )


# ---------------------------------------------------------------- execution


def run(
    job: Plan, fresh: Iterable[str] = (), again: bool = True, time_limit: float | None = None
) -> dict:
    """Execute a run in a kernel of its own and return its record: ok, failed or interrupted.

    Args:
        fresh: kinds of trials to compute anew, beside those of the ledger.
        again: also where another process has just done so; a second asker waits for the first.
        time_limit: minutes after which it has failed.

    A failed record says why under `cause`: "chapter" (a cell raised something), "memory" or
    "outside" (the kernel was killed, the disk is full: nothing that another try might not mend).
    All files are made in a folder aside, then moved; `run.json` comes last. Raises UsageError when
    the notebook is no longer what was planned, or there is no kernel.
    """
    with ledger.locked(job.folder.parent, job.run_id, "runs"):
        return (not again and job.done()) or _run(job, fresh, time_limit)


def _run(job: Plan, fresh: Iterable[str], time_limit: float | None) -> dict:
    if run_id(job.chapter, _code(job.root, job.chapter), job.params, job.recipes()) != job.run_id:
        raise UsageError(f"{job.chapter}: it changed since this run was planned; start again")
    _check_kernel()
    start_time, kills = time.time(), oom_kills()
    record, work = blank(job), job.folder / ".part"
    record |= {"fresh": sorted(fresh)} if fresh else {}
    try:
        with signals_interrupt(time_limit):
            (job.folder / "run.json").unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)  # what a killed run left
            work.mkdir(parents=True)
            _execute(job, work, fresh)
            record |= _recorded(work / "part.json", job) | {"status": "ok"}
        record["notebook_bytes"] = _hand_over(job, work, record)
    except KeyboardInterrupt:
        record |= {"status": "interrupted", "error": "stopped by a signal"}
    except Exception as error:  # a failed cell, a dead kernel, a record that does not fit
        record |= _failure(error, job, kills) | {"status": "failed"}
    if record["status"] != "ok":
        # The notebook shows where it stopped, if it got so far and is whole.
        with contextlib.suppress(OSError, ValueError):
            _hand_over(job, work, record)
    shutil.rmtree(work, ignore_errors=True)
    record["seconds"] = record["seconds"] or round(time.time() - start_time, 1)
    return keep(job, record)


def blank(job: Plan) -> dict:
    """The record of a run of which nothing is known yet."""
    return {
        "run_id": job.run_id,
        "chapter": job.chapter,
        "preset": job.preset,
        "status": "failed",
        "params": job.params,
        "keys": {},  # kind → keys of the trials that it read
        "computed": 0,  # how many of them were not in the ledger
        "machines": {},  # where they were made → how many
        "env": {},
        "commit": git_commit(),
        "seconds": None,
        "peak_mib": None,
    }


def why(job: Plan, record: dict) -> str:
    """Why a run is not whole, in which cell, and where to look."""
    cell = f" (cell {record['cell']})" if "cell" in record else ""
    place = os.path.relpath(job.folder / "notebook.ipynb")
    return f"{record.get('error', 'it was not executed')}{cell}; see {place}"


def is_record(record: dict) -> bool:
    """Whether a record has the entries of ``blank``, as far as they are read."""
    keys, numbers = record.get("keys"), (record.get("seconds"), record.get("computed"))
    return (
        record.get("status") in ("ok", "failed", "interrupted")
        and isinstance(record.get("error", ""), str)
        and isinstance(record.get("fresh", []), list)
        and all(isinstance(number, (int, float, type(None))) for number in numbers)
        and isinstance(record.get("params"), dict)
        and isinstance(keys, dict)
        and all(isinstance(each, list) for each in keys.values())
        and all(ledger.KEY.fullmatch(str(key)) for each in keys.values() for key in each)
        and all(ledger.KIND.fullmatch(kind) for kind in keys)
    )


def keep(job: Plan, record: dict) -> dict:
    """Write a run's record, here and where runs are kept; one that cannot be written has failed.

    A store that does not answer takes nothing away: the run is whole here, and sent by the next
    command that is given this store.
    """
    record["finished"] = now()
    record = json.loads(scrub(json.dumps(record), job.root))
    try:
        if job.remote:
            storage.mark_unsent(job.folder)
        write_json(job.folder / "run.json", record)
    except OSError as error:  # a full disk
        with contextlib.suppress(OSError):
            (job.folder / "run.json").unlink(missing_ok=True)
        return record | _failure(error, job) | {"status": "failed", "cause": "outside"}
    if job.remote:
        try:
            storage.push(job.folder, job.remote)
        except Exception as error:  # file systems raise what they like
            warning = f"{job.chapter} {job.run_id} is kept in {job.folder} and not sent: {error}"
            warnings.warn(provenance.one_line(warning), stacklevel=2)
    return record


def _hand_over(job: Plan, work: Path, record: dict) -> int | None:
    """Move what a run left into its folder; return the size of its notebook in bytes."""
    if not work.is_dir():
        return None
    (work / "part.json").unlink(missing_ok=True)
    if (work / "notebook.ipynb").is_file():
        _tidy(work / "notebook.ipynb", job, record)
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

    remedy = f"install it with: {Path(sys.executable).name} -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        raise UsageError(f"there is no Jupyter kernel python3; {remedy}") from None
    # A bare `python` means the interpreter that asks.
    if os.path.isabs(command) and not os.path.samefile(command, sys.executable):
        raise UsageError(f"the Jupyter kernel python3 belongs to another Python; {remedy}")


def _execute(job: Plan, work: Path, fresh: Iterable[str]) -> None:
    """papermill, in a kernel of this interpreter, with the repository as working directory."""
    import papermill
    from traitlets.config import Config

    # Of five ports that are free now, another process may have one when the kernel binds it. A name
    # in Linux's abstract namespace cannot be taken, and leaves no file behind.
    place = {"transport": "ipc", "ip": f"@minilib-{uuid.uuid4().hex}"}
    place = place if sys.platform == "linux" else {}
    run_info = {name: getattr(job, name) for name in ("run_id", "preset", "chapter")}
    # A checkout's own minilib comes first, then this one.
    checkout = str(job.root) if (job.root / "minilib").is_dir() else None
    path = os.pathsep.join(
        filter(None, [checkout, str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
    )
    # A CPU kernel is compiled for each shape of batch, and a thousand of them are kept: gigabytes
    # after an hour of batches that differ in length. Few of them come again soon.
    cache = os.environ.get(CPU_KERNELS, "64")
    variables = {
        "MINILIB_RUN_DIR": str(work),
        "MINILIB_RUN": json.dumps(run_info),
        "PYTHONPATH": path,
    }
    variables |= {"MINILIB_FRESH": ",".join(fresh)} if fresh else {}
    on_terminal = sys.stderr.isatty() and hasattr(os, "ttyname")
    if on_terminal:  # the bar of the trials that are computed in the kernel
        variables["MINILIB_TTY"] = os.ttyname(sys.stderr.fileno())
    with environ(**variables, **{CPU_KERNELS: cache}):
        papermill.execute_notebook(
            str(job.root / "notebooks" / f"{job.chapter}.ipynb"),
            str(work / "notebook.ipynb"),
            parameters=job.changed,
            kernel_name="python3",
            language="python",
            cwd=str(job.root),
            start_timeout=START_TIMEOUT,
            progress_bar=on_terminal,
            extra_arguments=["--log-level=50"],  # the kernel's own chatter, not the notebook's
            config=Config(KernelManager=place),
        )


@contextlib.contextmanager
def environ(**values: str):
    """Set environment variables for a while; the kernel inherits them."""
    old_values = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old_values.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def oom_kills() -> int:
    """How many processes Linux has killed since it started because memory ran out; elsewhere 0."""
    with contextlib.suppress(OSError):
        match = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.M)
        return int(match[1]) if match else 0
    return 0


def _failure(error: Exception, job: Plan, kills_before: int = 0) -> dict:
    """Last line of what went wrong, its cause and, if a cell failed, its index in the notebook.

    kills_before: ``oom_kills`` when the run began.
    """
    name, value = type(error).__name__, str(error)
    if hasattr(error, "ename"):  # papermill's report of an exception in a cell
        name, value = error.ename, error.evalue
    lines = [line.strip() for line in value.splitlines() if re.search(r"\w", line)]  # no rules
    failure = {"error": provenance.one_line(f"{name}: {(lines or [''])[-1]}")}
    killed_for_memory = name == "DeadKernelError" and oom_kills() > kills_before
    if name == "DeadKernelError":
        why = "memory ran out" if killed_for_memory else "as the system does where memory runs out"
        failure["error"] += f": it was killed, {why}" * (value == "Kernel died")
    if (
        killed_for_memory
        or name in ("MemoryError", "OutOfMemoryError")
        or re.search(OUT_OF_MEMORY, value)
    ):
        failure["cause"] = "memory"
    elif name == "DeadKernelError" or isinstance(error, OSError) or re.search(OUTSIDE, value):
        failure["cause"] = "outside"
    else:
        failure["cause"] = "chapter"
    sources = [cell["source"] for cell in read_notebook(job.root, job.chapter)["cells"]]
    with contextlib.suppress(ValueError):  # not a cell of ours, or edited meanwhile
        failure["cell"] = sources.index(getattr(error, "source", None))
    return failure


def _recorded(part: Path, job: Plan) -> dict:
    """What the notebook recorded, if that was made with the parameters it was given."""
    if not part.is_file():
        raise ValueError("the notebook ended without calling ledger.colophon in its last cell")
    record = json.loads(part.read_text(encoding="utf-8"))
    for name, value in job.params.items():
        if record["params"].get(name) != value:
            other = record["params"].get(name)
            raise ValueError(f"the notebook recorded {name}={other!r} but was given {value!r}")
    return {name: value for name, value in record.items() if name != "params"}


class TimeLimitError(Exception):
    """A run or a trial took longer than it may."""


@contextlib.contextmanager
def signals_interrupt(time_limit: float | None = None):
    """Make SIGTERM stop a run as Ctrl-C does, also where a shell started us with SIGINT ignored.

    time_limit: minutes after which TimeLimitError is raised, where the system has such a signal.
    What comes after the first signal is ignored: a second Ctrl-C does not stop the clearing up.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGALRM] if time_limit and hasattr(signal, "SIGALRM") else []
    received = []

    def stop(signum, frame):
        received.append(signum)
        if len(received) == 1:
            raise KeyboardInterrupt

    try:
        handlers = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # not the main thread: signals are someone else's business
        handlers = {}
    if len(handlers) > 2:
        signal.setitimer(signal.ITIMER_REAL, 60 * time_limit)
    try:
        yield
    except KeyboardInterrupt:
        if received and received[0] not in (signal.SIGINT, signal.SIGTERM):
            raise TimeLimitError(f"longer than --time-limit {time_limit:g} min") from None
        raise
    finally:
        if len(handlers) > 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _tidy(path: Path, job: Plan, record: dict) -> None:
    """Take paths, timings and random ids out of an executed notebook, and say what it read."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    names = ("run_id", "preset", "keys", "computed", "machines")
    notebook["metadata"]["minilib"] = {name: record[name] for name in names}
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
    text_data = {kind: item for kind, item in output.get("data", {}).items() if kind[:5] == "text/"}
    texts, text_data = json.loads(scrub(json.dumps([texts, text_data]), root))
    printed = texts.get("text", "")
    printed = "".join(printed) if isinstance(printed, list) else printed
    if len(printed) > PRINTED_MAX:
        half, left_out = PRINTED_MAX // 2, len(printed) - PRINTED_MAX
        texts["text"] = (
            f"{printed[:half]}\n… {left_out} characters are left out …\n{printed[-half:]}"
        )
    return {**output, **texts, **({"data": {**output["data"], **text_data}} if text_data else {})}


def scrub(text: str, root: Path) -> str:
    """`text` with this machine's folders replaced by their names."""
    places = {
        os.environ.get(name, ""): f"${name}"
        for name in ("MINILIB_DATA", "MINILIB_MODELS", "MINILIB_CACHE", "MINILIB_LEDGER")
    }
    places |= {str(root): ".", sys.prefix: "<env>", str(PACKAGE.parent): ".", str(Path.home()): "~"}
    for place in sorted(filter(lambda place: len(place) > 1, places), key=len, reverse=True):
        text = text.replace(place, places[place])
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "<cell>", text)
