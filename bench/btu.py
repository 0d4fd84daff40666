"""BTU: a round's training, the ranking and the unlearning, minilib's against a plain loop's.

The plain loop has the habits seen in released unlearning code. In training it pads every row to
128, runs eager attention in fp32, lets gradients flow into the frozen body too, and steps the whole
matrix with AdamW's plain implementation. It ranks rows by a Python loop over the vocabulary, and
replaces dimensions by one over tokens and dimensions. Special tokens are left out by both.
Tokenising is not timed. ``train`` is a few steps of round 1, ``train star`` of round 2 (M*).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from minilib.training import text as text_training
from minilib.training.text import Batches
from minilib.unlearning import btu

from . import timing
from .texts import Case, fitted, make_case, padded, start
from .timing import Options

ALPHA = 0.05
STEPS = {"cpu": 2, "cuda": 50}
PARTS = ("train", "train star", "rank", "unlearn")
MATRICES = {"rank": 2, "unlearn": 3}  # two matrices of embeddings are read; and one written


def build(case: Case, name: str, exact: bool):
    """A part of PARTS, and whose: ``train star, minilib``."""
    what, whose = name.rsplit(", ", 1)
    if what == "rank":
        return ranking(case, whose == "plain")
    if what == "unlearn":
        return unlearning(case, whose == "plain")
    if whose == "plain":
        return plain_train(case, "star" in what, exact)
    return ours_train(case, "star" in what, exact)


def ours_train(case: Case, star: bool, exact: bool):
    model, rows = start(case, exact), case.rows
    data = text_training.encode(rows.texts, rows.labels, model.tokenizer, device=case.device)
    network = btu.embedding_model(model, btu.occurring(data), star)
    precision = timing.precision_of("minilib", case.device, exact)
    settings = replace(btu.ROUND, batch_size=case.batch_size, precision=precision)
    batches = Batches(data, case.batch_size)
    return lambda steps: fitted(network, batches, text_training.cross_entropy, settings, steps)


def plain_train(case: Case, star: bool, exact: bool):
    model, rows = start(case, exact), case.rows
    model.network.set_attn_implementation("eager")
    sizes = text_training.encode(rows.texts, rows.labels, model.tokenizer)
    plan = Batches(sizes, case.batch_size).rows(np.random.default_rng(0))
    ids, mask = padded(rows.texts, model.tokenizer, case.device)
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
    model = start(case, True)
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
        result = copy.deepcopy(after)
        for token in tokens:
            for i in range(result.shape[1]):
                if abs(after[token][i] - before[token][i]) >= cut:
                    result[token][i] = after[0][i]
        return result.cpu()

    return run


def main(folder, options: Options):
    """Measure and write ``btu-<device>.json``."""
    case, steps = make_case(options), 3 if options.quick else STEPS[options.device]
    rates, matrix = timing.machine(options), btu.word_embeddings(start(case, True)).numel() * 4
    equal, seconds, parts = {}, {}, {}
    for what in PARTS:
        names = [f"{what}, plain", f"{what}, minilib"]
        accepted = {"accepted": 0.0} if what in MATRICES else {}
        equal[what], flops = timing.compared(build, case, names, steps, **accepted)
        seconds[what] = timing.timed(build, case, names, options, steps)
        if what in MATRICES:
            name = names[1]
            median, moved = seconds[what][name]["median"], MATRICES[what] * matrix
            parts[name] = timing.part(rates, median, moved=moved)
        elif what == "train":  # in `train star` are next to no products
            parts |= timing.beside(rates, case.device, seconds[what], flops)
    result = timing.record(
        f"BTU: plain loops against minilib; {steps} steps of training",
        options,
        case.said()
        | {"steps timed": steps, "precision": timing.precision_of("minilib", case.device)},
        agreement=equal,
        seconds=seconds,
        ratios={what: timing.ratios(*seconds[what].values()) for what in PARTS},
        limits={"machine": rates, "parts": parts},
    )
    return timing.write(folder, "btu", options, result)
