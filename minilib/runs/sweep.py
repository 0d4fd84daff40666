"""Sweeps: one chapter over a grid of parameters, continued where it stopped.

A sweep file names a chapter, a preset and what varies. A sweep plans all its runs, computes the
trials that the ledger lacks, each once, and then has the notebooks executed, which read them there.
What is done stays done, trial by trial, whatever is killed.
"""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from minilib import chapters, ledger, provenance
from minilib.provenance import UsageError, counted
from minilib.runs import engines, execute, storage

TELLING = ("attack", "method")  # what tells most trials apart
SHOWN = 40  # lines of a list that is printed
MOST_RUNS = 100_000  # of one sweep
GIVE_UP = 5  # pieces of work in a row that the machine failed
TIME_IS_UP = 3  # exit code


def command(options) -> int:
    """`minilib sweep`, and its `status`, `table` and `clean`."""
    *verb, source = options.words
    if verb not in ([], ["status"], ["table"], ["clean"]):
        raise UsageError(f"sweep takes status, table or clean and a file, not {options.words}")
    planned = plan(
        source, options.out, options.only,
        preset=options.preset, base=options.params, seeds=options.seeds,
    )  # fmt: skip
    code = 0
    if verb == ["status"]:
        status(planned, options)
    elif verb == ["table"]:
        show_table(planned)
    elif verb == ["clean"]:
        clean(planned, options.dry_run)
    else:
        code = sweep(planned, options)
    if options.json:
        options.result.append(survey(planned).told(planned))
    return code


# ---------------------------------------------------------------- the file

FORMS = {"range": "[first, last] or [first, last, step]", "log": "[first, last, count]"}


def spelled_out(values):
    """`{range: [first, last, step]}` and `{log: [first, last, count]}` as lists; a list as it is.

    The last of a range counts where it is met; a step may be left out for 1. Raises ValueError.
    """
    if isinstance(values, list):
        return values
    if not (isinstance(values, dict) and len(values) == 1 and values.keys() <= FORMS.keys()):
        forms = ", or ".join(f"{{{way}: {form}}}" for way, form in FORMS.items())
        raise ValueError(f"{provenance.shown(values)} is no list; accepted: [1, 2], or {forms}")
    ((way, given),) = values.items()
    numbers = given if isinstance(given, list) else []
    numbers = [*numbers, 1] if way == "range" and len(numbers) == 2 else numbers
    are_finite = (type(one) in (int, float) and abs(one) < 1e300 for one in numbers)
    if len(numbers) != 3 or not all(are_finite):
        raise ValueError(f"{way} is {given!r}; accepted: {FORMS[way]}")
    first, last, step = numbers
    if way == "range":
        count = math.floor((last - first) / step + 1e-9) + 1 if step else 0
    else:
        count = step if isinstance(step, int) and step > 1 and min(first, last) > 0 else 0
    if not 0 < count <= MOST_RUNS:
        raise ValueError(f"{way} is {given!r}, which names no value, or too many")
    if way == "log":
        ratio = (last / first) ** (1 / (count - 1))
        return [float(f"{first * ratio**number:.6g}") for number in range(count)]
    points = (first + number * step for number in range(count))
    return [point if isinstance(point, int) else float(f"{point:.12g}") for point in points]


Values = Annotated[list, Field(min_length=1), BeforeValidator(spelled_out)]


class Sample(TypedDict):
    """So many runs of all, drawn at random; every seed counts for each."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    runs: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]


class Spec(TypedDict, total=False):
    """What a sweep file may hold."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    chapter: Required[str]
    preset: Required[str]
    base: dict[str, Any] | None
    grid: Annotated[dict[str, Values], Field(min_length=1)]
    zip: Annotated[dict[str, Values], Field(min_length=1)]
    list: Annotated[list[dict[str, Any]], Field(min_length=1)]
    seeds: Values
    sample: Sample


