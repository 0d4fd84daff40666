"""What a sweep costs beyond its runs' own work: planning, starting a kernel, runs that do nothing.

    python -m bench.sweep plan start local    # or ray, where Ray is installed

Writes its parts into `bench/results/sweep.json`, which the page on scale shows. Seconds of a shared
machine mean little by themselves, so kernels are started warm and cold in turn and their medians
compared. CPU seconds are those of all processes: driver, workers, Ray's own, the servers that
kernels are forked from, and kernels.
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
from multiprocessing import forkserver
from pathlib import Path

import psutil

from minilib import engines, runner, runs, sweep

PARTS = ("plan", "start", "local", "ray")
RECORD = (
    "from minilib import runs\n"
    "runs.record(NAME, {'alpha': alpha, 'seed': seed}, [{'cacc': alpha}], [])"
)
# What a chapter's first cells import, through `minilib` or by themselves.
IMPORTS = "import numpy, pandas, torch, transformers\nfrom minilib import plots, train, victims"
CHAPTERS = {"01_noop": "pass", "02_imports": IMPORTS}


def book(root: Path) -> Path:
    """A repository of two chapters: one only records, the other imports what chapters import."""
    for name, body in CHAPTERS.items():
        cells = [
            {"cell_type": "code", "id": f"c{number}", "execution_count": None, "outputs": [],
             "metadata": {"tags": [tag] if tag else []}, "source": source}
            for number, (tag, source) in enumerate((
                ("parameters", "alpha: float = 0.0\nseed: int = 0"), ("", body),
                ("", RECORD.replace("NAME", repr(name)))))
        ]  # fmt: skip
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        runs.write_json(root / "notebooks" / f"{name}.ipynb", notebook)
    (root / "presets").mkdir()
    (root / "presets" / "smoke.yml").write_text("".join(f"{name}: {{}}\n" for name in CHAPTERS))
    return root


def write(root: Path, count: int) -> Path:
    """A sweep of that many runs, ten seeds each."""
    file = root / f"noop{count}.yml"
    alphas = list(range(count // 10))
    file.write_text(f"chapter: 01_noop\npreset: smoke\ngrid: {{alpha: {alphas}}}\n"
                    f"seeds: {list(range(10))}\n")  # fmt: skip
    return file


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
        while not self.over.wait(1.0):
            total = 0.0
            for one in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    total += sum(one.cpu_times()[:4])  # user, system, and the same of children
            self.highest = max(self.highest, total)


def plan(options) -> dict:
    """Plan very many runs: CPU seconds, and peak memory beyond that of planning a few."""
    sweep.plan(write(Path.cwd(), 10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.process_time()
    assert sweep.plan(write(Path.cwd(), options.planned)).size == options.planned
    took = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "runs planned": options.planned,
        "CPU seconds": round(took, 2),
        "more memory than for ten runs, MiB": round(peak - before, 1),
    }


def start(options) -> dict:
    """Run a chapter of imports cold and warm in turn; wall seconds of `runner.run`, medians."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(options.pairs + 1):
        for warm in (False, True):
            job = runner.plan("02_imports", "smoke", {"seed": 2 * number + warm})
            clock = time.monotonic()
            record = runner.run(job, warm=warm)
            assert record["status"] == "ok", record["error"]
            if number:  # the first pair reads files from disk, and waits for the server's imports
                seconds[warm].append(time.monotonic() - clock)
    forkserver._forkserver._stop()
    cold, warm = seconds[False], seconds[True]
    ratios = [a / b for a, b in zip(cold, warm, strict=True)]
    return {
        "pairs of runs": options.pairs,
        "cold run, median wall seconds": round(statistics.median(cold), 2),
        "warm run, median wall seconds": round(statistics.median(warm), 2),
        "cold over warm, median": round(statistics.median(ratios), 1),
        "cold over warm, lowest and highest": [round(min(ratios), 1), round(max(ratios), 1)],
    }


def engine(name: str, options) -> dict:
    """Many runs that do nothing, through an engine."""
    meter = Meter()
    meter.start()
    clock = time.monotonic()
    code = sweep.sweep(
        write(Path.cwd(), options.runs), engine=name, options=engines.Options(options.workers)
    )
    wall = time.monotonic() - clock
    meter.over.set()
    assert code == 0, f"the sweep ended with {code}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "runs": options.runs,
        "workers": options.workers,
        "wall seconds a run and worker": round(wall * options.workers / options.runs, 2),
        "CPU seconds a run": round(meter.highest / options.runs, 2),
        "peak memory of the driver, MiB": round(peak, 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    out = options.out.absolute() / "sweep.json"
    for part in options.parts:
        with (
            tempfile.TemporaryDirectory(prefix="noop") as place,
            contextlib.chdir(book(Path(place))),
        ):
            does = {"plan": plan, "start": start}.get(part)
            found = does(options) if does else engine(part, options)
        found["load average"] = [round(one, 1) for one in os.getloadavg()]
        found["env"] = runs.environment()
        whole = json.loads(out.read_text()) if out.is_file() else {}
        runs.write_json(out, whole | {part: found})
        print(json.dumps({part: found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
