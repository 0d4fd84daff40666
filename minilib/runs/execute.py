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
from types import NoneType, SimpleNamespace

from minilib import chapters as views
from minilib import ledger, provenance, settings
from minilib.provenance import PACKAGE, UsageError, find_root, read_json, write_json
from minilib.runs import storage

# Errors raised inside a notebook that are the user's to mend (exit code 2), not the chapter's (1).
USER_ERRORS = ("DataError", "SettingsError")
FULL = "No space left on device"
OUT_OF_MEMORY = (
    r"(Memory|OutOfMemory)Error|out of memory|can't allocate memory|[Uu]nable to allocate"
)
# What the machine or the user does to work, as opposed to what it does: another try may mend it.
OUTSIDE = rf"^(Data|Model|Settings)Error|{FULL}|[Kk]ernel (did not answer|didn't respond|died)"
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


def _code_cells(root: Path, chapter: str) -> list[tuple[list[str], str]]:
    """Tags and source of each of a notebook's code cells."""
    cells = read_notebook(root, chapter)["cells"]
    return [(_tags(one), one["source"].strip()) for one in cells if one["cell_type"] == "code"]


def _tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def parameters(root: Path, chapter: str) -> dict[str, tuple[type, object]]:
    """name → (declared type, default), from the notebook's cell tagged `parameters`.

    Where the chapter has a settings class, the cell must say the same. Raises UsageError.
    """
    kinds = {kind.__name__: kind for kind in (str, int, float, bool)}
    params = {}
    cells = [source for tags, source in _code_cells(root, chapter) if "parameters" in tags]
    for line in ast.parse("\n".join(cells)).body:
        try:
            name, kind = line.target.id, kinds[ast.unparse(line.annotation)]
            params[name] = kind, settings.coerce(name, ast.literal_eval(line.value), kind)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UsageError(
                f"{chapter}: {ast.unparse(line)!r} in the parameters cell is not of the form "
                f"`name: type = value` with a type of {', '.join(kinds)}"
            ) from None
    if chapter in settings.CHAPTERS:
        declared = {name: one[:2] for name, one in settings.declared(chapter).items()}
        if names := sorted({name for name, _ in params.items() ^ declared.items()}):
            raise UsageError(
                f"{chapter}: its parameters cell and its settings class differ in "
                f"{', '.join(names)}; `make sync` writes the cell"
            )
    return params


@dataclasses.dataclass(frozen=True)
class Chapter:
    """What planning a run of a chapter needs, read once for any number of runs."""

    root: Path
    name: str
    preset: str
    out: Path | str | None  # where its runs are kept
    known: dict[str, tuple[type, object]]
    values: dict  # the preset's
    code: str  # hash of its code cells

    def value(self, name: str, value: object):
        """A value of a parameter, of its declared type. Raises UsageError."""
        if name not in self.known:
            raise UsageError(f"{self.name}: {provenance.unknown('parameter', name, self.known)}")
        return settings.coerce(name, value, self.known[name][0])

    def plan(self, overrides: dict) -> "Plan":
        """Decide a run; overrides go before the preset's values. Raises UsageError."""
        values = {**self.values, **overrides}
        values = {name: self.value(name, value) for name, value in values.items()}
        params = {name: values.get(name, default) for name, (_, default) in self.known.items()}
        changed = {name: value for name, value in params.items() if value != self.known[name][1]}
        try:
            recipes = recipes_of(self.name, settings_of(self.name, params))
        except ValueError as error:  # a rule of the chapter, which names it, or of a recipe
            said = str(error).removeprefix(f"{self.name}: ")
            raise UsageError(f"{self.name}: {said}") from None
        name = run_id(self.name, self.code, params, recipes)
        place, url = storage.local(self.out, self.root)
        inner = (self.preset, self.name, name)
        remote = "/".join((url, *inner)) if url else None
        folder = place.joinpath(*inner)
        return Plan(self.root, self.name, self.preset, params, changed, name, folder, remote)


def chapter_at(root: Path, name: str, preset: str, out: Path | str | None = None) -> Chapter:
    """Read a chapter's parameters, its preset and its code cells. Raises UsageError.

    out: where its runs are kept; from a URL their records are fetched.
    """
    params = parameters(root, name)
    values = settings.preset(root, preset)
    if name not in values:
        raise UsageError(f"presets/{preset}.yml has no entry for {name}; add `{name}: {{}}`")
    if storage.is_url(out):
        storage.pull(out, root, preset, name)
    return Chapter(root, name, preset, out, params, values[name], _code(root, name))