def checked(spec: dict, what: Path | str, base: Iterable[str] = ()) -> Spec:
    """A sweep without anything that is empty, unknown or varied twice. Raises UsageError.

    base: parameters that are given besides.
    """
    try:
        spec = TypeAdapter(Spec).validate_python(spec)
    except ValidationError as error:
        raise UsageError(f"{what}: {provenance.first_fault(error)}") from None
    grid, pairs, rows = spec.get("grid", {}), spec.get("zip", {}), spec.get("list", [])
    if rows and (grid or pairs):
        raise UsageError(f"{what}: a sweep has a grid and a zip, or a list, not both")
    sizes = {name: len(values) for name, values in pairs.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"{what}: the lists under zip must be of one length, not {sizes}")
    names = [*grid, *pairs, *{name for row in rows for name in row}]
    names += ["seed", *base] if "seeds" in spec else base
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{what}: {twice[0]} is varied in two places")
    size = math.prod(map(len, _axes(spec)))
    size = min(size, spec["sample"]["runs"]) if "sample" in spec else size
    if (size := size * len(spec.get("seeds", [0]))) > MOST_RUNS:
        raise UsageError(
            f"{what}: a sweep of {size} runs; accepted: up to {MOST_RUNS}, or a sample"
        )
    return spec


def seeds_of(text: str) -> list[int]:
    """Seeds as a person writes them: `0-9`, `0,2,5-7`. Raises UsageError."""
    seeds: list[int] = []
    for range_text in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})\s*(?:-\s*([0-9]{1,19})\s*)?", range_text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_RUNS or set(seeds) & {*range(first, last + 1)}:
            raise UsageError(f"seeds must be like 0-9 or 0,2,5-7, each named once, not {text!r}")
        seeds += range(first, last + 1)
    return seeds


def _axes(spec: Spec) -> list[list[dict]]:
    """What a sweep's runs are the product of: its list, its zip side by side, its grid's names."""
    pairs = spec.get("zip", {})
    sides = [dict(zip(pairs, side, strict=True)) for side in zip(*pairs.values(), strict=True)]
    grid = [[{name: value} for value in each] for name, each in spec.get("grid", {}).items()]
    return [spec.get("list", [{}]), sides or [{}], *grid]


def combinations(spec: Spec) -> Iterator[dict]:
    """Parameters of every run of a sweep: base, then what varies, for each seed in turn.

    `grid` is a product, `zip` goes through its lists side by side, `list` gives each run in full; a
    grid and a zip multiply, and a `sample` draws some of all that without replacement. Seeds are
    outermost, so that a sweep cut short has whole seeds, not whole corners of the grid.
    """
    axes = _axes(spec)
    numbers = range(math.prod(map(len, axes)))
    if "sample" in spec and spec["sample"]["runs"] < len(numbers):
        numbers = random.Random(spec["sample"]["seed"]).sample(numbers, spec["sample"]["runs"])
    for seed in [{"seed": seed} for seed in spec["seeds"]] if "seeds" in spec else [{}]:
        for number in numbers:
            point: dict = {}  # with this number, without going through those before it
            for axis in reversed(axes):
                number, place = divmod(number, len(axis))
                point = axis[place] | point
            yield {**spec["base"], **point, **seed}


