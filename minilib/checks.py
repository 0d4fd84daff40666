"""Refusals: one line that names the value received and what would be accepted."""

from __future__ import annotations

from collections.abc import Iterable


def one_of(name: str, value, accepted: Iterable, error: type[Exception] = ValueError) -> None:
    """Raise ``error`` unless a value is one of those accepted."""
    accepted = tuple(accepted)
    if value not in accepted:
        raise error(f"{name} is {value!r}; accepted: {', '.join(map(str, accepted))}")


def above_zero(settings, *names: str) -> None:
    """Raise ValueError for the first of these attributes that is not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} is {getattr(settings, name)!r}; accepted: above 0")


def not_negative(settings, *names: str) -> None:
    """Raise ValueError for the first of these attributes that is below 0, or no number."""
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} is {getattr(settings, name)!r}; accepted: 0 or above")
