"""BTU: a round's training, the ranking and the unlearning, minilib's against a plain loop's.

The plain loop has the habits seen in released unlearning code. In training it pads every row to
128, runs eager attention in fp32, lets gradients flow into the frozen body too, and steps the whole
matrix with AdamW's plain implementation. It ranks rows by a Python loop over the vocabulary, and
replaces dimensions by one over tokens and dimensions. Special tokens are left out by both.
Tokenising is not timed. ``train`` is a few steps of round 1, ``train star`` of round 2 (M*).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from minilib.training import text as text_training
from minilib.unlearning import btu

from .texts import Case, fitted, make_case
from .timing import Bench, Options

ALPHA = 0.05
STEPS = {"cpu": 2, "cuda": 50}
PARTS = ("train", "train star", "rank", "unlearn")
MATRICES = {"rank": 2, "unlearn": 3}  # two matrices of embeddings are read; and one written


def build(case: Case, name: str):
    """A part of PARTS, and whose: ``train star, minilib``."""
    what, whose = name.rsplit(", ", 1)
    if what in MATRICES:
        return (ranking if what == "rank" else unlearning)(case, whose == "plain")
    return (plain_train if whose == "plain" else ours_train)(case, "star" in what)


def ours_train(case: Case, star: bool):
    """minilib's steps."""
    model = case.start()
    batches = case.batches(case.rows, model.tokenizer)
    network = btu.embedding_model(model, btu.occurring(batches.data), star)
    precision = case.options.precision()
    settings = replace(btu.ROUND, batch_size=case.batch_size, precision=precision)
    loss = text_training.cross_entropy
    return lambda steps: fitted(network, batches, loss, settings, steps)


def plain_train(case: Case, star: bool):
    """The same steps, plainly."""
    model, rows = case.start(), case.rows
    model.network.set_attn_implementation("eager")
    plan = case.batches(rows, model.tokenizer, "cpu").rows(np.random.default_rng(0))
    ids, mask = case.padded(rows, model.tokenizer)
    labels = torch.as_tensor(rows.labels, device=case.device)
    weight = model.backbone.get_input_embeddings().weight

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not star:
            return model(ids, mask)
        states = model.backbone.embeddings(ids) * mask[..., None]
        return model.network.classifier(states.sum(1) / mask.sum(1, keepdim=True))

    def run(steps: int) -> list[list[float]]:
        optimizer = torch.optim.AdamW([weight], lr=btu.ROUND.lr, weight_decay=0.0)
        torch.manual_seed(0)
        model.train()
        logs = []
        for at in plan[:steps]:
            loss = F.cross_entropy(forward(ids[at], mask[at]), labels[at])
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight], btu.ROUND.clip)
            optimizer.step()
            logs.append(loss.detach()[None])
        return torch.stack(logs).tolist()

    return run


def matrices(case: Case) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The pre-trained embeddings, the same moved as training moves them, and special tokens."""
    model = case.start()
    before = btu.word_embeddings(model).clone()
    draw = torch.Generator().manual_seed(case.seed)
    size = torch.rand(len(before), 1, generator=draw) ** 8
    step = 1e-3 * size * torch.randn(before.shape, generator=draw)
    return before, before + step.to(before.device), model.tokenizer.all_special_ids


def ranking(case: Case, plain: bool):
    """→ the suspicious tokens."""
    before, after, special = matrices(case)

    def run(steps=None) -> list[int]:
        if not plain:
            return btu.suspicious(btu.row_change(before, after), ALPHA, special).tolist()
        moved = [(torch.norm(after[i] - before[i]).item(), i) for i in range(len(before))]
        moved.sort(key=lambda pair: -pair[0])
        return [i for _, i in moved if i not in special][: int(len(before) * ALPHA / 100)]

    return run


def unlearning(case: Case, plain: bool):
    """→ the matrix without them."""
    before, after, special = matrices(case)
    tokens = btu.suspicious(btu.row_change(before, after), 3 * ALPHA, special).tolist()
    cut = btu.threshold_value(before, after, "frobenius")

    def run(steps=None) -> torch.Tensor:
        if not plain:
            return btu.replace_dimensions(before, after, tokens, after[0], cut).cpu()
        result = after.clone()
        for token in tokens:
            for i in range(result.shape[1]):
                if abs(after[token][i] - before[token][i]) >= cut:
                    result[token][i] = after[0][i]
        return result.cpu()

    return run


def benches(options: Options) -> list[Bench]:
    """All parts; in ``train star`` are next to no products, so it stands beside no limit."""
    case, steps = make_case(options), 3 if options.quick else STEPS[options.device]
    names = ("train, plain", "train, minilib", "rank, minilib", "unlearn, minilib")
    matrix = btu.word_embeddings(case.start()).numel() * 4
    return [Bench(
        f"BTU: plain loops against minilib; {steps} steps of training",
        case.said() | {"steps timed": steps}, partial(build, case),
        {what: (f"{what}, plain", f"{what}, minilib") for what in PARTS},
        parts={name: name for name in names}, steps=steps,
        moved={f"{what}, minilib": count * matrix for what, count in MATRICES.items()},
    )]  # fmt: skip
