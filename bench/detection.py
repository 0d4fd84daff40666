"""Detection: CUBE end to end against a plain loop, and what each detector takes for the same rows.

The plain loop has the habits seen in released detection code: rows in their order, padded to 128,
eager attention in fp32, one batch of 32 after the other with the states carried to the CPU at once.
UMAP and HDBSCAN are the same for both, and have most of the time: that is why the collecting of
the states stands by itself too. Last, every detector of chapter 02 judges the same few rows; its
time is given in passes, multiples of the time that collecting these rows' states takes. What is
timed does not depend on what the victim has learnt: it has a fresh head.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from minilib import detection
from minilib.detection import DETECTORS, DefenderData

from .texts import Case, make_case
from .timing import Bench, Options

ROWS = {"cpu": 150}  # whose states are collected; elsewhere all
SOME = {"cpu": 25, "cuda": 1000}  # rows that every detector judges
TRUSTED = 200  # clean rows of the defender
LEFT_OUT = ("cube-code",)  # another reading of the same map
ONE_PASS = "one pass"


def spaced(case: Case, counts: dict[str, int]):
    """So many rows, from the first to the last (the poisons are the last); none said: all."""
    rows = case.rows
    count = min(counts.get(case.device, len(rows)), len(rows))
    return rows.select(np.linspace(0, len(rows) - 1, count).astype(int))


def build(case: Case, name: str):
    """``states`` or ``CUBE`` and whose; one pass over a few rows, or a detector on them."""
    what, _, whose = name.partition(", ")
    victim, rows = case.start(), spaced(case, ROWS if whose else SOME)
    precision = case.options.precision(name)
    ours = partial(detection.hidden_states, victim, rows, precision)
    states = plain_states(case, victim, rows) if whose == "plain" else ours
    if what in ("states", ONE_PASS):
        return lambda steps=None: states()
    if what == "CUBE":
        know = lambda: DefenderData(states=states(), seed=case.seed)  # noqa: E731
        return lambda steps=None: detection.detect_cube(victim, rows, know()).mask
    trusted = case.retain.select(np.arange(min(TRUSTED, len(case.retain))))
    known = DefenderData(trusted, ours(), case.model, case.seed)
    return lambda steps=None: DETECTORS[name](victim, rows, known).mask


def plain_states(case: Case, victim, rows):
    """Hidden states (N, d), a padded batch at a time."""
    victim.network.set_attn_implementation("eager")

    @torch.inference_mode()
    def run() -> np.ndarray:
        data, states = case.padded(rows, victim.tokenizer), []
        victim.eval()
        for first in range(0, len(rows), case.batch_size):
            part = slice(first, first + case.batch_size)
            states.append(victim.features(*(one[part] for one in data)).cpu().numpy())
        return np.concatenate(states)

    return run


def benches(options: Options) -> list[Bench]:
    """States and CUBE by both, and every detector."""
    case = make_case(options)
    few = len(spaced(case, SOME))
    both = {what: (f"{what}, plain", f"{what}, minilib") for what in ("states", "CUBE")}
    alone = {f"{name}, in passes over {few} rows": (name, ONE_PASS)
             for name in DETECTORS if name not in LEFT_OUT}  # fmt: skip
    return [Bench(
        "Detection: a plain loop's time over minilib's; then each detector, in passes",
        case.said() | {"rows": len(spaced(case, ROWS))}, partial(build, case), both | alone,
        parts={name: name for name in both["states"]},
    )]  # fmt: skip
