"""What loops over texts share: a poisoned training set, an encoder, batches; and hidden states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from minilib import detection
from minilib.attacks.text import InsertWord, poison
from minilib.data.text import TextDataset, load_text
from minilib.models.text import TextClassifier, text_classifier
from minilib.training import fitting
from minilib.training import text as text_training
from minilib.training.text import Batches

MAX_LENGTH = 128  # tokens to which the plain loops pad every row


def padded(texts, tokenizer, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (N, MAX_LENGTH)."""
    how = {"padding": "max_length", "truncation": True, "max_length": MAX_LENGTH}
    tokens = tokenizer(list(texts), return_tensors="pt", **how)
    return tokens["input_ids"].to(device), tokens["attention_mask"].to(device)


@torch.inference_mode()
def hidden_states(victim: TextClassifier, texts, batch_size: int, device="cpu") -> np.ndarray:
    """Hidden states (N, d): rows in their order, a batch at a time, carried to the CPU at once."""
    data, states = padded(texts, victim.tokenizer, device), []
    victim.eval()
    for first in range(0, len(texts), batch_size):
        batch = (one[first : first + batch_size] for one in data)
        states.append(victim.features(*batch).cpu().numpy())
    return np.concatenate(states)


# --------------------------------------------------------------------------- what both sides share


@dataclass(frozen=True)
class Case:
    """What is trained, and on what; ``still``: without dropout, as tests compare loops."""

    model: str
    forget: TextDataset
    retain: TextDataset
    batch_size: int
    device: str = "cpu"
    still: bool = False

    @property
    def rows(self) -> TextDataset:
        """The poisoned training set: what to forget behind what to retain."""
        labels = np.concatenate([self.retain.labels, self.forget.labels])
        return replace(self.retain, texts=self.retain.texts + self.forget.texts, labels=labels)

    def start(self) -> TextClassifier:
        """The encoder with a fresh head, the same for every loop."""
        model = text_classifier(self.model, self.retain.num_classes, 0).to(self.device)
        for module in model.modules() if self.still else ():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    def batches(self, rows: TextDataset, tokenizer) -> Batches:
        """Rows of similar length together."""
        data = text_training.encode(rows.texts, rows.labels, tokenizer, MAX_LENGTH, self.device)
        return Batches(data, self.batch_size)


def poisoned(dataset: str, *sizes: int) -> list[TextDataset]:
    """Poisoned and clean rows, 10 % of class 0 poisoned; so many of each, else all."""
    rows, mask, _ = poison(load_text(dataset, "train"), InsertWord("mn"), 1, 0.1, seed=0)
    parts = [rows.select(mask), rows.select(~mask)]
    if not sizes:
        return parts
    return [one.select(np.arange(n) % len(one)) for one, n in zip(parts, sizes, strict=True)]


def toy_case(**how) -> Case:
    """Few built-in texts, and the tiny encoder."""
    return Case("tiny", *poisoned("toy-reviews", 20, 60), 8, **how)


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


# ------------------------------------------------------------------------------------- detection

ONE_PASS = "one pass"
TRUSTED = 200  # clean rows of the defender


def build(case: Case, many: TextDataset, some: TextDataset, name: str, precision: str):
    """``states`` or ``CUBE`` and whose, of many rows; one pass over some, or a detector on them."""
    what, _, whose = name.partition(", ")
    victim, rows = case.start(), many if whose else some
    states = partial(detection.hidden_states, victim, rows, precision)
    if whose == "plain":
        victim.network.set_attn_implementation("eager")
        states = partial(hidden_states, victim, rows.texts, case.batch_size, case.device)
    if what in ("states", ONE_PASS):
        return lambda steps=None: states()
    if what == "CUBE":
        know = lambda: detection.DefenderData(states=states())  # noqa: E731
        return lambda steps=None: detection.detect_cube(victim, rows, know()).mask
    trusted = case.retain.select(np.arange(min(TRUSTED, len(case.retain))))
    known = detection.DefenderData(trusted, states(), case.model)
    return lambda steps=None: detection.DETECTORS[name](victim, rows, known).mask