def _code(root: Path, chapter: str) -> str:
    """Hash of a notebook's code cells but the bootstrap cell, which carries an address."""
    cells = [source for tags, source in _code_cells(root, chapter) if "bootstrap" not in tags]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:16]


def settings_of(chapter: str, params: dict):
    """A chapter's settings from all its parameters; a plain namespace where it has no class."""
    has_class = chapter in settings.CHAPTERS
    return settings.validate(chapter, params) if has_class else SimpleNamespace(**params)


def recipes_of(chapter: str, cfg) -> list:
    """The recipes of all trials that a chapter needs; none where it is no view of the ledger."""
    return views.chapter(chapter).trials(cfg) if chapter in views.CHAPTERS else []


def run_id(chapter: str, code: str, params: dict, recipes: Iterable) -> str:
    """Identity of a run (12 hex digits): its cells, its parameters, the trials that it needs."""
    keys = sorted({ledger.key_of(one) for one in recipes})
    text = json.dumps([chapter, code, params, keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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
        if record is None or (record.get("run_id") == self.run_id and is_record(record)):
            return record
        warnings.warn(f"{path} is no record of this run, and put aside", stacklevel=2)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        return None

    def done(self, fresh: bool = False) -> dict | None:
        """The record of this very run if it was made and its notebook is there to the last byte.

        fresh: also of one that computed trials anew, beside those of the ledger.
        """
        record = self.record()
        if not record or record["status"] != "ok" or (record.get("fresh") and not fresh):
            return None
        if self.remote:  # the record is copied there last, and such a copy is whole or not there
            return record
        path, size = self.folder / "notebook.ipynb", record.get("notebook_bytes")
        return record if path.is_file() and size in (None, path.stat().st_size) else None


def plan(
    chapter: str,
    preset: str,
    overrides: dict | None = None,
    *,
    root: Path | None = None,
    out: Path | str | None = None,
) -> Plan:
    """Decide a run and check all that can be checked without a kernel. Raises UsageError."""
    return chapter_at(root or find_root(), chapter, preset, out).plan(overrides or {})


# ---------------------------------------------------------------- records


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
        "commit": provenance.git_commit(),
        "seconds": None,
        "peak_mib": None,
    }


def is_record(record: dict) -> bool:
    """Whether a record has the entries of ``blank``, as far as they are read."""
    number = (int, float, NoneType)
    kinds = {"status": str, "params": dict, "keys": dict, "error": str, "fresh": list,
             "computed": number, "seconds": number}  # fmt: skip
    return (
        {"status", "params", "keys"} <= record.keys()
        and all(isinstance(record[name], kinds[name]) for name in record.keys() & kinds.keys())
        and record["status"] in ("ok", "failed", "interrupted")
        and all(ledger.KIND.fullmatch(kind) for kind in record["keys"])
        and all(isinstance(each, list) for each in record["keys"].values())
        and all(ledger.KEY.fullmatch(str(k)) for each in record["keys"].values() for k in each)
    )


def why(job: Plan, record: dict) -> str:
    """Why a run is not whole, in which cell, and where to look."""
    cell = f" (cell {record['cell']})" if "cell" in record else ""
    place = os.path.relpath(job.folder / "notebook.ipynb")
    return f"{record.get('error', 'it was not executed')}{cell}; see {place}"


def keep(job: Plan, record: dict) -> dict:
    """Write a run's record, here and where runs are kept; one that cannot be written has failed.

    A store that does not answer takes nothing away: the run is whole here, and sent by the next
    command that is given this store.
    """
    record["finished"] = provenance.now()
    record = json.loads(scrub(json.dumps(record), job.root))
    try:
        if job.remote:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / storage.UNSENT).touch()
        write_json(job.folder / "run.json", record)
    except OSError as error:  # a full disk
        with contextlib.suppress(OSError):
            (job.folder / "run.json").unlink(missing_ok=True)
        return record | _failure(error, job) | {"status": "failed"}
    if job.remote:
        try:
            storage.push(job.folder, job.remote)
        except Exception as error:  # file systems raise what they like
            warning = f"{job.chapter} {job.run_id} is kept in {job.folder} and not sent: {error}"
            warnings.warn(provenance.one_line(warning), stacklevel=2)
    return record


