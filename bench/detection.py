"""Detection: CUBE end to end against a plain loop, and what each detector takes for the same rows.

The plain loop has the habits seen in released detection code: rows in their order, padded to 128,
eager attention in fp32, one batch of 32 after the other with the states carried to the CPU at once.
UMAP and HDBSCAN are the same for both, and have most of the time: that is why the collecting of
the states stands by itself too.

What is compared, and how fairly:

* First the states of both agree in fp32.
* Then ``states`` and ``cube`` are timed in turns (plain, minilib, plain …) after a warm-up. On a
  CPU both are given a part of the rows.
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

from bench import limits
from bench.btu import rows_of, start
from bench.rga import Case, make_case, tokenised
from bench.timing import hardware, ratios, turns, versions, wait, write
from minilib import detection
from minilib.detection import DETECTORS, Knowledge

ROWS = {"cpu": 150}  # whose states are collected; elsewhere all
SOME = {"cpu": 25, "cuda": 1000}  # rows that every detector judges
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


def with_cube(case: Case, rows, repeats: int, loops: dict[str, Timed]) -> dict[str, dict]:
    """Seconds of each loop's states, and of CUBE with them, in turns; the first turn warms up.

    CUBE's map and clusters are made once a turn and count for every loop: they are the same.
    """
    victim, found = start(case), {"states": {}, "CUBE": {}}
    for turn in range(repeats + 1):
        seconds = {name: loop() for name, loop in loops.items()}
        states = seconds["minilib"][1]
        map_of = detection.detect_cube(victim, rows, Knowledge(states=states, seed=case.seed))
        for name, (once, _) in seconds.items() if turn else ():
            found["states"].setdefault(name, {"values": []})["values"].append(once)
            whole = once + map_of.seconds
            found["CUBE"].setdefault(name, {"values": []})["values"].append(whole)
    return found


def check(case: Case, rows, flops: dict | None = None) -> dict:
    """Refuse to go on unless both loops collect the same states.

    Args:
        flops: filled with what each loop computes, if given.
    """
    flops = {} if flops is None else flops
    (_, theirs), flops["plain"] = limits.count(plain_states(case, rows))
    (_, ours), flops["minilib"] = limits.count(our_states(case, rows, "fp32"))
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


def spaced(rows, count: int | None):
    """So many rows, from the first to the last (the poisons are the last); all for None."""
    if count is None or count >= len(rows):
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, count).astype(int))


def measure(case: Case, repeats: int, some: int) -> dict:
    """Check, then time; return the record."""
    rows = spaced(rows_of(case), ROWS.get(case.device))
    few = spaced(rows, some)
    # Before the loops run: a limit is that of the machine at rest.
    rates = limits.machine(case.device, quick=case.model == "tiny")
    flops: dict = {}
    equal = check(case, rows, flops)
    print(f"the loops agree: {equal}")
    precision = limits.precision_of("minilib", case.device)
    loops = {"plain": plain_states(case, rows), "minilib": our_states(case, rows, precision)}
    seconds = with_cube(case, rows, repeats, loops)
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
        "limits": {
            "machine": rates,
            "parts": limits.loops(rates, case.device, seconds["states"], flops, "states, {}"),
        },
    }


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure and write ``detection-<device>.json``; ``switches`` is there for rga and not used."""
    torch.set_num_threads(threads)
    case = make_case(device, threads, quick)
    record = measure(case, turns(repeats, quick, device), SOME[device])
    for part, ratio in record["ratios"].items():
        print(f"{part:40} {ratio['median']:.2f}")
    return write(folder, f"detection-{device}{'-quick' if quick else ''}", record)