# ---------------------------------------------------------------- planning


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, checked to its last run; iterating plans its runs anew, one at a time.

    Attributes:
        size: runs. varied: parameters that differ between them.
    """

    name: str
    spec: dict
    chapter: execute.Chapter
    only: dict[str, list]
    size: int = 0
    varied: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[execute.Plan]:
        for params in combinations(self.spec):
            job = self.chapter.plan(params)
            if all(job.params[name] in accepted for name, accepted in self.only.items()):
                yield job

    def label(self, work) -> str:
        """What a line of output calls a run, or a trial of one."""
        return engines.label(work, (*self.varied, *TELLING))


def plan(
    what: Path | str,
    out: Path | str | None = None,
    only: Sequence[str] = (),
    *,
    preset: str | None = None,
    base: dict | None = None,
    seeds: str | None = None,
) -> Sweep:
    """Check every run of a sweep; UsageError for what is unknown, empty or planned twice.

    Args:
        what: a sweep file, or a chapter. only: `NAME=VALUE` texts; runs that match one value of
            each name are kept.
        preset, base, seeds: in the place of the file's; a chapter needs a preset.
    """
    file, root = Path(what), provenance.find_root()
    is_file = file.suffix in (".yml", ".yaml")
    if not (is_file or preset):
        raise UsageError(f"{what} is no sweep file (*.yml); a chapter needs a --preset")
    spec = provenance.read_yaml(file) if is_file else {"chapter": file.stem}
    spec |= {"preset": preset} if preset else {}
    spec |= {"seeds": seeds_of(seeds)} if seeds is not None else {}
    spec = checked(spec, what, base or ())
    spec["base"] = {**(spec.get("base") or {}), **(base or {})}
    chapter = execute.chapter_at(root, spec["chapter"], spec["preset"], out)
    planned = Sweep(file.stem, spec, chapter, _only(chapter, only))
    marks, first_params, varied_names = set(), {}, set()
    for job in planned:
        mark = int(job.run_id, 16)
        if mark in marks:
            raise UsageError(f"{what}: two runs are equal: {job.changed}")
        marks.add(mark)
        first_params = first_params or job.params
        varied_names |= {name for name, value in job.params.items() if value != first_params[name]}
    if not marks:
        raise UsageError(f"no run of {what} matches {' '.join(only)}")
    order = tuple(name for name in chapter.known if name in varied_names)
    return dataclasses.replace(planned, size=len(marks), varied=order)


def _only(chapter: execute.Chapter, texts: Iterable[str]) -> dict[str, list]:
    """`NAME=VALUE` texts as name → accepted values, of the parameter's own type."""
    accepted_values: dict[str, list] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--only takes NAME=VALUE, not {text!r}")
        accepted_values.setdefault(name, []).append(chapter.value(name, value))
    return accepted_values


# ---------------------------------------------------------------- what there is


@dataclasses.dataclass
class Survey:
    """What there is of a sweep.

    Attributes:
        trials: how many it has. missing: recipes of those that the ledger lacks.
        runs: those whose notebook is not executed.
        failed: name → what was written down (its error, its cause) of those trials and runs that
            failed when they were last tried.
    """

    trials: int = 0
    missing: list = dataclasses.field(default_factory=list)
    runs: list[execute.Plan] = dataclasses.field(default_factory=list)
    failed: dict[str, dict] = dataclasses.field(default_factory=dict)

    @property
    def final(self) -> set[str]:
        """Names of what failed by itself; the others are always tried again."""
        again = ("outside", "lost")
        return {name for name, note in self.failed.items() if note.get("cause") not in again}

    def todo(self, retry_failed: bool) -> tuple[list, list[execute.Plan]]:
        """The trials and the runs that a sweep has to do."""
        final = set() if retry_failed else self.final
        return tuple(
            [one for one in works if engines.name_of(one) not in final]
            for works in (self.missing, self.runs)
        )

    def told(self, planned: Sweep) -> dict:
        """The counts, and what lacks, as JSON can hold it."""
        works = {"missing": self.missing, "runs_missing": self.runs}
        labels = {name: [planned.label(one) for one in each] for name, each in works.items()}
        counts = {"sweep": planned.name, "runs": planned.size, "trials": self.trials}
        failed = {name: str(note.get("error")) for name, note in self.failed.items()}
        return counts | labels | {"failed": failed}


def survey(planned: Sweep) -> Survey:
    """Look up every trial and every run of a sweep."""
    result, marks = Survey(), set()
    for job in planned:
        for recipe in job.recipes():
            mark = int(ledger.key_of(recipe), 16)
            if mark not in marks and ledger.look(recipe) is None:
                result.missing.append(recipe)
                if note := provenance.read_json(_note(recipe)):
                    result.failed[ledger.key_of(recipe)] = note
            marks.add(mark)
        if not job.done():
            result.runs.append(job)
            if (record := job.record()) and record["status"] == "failed":
                result.failed[job.run_id] = record
    result.trials = len(marks)
    return result


