"""Sweeps: one chapter over a grid of parameters, continued where it stopped.

A sweep file names a chapter, a preset and what varies. Planning goes through all its combinations
without keeping them: what is kept of each is a hash, to notice two runs that are the same.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from minilib import engines, places, runner, runs

KEYS = ("chapter", "preset", "base", "grid", "zip", "list", "seeds")
SHOWN = 40  # lines of a list that is printed
GIVE_UP = 5  # runs lost in a row: it is not the runs
TIME_IS_UP = 3  # exit code


# ---------------------------------------------------------------- the file


def read(file: Path) -> dict:
    """The content of a sweep file, checked as far as that needs no chapter. Raises UsageError."""
    import yaml

    try:
        spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise runs.UsageError(f"cannot read the sweep {file}") from None
    except yaml.YAMLError as error:
        raise runs.UsageError(f"{file} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(spec, dict) or not {"chapter", "preset"} <= spec.keys():
        raise runs.UsageError(f"{file} must name a chapter and a preset")
    for key in spec:
        if key not in KEYS:
            raise runs.UsageError(f"{file}: unknown entry {key!r}; known are {', '.join(KEYS)}")
    _check(spec)
    return spec


def _check(spec: dict) -> None:
    """Refuse what is empty or of the wrong shape."""
    if "list" in spec and ("grid" in spec or "zip" in spec):
        other = "grid" if "grid" in spec else "zip"
        raise runs.UsageError(f"a sweep has a {other} or a list, not both")
    for key in ("grid", "zip"):
        part = spec.get(key)
        if key in spec and not (
            isinstance(part, dict)
            and part
            and all(isinstance(values, list) and values for values in part.values())
        ):
            raise runs.UsageError(
                f"{key} must map each parameter to a list with at least one value"
            )
    if len({len(values) for values in spec.get("zip", {}).values()}) > 1:
        lengths = ", ".join(f"{name}: {len(values)}" for name, values in spec["zip"].items())
        raise runs.UsageError(f"the lists under zip must be of one length, not {lengths}")
    rows = spec.get("list")
    if "list" in spec and not (
        isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ):
        raise runs.UsageError("list must hold at least one mapping of parameters")
    if "seeds" in spec and not (isinstance(spec["seeds"], list) and spec["seeds"]):
        raise runs.UsageError("seeds must be a list with at least one number")
    if not isinstance(spec.get("base") or {}, dict):
        raise runs.UsageError("base must map parameters to values")
    twice = Counter([*spec.get("grid", {}), *spec.get("zip", {}), *(["seed"] * ("seeds" in spec))])
    listed = {name for row in rows or [] for name in row}
    for name, times in twice.items():
        if times > 1 or name in listed:
            raise runs.UsageError(f"{name} is varied in two places")


def combinations(spec: dict) -> Iterator[dict]:
    """Parameters of every run of a sweep: base, then what varies, for each seed in turn.

    `grid` is a product, `zip` goes through its lists side by side, `list` gives each run in full; a
    grid and a zip multiply. Seeds are outermost, so that a sweep cut short has whole seeds, not
    whole corners of the grid.
    """
    base = spec.get("base") or {}
    for seed in spec.get("seeds") or [None]:
        tail = {} if seed is None else {"seed": seed}
        for row in spec.get("list") or [{}]:
            pairs = spec.get("zip", {})
            for side in zip(*pairs.values(), strict=True) if pairs else [()]:
                grid = spec.get("grid", {})
                for point in itertools.product(*grid.values()):
                    yield {
                        **base,
                        **row,
                        **dict(zip(pairs, side, strict=True)),
                        **dict(zip(grid, point, strict=True)),
                        **tail,
                    }


# ---------------------------------------------------------------- planning


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, checked to its last run; iterating plans its runs anew, one at a time."""

    file: Path
    spec: dict
    chapter: runner.Chapter
    out: Path | str | None
    only: dict[str, list]
    size: int  # runs
    varied: tuple[str, ...]  # parameters that differ between them

    def __iter__(self) -> Iterator[runner.Plan]:
        for params in combinations(self.spec):
            job = runner.plan_at(self.chapter, params, self.out)
            if all(job.params[name] in wanted for name, wanted in self.only.items()):
                yield job

    @property
    def folder(self) -> Path:
        """Where the runs of this chapter and preset lie."""
        inner = self.chapter.preset, self.chapter.name
        return places.local(self.out, self.chapter.root)[0].joinpath(*inner)

    def label(self, number: int, job: runner.Plan) -> str:
        """What a line of output calls a run."""
        values = " ".join(f"{name}={job.params[name]}" for name in self.varied)
        head = f"[{number}/{self.size}] {job.chapter} {job.preset} {job.run_id}"
        return f"{head} {values}".rstrip()