def oom_kills() -> int:
    """How many processes Linux has killed since it started because memory ran out; elsewhere 0."""
    with contextlib.suppress(OSError):
        match = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.M)
        return int(match[1]) if match else 0
    return 0


def fault(error: Exception, kills_before: float = math.inf) -> tuple[str, str]:
    """What went wrong in one line, and its cause: "memory", "outside" or "itself".

    Outside is what the machine or the user did to a run or a trial: another try may mend it.
    kills_before: ``oom_kills`` when the work began.
    """
    # papermill reports an exception in a cell under its own name
    name = getattr(error, "ename", type(error).__name__)
    text = getattr(error, "evalue", str(error))
    words = " ".join(line for line in text.splitlines() if re.search(r"\w", line))  # no rules
    if name == "BrokenProcessPool" or text == "Kernel died":
        if oom_kills() > kills_before:
            return "its process was killed, memory ran out", "memory"
        return "its process was killed, as the system does where memory runs out", "outside"
    if re.search(OUT_OF_MEMORY, f"{name}: {text}"):
        line = f"out of memory, fewer --workers leave more to each: {words or name}"
        return provenance.one_line(line), "memory"
    outside = isinstance(error, OSError | ImportError) or re.search(OUTSIDE, f"{name}: {text}")
    return provenance.one_line(f"{name}: {words}"), "outside" if outside else "itself"


def _failure(error: Exception, job: Plan, kills_before: float = math.inf) -> dict:
    """What a record says of a failure: error, cause and, if a cell failed, its index."""
    line, cause = fault(error, kills_before)
    sources = [cell["source"] for cell in read_notebook(job.root, job.chapter)["cells"]]
    source = getattr(error, "source", None)  # it may have been edited meanwhile
    cell = {"cell": sources.index(source)} if source in sources else {}
    return {"error": line, "cause": cause} | cell


# ---------------------------------------------------------------- execution


def run(
    job: Plan, fresh: Iterable[str] = (), again: bool = True, time_limit: float | None = None
) -> dict:
    """Execute a run in a kernel of its own and return its record: ok, failed or interrupted.

    Args:
        fresh: kinds of trials to compute anew, beside those of the ledger.
        again: also where another process has just done so; a second asker waits for the first.
        time_limit: minutes after which it has failed.

    A failed record says why under `cause`, as ``fault`` does. All files are made in a folder aside,
    then moved; `run.json` comes last. Raises UsageError when the notebook is no longer what was
    planned.
    """
    with ledger.locked(job.folder.parent, job.run_id, "runs"):
        return (not again and job.done()) or _run(job, fresh, time_limit)


def _run(job: Plan, fresh: Iterable[str], time_limit: float | None) -> dict:
    if run_id(job.chapter, _code(job.root, job.chapter), job.params, job.recipes()) != job.run_id:
        raise UsageError(f"{job.chapter}: it changed since this run was planned; start again")
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
        _hand_over(job, work, record)
        record["notebook_bytes"] = (job.folder / "notebook.ipynb").stat().st_size
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


def _execute(job: Plan, work: Path, fresh: Iterable[str]) -> None:
    """papermill, in a kernel of this interpreter, with the repository as working directory."""
    # jsonschema compiles a grammar of addresses as it is imported, for seconds in each process, if
    # JupyterLab has brought one. What checks a notebook does not read it.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default
    from traitlets.config import Config

    class OwnKernel(AsyncKernelManager):
        """Of this Python, whatever other one is called `python3` on this machine."""

        @default("kernel_spec_manager")
        def _own_kernel(self):
            return KernelSpecManager(kernel_dirs=[])

    # Of five ports that are free now, another process may have one when the kernel binds it. A name
    # in Linux's abstract namespace cannot be taken, and leaves no file behind.
    place = {"transport": "ipc", "ip": f"@minilib-{uuid.uuid4().hex}"}
    # A checkout's own minilib comes first, then this one.
    checkout = str(job.root) if (job.root / "minilib").is_dir() else None
    path = [checkout, str(PACKAGE.parent), os.environ.get("PYTHONPATH")]
    variables = {
        "MINILIB_RUN_DIR": str(work),
        "MINILIB_RUN": json.dumps({n: getattr(job, n) for n in ("run_id", "preset", "chapter")}),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    } | few_cpu_kernels()
    variables |= {"MINILIB_FRESH": ",".join(fresh)} if fresh else {}
    on_terminal = sys.stderr.isatty() and hasattr(os, "ttyname")
    if on_terminal:  # the bar of the trials that are computed in the kernel
        variables["MINILIB_TTY"] = os.ttyname(sys.stderr.fileno())
    with environ(**variables):
        papermill.execute_notebook(
            str(job.root / "notebooks" / f"{job.chapter}.ipynb"),
            str(work / "notebook.ipynb"),
            parameters=job.changed,
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            language="python",
            cwd=str(job.root),
            start_timeout=START_TIMEOUT,
            progress_bar=on_terminal,
            extra_arguments=["--log-level=50"],  # the kernel's own chatter, not the notebook's
            config=Config(KernelManager=place if sys.platform == "linux" else {}),
        )


