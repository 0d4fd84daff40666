"""A toy chapter with toy trials, for tests of sweeps; a module, so that workers can import it.

A trial says in the folder that TOY names what it does, and does there what its recipe asks for.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import filelock

from minilib import chapters, ledger
from minilib.ledger import cached, recipe, trial

CHAPTER = "07_swept"
BODY = """\
from types import SimpleNamespace
import toy_sweeps
from minilib import ledger
toy_sweeps.said("notebook", f"{seed}")
toy_sweeps.wait_for_go() if method == "slow notebook" else None
1 / 0 if method == "fails-in-the-notebook" else None
toy_sweeps.eat() if method == "eats in the notebook" else None
cfg = SimpleNamespace(seed=seed, alpha=alpha, method=method, deep=deep)
ledger.run(toy_sweeps.trials(cfg))
"""


def said(*words: str) -> None:
    """Add a line to the log, in one write."""
    with open(Path(os.environ["TOY"], "log"), "ab", buffering=0) as log:
        log.write(f"{' '.join(words)}\n".encode())


def wait_for_go() -> None:
    """Wait until there is a file `go`."""
    Path(os.environ["TOY"], f"pid{os.getpid()}").touch()
    while not Path(os.environ["TOY"], "go").exists():
        time.sleep(0.01)


def eat() -> None:
    """Take memory until the system ends this process, or there is more of it than a test gives."""
    eaten = []
    while len(eaten) < 1024:
        eaten.append(bytearray(os.urandom(1)) * 2**20)
        time.sleep(0.001)


@recipe
class SweptVictim:
    seed: int


@cached(version=1)
def swept_victim(one: SweptVictim) -> int:
    """Train once, while others wait."""
    file = Path(os.environ["TOY"], f"victim{one.seed}")
    with filelock.FileLock(f"{file}.lock"):
        if not file.exists():
            said("victim", str(one.seed))
            time.sleep(0.05)
            file.write_text("1")
    return one.seed


@recipe
class Swept:
    victim: SweptVictim
    number: int
    alpha: float = 2.0
    seconds: float = 0.0
    does: str = "rga"


@trial(version=1)
def swept(one: Swept):
    """One row; refuses to be computed twice, or by two at a time."""
    import numpy as np

    key, toy = ledger.key_of(one), Path(os.environ["TOY"])
    said("begin", key)
    if (ledger.local_folder() / "swept" / f"{key}.json").exists():
        said("twice", key)
    with open(toy / f"{key}.at", "w") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            said("together", key)
        value = swept_victim(one.victim)
        time.sleep(one.seconds)
        first = not (toy / f"{key}.once").exists()
        (toy / f"{key}.once").touch()
        if one.does == "killed" or (one.does == "killed once" and first):
            os.kill(os.getpid(), 9)
        if one.does == "eats":
            eat()
        if one.does == "slow":
            wait_for_go()
        if one.does == "fails" and not (toy / "mended").exists():
            raise ValueError("the number is odd;\naccepted: even ones")
        if one.does == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if one.does == "no-data":
            raise type("DataError", (Exception,), {})("no sst2; set MINILIB_DATA")
    said("end", key)
    curve = np.arange(3) + value
    return [{"method": one.does, "epoch": n, "cacc": 80.0 + one.alpha + n + value}
            for n in (1, 2)], {"curve": curve}  # fmt: skip


def trials(cfg) -> list[Swept]:
    """Three trials on one victim; the second does what the chapter's method says."""
    does = {1: cfg.method}
    return [Swept(victim=SweptVictim(seed=cfg.seed), number=n, alpha=cfg.alpha,
                  does=does.get(n, "rga"), seconds=(cfg.seed * 7 + n * 5) % 20 / 100 * cfg.deep)
            for n in range(3)]  # fmt: skip


def rows(results) -> list[dict]:
    """Their rows."""
    return [{**row, "key": one.key} for one in results for row in one.table()]


def register(registry=chapters.CHAPTERS, modules=sys.modules) -> None:
    """Make this module a chapter of the book."""
    registry[CHAPTER] = "toy_sweeps"
    modules["minilib.chapters.toy_sweeps"] = sys.modules[__name__]
