"""Detection: CUBE end to end against a plain loop, and what each detector takes for the same rows.

The plain loop has the habits seen in released detection code: rows in their order, padded to 128,
eager attention in fp32, one batch of 32 after the other with the states carried to the CPU at once.
UMAP and HDBSCAN are the same for both, and have most of the time: that is why the collecting of
the states stands by itself too. Last, every detector of chapter 02 judges the same few rows; its
time is given in passes, multiples of the time that collecting these rows' states takes.

The victim is a pre-trained encoder with a fresh head: what is timed does not depend on what it has
learnt. ONION asks the trigram model of the clean rows.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch

from minilib import detection
from minilib.detection import DETECTORS, DefenderData

from . import timing
from .texts import Case, make_case, padded, start
from .timing import Options

ROWS = {"cpu": 150}  # whose states are collected; elsewhere all
SOME = {"cpu": 25, "cuda": 1000}  # rows that every detector judges
TRUSTED = 200  # clean rows of the defender
LEFT_OUT = ("cube-code",)  # another reading of the same map
NAMES = ("plain", "minilib")


def spaced(rows, count: int | None):
    """So many rows, from the first to the last (the poisons are the last); all for None."""
    if count is None or count >= len(rows):
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, count).astype(int))


def build(case: Case, name: str, exact: bool):
    """→ hidden states (N, d) as minilib collects them, or a loop over padded batches."""
    victim, rows = start(case, exact), spaced(case.rows, ROWS.get(case.device))
    if name == "minilib":
        precision = timing.precision_of(name, case.device, exact)
        return lambda steps=None: detection.hidden_states(victim, rows, precision)
    victim.network.set_attn_implementation("eager")

    @torch.inference_mode()
    def run(steps=None) -> np.ndarray:
        data, states = padded(rows.texts, victim.tokenizer, case.device), []
        victim.eval()
        for first in range(0, len(rows), case.batch_size):
            part = slice(first, first + case.batch_size)
            states.append(victim.features(*(one[part] for one in data)).cpu().numpy())
        return np.concatenate(states)

    return run


def to_largest(states: np.ndarray, others: np.ndarray) -> float:
    """Largest difference, relative to the largest number."""
    return float(np.abs(states - others).max() / np.abs(states).max())


def detector_seconds(case: Case, options: Options) -> dict[str, dict]:
    """Each detector's seconds on the same few rows, without the first turn; "states": one pass."""
    victim, rows = start(case, True), spaced(case.rows, SOME[case.device])
    trusted = case.retain.select(np.arange(min(TRUSTED, len(case.retain))))
    seconds = {name: [] for name in ("states", *DETECTORS) if name not in LEFT_OUT}
    for _ in range(options.turns + (not options.quick)):
        begun = perf_counter()
        states = detection.hidden_states(victim, rows, "auto")
        once = perf_counter() - begun
        known = DefenderData(trusted, states, case.model, case.seed)
        for name, values in seconds.items():
            one = once if name == "states" else DETECTORS[name](victim, rows, known).seconds
            values.append(one)
    return {name: timing.spread(values[-options.turns :], 6) for name, values in seconds.items()}


def main(folder, options: Options):
    """Measure and write ``detection-<device>.json``."""
    case, rates = make_case(options), timing.machine(options)
    equal, flops = timing.compared(build, case, NAMES, None, to_largest)
    states = timing.timed(build, case, NAMES, options)
    rows = spaced(case.rows, ROWS.get(case.device))
    known = DefenderData(states=build(case, "minilib", False)(), seed=case.seed)
    maps = [
        detection.detect_cube(start(case, True), rows, known).seconds for _ in range(options.turns)
    ]
    # Map and clusters are the same for both.
    cube = {
        name: timing.spread([a + b for a, b in zip(one["values"], maps, strict=True)], 6)
        for name, one in states.items()
    }
    alone = detector_seconds(case, options)
    few = min(SOME[case.device], len(case.rows))
    result = timing.record(
        "Detection: a plain loop's time over minilib's; then each detector, in passes",
        options,
        case.said() | {"rows": len(rows), "precision": timing.precision_of("minilib", case.device)},
        agreement=equal,
        seconds={"states": states, "CUBE": cube, "detectors": alone},
        ratios={
            "states": timing.ratios(*states.values()),
            "CUBE": timing.ratios(*cube.values()),
            **{
                f"{name}, in passes over {few} rows": timing.ratios(one, alone["states"])
                for name, one in alone.items()
                if name != "states"
            },
        },
        limits={
            "machine": rates,
            "parts": timing.beside(rates, case.device, states, flops, "states, {}"),
        },
    )
    return timing.write(folder, "detection", options, result)