def status(planned: Sweep, options, every: bool = True) -> Survey:
    """Say what is there, what failed and why, and how long the rest may take.

    every: a line for each trial and run that is not there, too.
    """
    result = survey(planned)
    trials, _ = result.todo(options.retry_failed)
    if every:
        lacking = [*result.missing, *result.runs]
        for one in lacking[:SHOWN]:
            note = result.failed.get(engines.name_of(one), {"error": "to do"})
            print(f"{planned.label(one)}: {note.get('error')}")
        if len(lacking) > SHOWN:
            print(f"… and {len(lacking) - SHOWN} more")
    failed = set(map(ledger.key_of, result.missing)) & result.failed.keys()
    text = (
        f"{counted(planned.size, 'run')}, {planned.size - len(result.runs)} executed; "
        f"{counted(result.trials, 'trial')}: {result.trials - len(result.missing)} in the ledger, "
        f"{len(failed)} failed, {len(result.missing) - len(failed)} missing"
    )
    if again := len(failed - result.final):
        text += f"; {again} of those that failed did not by themselves and are tried again"
    seconds, unknown_count = estimate(trials)
    if unknown_count:
        text += f"; no trial in the ledger tells how long {unknown_count} of them take"
    if unknown_count < len(trials):
        workers = len(engines.environments(options))
        about = "at least" if unknown_count else "about"
        text += f"; {about} {span(seconds / workers)} on {counted(workers, 'worker')}"
    print(text, flush=True)
    return result


def _note(one) -> Path:
    """Where it is written down that a recipe's trial failed, and why."""
    return ledger.local_folder() / ledger.kind_of(one).name / f"{ledger.key_of(one)}.failed"


def estimate(recipes: list) -> tuple[float, int]:
    """Seconds that trials may take, and of how many there is no trial of their kind to tell.

    The median of those that differ in their seeds alone, else that of all of their kind with the
    same model on the same data: those of others take other times by orders of magnitude.
    """

    def but_seeds(settings: dict) -> tuple:
        return tuple(pair for pair in settings.items() if not pair[0].endswith("seed"))

    def size(settings: dict) -> tuple:
        return tuple(settings.get(name) for name in ("dataset", "model", "base"))

    alike, of_kind = defaultdict(list), defaultdict(list)  # seconds of trials
    kinds = [ledger.kind_of(one).name for one in recipes]
    for kind in set(kinds):
        for one in ledger.trials_of(kind):
            if one.settings and one.seconds:
                alike[kind, but_seeds(one.settings)].append(one.seconds)
                of_kind[kind, size(one.settings)].append(one.seconds)
    asked = [(kind, ledger.columns(one)) for kind, one in zip(kinds, recipes, strict=True)]
    past = [alike.get((kind, but_seeds(settings))) or of_kind.get((kind, size(settings)))
            for kind, settings in asked]  # fmt: skip
    medians = [statistics.median(seconds) for seconds in past if seconds]
    return sum(medians), len(recipes) - len(medians)