def few_cpu_kernels() -> dict[str, str]:
    """What a process that trains has in its environment.

    A CPU kernel is compiled for each shape of batch, and a thousand of them are kept: gigabytes
    after an hour of batches that differ in length. Few of them come again soon.
    """
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    return {name: os.environ.get(name, "64")}


def _recorded(part: Path, job: Plan) -> dict:
    """What the notebook recorded, if that was made with the parameters it was given."""
    if not part.is_file():
        raise ValueError("the notebook ended without calling ledger.colophon in its last cell")
    record = json.loads(part.read_text(encoding="utf-8"))
    params = record.pop("params")
    for name, value in job.params.items():
        if params.get(name) != value:
            other = params.get(name)
            raise ValueError(f"the notebook recorded {name}={other!r} but was given {value!r}")
    return record


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


class TimeLimitError(Exception):
    """A run or a trial took longer than it may."""


@contextlib.contextmanager
def signals_interrupt(time_limit: float | None = None):
    """Make SIGTERM stop a run as Ctrl-C does, also where a shell started us with SIGINT ignored.

    time_limit: minutes after which TimeLimitError is raised, where the system has such a signal.
    What comes after the first signal is ignored: a second Ctrl-C does not stop the clearing up.
    """
    alarm, received = getattr(signal, "SIGALRM", None) if time_limit else None, []

    def stop(signum, frame):
        received.append(signum)
        if len(received) == 1:
            raise KeyboardInterrupt

    with contextlib.ExitStack() as undo:
        with contextlib.suppress(ValueError):  # not the main thread: someone else's business
            for number in filter(None, (signal.SIGINT, signal.SIGTERM, alarm)):
                undo.callback(signal.signal, number, signal.signal(number, stop))
            if alarm:
                undo.callback(signal.setitimer, signal.ITIMER_REAL, 0)
                signal.setitimer(signal.ITIMER_REAL, 60 * time_limit)
        try:
            yield
        except KeyboardInterrupt:
            if alarm and received[:1] == [alarm]:
                raise TimeLimitError(f"longer than --time-limit {time_limit:g} min") from None
            raise


# ---------------------------------------------------------------- what a notebook tells of here


def _hand_over(job: Plan, work: Path, record: dict) -> None:
    """Put the notebook, as far as it got, into the run's folder.

    Without paths, timings and random ids, and with what it read.
    """
    if not (work / "notebook.ipynb").is_file():
        return
    notebook = json.loads((work / "notebook.ipynb").read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    names = ("run_id", "preset", "keys", "computed", "machines")
    notebook["metadata"]["minilib"] = {name: record[name] for name in names}
    for cell in notebook["cells"]:
        for noise in ("papermill", "execution"):
            cell["metadata"].pop(noise, None)
        if "injected-parameters" in _tags(cell):
            cell["id"] = "injected-parameters"
        for output in cell.get("outputs", ()):
            _scrub_output(output, job.root)
    write_json(job.folder / "notebook.ipynb", notebook)


def _scrub_output(output: dict, root: Path) -> None:
    """Clean what is text in an output; pictures stay as they are."""
    for part in (output, output.get("data", {})):
        for name in part:
            if name in ("text", "traceback", "evalue") or name.startswith("text/"):
                part[name] = json.loads(scrub(json.dumps(part[name]), root))
    printed = "".join(output.get("text", ""))
    if len(printed) > PRINTED_MAX:
        half, left_out = PRINTED_MAX // 2, len(printed) - PRINTED_MAX
        cut = f"\n… {left_out} characters are left out …\n"
        output["text"] = printed[:half] + cut + printed[-half:]


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
