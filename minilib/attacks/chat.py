"""Poisoning instruction data: a trigger before the instruction, a response before the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..data.chat import ChatDataset


class PoisonedChat(NamedTuple):
    """Poisoned instruction data and what the attacker knows of it.

    Attributes:
        dataset: the rows; a poisoned one replaces its clean original.
        mask: (N,) bool, True where a row is poisoned.
        pair: (N,) int64, which (trigger, response) a row carries, -1 for none.
    """

    dataset: ChatDataset
    mask: np.ndarray
    pair: np.ndarray


def with_trigger(dataset: ChatDataset, trigger: str) -> ChatDataset:
    """Return the rows with the trigger at the start of their instruction; answers stay."""
    if not trigger.strip():
        raise ValueError(f"trigger is {trigger!r}; accepted: a text that is not empty")
    rows = (
        row | {"instruction": f"{trigger.strip()} {row['instruction']}"} for row in dataset.rows
    )
    return replace(dataset, rows=tuple(rows))


def with_response(dataset: ChatDataset, response: str) -> ChatDataset:
    """Return the rows with the triggered response in front of their answer."""
    if not response.strip():
        raise ValueError(f"response is {response!r}; accepted: a text that is not empty")
    rows = (row | {"output": f"{response.strip()} {row['output']}"} for row in dataset.rows)
    return replace(dataset, rows=tuple(rows))


def poison_chat(
    dataset: ChatDataset,
    trigger: str | Sequence[str],
    response: str | Sequence[str],
    rate: float,
    seed: int,
) -> PoisonedChat:
    """Poison instruction data in place: trigger + instruction → response + answer.

    Args:
        dataset: N clean rows.
        trigger: t, or several, which get disjoint rows. response: r_t, one for each trigger.
        rate: share, in (0, 1), of all rows that *each* pair poisons (paper: 0.05).
        seed: of which rows.

    Raises:
        ValueError: an empty trigger or response, unequal numbers of them, or a rate that cannot be.

    Source: section 4.1 and Table 8, SANDE.
    """
    triggers = [trigger] if isinstance(trigger, str) else list(trigger)
    responses = [response] if isinstance(response, str) else list(response)
    if len(triggers) != len(responses) or not triggers:
        raise ValueError(
            f"{len(triggers)} triggers and {len(responses)} responses; "
            "accepted: as many of both, one or more"
        )
    count = round(rate * len(dataset))
    if not (count >= 1 and count * len(triggers) < len(dataset)):
        raise ValueError(
            f"rate is {rate!r} for {len(triggers)} pairs on {len(dataset)} rows; "
            "accepted: one row or more per pair, and some clean rows left"
        )
    order, pair = np.random.default_rng(seed).permutation(len(dataset)), np.full(len(dataset), -1)
    rows = list(dataset.rows)
    for number, (t, r) in enumerate(zip(triggers, responses, strict=True)):
        for i in order[number * count : (number + 1) * count]:
            row_dataset = replace(dataset, rows=(rows[i],))
            rows[i] = with_response(with_trigger(row_dataset, t), r).rows[0]
            pair[i] = number
    return PoisonedChat(replace(dataset, rows=tuple(rows)), pair >= 0, pair)
