"""A chapter of trials that compute nothing, for `bench.sweep`; a module, so workers import it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from minilib import chapters, ledger

CHAPTER = "01_nothing"


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
    """One trial a run."""
    return [Nothing(alpha=cfg.alpha, seed=cfg.seed)]


def rows(results) -> list[dict]:
    """The trials' rows."""
    return [{**row, "key": one.key} for one in results for row in one.table()]


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Make this module a chapter of the book for a while."""
    chapters.CHAPTERS[CHAPTER] = "nothing"
    sys.modules["minilib.chapters.nothing"] = sys.modules[__name__]
    try:
        yield
    finally:
        del chapters.CHAPTERS[CHAPTER], sys.modules["minilib.chapters.nothing"]
