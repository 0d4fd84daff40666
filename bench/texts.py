"""What the benchmarks of texts share: a poisoned training set, an encoder, batches."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from minilib.attacks.text import InsertWord, poison
from minilib.data.text import TextDataset, load_text
from minilib.models.text import TextClassifier, text_classifier
from minilib.training import fitting
from minilib.training import text as text_training
from minilib.training.text import Batches

from .timing import Options

MAX_LENGTH = 128


@dataclass(frozen=True)
class Case:
    """What is trained, and on what."""

    model: str
    source: str
    forget: TextDataset
    retain: TextDataset
    batch_size: int
    options: Options
    seed: int = 0

    @property
    def device(self) -> str:
        return self.options.device

    @property
    def rows(self) -> TextDataset:
        """The poisoned training set: what to forget behind what to retain."""
        labels = np.concatenate([self.retain.labels, self.forget.labels])
        return replace(self.retain, texts=self.retain.texts + self.forget.texts, labels=labels)

    def said(self) -> dict:
        """For the record."""
        rows = len(self.forget) + len(self.retain)
        return {"model": self.model, "data": self.source, "rows": rows, "batch": self.batch_size}

    def start(self) -> TextClassifier:
        """The encoder with a fresh head, the same for every loop."""
        model = text_classifier(self.model, self.retain.num_classes, self.seed).to(self.device)
        return still(model) if self.options.exact else model

    def batches(self, rows: TextDataset, tokenizer, device: str | None = None) -> Batches:
        """Rows of similar length together."""
        where = device or self.device
        data = text_training.encode(rows.texts, rows.labels, tokenizer, MAX_LENGTH, where)
        return Batches(data, self.batch_size)

    def padded(self, rows: TextDataset, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (N, MAX_LENGTH), as the plain loops make them."""
        how = {"padding": "max_length", "truncation": True, "max_length": MAX_LENGTH}
        tokens = tokenizer(list(rows.texts), return_tensors="pt", **how)
        return tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)


def make_case(options: Options, every: int = 1) -> Case:
    """SST-2 with 10 % of its negatives poisoned, or built-in texts repeated to the same counts.

    Args:
        every: so many rows, evenly, are left out but one.
    """
    real = bool(os.environ.get("MINILIB_DATA")) and not options.quick
    clean = load_text("sst2" if real else "toy-reviews", "train")
    rows, mask, _ = poison(clean, InsertWord("mn"), 1, 0.1, seed=0)
    parts = rows.select(mask), rows.select(~mask)
    if not real:
        sizes = (20, 60) if options.quick else (331, 6920)
        parts = [
            one.select(np.arange(size) % len(one)) for one, size in zip(parts, sizes, strict=True)
        ]
    parts = [one.select(np.arange(0, len(one), every)) for one in parts]
    source = f"SST-2 ({clean.source})" if real else "toy-reviews, repeated"
    model, batch_size = ("tiny", 8) if options.quick else ("minilm", 32)
    return Case(model, source, *parts, batch_size, options)


def still(model):
    """The same model without dropout."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@dataclass(frozen=True)
class First:
    """The first ``steps`` batches of an epoch (None: all)."""

    batches: object
    steps: int | None

    def __len__(self) -> int:
        return self.steps or len(self.batches)

    def __call__(self, rng):
        return islice(self.batches(rng), len(self))


def fitted(model, batches, loss, settings, steps=None, terms=("loss",)) -> list[list[float]]:
    """minilib's loop for some steps; the terms of the loss at each."""
    logs = []

    def told(network, batch):
        value, log = loss(network, batch)
        logs.append(torch.stack([log[term].detach() for term in terms]))
        return value, log

    fitting.fit(model, First(batches, steps), told, settings)
    return torch.stack(logs).tolist()
