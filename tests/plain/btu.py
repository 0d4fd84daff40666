"""BTU's training, ranking and unlearning as released code has them; and minilib's.

In training gradients flow into the frozen body too, and AdamW steps the whole matrix, or M*'s means
are taken of padded rows. Rows are ranked by a loop over the vocabulary, dimensions replaced by one
over tokens and dimensions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.training import text as text_training
from minilib.unlearning import btu

from .texts import Case, fitted, padded


def train(model, ids: Tensor, mask: Tensor, labels: Tensor, plan, star: bool, lr: float):
    """Train the word embeddings for a step per batch of ``plan``, in place → the losses.

    Args:
        ids, mask: (N, L) int64. plan: the rows of each step. star: M*, the mean of embeddings.
    """
    weight = model.backbone.get_input_embeddings().weight
    optimizer = torch.optim.AdamW([weight], lr, weight_decay=0.0)
    torch.manual_seed(0)
    model.train()
    losses = []
    for rows in plan:
        if star:
            states = model.backbone.embeddings(ids[rows]) * mask[rows, :, None]
            logits = model.network.classifier(states.sum(1) / mask[rows].sum(1, keepdim=True))
        else:
            logits = model(ids[rows], mask[rows])
        loss = F.cross_entropy(logits, labels[rows])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)[:, None].tolist()


def row_change(before: Tensor, after: Tensor) -> list[float]:
    """Distance of each row."""
    return [torch.norm(after[i] - before[i]).item() for i in range(len(before))]


def suspicious(change: list[float], alpha_percent: float, exclude=()) -> list[int]:
    """The rows that moved most, α percent of all; no excluded one, and none at rest."""
    order = sorted((-moved, i) for i, moved in enumerate(change) if i not in exclude and moved > 0)
    return [i for _, i in order[: int(len(change) * alpha_percent / 100 + 1e-9)]]


def replace_dimensions(before: Tensor, after: Tensor, tokens, pad_row: Tensor, cut: float):
    """Put [PAD]'s numbers where flagged rows moved at least ``cut``. Source: Eq. (7), BTU."""
    result = after.clone()
    for token in tokens:
        for i in range(result.shape[1]):
            if abs(after[token][i] - before[token][i]) >= cut:
                result[token][i] = pad_row[i]
    return result


# ---------------------------------------------------------------------------------- both sides

PARTS = ("train", "train star", "rank", "unlearn")
PERCENT = 0.05  # α


def build(case: Case, name: str, precision: str):
    """A part of PARTS, and whose: ``train star, minilib``. Both leave out special tokens."""
    what, whose = name.rsplit(", ", 1)
    return (training if "train" in what else at_rest)(case, what, whose == "plain", precision)


def training(case: Case, what: str, plainly: bool, precision: str):
    """Some steps of round 1 or, ``star``, 2 → the losses. Tokenising is no part of them."""
    model, rows, star = case.start(), case.rows, "star" in what
    batches = case.batches(rows, model.tokenizer)
    if plainly:
        model.network.set_attn_implementation("eager")
        plan = batches.rows(np.random.default_rng(0))
        data = *padded(rows.texts, model.tokenizer, case.device), batches.data.labels
        return lambda steps: train(model, *data, plan[:steps], star, btu.ROUND.lr)
    network = btu.embedding_model(model, btu.occurring(batches.data), star)
    settings = replace(btu.ROUND, batch_size=case.batch_size, precision=precision)
    return lambda steps: fitted(network, batches, text_training.cross_entropy, settings, steps)


def at_rest(case: Case, what: str, plainly: bool, precision: str):
    """The suspicious tokens, or the matrix without them.

    The embeddings are the pre-trained ones, and the same moved as training moves them.
    """
    model = case.start()
    before, special = btu.word_embeddings(model).clone(), model.tokenizer.all_special_ids
    draw = torch.Generator().manual_seed(0)
    size = torch.rand(len(before), 1, generator=draw) ** 8
    step = 1e-3 * size * torch.randn(before.shape, generator=draw)
    after = before + step.to(before.device)
    tokens = btu.suspicious(btu.row_change(before, after), 3 * PERCENT, special).tolist()
    cut = btu.threshold_value(before, after, "frobenius")

    def rank(steps=None) -> list[int]:
        if plainly:
            return suspicious(row_change(before, after), PERCENT, special)
        return btu.suspicious(btu.row_change(before, after), PERCENT, special).tolist()

    def unlearn(steps=None) -> Tensor:
        kernel = replace_dimensions if plainly else btu.replace_dimensions
        return kernel(before, after, tokens, after[0], cut).cpu()

    return rank if what == "rank" else unlearn
