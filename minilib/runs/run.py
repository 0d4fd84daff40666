"""`minilib run`: execute chapters, and say in a line what came of each."""

import os
import shutil
import sys
from collections.abc import Iterator

import minilib.trials  # noqa: F401  (declares the kinds)
from minilib import ledger, provenance
from minilib.provenance import UsageError, find_root
from minilib.runs import engines, execute, storage, sweep, verify


def command(options) -> int:
    """`minilib run`: plan first, so that nothing starts if any chapter is refused."""
    root = find_root()
    chapters = execute.chapters(root)
    if options.all == bool(options.chapter):
        raise UsageError(f"name one chapter or give --all; chapters are {', '.join(chapters)}")
    if options.all and (options.params or options.file):
        raise UsageError("-p sets the parameters of one chapter and does not go with --all")
    names = chapters if options.all else [options.chapter]

    def plan(name):
        return execute.plan(name, options.preset, options.params, root=root, out=options.out)

    jobs = [plan(name) for name in names]
    if options.force or options.fresh or not all(job.done() for job in jobs):
        storage.probe(options.out, root)
    if (options.workers or 1) > 1 and not options.fresh:
        options.result = together(jobs, options)
        return max(map(report, jobs, options.result))
    empty_scratch(options.fresh)
    code = 0
    for name in names:  # planned again: the notebook may be edited while an earlier chapter runs
        job = plan(name)
        code = max(code, run_one(job, options))
        options.result += filter(None, [job.record()])
        if code == 130:
            break
    return code


def together(jobs: list[execute.Plan], options) -> list[dict]:
    """Compute what chapters lack, then execute them, some of it at a time; their records."""
    for job in jobs if options.force else ():
        (job.folder / "run.json").unlink(missing_ok=True)
    missing_recipes = ledger.missing(one for job in jobs for one in job.recipes())
    how = engines.Options(options.workers, time_limit=options.time_limit)
    # What is computed from now on counts as computed by the notebooks that will read it.
    with execute.environ(MINILIB_SINCE=provenance.now()), execute.signals_interrupt():
        for work in (missing_recipes, [job for job in jobs if not job.done()]):
            sweep.feed(engines.local, engines.Queue(work), how, engines.label)
    return [job.record() or execute.blank(job) for job in jobs]


def empty_scratch(kinds: list[str]) -> None:
    """Forget what was computed anew before of some kinds of trials. Raises UsageError."""
    known = sorted(name for name, kind in ledger.KINDS.items() if not kind.large)
    if unknown := [name for name in kinds if name not in known]:
        raise UsageError(f"no kind of trial {unknown[0]!r}; kinds are {', '.join(known)}")
    for name in kinds:
        shutil.rmtree(ledger.local_folder() / "fresh" / name, ignore_errors=True)


def run_one(job: execute.Plan, options) -> int:
    """Run one job unless it exists, say in one line what came of it, return the exit code."""
    label = engines.label(job)
    if not (options.force or options.fresh) and job.done():
        place = os.path.relpath(job.folder / "notebook.ipynb")
        print(f"{label}: exists, --force runs it again: {place}", flush=True)
        return 0
    trials = filter(None, map(ledger.look, job.recipes()))
    for line in ledger.edited(one for one in trials if one.kind not in options.fresh):
        print(f"{label}: {line}")
    # One line in a log; on a terminal papermill's progress bar needs the next one.
    print(f"{label}: running …", end="\n" if sys.stderr.isatty() else " ", flush=True)
    record = execute.run(job, fresh=options.fresh, time_limit=options.time_limit)
    return report(job, record, "")


def report(job: execute.Plan, record: dict, head: str | None = None) -> int:
    """Say in one line what came of a run, return the exit code.

    head: what the line begins with, if not the run's name.
    """
    label, place = engines.label(job), os.path.relpath(job.folder / "notebook.ipynb")
    head = f"{label}: " if head is None else head
    if record["status"] == "ok":
        counts = provenance.counted(sum(map(len, record["keys"].values())), "trial")
        counts += f", {record['computed']} computed"
        print(f"{head}ok in {record['seconds']:.0f} s, {counts}: {place}", flush=True)
        for line in compared(record):
            print(f"  {line}")
        return 0
    print(f"{head}{record['status']}", flush=True)
    text = f"{label}: {record['status']}: {execute.why(job, record)}"
    print(text, file=sys.stderr, flush=True)
    if record["status"] == "interrupted":
        return 130
    return 2 if record.get("error", "").startswith(execute.USER_ERRORS) else 1


def compared(record: dict) -> Iterator[str]:
    """A line for each trial that a run computed anew: how far it is from the ledger's."""
    for kind in record.get("fresh", ()):
        for key in record["keys"].get(kind, ()):
            tiers = ledger.tiers(kind, key)
            old = tiers.get("published") or tiers.get("local")
            if new := tiers.get("fresh"):
                yield verify.moved(old, new)
