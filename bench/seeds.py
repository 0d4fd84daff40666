"""Several seeds of one victim: one after the other, stacked into one network, or side by side.

A small victim leaves a large machine idle, and every published number wants three of them. Three
ways to fine-tune the same encoder from several seeds, each of which draws its own head, its own
batches and its own dropout:

* ``one after the other``: minilib's loop, once per seed. What chapters do.
* ``stacked``: the seeds' weights are stacked, and one forward and one backward pass under
  ``torch.vmap`` serve all. Batches of the same step are padded to the longest of all seeds;
  gradients are clipped seed by seed, and AdamW works element by element anyway.
* ``side by side``: a process per seed, at the same time, with its share of the threads. What
  ``minilib sweep --workers`` does.

What is compared, and how fairly:

* First, fp32, no dropout: the losses of ``stacked`` agree with those of each seed alone, step by
  step. (With dropout each stacked seed has masks of its own, but not those it draws alone.)
* Then the ways are timed in turns, from the first batch that is asked for to the end of the last
  step of the last seed.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minilib import train
from minilib.train import Batches, TrainSettings

from . import finetune, limits, workers
from .btu import rows_of
from .finetune import LR, TOLERANCE, WARM_STEPS, Case, encoded, start
from .rga import make_case
from .timing import hardware, ratios, versions, wait
from .workers import Run

SEEDS = (0, 1, 2)
ALONE, STACKED, BESIDE = "one after the other", "stacked", "side by side"


def cases(device: str, threads: int, quick: bool) -> list[Case]:
    """Chapter 03's victim, and the tests' tiny one, whose steps are mostly overhead."""
    taken = make_case(device, threads, quick)
    rows = rows_of(taken)
    full = len(rows) // taken.batch_size * taken.batch_size  # no stack has ragged batches
    steps = 3 if quick else (200 if device == "cuda" else 4)
    return [
        Case(
            model, taken.source, tuple(rows.texts[:full]), tuple(map(int, rows.labels[:full])),
            taken.batch_size, steps, device, threads,
        )
        for model in dict.fromkeys(["tiny", taken.model])
    ]  # fmt: skip


def alone(case: Case, precision: str) -> Run:
    """minilib's loop, once per seed; logs (steps × seeds) losses, seed by seed."""
    loops = [finetune.ours(replace(case, seed=seed), precision) for seed in SEEDS]

    def run(steps: int) -> tuple[float, list[list[float]]]:
        seconds, losses = zip(*(loop(steps) for loop in loops), strict=True)
        return sum(seconds), list(losses)

    return run


