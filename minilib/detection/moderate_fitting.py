"""MF: a model too limited to learn the backdoor disagrees with the labels the attacker gave."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..data.text import TextDataset
from ..models.text import TextClassifier, text_classifier
from ..training.fitting import TrainSettings, fit
from ..training.text import Batches, cross_entropy, encode, predict
from .common import DefenderData, Detection, check_rows


class LowRank(nn.Module):
    """Adds a trainable matrix of low rank, at first 0, to a frozen weight (a, b)."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        a, b = weight.shape
        self.left = nn.Parameter(weight.new_zeros(a, rank))
        self.right = nn.Parameter((torch.randn(rank, b) / b**0.5).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.right


def low_rank_only(model: TextClassifier, rank: int, seed: int) -> TextClassifier:
    """Freeze a model's backbone but for low-rank adapters of its matrices; the head stays free."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.backbone.requires_grad_(False)
        for module in list(model.backbone.modules()):
            weight = getattr(module, "weight", None)
            if (
                isinstance(weight, Tensor)
                and weight.ndim == 2
                and not isinstance(module, nn.Embedding)
            ):
                parametrize.register_parametrization(module, "weight", LowRank(weight, rank))
    return model


def moderate_fit(
    name: str,
    dataset: TextDataset,
    settings: TrainSettings,
    rank: int = 4,
    device: torch.device | str = "cpu",
    max_length: int | None = None,
) -> TextClassifier:
    """Fine-tune a pre-trained model moderately: low-rank adapters, few epochs.

    Args:
        name, max_length: as in ``models.text.text_classifier``. rank: of the adapters.

    Source: Zhu et al. (2022), who limit parameters, epochs and learning rate.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank!r}; accepted: 1 or more")
    model = text_classifier(name, dataset.num_classes, settings.seed, max_length).to(device)
    low_rank_only(model, rank, settings.seed)
    data = encode(dataset.texts, dataset.labels, model.tokenizer, device=device)
    fit(model, Batches(data, settings.batch_size), cross_entropy, settings)
    return model


def detect_moderate(
    victim: TextClassifier,
    dataset: TextDataset,
    known: DefenderData,
    rank: int = 4,
    settings: TrainSettings | None = None,
) -> Detection:
    """MF: rows whose label a moderately fitted model does not predict are suspect.

    Args:
        rank: of the adapters. settings: of the moderate fit (one epoch at 5e-4 where None); the
            seed is ``known.seed``.

    Returns:
        Detection; the score is the moderate model's cross-entropy of the label, in nats.

    Raises:
        ValueError: a single class, a rank below 1. ModelError: ``known.model`` cannot be had.

    The victim says only where to compute; the model is trained from ``known.model``. Source: Zhu et
    al. (2022), where the moderate model itself is the defence and nothing is flagged. Rank, epochs
    and learning rate are ours.
    """
    started = time.perf_counter()
    check_rows(dataset)
    device = next(victim.parameters()).device
    settings = replace(settings or TrainSettings(epochs=1, lr=5e-4), seed=known.seed)
    model = moderate_fit(known.model, dataset, settings, rank, device, victim.max_length)
    data = encode(dataset.texts, dataset.labels, model.tokenizer, device=device)
    logits = predict(model, data)
    labels = torch.as_tensor(dataset.labels)
    score = F.cross_entropy(logits, labels, reduction="none").double().numpy()
    mask = logits.argmax(1).numpy() != np.asarray(dataset.labels)
    return Detection("moderate", mask, score, time.perf_counter() - started)
