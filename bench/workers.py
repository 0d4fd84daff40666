"""Loops in processes of their own, timed in turns, with the peak of their memory.

A loop needs a process of its own where its memory is to be told apart, or where a setting cannot
be taken back (minilib keeps the C library's heap). One that waits does not compute.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
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

    def turn(self, steps: int | None) -> tuple[float, float]:
        """Run; return seconds, and the peak so far over what stood there at first, in MiB."""
        if self.process is None:
            return self.run(steps)[0], peak(self.device) - self.before
        self.connection.send(steps)
        return self.connection.recv()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join()


def alternate(
    builds: dict[str, Build],
    device: str,
    threads: int,
    repeats: int,
    steps: int | None,
    warm_steps: int,
    isolated: bool = True,
) -> dict[str, dict]:
    """Time loops in turns: a first, short turn to warm up, then ``repeats`` of ``steps`` steps.

    Returns:
        name → spread of seconds, ``setup_seconds``, ``peak_mib_over_start``.
    """
    workers: dict[str, Worker] = {}
    try:
        for name, build in builds.items():
            workers[name] = Worker(build, device, threads, isolated)
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
