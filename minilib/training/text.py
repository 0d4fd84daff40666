"""Texts tokenised once and kept on the device; fine-tuning and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.loading import in_eval
from ..models.text import LONGEST, TextClassifier
from .devices import autocast, finite, keep_heap
from .fitting import TrainSettings, fit

EVAL_TOKENS = 8192  # tokens per forward-only batch: large enough to keep the matrix units busy


class Batch(NamedTuple):
    """``input_ids`` and ``attention_mask`` (B, T) int64, ``labels`` (B,) int64, ``rows`` (B,)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Texts tokenised once: ``ids`` (N, L) int32 on the device, ``lengths`` (N,) on the host."""

    ids: Tensor
    lengths: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows, padded to the longest of them (to a multiple of 8 on a GPU)."""
        longest = int(self.lengths[rows].max())
        if self.ids.is_cuda:
            longest = min(-(-longest // 8) * 8, self.ids.shape[1])
        index = torch.as_tensor(rows, device=self.ids.device)
        lengths = torch.as_tensor(self.lengths[rows], device=self.ids.device)
        mask = torch.arange(longest, device=self.ids.device) < lengths[:, None]  # (B, T)
        return Batch(self.ids[index, :longest].long(), mask.long(), self.labels[index], rows)


def encode(
    texts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    tokenizer,
    max_length: int | None = None,
    device: torch.device | str = "cpu",
) -> Encoded:
    """Tokenise once, cut what is too long, put everything on the device.

    Args:
        max_length: tokens that are kept of a text; None: what the tokenizer's model reads.

    Raises:
        ValueError: no texts, another number of labels or none that are whole numbers, or a
            tokenizer without a padding token.
    """
    if not len(texts):
        raise ValueError("no texts to encode; accepted: one or more")
    if len(labels) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels; accepted: as many of both")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":  # 0.7 would count as 0
        raise ValueError(f"labels are {labels.dtype}; accepted: whole numbers, a class each")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
    length = max_length or min(tokenizer.model_max_length, LONGEST)
    rows = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    return padded(rows, labels, tokenizer, device)


def padded(rows: Sequence[Sequence[int]], labels, tokenizer, device) -> Encoded:
    """Token ids of texts, put below each other on the device, to a multiple of 8."""
    lengths = np.array([max(len(row), 1) for row in rows])
    ids = np.full((len(rows), -(-int(lengths.max()) // 8) * 8), tokenizer.pad_token_id, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=device)
    return Encoded(torch.as_tensor(ids, device=device), lengths, labels)


@dataclass(frozen=True)
class Batches:
    """One pass over ``data`` in random batches of similar length."""

    data: Encoded
    batch_size: int

    POOL = 50  # batches that are shuffled together before they are sorted by length

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def rows(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw the rows of each batch: shuffle, sort by length within a pool, shuffle batches."""
        order = rng.permutation(len(self.data))
        size, pool = self.batch_size, self.batch_size * self.POOL
        batches = []
        for start in range(0, len(order), pool):
            pool_rows = order[start : start + pool]
            pool_rows = pool_rows[np.argsort(self.data.lengths[pool_rows], kind="stable")]
            batches += [pool_rows[i : i + size] for i in range(0, len(pool_rows), size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __call__(self, rng: np.random.Generator) -> Iterator[Batch]:
        return (self.data.batch(rows) for rows in self.rows(rng))


@dataclass(frozen=True)
class Pairs:
    """Each forget batch of an epoch with a random retain batch beside it; texts or chats."""

    forget: Batches
    retain: Batches

    def __len__(self) -> int:
        return len(self.forget)

    def __call__(self, rng: np.random.Generator) -> Iterator[tuple]:
        retain_rows: list[np.ndarray] = []
        for rows in self.forget.rows(rng):
            retain_rows = retain_rows or self.retain.rows(rng)
            yield self.forget.data.batch(rows), self.retain.data.batch(retain_rows.pop())


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy in nats: the loss of ordinary fine-tuning."""
    logits = model(batch.input_ids, batch.attention_mask)
    value = F.cross_entropy(logits.float(), batch.labels)
    return value, {"loss": value.detach()}


def fine_tune(
    model: TextClassifier,
    dataset,
    settings: TrainSettings,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
) -> list[dict]:
    """Fine-tune all parameters on a TextDataset by cross-entropy; returns ``fit``'s history.

    Raises:
        ValueError: more classes than the model has, which a GPU would not survive.
    """
    if dataset.num_classes > model.num_labels:
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, the model {model.num_labels}; "
            "accepted: a model of as many"
        )
    device = next(model.parameters()).device
    data = encode(dataset.texts, dataset.labels, model.tokenizer, device=device)
    return fit(model, Batches(data, settings.batch_size), cross_entropy, settings, on_epoch)


def predict(model: nn.Module, data: Encoded, precision: str = "auto") -> Tensor:
    """Return logits (N, K) float32 on the CPU, in the order of ``data``'s rows.

    Rows are sorted by length and cut into batches of about EVAL_TOKENS tokens.

    Raises:
        NotFinite: outputs that are no numbers, in single precision too.
    """
    device = data.ids.device
    keep_heap(device)
    row_batches = list(by_length(data.lengths))

    def run(precision: str) -> Tensor:
        with in_eval(model), torch.inference_mode(), autocast(device, precision):
            batches = (data.batch(rows) for rows in row_batches)
            return torch.cat([model(b.input_ids, b.attention_mask).float() for b in batches]).cpu()

    inverse = torch.as_tensor(np.argsort(np.concatenate(row_batches)))
    return finite(run, precision, device)[inverse]


def by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of similar length, about EVAL_TOKENS tokens at a time, the shortest first."""
    order, start = np.argsort(lengths, kind="stable"), 0
    while start < len(order):
        rows = max(1, EVAL_TOKENS // int(lengths[order[start]]))
        # Sorted by length, so the batch's last row is its longest: shrink until it fits.
        while rows > 1 and rows * int(lengths[order[start : start + rows][-1]]) > EVAL_TOKENS:
            rows -= 1
        yield order[start : start + rows]
        start += rows
