"""Several seeds of one victim: one after the other, stacked into one network, or side by side.

Three ways to fine-tune the same encoder from several seeds, each of which draws its own head, its
own batches and its own dropout. ``one after the other``: minilib's loop, once per seed.
``stacked``: one forward and one backward pass under ``torch.vmap`` serve all; batches of the same
step are padded to the longest of all seeds, gradients are clipped seed by seed. (With dropout each
stacked seed has masks of its own, but not those it draws alone.) ``side by side``: a process per
seed, at the same time, with its share of the threads, as ``minilib sweep --workers`` does.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from minilib.training import devices
from minilib.training.fitting import TrainSettings

from . import finetune, timing
from .finetune import LESS, LR, steps_of
from .texts import Case, make_case
from .timing import Bench, Options

SEEDS = (0, 1, 2)
ALONE, STACKED, BESIDE = "one after the other", "stacked", "side by side"


def build(case: Case, name: str):
    """A way by its name → losses (steps, seeds)."""
    each = [replace(case, seed=seed) for seed in SEEDS]
    if name == STACKED:
        return stacked(case, each)
    if name == BESIDE:
        return beside_each_other(case.options, each)
    loops = [finetune.ours(one, case.options.precision()) for one in each]
    return lambda steps: np.concatenate([loop(steps) for loop in loops], 1).tolist()


def beside_each_other(options: Options, each: list[Case]):
    """All started at once, until the last has ended."""
    share = replace(options, threads=max(1, options.threads // len(each)))
    pools = [
        timing.process(timing._begin, (partial(finetune.build, one), "minilib", None, 0, share))
        for one in each
    ]

    def run(steps: int):
        runs = [pool.submit(timing._call, "run", steps) for pool in pools]
        return np.concatenate([one.result() for one in runs], 1).tolist()

    return run


def stacked(case: Case, each: list[Case]):
    """All seeds at once under vmap."""
    device, precision = torch.device(case.device), case.options.precision()
    models = [one.start() for one in each]
    batches = case.batches(case.rows, models[0].tokenizer)
    weights, buffers = torch.func.stack_module_state(models)
    shell = copy.deepcopy(models[0]).to("meta").train()
    plans = [batches.rows(np.random.default_rng(one.seed)) for one in each]

    # On a CPU vmap calls the fused attention once per seed. So does the loop that it is held to.
    warnings.filterwarnings("ignore", message=".*batching rule for aten::_scaled_dot_product.*")

    def loss(own, constant, ids, mask, labels):
        logits = torch.func.functional_call(shell, (own, constant), (ids, mask))
        return F.cross_entropy(logits.float(), labels)

    every = torch.vmap(loss, randomness="different")

    def run(steps: int):
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


def benches(options: Options) -> list[Bench]:
    """Chapter 03's victim, and the tests' tiny one, whose steps are mostly overhead.

    A rehearsal starts no processes.
    """
    case, steps = make_case(options), steps_of(options)
    full = len(case.rows) // case.batch_size * case.batch_size - len(case.forget)
    case = replace(case, retain=case.retain.select(np.arange(full)))  # no stack has ragged batches
    others = (STACKED,) if options.quick else (STACKED, BESIDE)
    return [Bench(
        f"{len(SEEDS)} seeds of fine-tuning {model}, in three ways",
        replace(case, model=model).said() | {"seeds": len(SEEDS), "steps timed": steps},
        partial(build, replace(case, model=model)),
        {f"{ALONE} / {name}": (ALONE, name) for name in others},
        parts={f"{steps} steps, {name}": name for name in (ALONE, STACKED)},
        steps=steps, less=LESS,
    ) for model in dict.fromkeys(["tiny", case.model])]  # fmt: skip
