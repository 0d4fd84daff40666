"""Toy kinds of trial for tests of the ledger; a module, so that other processes can import it."""

from __future__ import annotations

import os
import time

from minilib import ledger
from minilib.ledger import cached, reads, recipe, trial


@recipe
class ToyData:
    dataset: str = "toy"
    seed: int = 0


@recipe
class ToyVictim:
    data: ToyData
    lr: float = 0.1
    epochs: int = 3
    seed: int = 0


@cached(version=1)
def toy_victim(one: ToyVictim):
    return one.lr * one.epochs


@recipe
class ToyUnlearning:
    victim: ToyVictim
    method: str
    epochs: int = 10
    alpha: float = 2.0
    beta: float = 0.5
    seed: int = 0

    free = ("epochs",)

    def __post_init__(self):
        reads(self, *{"ga": (), "rga": ("alpha", "beta")}[self.method], of=("alpha", "beta"))


@trial(version=1)
def toy_unlearning(one: ToyUnlearning) -> list[dict]:
    """One row an epoch; writes a line to TOY_LOG for each time that it really computes."""
    told(ledger.key_of(one))
    ledger.note({"name": one.victim.data.dataset, "split": "train", "rows": 4, "sha256": "0"})
    value = toy_victim(one.victim) + one.alpha + one.seed
    return [{"epoch": n, "pacc": value + n / 10} for n in range(1, one.epochs + 1)]


@recipe
class ToyMap:
    victim: ToyVictim
    points: int = 8


@trial(version=1)
def toy_map(one: ToyMap):
    import numpy as np

    told(ledger.key_of(one))
    rng = np.random.default_rng(one.victim.seed)
    return [{"count": one.points}], {"points": rng.normal(size=(one.points, 2)).astype("float16")}


@recipe
class ToySlow:
    number: int
    seconds: float = 0.05


@trial(version=1)
def toy_slow(one: ToySlow) -> list[dict]:
    time.sleep(one.seconds)
    told(ledger.key_of(one))
    return [{"square": one.number**2}]


@recipe
class ToyFailing:
    number: int


@trial(version=1)
def toy_failing(one: ToyFailing) -> list[dict]:
    if one.number < 0:
        raise ValueError(f"number is {one.number}; accepted: 0 or more")
    return [{"number": one.number}]


def told(key: str) -> None:
    """Append a line to the log that TOY_LOG names, in one write."""
    if path := os.environ.get("TOY_LOG"):
        with open(path, "ab", buffering=0) as log:
            log.write(f"{key}\n".encode())
