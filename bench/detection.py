"""Detection: CUBE end to end against a plain loop, and what each detector takes for the same rows.

The plain loop has the habits seen in released detection code: rows in their order, padded to 128,
eager attention in fp32, one batch of 32 after the other with the states carried to the CPU at once.
UMAP and HDBSCAN are the same for both, and have most of the time: that is why the collecting of
the states stands by itself too.

What is compared, and how fairly:

* First the states of both agree in fp32.
* Then ``states`` and ``cube`` are timed in turns (plain, minilib, plain …) after a warm-up.
* Last, every detector of chapter 02 judges the same few rows, each turn in the same order; its time
  is given in passes: multiples of the time that collecting these rows' states takes. A detector
  of the first family is given the states; STRIP, BKI and ONION grow with the rows times their
  copies or words, UMAP somewhat faster than the rows, MF by an epoch over them.

The victim is a pre-trained encoder with a fresh head: what is timed does not depend on what it has
learnt. ONION asks the trigram model of the clean rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.btu import rows_of, start
from bench.rga import Case, make_case, tokenised
from bench.timing import hardware, in_turns, ratios, versions, wait, write
from minilib import detection, train
from minilib.detection import DETECTORS, Knowledge

SOME, QUICK_SOME = 1000, 80  # rows that every detector judges
TRUSTED = 200  # clean rows of the defender
TOLERANCE = 1e-4  # of the states, relative to their largest number
LEFT_OUT = ("cube-code",)  # another reading of the same map

Timed = Callable[[], tuple[float, np.ndarray]]


def plain_states(case: Case, rows) -> Timed:
    """Hidden states as a loop over padded batches collects them."""
    victim = start(case)
    victim.network.set_attn_implementation("eager")

    @torch.inference_mode()
    def run() -> tuple[float, np.ndarray]:
        started = wait(case.device)
        data, states = tokenised(rows, victim.tokenizer, case.device), []
        victim.eval()
        for first in range(0, len(rows), case.batch_size):
            part = slice(first, first + case.batch_size)
            found = victim.features(data["input_ids"][part], data["attention_mask"][part])
            states.append(found.cpu().numpy())
        return wait(case.device) - started, np.concatenate(states)

    return run


def our_states(case: Case, rows, precision: str) -> Timed:
    """Hidden states as minilib collects them."""
    victim = start(case)

    def run() -> tuple[float, np.ndarray]:
        started = wait(case.device)
        states = detection.hidden_states(victim, rows, precision)
        return wait(case.device) - started, states

    return run


def with_cube(case: Case, rows, states: Timed) -> Timed:
    """The same, and then CUBE's map and clusters."""
    victim = start(case)

    def run() -> tuple[float, np.ndarray]:
        seconds, found = states()
        judged = detection.detect_cube(victim, rows, Knowledge(states=found, seed=case.seed))
        return seconds + judged.seconds, judged.mask

    return run


def check(case: Case, rows) -> dict:
    """Refuse to go on unless both loops collect the same states."""
    (_, theirs), (_, ours) = plain_states(case, rows)(), our_states(case, rows, "fp32")()
    apart = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
    if not apart < TOLERANCE:
        raise RuntimeError(f"states: the loops differ by {apart:.1e}; accepted: {TOLERANCE:.0e}")
    return {"states": apart}


def detector_seconds(case: Case, rows, turns: int) -> dict[str, list[float]]:
    """Time every detector on the same rows; "states" is one pass over them."""
    victim = start(case)
    trusted = case.retain.select(np.arange(min(TRUSTED, len(case.retain))))
    seconds = {name: [] for name in ("states", *DETECTORS) if name not in LEFT_OUT}
    for _ in range(turns):
        once, states = our_states(case, rows, "auto")()
        known = Knowledge(trusted, states, case.model, case.seed)
        for name, values in seconds.items():
            one = once if name == "states" else DETECTORS[name](victim, rows, known).seconds
            values.append(one)
    return seconds


def measure(case: Case, repeats: int, some: int) -> dict:
    """Check, then time; return the record."""
    rows = rows_of(case)
    # Every so many of them, for the poisons are the last.
    few = rows.select(np.linspace(0, len(rows) - 1, min(some, len(rows))).astype(int))
    equal = check(case, few)
    print(f"the loops agree: {equal}")
    precision = train.resolve_precision("auto", torch.device(case.device))
    plain, ours = plain_states(case, rows), our_states(case, rows, precision)
    parts = {
        "states": {"plain": plain, "minilib": ours},
        "CUBE": {"plain": with_cube(case, rows, plain), "minilib": with_cube(case, rows, ours)},
    }
    seconds = {}
    for part, loops in parts.items():
        timed = in_turns(loops, repeats)
        seconds[part] = {name: {"values": values} for name, values in timed.items()}
    alone = {
        name: {"values": values[1:]}
        for name, values in detector_seconds(case, few, repeats + 1).items()
    }
    passes = {
        f"{name}, in passes over {len(few)} rows": ratios(one, alone["states"])
        for name, one in alone.items()
        if name != "states"
    }
    return {
        "what": "Detection: a plain loop's time over minilib's; then each detector, in passes",
        "case": {
            "model": case.model,
            "data": case.source,
            "rows": len(rows),
            "batch": case.batch_size,
            "device": case.device,
            "precision": precision,
        },
        "hardware": hardware(case),
        "versions": versions(),
        "agreement": equal,
        "seconds": seconds | {"detectors": alone},
        "ratios": {part: ratios(both["plain"], both["minilib"]) for part, both in seconds.items()}
        | passes,
    }


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure and write ``detection-<device>.json``; ``switches`` is there for rga and not used."""
    torch.set_num_threads(threads)
    case = make_case(device, threads, quick)
    record = measure(case, repeats or (1 if quick else 3), QUICK_SOME if quick else SOME)
    for part, ratio in record["ratios"].items():
        print(f"{part:40} {ratio['median']:.2f}")
    return write(folder, f"detection-{device}{'-quick' if quick else ''}", record)
