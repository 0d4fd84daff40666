"""Several seeds of one victim: one after the other, stacked into one network, or side by side.

Three ways to fine-tune the same encoder from several seeds, each of which draws its own head, its
own batches and its own dropout:

* ``one after the other``: minilib's loop, once per seed. What chapters do.
* ``stacked``: the seeds' weights are stacked, and one forward and one backward pass under
  ``torch.vmap`` serve all. Batches of the same step are padded to the longest of all seeds;
  gradients are clipped seed by seed, and AdamW works element by element anyway. (With dropout each
  stacked seed has masks of its own, but not those it draws alone.)
* ``side by side``: a process per seed, at the same time, with its share of the threads. What
  ``minilib sweep --workers`` does.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from minilib.training import devices
from minilib.training.fitting import TrainSettings

from . import finetune, timing
from .finetune import LESS, LR, batches_of, start, steps_of
from .texts import Case, make_case
from .timing import Options

SEEDS = (0, 1, 2)
ALONE, STACKED, BESIDE = "one after the other", "stacked", "side by side"


def cases(options: Options) -> list[Case]:
    """Chapter 03's victim, and the tests' tiny one, whose steps are mostly overhead."""
    case = make_case(options)
    full = len(case.rows) // case.batch_size * case.batch_size - len(case.forget)
    case = replace(case, retain=case.retain.select(np.arange(full)))  # no stack has ragged batches
    return [replace(case, model=model) for model in dict.fromkeys(["tiny", case.model])]


def build(case: Case, name: str, exact: bool):
    """A way by its name → losses (steps, seeds)."""
    precision = timing.precision_of(name, case.device, exact)
    return (stacked if name == STACKED else alone)(case, precision, exact)


def alone(case: Case, precision: str, exact: bool):
    loops = [finetune.ours(replace(case, seed=seed), precision, exact) for seed in SEEDS]
    return lambda steps: np.concatenate([loop(steps) for loop in loops], 1).tolist()


def beside_each_other(case: Case, options: Options, steps: int) -> dict:
    """Spread of seconds until the last of the processes has ended, all started at once."""
    share = replace(options, threads=max(1, options.threads // len(SEEDS)))
    with ExitStack() as stack:
        pools = []
        for seed in SEEDS:
            words = (finetune.build, (replace(case, seed=seed), "minilib", False), share)
            pools.append(stack.enter_context(timing.process(timing._begin, words)))

        def together(count: int) -> None:
            for waiting in [pool.submit(timing._run, count) for pool in pools]:
                waiting.result()

        seconds = [
            min(timing.seconds_of(together, steps + LESS)) - min(timing.seconds_of(together, LESS))
            for _ in range(options.turns)
        ]
    return timing.spread(seconds, 6)


def stacked(case: Case, precision: str, exact: bool):
    """All seeds at once under vmap."""
    device = torch.device(case.device)
    models = [start(replace(case, seed=seed), exact) for seed in SEEDS]
    batches = batches_of(case, models[0].tokenizer, case.device)
    weights, buffers = torch.func.stack_module_state(models)
    shell = copy.deepcopy(models[0]).to("meta").train()
    plans = [batches.rows(np.random.default_rng(seed)) for seed in SEEDS]

    # On a CPU vmap calls the fused attention once per seed. So does the loop that it is held to.
    warnings.filterwarnings("ignore", message=".*batching rule for aten::_scaled_dot_product.*")

    def loss(own, constant, ids, mask, labels):
        logits = torch.func.functional_call(shell, (own, constant), (ids, mask))
        return F.cross_entropy(logits.float(), labels)

    every = torch.vmap(loss, randomness="different")

    def run(steps: int) -> list[list[float]]:
        optimizer = torch.optim.AdamW(weights.values(), LR, weight_decay=0.0, fused=True)
        devices.keep_heap(device)
        logs = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(case.seed)
            for rows in list(zip(*plans, strict=True))[:steps]:
                with devices.autocast(device, precision):
                    losses = every(weights, buffers, *batch_of(batches.data, rows))
                losses.sum().backward()
                clip(list(weights.values()), TrainSettings().clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                logs.append(losses.detach())
        return torch.stack(logs).tolist()

    return run


def batch_of(data, rows: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, ...]:
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


def measure(case: Case, options: Options) -> dict:
    """Check, then time; return the record. A rehearsal starts no processes."""
    steps, rates = steps_of(options), timing.machine(options)
    names = [ALONE, STACKED]
    equal, flops = timing.compared(build, case, names, steps)
    seconds = timing.timed(build, case, names, options, steps + LESS, LESS)
    if not options.quick:
        names.append(BESIDE)
        seconds[BESIDE], flops[BESIDE] = beside_each_other(case, options, steps), flops[ALONE]
    precision = timing.precision_of(ALONE, case.device)
    return timing.record(
        f"{len(SEEDS)} seeds of fine-tuning {case.model}, in three ways",
        options,
        case.said() | {"seeds": len(SEEDS), "steps timed": steps, "precision": precision},
        equal_losses=equal,
        seconds=seconds,
        ratios={
            f"{ALONE} / {name}": timing.ratios(seconds[ALONE], seconds[name]) for name in names[1:]
        },
        limits={
            "machine": rates,
            "parts": timing.beside(rates, case.device, seconds, flops, f"{steps} steps, {{}}"),
        },
    )


def main(folder, options: Options):
    """Measure every case and write ``seeds-<device>.json``."""
    return timing.write(folder, "seeds", options, [measure(one, options) for one in cases(options)])