def span(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------- running


def sweep(planned: Sweep, options) -> int:
    """Compute what is missing of a sweep's trials, then execute its notebooks.

    options: of the command line; those that concern it are an engine's ``Options``.

    Returns 0 if all is there, 1 if something failed, 3 if time was up, 130 if interrupted.
    """
    result = status(planned, options, every=options.dry_run)
    trials, runs = result.todo(options.retry_failed)
    if options.dry_run:
        return 0
    if options.notebooks and runs:
        storage.probe(planned.chapter.out, planned.chapter.root)
    queue = engines.Queue(trials, time.monotonic() + 3600 * (options.max_hours or math.inf))
    lacking, executed = set(map(ledger.key_of, result.missing)), set()
    try:
        with execute.signals_interrupt():
            lacking -= feed(engines.ENGINES[options.engine], queue, options, planned.label)
            if options.notebooks and not queue.stopped:
                queue.waiting = [
                    job for job in runs if lacking.isdisjoint(map(ledger.key_of, job.recipes()))
                ]
                executed = feed(engines.local, queue, options, planned.label)
    except KeyboardInterrupt:
        print("stopped; what is done stays done, and the same command goes on", file=sys.stderr)
        return 130
    runs_left = len(result.runs) - len(executed) if options.notebooks else 0
    computed = counted(len(result.missing) - len(lacking), "trial")
    print(f"{computed} computed, {len(lacking)} lacking; "
          f"{counted(len(executed), 'notebook')} executed, {runs_left} lacking")  # fmt: skip
    with contextlib.suppress(OSError):  # where the disk is full, the table has no room either
        show_table(planned)
    if result.final and not options.retry_failed:
        print("--retry-failed tries again what failed before", file=sys.stderr)
    if queue.stopped:
        print(f"{queue.stopped}; the same command goes on", file=sys.stderr)
    return TIME_IS_UP if queue.stopped == "time is up" else 1 if lacking or runs_left else 0


def feed(
    engine: Callable, queue: engines.Queue, options: engines.Options, label: Callable
) -> set[str]:
    """Have an engine do all that waits, and return the names of what is done.

    On a terminal a bar shows how far it is; elsewhere each piece of work leaves a line, as what
    failed always does.
    """
    from tqdm import tqdm

    total, finished_names, failures, streak = len(queue.waiting), set(), 0, 0
    bar = tqdm(total=total, file=sys.stderr, disable=not (total and sys.stderr.isatty()))
    start_time = time.monotonic()
    with bar, contextlib.closing(engine(queue, options)) as events:
        for count, (work, outcome) in enumerate(events, 1):
            text = f"{label(work)}: {outcome.error or f'ok in {span(outcome.seconds)}'}"
            if outcome.error is None:
                finished_names.add(engines.name_of(work))
            elif not isinstance(work, execute.Plan):
                text += f"; its recipe: {json.dumps(ledger.described(work))}"
            failures += outcome.error is not None
            streak = streak + 1 if outcome.cause in ("lost", "outside") else 0
            if outcome.cause == "refused":
                queue.stopped = outcome.error
            elif streak >= GIVE_UP:
                queue.stopped = f"{streak} failed in a row, and not by themselves"
            _remember(work, outcome)
            time_left = span((time.monotonic() - start_time) / count * (total - count))
            bar.set_postfix_str(f"{failures} failed")
            bar.update(1)
            if outcome.error or bar.disable:
                text += f" | {count} of {total}, {failures} failed, {time_left} left"
                tqdm.write(text, file=sys.stderr if outcome.error else sys.stdout)
    return finished_names


def _remember(work, outcome: engines.Outcome) -> None:
    """Write down of a trial that it failed and why, or no longer does."""
    if isinstance(work, execute.Plan) or outcome.cause == "refused":
        return
    with contextlib.suppress(OSError):
        if outcome.error:
            note = {"recipe": ledger.described(work), "error": outcome.error}
            provenance.write_json(_note(work), note | {"cause": outcome.cause})
        else:
            _note(work).unlink(missing_ok=True)


# ---------------------------------------------------------------- afterwards


def clean(planned: Sweep, dry_run: bool) -> None:
    """Forget what failed of this sweep, and remove what is left of runs that are not whole."""
    result = survey(planned)
    notes = [_note(one) for one in result.missing if engines.name_of(one) in result.failed]
    folders = [job.folder for job in result.runs if job.folder.is_dir() and not engines.busy(job)]
    for path in () if dry_run else (*notes, *folders):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    verb = "would be removed" if dry_run else "removed"
    print(f"{counted(len(notes), 'failed trial')}, {counted(len(folders), 'folder')} {verb}")


def show_table(planned: Sweep) -> None:
    """Print mean ± std (n) over seeds of what the ledger has; keep the rows in one parquet file."""
    import pandas as pd

    from minilib.book import tables

    rows, settings = [], {"key", "kind", *planned.chapter.known}
    for job in planned:
        trials = [one for one in map(ledger.look, job.recipes()) if one is not None]
        settings.update(name for one in trials for name in one.settings)
        head = {"chapter": job.chapter} | {name: job.params[name] for name in planned.varied}
        for row in chapters.chapter(job.chapter).rows(trials) if trials else ():
            rows.append(head | {k: v for k, v in row.items() if not isinstance(v, (list, dict))})
    if not rows:
        print("no trial of it is in the ledger, so there is no table")
        return
    frame = pd.DataFrame(rows).drop_duplicates()
    texts = [name for name in frame if frame[name].dtype.kind == "O"]  # to be of one type
    frame = frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in texts})
    folder, url = storage.local(planned.chapter.out, planned.chapter.root)
    path = folder / "sweeps" / f"{planned.name}.parquet"
    provenance.write_bytes(path, frame.to_parquet())
    if url:
        storage.push(path.parent, f"{url}/sweeps")
    table = tables.over_seeds(frame, settings, (*planned.varied, *TELLING))
    print(table.to_string(max_rows=SHOWN))
    print(f"table of {counted(frame['key'].nunique(), 'trial')}: {os.path.relpath(path)}")
