"""What an audit may end in, whatever it audits: its exit codes, and refusals of one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