def plan(file: Path, out: Path | str | None = None, only: list[str] | None = None) -> Sweep:
    """Check every run of a sweep; UsageError for what is unknown, empty or planned twice.

    only: `NAME=VALUE` texts; runs that match one value of each name are kept.
    """
    spec, root = read(file), runs.find_root()
    if places.is_url(out):
        places.pull(out, root, str(spec["preset"]), str(spec["chapter"]))
    chapter = runner.chapter_at(root, str(spec["chapter"]), str(spec["preset"]))
    whole = Sweep(file, spec, chapter, out, _only(chapter, only or []), 0, ())
    seen, size, first, varied = set(), 0, {}, set()
    for params in combinations(spec):
        job = runner.plan_at(chapter, params, out)
        mark = int(job.run_id, 16)
        if mark in seen:
            raise runs.UsageError(f"{file}: two runs are equal: {params}")
        seen.add(mark)
        if all(job.params[name] in wanted for name, wanted in whole.only.items()):
            first = first or job.params
            varied |= {name for name, value in job.params.items() if value != first[name]}
            size += 1
    if not size:
        raise runs.UsageError(f"no run of {file} matches {' '.join(only)}")
    order = tuple(name for name in chapter.known if name in varied)
    return dataclasses.replace(whole, size=size, varied=order)


def _only(chapter: runner.Chapter, texts: list[str]) -> dict[str, list]:
    """`NAME=VALUE` texts as name → accepted values, of the parameter's own type."""
    found: dict[str, list] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise runs.UsageError(f"--only takes NAME=VALUE, not {text!r}")
        if name not in chapter.known:
            known = ", ".join(chapter.known)
            raise runs.UsageError(f"{chapter.name} has no parameter {name!r}; it has {known}")
        found.setdefault(name, []).append(runner.coerce(name, value, chapter.known[name][0]))
    return found


def state(job: runner.Plan, there: set[str] | None = None, elsewhere: Collection = ()) -> str:
    """What is to be had of a run: "ok", "failed" (of itself), "published" or "missing".

    there: names of the folders that exist, where that is known, so as not to look for others.
    elsewhere: ids of runs of which the repository has the record (`published`).
    A run that was interrupted, or lost through no fault of its own, is missing.
    """
    record = job.record() if there is None or job.run_id in there else None
    if record and record["status"] == "failed" and record.get("cause") != "outside":
        return "failed"
    if record and job.done():
        return "ok"
    return "published" if job.run_id in elsewhere else "missing"


def published(planned: Sweep) -> dict[str, dict]:
    """run id → record, of the runs of this chapter and preset in `results/`."""
    files = (planned.chapter.root / "results" / planned.chapter.name).glob("*.json")
    found = [item for item in map(runs.read_record, files) if item and item["status"] == "ok"]
    return {item["run_id"]: item for item in found if item["preset"] == planned.chapter.preset}


