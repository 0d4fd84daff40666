"""What audits share, whatever they audit: how far they are, exit codes, refusals of one line."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .. import ledger
from ..provenance import UsageError, one_line

FOUND, NOTHING = 3, 0
REFUSALS = ("DataError", "ModelError", "NotFinite", "SettingsError", "UsageError")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what says that something cannot be audited into a UsageError of one line."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ in REFUSALS:
            raise UsageError(one_line(error)) from None
        raise


def told(line: str) -> None:
    """Say how far it is, where the report's own lines do not go."""
    print(line, file=sys.stderr, flush=True)


def in_turn(steps: Sequence, done: Callable[[int], str]) -> None:
    """Compute trials of one kind, and say after each what is done and how long the rest takes."""
    started, computed = time.monotonic(), 0
    absent = [ledger.look(step) is None for step in steps]
    for number, step in enumerate(steps, 1):
        computed += absent[number - 1]
        ledger.get(step)
        seconds = (time.monotonic() - started) / max(computed, 1) * sum(absent[number:])
        told(f"{done(number)}; about {seconds:.0f} s left")
