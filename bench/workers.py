"""Loops in processes of their own, timed in turns, with the peak of their memory.

A loop needs a process of its own where its memory is to be told apart, or where a setting cannot
be taken back (minilib keeps the C library's heap). One that waits does not compute.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from .timing import spread

Run = Callable[[int | None], tuple[float, list]]  # steps (None: all) → seconds, what was logged
Build = Callable[[], tuple[Run, float]]  # → the loop, seconds its set-up took; to be pickled
IMPORTED = ["minilib.train", "minilib.causal", "minilib.attacks.text", "transformers"]


@cache
def context():
    """How processes start: forked from one that only imports, or from nothing where none forks.

    That one never computes, so it has neither threads nor a GPU's context that a fork would break.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(IMPORTED)
    return made


def forget_peak(device: str) -> None:
    """Let ``peak`` count from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not Linux: the peak since the process began has to do
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """Peak so far in MiB: of the GPU's allocations, or of the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def serve(connection, build: Build, device: str, threads: int) -> None:
    """A process's work: set up, then one turn per number of steps received, until it is ended."""
    torch.set_num_threads(threads)
    run, setup = build()
    forget_peak(device)
    before = peak(device)
    connection.send(setup)
    while True:
        seconds = run(connection.recv())[0]
        connection.send((seconds, peak(device) - before))


class Worker:
    """A loop in a process of its own, or (``isolated`` False, for rehearsals) in this one."""

    def __init__(self, build: Build, device: str, threads: int, isolated: bool = True):
        self.device, self.process = device, None
        if not isolated:
            self.run, self.setup = build()
            self.before = peak(device)
            return
        self.connection, theirs = context().Pipe()
        self.process = context().Process(
            target=serve, args=(theirs, build, device, threads), daemon=True
        )
        self.process.start()
        theirs.close()  # so that a worker that dies is an EOFError here, not a wait for ever
        self.setup = self.connection.recv()

    def begin(self, steps: int | None) -> None:
        """Have the process run; one that is not isolated waits for ``end``."""
        self.steps = steps
        if self.process is not None:
            self.connection.send(steps)

    def end(self) -> tuple[float, float]:
        """Wait; return seconds, and the peak so far over what stood there at first, in MiB."""
        if self.process is None:
            return self.run(self.steps)[0], peak(self.device) - self.before
        return self.connection.recv()

    def turn(self, steps: int | None) -> tuple[float, float]:
        """Run, and return as ``end`` does."""
        self.begin(steps)
        return self.end()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join()


class Several:
    """Loops that run at the same time, each in a process of its own with its share of threads."""

    def __init__(self, builds: Sequence[Build], device: str, threads: int, isolated: bool = True):
        share = max(1, threads // len(builds))
        self.workers = [Worker(build, device, share, isolated) for build in builds]
        self.setup = max(worker.setup for worker in self.workers)

    def turn(self, steps: int | None) -> tuple[float, float]:
        """Run all; return the seconds until the last has ended, and the sum of their peaks."""
        started = time.perf_counter()
        for worker in self.workers:
            worker.begin(steps)
        peaks = [worker.end()[1] for worker in self.workers]
        return time.perf_counter() - started, sum(peaks)

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()


def alternate(
    builds: dict[str, Build | Sequence[Build]],
    device: str,
    threads: int,
    repeats: int,
    steps: int | None,
    warm_steps: int,
    isolated: bool = True,
) -> dict[str, dict]:
    """Time loops in turns: a first, short turn to warm up, then ``repeats`` of ``steps`` steps.

    Args:
        builds: name → a loop, or several that run at the same time.

    Returns:
        name → spread of seconds, ``setup_seconds``, ``peak_mib_over_start``.
    """
    workers: dict[str, Worker | Several] = {}
    try:
        for name, build in builds.items():
            kind = Worker if callable(build) else Several
            workers[name] = kind(build, device, threads, isolated)
        turns = [
            {name: worker.turn(wanted) for name, worker in workers.items()}
            for wanted in [warm_steps] + [steps] * repeats
        ]
    finally:
        for worker in workers.values():
            worker.stop()
    return {
        name: spread([turn[name][0] for turn in turns[1:]])
        | {
            "setup_seconds": round(worker.setup, 3),
            "peak_mib_over_start": round(turns[-1][name][1], 1),
        }
        for name, worker in workers.items()
    }


def once(build: Callable, *arguments):
    """Call a function in a process of its own and return what it returns (which is pickled)."""
    mine, theirs = context().Pipe()
    process = context().Process(target=_answer, args=(theirs, build, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def _answer(connection, build: Callable, arguments: tuple) -> None:
    connection.send(build(*arguments))
