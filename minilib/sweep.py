"""Sweeps: one chapter over a grid of parameters, run by run, continued where it stopped."""

import itertools
import os
import sys
from collections import Counter
from pathlib import Path

from minilib import cli, runner, runs

KEYS = ("chapter", "preset", "base", "grid", "list", "seeds")


def combinations(spec: dict) -> list[dict]:
    """Parameters of every run of a sweep: base, then grid or list, for each seed in turn.

    Seeds are outermost, so that a sweep cut short has whole seeds, not whole corners of the grid.
    """
    if "grid" in spec and "list" in spec:
        raise runs.UsageError("a sweep has a grid or a list, not both")
    grid, rows, seeds = spec.get("grid"), spec.get("list"), spec.get("seeds")
    if "grid" in spec:
        if (
            not isinstance(grid, dict)
            or not grid
            or not all(isinstance(v, list) and v for v in grid.values())
        ):
            raise runs.UsageError("grid must map each parameter to a list with at least one value")
        rows = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    elif "list" in spec:
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise runs.UsageError("list must hold at least one mapping of parameters")
    else:
        rows = [{}]
    if "seeds" in spec and (not isinstance(seeds, list) or not seeds):
        raise runs.UsageError("seeds must be a list with at least one number")
    tails = [{"seed": seed} for seed in seeds] if seeds else [{}]
    if not isinstance(spec.get("base") or {}, dict):
        raise runs.UsageError("base must map parameters to values")
    return [{**(spec.get("base") or {}), **row, **tail} for tail in tails for row in rows]


def plan(file: Path, out: Path | None = None) -> list[runner.Plan]:
    """All runs of a sweep, checked; UsageError for what is unknown, empty or planned twice."""
    import yaml

    try:
        spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise runs.UsageError(f"cannot read the sweep {file}") from None
    except yaml.YAMLError as error:
        raise runs.UsageError(f"{file} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(spec, dict) or not {"chapter", "preset"} <= spec.keys():
        raise runs.UsageError(f"{file} must name a chapter and a preset")
    for key in spec:
        if key not in KEYS:
            raise runs.UsageError(f"{file}: unknown entry {key!r}; known are {', '.join(KEYS)}")
    root = runs.find_root()
    jobs: dict[str, runner.Plan] = {}
    for params in combinations(spec):
        job = runner.plan(spec["chapter"], spec["preset"], params, root=root, out=out)
        if job.run_id in jobs:
            raise runs.UsageError(f"{file}: two runs are equal: {params}")
        jobs[job.run_id] = job
    return list(jobs.values())


def sweep(file: Path, out: Path | None = None, dry_run: bool = False) -> int:
    """Run what is missing of a sweep; 0 if all is there, 1 if a run failed, 130 if interrupted."""
    jobs = plan(file, out)
    varied = [name for name in jobs[0].params if len({job.params[name] for job in jobs}) > 1]

    def label(number, job):
        values = " ".join(f"{name}={job.params[name]}" for name in varied)
        return f"[{number}/{len(jobs)}] {job.chapter} {job.preset} {job.run_id} {values}".rstrip()

    exist = sum(job.done() is not None for job in jobs)
    print(f"{len(jobs)} runs, {exist} exist", flush=True)
    if dry_run:
        for number, job in enumerate(jobs, 1):
            print(f"{label(number, job)}: {'exists' if job.done() else 'to run'}")
        return 0
    outcome: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        if job.done():
            outcome[job.run_id] = "skipped"
            continue
        try:
            code = cli.execute(job, label=label(number, job))
        except KeyboardInterrupt:
            code = 130
        if code == 130:
            print(
                f"stopped after {len(outcome)} of {len(jobs)}; go on with: minilib sweep {file}",
                file=sys.stderr,
            )
            return 130
        outcome[job.run_id] = "failed" if code else "ok"
    for number, job in enumerate(jobs, 1):
        print(f"{outcome[job.run_id]:8}{label(number, job)}  {os.path.relpath(job.folder)}")
    count = Counter(outcome.values())
    print(f"{count['ok']} ok, {count['failed']} failed, {count['skipped']} skipped (existed)")
    return 1 if count["failed"] else 0
