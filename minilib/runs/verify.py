"""How far trials lie apart: published ones from what comes out of nothing, fresh ones from old."""

import json
import math
import random
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from minilib import ledger, provenance
from minilib.runs import engines, execute

# A number that moves by more, where torch and CPU are those of the trial, was not reproduced: there
# the same operations in the same order give the same bits.
TOLERANCE = 1e-6
CLOCK = re.compile(r"seconds|_per_second|peak")  # columns that are never twice the same
SAME = ("device", "cpu", "isa", "torch")


def deviations(old: ledger.Trial, new: ledger.Trial) -> dict[str, float]:
    """Column or array → largest absolute difference; infinity where they cannot be compared.

    Rows are compared in order, all but the columns that a clock fills.
    """
    differences: dict[str, float] = {}
    if len(old.rows) != len(new.rows):
        return {"number of rows": math.inf}
    for old_row, new_row in zip(old.rows, new.rows, strict=True):
        for name in sorted(old_row.keys() | new_row.keys()):
            if not CLOCK.search(name):
                difference = _apart(old_row.get(name), new_row.get(name))
                differences[name] = max(differences.get(name, 0.0), difference)
    for name in set(old.arrays) & set(new.arrays):
        differences[name] = _apart(old.array(name).tolist(), new.array(name).tolist())
    return differences


def _apart(a, b) -> float:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max(map(_apart, a, b), default=0.0)
    numbers = all(isinstance(value, (int, float)) for value in (a, b))
    if numbers and not math.isnan(a - b):
        return float(abs(a - b))
    return 0.0 if a == b or str(a) == str(b) else math.inf


def told(found: dict[str, float], most: int = 6) -> str:
    """Deviations in a line, the largest first; "equal" if there are none."""
    moved = sorted((item for item in found.items() if item[1]), key=lambda item: -item[1])
    texts = [f"{name} differs" if math.isinf(by) else f"{name} {by:.3g}" for name, by in moved]
    return provenance.named(texts, most) or "equal"


def moved(old: ledger.Trial | None, new: ledger.Trial) -> str:
    """A line for a trial that was computed anew: how far it is from the old one."""
    return f"{title(new)}: {told(deviations(old, new)) if old else 'it is new'}"


def title(one: ledger.Trial) -> str:
    """A trial's kind and key, and what its recipe says off the defaults, for a line of output."""

    def said(description: Mapping) -> Iterator[tuple]:
        for value in description.values():  # first, so that the outermost of a name counts
            if isinstance(value, dict):
                yield from said(value)
        for name, value in description.items():
            if isinstance(value, (str, int, float)) and name not in ("is", "version"):
                yield name, value

    values = dict(said(one.recipe))
    return " ".join([one.kind, one.key, *(f"{name}={value}" for name, value in values.items())])


# ---------------------------------------------------------------- from nothing


def again(one: ledger.Trial, folder: Path) -> ledger.Trial:
    """Compute a trial in a process of its own that finds nothing: no ledger, no cache.

    Raises:
        ledger.LedgerError: it could not be computed; one line that says why.
    """
    env = {
        "MINILIB_LEDGER": str(folder / "trials"),
        "MINILIB_CACHE": str(folder / "cache"),
        "MINILIB_PUBLISHED": "none",
        "MINILIB_FRESH": "",
    }
    if one.env.get("threads"):  # threads add up in an order of their own
        env["OMP_NUM_THREADS"] = str(one.env["threads"])
    with execute.environ(**env):
        work = engines.Queue([ledger.recipe_of(one)])
        ((_, outcome),) = engines.local(work, engines.Options(workers=1))
        trial = ledger.tiers(one.kind, one.key).get("local")
    if outcome.error or trial is None:
        raise ledger.LedgerError(f"{one.kind} {one.key}: {outcome.error}")
    return trial


def chosen(keys: Iterable[str], sample: int, seed: int) -> list[ledger.Trial]:
    """The published trials of these keys, and some drawn at random. Raises LookupError."""
    trials = {one.key: one for one in map(ledger.find, keys)}
    for one in trials.values():
        if one.tier != "published" or not one.current:
            raise ledger.UnknownError(
                f"{one.kind} {one.key} is {one.tier}, of version {one.version}; accepted: a "
                "published trial of today's version"
            )
    every = [one for kind in ledger.KINDS for one in ledger.trials_of(kind)]
    every = [one for one in every if one.tier == "published" and one.current]
    every.sort(key=lambda one: one.key)
    draws = random.Random(seed).sample(every, min(sample, len(every)))
    return list((trials | {one.key: one for one in draws}).values())


def command(options) -> int:
    """`minilib verify`: compute published trials from nothing and say how far they move.

    Each adds a line to `results/verified.jsonl`. Returns 1 if one moved that should not have.
    """
    seed = random.randrange(10**6) if options.seed is None else options.seed
    trials = chosen(options.key, options.sample or (0 if options.key else 5), seed)
    if not trials:
        raise provenance.UsageError("no trial is published")
    count = provenance.counted(len(trials), "trial")
    print(f"{count} (--seed {seed}), tolerance {TOLERANCE:g}", flush=True)
    results, failures = provenance.find_root() / "results", 0
    for trial in trials:
        print(f"{title(trial)}: ", end="", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                rerun = again(trial, Path(folder))
            except ledger.LedgerError as error:
                print(f"FAILED: {error}", flush=True)
                failures += 1
                continue
            gaps = deviations(trial, rerun)
        line, origin = told(gaps), ""
        if any(trial.env.get(name) != rerun.env.get(name) for name in SAME):
            torch = trial.env.get("torch")
            origin = f", made on {ledger.machine_of(trial)}, torch {torch}"
        elif max(gaps.values(), default=0.0) > TOLERANCE:
            failures, line = failures + 1, f"MOVED: {line}"
        print(f"{line}, {rerun.seconds:.0f} s{origin}", flush=True)
        if results.is_dir():
            when = provenance.now()
            entry = {"key": trial.key, "kind": trial.kind, "when": when, "env": rerun.env,
                    "commit": rerun.commit, "deviations": provenance.plain(gaps)}  # fmt: skip
            with open(results / "verified.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return 1 if failures else 0