def existing(planned: Sweep) -> set[str]:
    """Names of the run folders that exist: one listing instead of a look for each run."""
    try:
        return set(os.listdir(planned.folder))
    except OSError:
        return set()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of the earlier runs that are most like those of a sweep.

    Attributes:
        low, high: of the quickest and the slowest.
        runs: how many there are. computed: how many of them put results in the cache. The others
            may have found all they needed there, and say little of runs that do not.
    """

    low: float
    high: float
    runs: int
    computed: int


def estimate(planned: Sweep) -> Estimate | None:
    """What earlier runs of this chapter and preset took; None without any.

    Runs that share most of their parameters with this sweep speak for it.
    """
    found = [*published(planned).values()]
    with contextlib.suppress(OSError):
        folders = itertools.islice(os.scandir(planned.folder), 500)
        files = [Path(folder.path, "run.json") for folder in folders]
        found += filter(None, map(runs.read_record, files))
    target = next(iter(planned)).params
    fixed = {name: value for name, value in target.items() if name not in planned.varied}
    near: dict[int, dict[str, dict]] = {}
    for record in found:
        if record["status"] == "ok" and record["preset"] == planned.chapter.preset:
            alike = sum(record["params"].get(name) == value for name, value in fixed.items())
            near.setdefault(alike, {})[record["run_id"]] = record
    if not near:
        return None
    best = near[max(near)].values()
    seconds = [record["seconds"] for record in best]
    return Estimate(
        min(seconds), max(seconds), len(best), sum(bool(one.get("computed")) for one in best)
    )


def counted(number: int, what: str = "run") -> str:
    """A number of things as a person writes it."""
    return f"{number} {what}" + "s" * (number != 1)


def span(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------- running


def sweep(
    file: Path,
    out: Path | str | None = None,
    dry_run: bool = False,
    only: list[str] | None = None,
    retry_failed: bool = False,
    here: bool = False,
    max_hours: float | None = None,
    engine: str = "local",
    options: engines.Options | None = None,
    again: str = "",
) -> int:
    """Run what is missing of a sweep.

    Args:
        retry_failed: also runs that failed by themselves; those lost otherwise are always run.
        here: also runs of which the repository has the published record, and nothing is here.
        max_hours: start no run after that many hours.
        again: options to repeat in the command that goes on.

    Returns 0 if all is there, 1 if a run failed, 3 if time was up, 130 if interrupted.
    """
    options = options or engines.Options()
    planned = plan(file, out, only)
    there, elsewhere = existing(planned), () if here else published(planned)
    count = Counter(state(job, there, elsewhere) for job in planned)
    todo = count["missing"] + (count["failed"] if retry_failed else 0)
    had = count["ok"] + count["published"]
    workers = len(engines.desks(options)) if engine == "local" else options.workers or 1
    print(_headline(planned, count, todo, workers), flush=True)
    if dry_run:
        return _show(planned, there, elsewhere, retry_failed)
    wanted = ("missing", "failed") if retry_failed else ("missing",)
    flags = {"stop": "", "until": time.monotonic() + 3600 * (max_hours or math.inf)}

    def jobs():
        for number, job in enumerate(planned, 1):
            if flags["stop"] or state(job, there, elsewhere) not in wanted:
                continue
            if time.monotonic() > flags["until"]:
                flags["stop"] = "time"
                return
            numbers[job.run_id] = number
            yield job

    numbers: dict[str, int] = {}  # of runs that are under way
    made: Counter = Counter()
    if todo:
        warm = options.warm and sys.platform == "linux" and _worth_a_server(todo)
        options = dataclasses.replace(options, warm=warm)
        if not _execute(
            planned, engines.ENGINES[engine], jobs(), options, numbers, made, flags, todo
        ):
            print(
                f"stopped after {had + made['ok']} of {planned.size}; "
                f"go on with: minilib sweep {file}{again}",
                file=sys.stderr,
            )
            return 130
    failed = made["failed"] + (0 if retry_failed else count["failed"])
    print(f"{made['ok']} ok, {failed} failed, {had} skipped (existed)")
    try:
        show_table(planned)
    except OSError as error:  # where the disk is full, the table has no room either
        print(f"no table: {error}", file=sys.stderr)
    if failed and not retry_failed and count["failed"]:
        print("--retry-failed runs again what failed", file=sys.stderr)
    if flags["stop"]:
        why = "time is up" if flags["stop"] == "time" else flags["stop"]
        left = todo - sum(made.values())
        lack = f"{counted(left)} {'is' if left == 1 else 'are'} missing"
        print(f"{why}; {lack}; go on with: minilib sweep {file}{again}", file=sys.stderr)
    return 1 if failed else TIME_IS_UP if flags["stop"] == "time" else 1 if flags["stop"] else 0


def _worth_a_server(todo: int) -> bool:
    """Whether to fork kernels: not for a single run, which would wait for the server's imports."""
    from minilib import warm

    return todo > 1 or warm.running()


