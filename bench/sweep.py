"""What a sweep costs beyond its trials' own work: planning, handing out, executing a notebook.

    python -m bench.sweep plan local notebook    # and ray, where Ray is installed

Writes its parts into `bench/results/sweep.json`, which the page on scale shows. Seconds of a shared
machine mean little by themselves, so CPU seconds are given as well: those of all processes, driver,
workers and Ray's own.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from minilib import provenance
from minilib.runs import engines, execute, sweep

from . import nothing

PARTS = ("plan", "local", "ray", "notebook")
PARAMETERS = "alpha: float = 0.0\nseed: int = 0"


@contextlib.contextmanager
def book() -> Iterator[Path]:
    """A repository of one chapter whose trials do nothing, to work in, with a ledger of its own."""
    cell = {"cell_type": "code", "id": "parameters", "execution_count": None, "outputs": [],
            "metadata": {"tags": ["parameters"]}, "source": PARAMETERS}  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    with tempfile.TemporaryDirectory(prefix="nothing") as place, contextlib.chdir(place):
        provenance.write_json(Path("notebooks", f"{nothing.CHAPTER}.ipynb"), notebook)
        Path("presets").mkdir()
        Path("presets", "smoke.yml").write_text(f"{nothing.CHAPTER}: {{}}\n")
        told = {"MINILIB_LEDGER": f"{place}/trials", "MINILIB_PUBLISHED": "none"}
        with execute.environ(**told), nothing.registered():
            yield Path(place)


def planned(count: int) -> sweep.Sweep:
    """A sweep of that many runs, each of one trial, ten seeds each."""
    alphas = list(range(count // 10))
    file = Path(f"nothing{count}.yml")
    file.write_text(f"chapter: {nothing.CHAPTER}\npreset: smoke\ngrid: {{alpha: {alphas}}}\n")
    return sweep.plan(file, seeds="0-9")


class Meter(threading.Thread):
    """CPU seconds of this process, its descendants and what they have waited for.

    A process that ends leaves its time with its parent, so the sum over those alive grows until an
    engine is shut down: hence the highest of many looks.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.highest, self.over = 0.0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.over.wait(0.2):
            total = 0.0
            for one in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    total += sum(one.cpu_times()[:4])  # user, system, and the same of children
            self.highest = max(self.highest, total)


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan(options) -> dict:
    """Plan very many runs, and look up their trials: CPU seconds, and memory beyond that of ten."""
    with book():
        sweep.survey(planned(10))
        before, started = peak(), time.process_time()
        many = planned(options.planned)
        took = time.process_time() - started
        found = sweep.survey(many)
        assert len(found.missing) == many.size == options.planned
        looked = time.process_time() - started - took
    return {
        "runs planned": options.planned,
        "CPU seconds of planning": round(took, 2),
        "CPU seconds of looking up what is missing": round(looked, 2),
        "more memory than for ten runs, MiB": round(peak() - before, 1),
    }


def engine(name: str, options) -> dict:
    """Many trials that do nothing, through an engine."""
    with book():
        many = planned(options.trials)
        meter = Meter()
        meter.start()
        before, clock = time.process_time(), time.monotonic()
        how = engines.Options(options.workers)
        code = sweep.sweep(many, name, how, notebooks=False)
        wall, own = time.monotonic() - clock, time.process_time() - before
        meter.over.set()
        assert code == 0, f"the sweep ended with {code}"
    return {
        "trials": options.trials,
        "workers": options.workers,
        "wall seconds a trial and worker": round(wall * options.workers / options.trials, 4),
        "CPU seconds a trial, all processes": round(meter.highest / options.trials, 4),
        "CPU seconds a trial, driver": round(own / options.trials, 4),
        "peak memory of the driver, MiB": round(peak(), 1),
    }


def notebook(options) -> dict:
    """Execute a chapter's notebook whose trials are all in the ledger, in a kernel of its own."""
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as place:
        kept = {"MINILIB_LEDGER": f"{place}/trials", "MINILIB_CACHE": f"{place}/cache"}
        with execute.environ(**kept, MINILIB_PUBLISHED="none"):
            job = execute.plan(options.chapter, "smoke", out=place)
            for number in range(options.repeats + 1):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                started = time.monotonic()
                record = execute.run(job)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                assert record["status"] == "ok", record["error"]
                if number:  # the first computes the trials
                    wall.append(time.monotonic() - started)
                    cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                    assert record["computed"] == 0
    return {
        "chapter": options.chapter,
        "executions": options.repeats,
        "trials read": sum(map(len, record["keys"].values())),
        "wall seconds, median": round(statistics.median(wall), 1),
        "wall seconds, lowest and highest": [round(min(wall), 1), round(max(wall), 1)],
        "CPU seconds, median": round(statistics.median(cpu), 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--chapter", default="03_ga_rga")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    out = options.out.absolute() / "sweep.json"
    for part in options.parts:
        does = {"plan": plan, "notebook": notebook}.get(part)
        found = does(options) if does else engine(part, options)
        found["load average"] = [round(one, 1) for one in os.getloadavg()]
        found["env"] = provenance.environment()
        whole = provenance.read_json(out) or {}
        whole = {name: one for name, one in whole.items() if name in PARTS}
        provenance.write_json(out, whole | {part: found})
        print(json.dumps({part: found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
