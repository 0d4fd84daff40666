"""What a sweep costs beyond its trials' own work: planning, handing out, executing a notebook.

Trials of a chapter that computes nothing are handed to the local engine, and to Ray where it is
installed. Seconds of a shared machine mean little by themselves, so CPU seconds are given as well.
The page on scale shows them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minilib import chapters, cli, ledger, provenance
from minilib.runs import execute, sweep

if TYPE_CHECKING:
    from .timing import Options

NOTHING, SHOWN = "01_nothing", "03_ga_rga"  # chapters
WORKERS = 2


@ledger.recipe
class Nothing:
    """What a trial of nothing depends on."""

    alpha: float
    seed: int


@ledger.trial(version=1)
def nothing(one: Nothing) -> list[dict]:
    """One row."""
    return [{"cacc": one.alpha + one.seed}]


def trials(cfg) -> list[Nothing]:
    """One trial a run; this module is the chapter, so that workers can import it."""
    return [Nothing(alpha=cfg.alpha, seed=cfg.seed)]


def rows(results) -> list[dict]:
    """Their rows."""
    return [{**row, "key": one.key} for one in results for row in one.table()]


@contextlib.contextmanager
def planned(*counts: int) -> Iterator[Iterator[sweep.Sweep]]:
    """Sweeps of so many runs, each of one trial, ten seeds each.

    Of a repository whose one chapter's trials do nothing, with a ledger of its own.
    """
    from fixture_book import write_chapter  # of the tests; no worker needs it

    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(place))
        kept = {"MINILIB_LEDGER": f"{place}/trials", "MINILIB_PUBLISHED": "none"}
        stack.enter_context(execute.environ(**kept))
        for folder in ("notebooks", "presets"):
            Path(folder).mkdir()
        write_chapter(Path(), NOTHING, None, "alpha: float = 0.0\nseed: int = 0")
        Path("presets", "smoke.yml").write_text(f"{NOTHING}: {{}}\n")
        chapters.CHAPTERS[NOTHING] = "nothing"
        sys.modules["minilib.chapters.nothing"] = sys.modules[__name__]
        stack.callback(sys.modules.pop, "minilib.chapters.nothing")
        stack.callback(chapters.CHAPTERS.pop, NOTHING)
        files = {count: Path(f"nothing{count}.yml") for count in counts}
        for count, file in files.items():
            grid = f"{{alpha: {list(range(count // 10))}}}"
            file.write_text(f"chapter: {NOTHING}\npreset: smoke\ngrid: {grid}\n")
        yield (sweep.plan(file, seeds="0-9") for file in files.values())


def peak() -> float:
    """Peak of this process's resident set so far in MiB; PyTorch, and so ``timing``, stays out."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def plan(count: int) -> dict:
    """Plan very many runs, and look up their trials: CPU seconds, and memory beyond that of ten."""
    with planned(10, count) as sweeps:
        sweep.survey(next(sweeps))
        before, started = peak(), time.process_time()
        many = next(sweeps)
        took = time.process_time() - started
        missing = len(sweep.survey(many).missing)
        looked = time.process_time() - started - took
    return {
        "runs planned": missing,
        "CPU seconds of planning": round(took, 2),
        "CPU seconds of looking up what is missing": round(looked, 2),
        "more memory than for ten runs, MiB": round(peak() - before, 1),
    }


def engine(name: str, count: int) -> dict:
    """Many trials that do nothing, through an engine."""
    with planned(count) as (many,):
        before, clock = os.times(), time.monotonic()
        words = f"sweep {NOTHING} --workers {WORKERS} --no-notebooks --engine {name}"
        code = sweep.sweep(many, cli.parser().parse_args(words.split()))
        wall, after = time.monotonic() - clock, os.times()
    if code:
        raise RuntimeError(f"the sweep ended with {code}")
    own, all_of_them = (sum(after[:n]) - sum(before[:n]) for n in (2, 4))
    return {
        "trials": count,
        "workers": WORKERS,
        "wall seconds a trial and worker": round(wall * WORKERS / count, 4),
        # Nobody waits for Ray's processes, and so they are not counted.
        "CPU seconds a trial, all processes": (
            round(all_of_them / count, 4) if name == "local" else None
        ),
        "CPU seconds a trial, driver": round(own / count, 4),
        "peak memory of the driver, MiB": round(peak(), 1),
    }


def notebook(repeats: int) -> dict:
    """Execute a chapter's notebook whose trials are all in the ledger, in a kernel of its own."""
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as place:
        kept = {"MINILIB_LEDGER": f"{place}/trials", "MINILIB_CACHE": f"{place}/cache"}
        with execute.environ(**kept, MINILIB_PUBLISHED="none"):
            job = execute.plan(SHOWN, "smoke", out=place)
            for _ in range(repeats + 1):  # the first computes the trials
                before, started = os.times(), time.monotonic()
                record = execute.run(job)
                wall.append(time.monotonic() - started)
                cpu.append(sum(os.times()[2:4]) - sum(before[2:4]))
    if record["status"] != "ok" or record["computed"]:
        raise RuntimeError(f"the notebook was not read from the ledger: {record['error']}")
    return {
        "chapter": SHOWN,
        "executions": repeats,
        "trials read": sum(map(len, record["keys"].values())),
        "wall seconds, median": round(statistics.median(wall[1:]), 1),
        "wall seconds, lowest and highest": [round(f(wall[1:]), 1) for f in (min, max)],
        "CPU seconds, median": round(statistics.median(cpu[1:]), 1),
    }


def records(options: Options) -> dict[str, dict]:
    """All parts, each in a process of its own; a rehearsal plans and computes a little, here."""
    most, computed = (50, 10) if options.quick else (100_000, 2000)
    parts = {"plan": (plan, most), "local": (engine, "local", computed)}
    if not options.quick:
        parts["notebook"] = (notebook, 5)
        parts |= {"ray": (engine, "ray", computed)} if provenance.version("ray") else {}
    made = {}
    for name, (measured, *arguments) in parts.items():
        made[name] = (measured if options.quick else partial(alone, measured))(*arguments)
        made[name]["load average"] = [round(one, 1) for one in os.getloadavg()]
        made[name]["env"] = provenance.environment()
    return made


def alone(measured: Callable[..., dict], *arguments) -> dict:
    """Measure in a process that has imported nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, *arguments).result()