def _headline(planned: Sweep, count: Counter, todo: int, workers: int) -> str:
    text = f"{counted(planned.size)}, {count['ok']} exist, "
    if count["published"]:
        text += f"{count['published']} published (--here makes them too), "
    text += f"{count['failed']} failed, {count['missing']} missing"
    if not todo:
        return text
    found = estimate(planned)
    if found is None:
        return f"{text}; no earlier run tells how long that takes"
    rounds, on = math.ceil(todo / workers), counted(workers, "worker")
    low, high = span(found.low * rounds), span(found.high * rounds)
    said = f"{on} by {counted(found.runs, 'earlier run')}"
    if not found.computed:  # their seconds may hold no training at all
        return f"{text}; at least {low} on {said}, plus what they found in the cache"
    about = low if low == high else f"{low} to {high}"
    return f"{text}; about {about} on {said}, {found.computed} of which trained something"


def _show(planned: Sweep, there: set[str], elsewhere: Collection, retry_failed: bool) -> int:
    """The list of a dry run."""
    words = {"ok": "exists", "published": "published", "missing": "to run", "failed": "failed"}
    if retry_failed:
        words["failed"] = "to run (failed before)"
    for number, job in enumerate(planned, 1):
        if number > SHOWN:
            print(f"… and {planned.size - SHOWN} more")
            break
        print(f"{planned.label(number, job)}: {words[state(job, there, elsewhere)]}")
    return 0


def _execute(
    planned, engine, jobs, options, numbers, made: Counter, flags: dict, todo: int
) -> bool:
    """Feed an engine and say what comes of it; False if interrupted."""
    started, in_a_row, at_work = time.monotonic(), 0, {}
    try:
        with runner.signals_interrupt(), contextlib.closing(engine(jobs, options)) as events:
            for event in events:
                label = planned.label(numbers[event.job.run_id], event.job)
                if event.record is None:
                    at_work[event.worker] = f"{label}: running …"
                    _draw(at_work, made, todo, started)
                    continue
                del numbers[event.job.run_id]
                record = event.record
                made["ok" if record["status"] == "ok" else "failed"] += 1
                at_work[event.worker] = "idle"
                in_a_row = in_a_row + 1 if record.get("cause") == "outside" else 0
                if runner.FULL in record.get("error", ""):
                    flags["stop"] = "the disk is full"
                elif in_a_row >= GIVE_UP:
                    flags["stop"] = f"{in_a_row} runs in a row were lost"
                _report(label, event.job, record, _total(made, todo, started))
                _draw(at_work, made, todo, started)
        return True
    except KeyboardInterrupt:
        return False


def _total(made: Counter, todo: int, started: float) -> str:
    done = sum(made.values())
    text = f"{done} of {todo} done, {made['failed']} failed"
    if not 0 < done < todo:
        return text
    left = (time.monotonic() - started) / done * (todo - done)
    return f"{text}, {span(left)} left at this pace"


def _report(label: str, job: runner.Plan, record: dict, total: str) -> None:
    """The line that a finished run leaves."""
    _wipe()
    if record["status"] == "ok":
        note = "".join(f", {key}={value}" for key, value in record.get("retried", {}).items())
        if record.get("computed"):
            note += f", {counted(record['computed'], 'result')} new in the cache"
        print(f"{label}: ok in {record['seconds']:.0f} s{note} | {total}", flush=True)
        return
    where = f" (cell {record['cell']})" if "cell" in record else ""
    place = os.path.relpath(job.folder / "notebook.ipynb")
    text = f"{label}: {record['status']}: {record['error']}{where}; see {place} | {total}"
    print(text, file=sys.stderr, flush=True)


_drawn = 0  # lines on the terminal that the next drawing replaces


def _wipe() -> None:
    global _drawn
    if _drawn:
        sys.stderr.write(f"\x1b[{_drawn}A\x1b[J")
        _drawn = 0