def stacked(case: Case, precision: str) -> Run:
    """All seeds at once under vmap; logs as ``alone`` does."""
    device = torch.device(case.device)
    models = [start(replace(case, seed=seed)) for seed in SEEDS]
    data = encoded(case, models[0].tokenizer, case.device)
    weights, buffers = torch.func.stack_module_state(models)
    shell = copy.deepcopy(models[0]).to("meta").train()
    how = TrainSettings(1, LR, case.batch_size, weight_decay=0.0)

    # On a CPU vmap calls the fused attention once per seed. So does the loop that it is held to.
    warnings.filterwarnings("ignore", message=".*batching rule for aten::_scaled_dot_product.*")

    def loss(own, constant, ids, mask, labels):
        logits = torch.func.functional_call(shell, (own, constant), (ids, mask))
        return F.cross_entropy(logits.float(), labels)

    every = torch.vmap(loss, randomness="different")

    def run(steps: int) -> tuple[float, list[list[float]]]:
        optimizer = torch.optim.AdamW(weights.values(), LR, weight_decay=0.0, fused=True)
        train.keep_heap(device)
        started, logs = wait(case.device), []
        plans = [Batches(data, case.batch_size).rows(np.random.default_rng(s)) for s in SEEDS]
        with torch.random.fork_rng(devices=[device] if data.ids.is_cuda else []):
            torch.manual_seed(case.seed)
            for rows in list(zip(*plans, strict=True))[:steps]:
                with train.autocast(device, precision):
                    losses = every(weights, buffers, *batch_of(data, rows))
                losses.sum().backward()
                clip(list(weights.values()), how.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                logs.append(losses.detach())
                if device.type == "cpu" and not torch.isfinite(losses).all():
                    raise FloatingPointError(f"losses are {losses.tolist()}")
        return wait(case.device) - started, torch.stack(logs).T.tolist()

    return run


def batch_of(data: train.Encoded, rows: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, ...]:
    """The seeds' batches on top of each other: ids (S, B, T), mask (S, B, 1, T, T), labels (S, B).

    transformers looks into a mask of one row per text to see whether it can do without, which
    vmap cannot follow; one of all pairs it takes as it is.
    """
    batch, shape = data.batch(np.concatenate(rows)), (len(rows), len(rows[0]))
    ids = batch.input_ids.unflatten(0, shape)
    mask = batch.attention_mask.bool().unflatten(0, shape)[:, :, None, None]
    return ids, mask.expand(-1, -1, 1, ids.shape[-1], -1), batch.labels.unflatten(0, shape)


def clip(weights: list[torch.Tensor], most: float) -> None:
    """Clip the gradients of stacked weights (S, …) to a norm of ``most``, seed by seed."""
    norms = torch.stack([p.grad.flatten(1).norm(dim=1) for p in weights]).norm(dim=0)  # (S,)
    factors = (most / (norms + 1e-6)).clamp(max=1)
    for p in weights:
        p.grad.mul_(factors.view(-1, *[1] * (p.dim() - 1)))


def make(case: Case, way: str) -> tuple[Run, float]:
    """A loop by its name, and no seconds of set-up."""
    build = stacked if way == STACKED else alone
    return build(case, limits.precision_of(way, case.device)), 0.0


def one_seed(case: Case, seed: int) -> tuple[Run, float]:
    """minilib's loop for one of the seeds, for a process of its own."""
    precision = limits.precision_of(BESIDE, case.device)
    return finetune.ours(replace(case, seed=seed), precision), 0.0


def check(case: Case) -> tuple[float, dict[str, int]]:
    """Compare the losses of all steps of all seeds in fp32; return the difference, and FLOPs.

    Raises:
        RuntimeError: the ways do not compute the same, so their times must not be compared.
    """
    still = replace(case, dropout=False)
    (_, one), work = limits.count(alone(still, "fp32"), case.steps)
    (_, all_at_once), padded = limits.count(stacked(still, "fp32"), case.steps)
    one, all_at_once = np.array(one), np.array(all_at_once)
    worst = float((np.abs(one - all_at_once) / one).max())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"losses differ by {worst:.1e} (relative); accepted: {TOLERANCE:.0e}")
    return worst, {ALONE: work, STACKED: padded, BESIDE: work}


def measure(case: Case, repeats: int, isolated: bool = True) -> dict:
    """Check, then time; return the record."""
    worst, flops = check(case)
    print(f"{len(SEEDS)} seeds of {case.model}: losses within {worst:.1e} (relative)")
    builds = {name: partial(make, case, name) for name in (ALONE, STACKED)}
    builds[BESIDE] = [partial(one_seed, case, seed) for seed in SEEDS]
    found = workers.alternate(
        builds, case.device, case.threads, repeats, case.steps, WARM_STEPS, isolated
    )
    rates = limits.machine(case.device, quick=not isolated)
    return {
        "what": f"{len(SEEDS)} seeds of fine-tuning {case.model}, in three ways",
        "case": {
            "model": case.model, "data": case.source, "rows": len(case.texts),
            "batch": case.batch_size, "seeds": len(SEEDS), "steps timed": case.steps,
            "device": case.device, "precision": limits.precision_of(ALONE, case.device),
        },
        "hardware": hardware(case),
        "versions": versions(),
        "equal_losses": {"largest_relative_difference": worst, "tolerance": TOLERANCE},
        "seconds": found,
        "ratios": {
            f"{ALONE} / {name}": ratios(found[ALONE], found[name]) for name in (STACKED, BESIDE)
        },
        "limits": {
            "machine": rates,
            "parts": limits.loops(rates, case.device, found, flops, f"{case.steps} steps, {{}}"),
        },
    }  # fmt: skip


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure and write ``seeds-<device>.json``; ``switches`` is there for rga and not used."""
    return finetune.each_case("seeds", cases, measure, folder, device, threads, repeats, quick)