def _draw(at_work: dict[int, str], made: Counter, todo: int, started: float) -> None:
    """On a terminal: one line per worker and a total, redrawn in place."""
    global _drawn
    if not sys.stderr.isatty():
        return
    _wipe()
    width = shutil.get_terminal_size().columns - 1
    lines = [f"worker {number}: {text}" for number, text in sorted(at_work.items())]
    lines.append(f"total: {_total(made, todo, started)}")
    sys.stderr.write("".join(line[:width] + "\n" for line in lines))
    sys.stderr.flush()
    _drawn = len(lines)


# ---------------------------------------------------------------- afterwards


def status(file: Path, out=None, only: list[str] | None = None) -> int:
    """`minilib sweep status`: what is there, what failed and why."""
    planned = plan(file, out, only)
    there, elsewhere = existing(planned), published(planned)
    count, shown = Counter(), 0
    for number, job in enumerate(planned, 1):
        what = state(job, there, elsewhere)
        count[what] += 1
        record = job.record() if job.run_id in there else None
        if record and record["status"] != "ok" and shown < SHOWN:
            shown += 1
            print(f"{planned.label(number, job)}: {record['status']}: {record['error']}")
    print(_headline(planned, count, count["missing"], 1))
    return 0


def clean(file: Path, out=None, only: list[str] | None = None, dry_run: bool = False) -> int:
    """`minilib sweep clean`: remove what is left of this sweep's failed and interrupted runs."""
    planned, gone = plan(file, out, only), 0
    there = existing(planned)
    for job in planned:
        if job.run_id not in there or state(job, there) == "ok" or runner.at_work(job.folder):
            continue
        gone += 1
        if not dry_run:
            shutil.rmtree(job.folder)
    done = "would be removed" if dry_run else "removed"
    print(f"{counted(gone, 'folder')} {done} below {shown(planned.folder)}")
    return 0


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    return os.path.relpath(path)


def table(file: Path, out=None, only: list[str] | None = None) -> int:
    """`minilib sweep table`: the numbers of what is there."""
    show_table(plan(file, out, only))
    return 0


def show_table(planned: Sweep) -> None:
    """Gather the records into one parquet file; print mean ± std (n) over what is not varied."""
    import pandas as pd

    path = gather(planned)
    if path is None:
        print("no finished run, so no table")
        return
    frame = pd.read_parquet(path)
    by = [name for name in planned.varied if name != "seed"]
    keys = list(runs.describing(frame, planned.chapter.known))
    values = [
        name
        for name in frame.select_dtypes("float").columns
        if name not in planned.chapter.known and not re.search(r"seconds|^env_|^peak", name)
    ]
    last = frame
    if "epoch" in frame:  # where each of the rows' curves ends
        ends = frame.groupby([name for name in keys if name != "epoch"] or ["chapter"])["epoch"]
        last = frame[frame["epoch"] == ends.transform("max")]
    wanted = [name for name in (*by, *keys) if name in last]
    if values and len(last):
        print(
            runs.shown(runs.summary(last, wanted or ["chapter"], values)).to_string(max_rows=SHOWN)
        )
    print(f"table of {counted(frame['run_id'].nunique())}: {shown(path)}")


def gather(planned: Sweep) -> Path | None:
    """Write the metric rows of a sweep's finished runs to one parquet file; None without any.

    A run that is published and not here counts with its published record.
    """
    import pyarrow as pa
    import pyarrow.parquet

    parts, rows, there, elsewhere = [], [], existing(planned), published(planned)

    def flush():
        if rows:
            parts.append(pa.Table.from_pylist(rows))
            rows.clear()

    for job in planned:
        record = job.done() if job.run_id in there else None
        record = record or elsewhere.get(job.run_id)
        if record:
            rows += runs.rows(record)
        if len(rows) > 20_000:
            flush()
    flush()
    if not parts:
        return None
    path = planned.folder.parent.parent / "sweeps" / f"{planned.file.stem}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    whole = pa.concat_tables(parts, promote_options="permissive")
    try:
        pyarrow.parquet.write_table(whole, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if places.is_url(planned.out):
        places.push(path.parent, f"{str(planned.out).rstrip('/')}/sweeps")
    return path
