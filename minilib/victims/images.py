"""Training victims of images: with coupled features, smoothed labels, one task after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.images import ImageScenario
from ..checks import one_of
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, Whitened, image_classifier
from ..models.loading import default_device
from ..training.fitting import CycleSettings, TrainSettings
from ..training.images import ImageBatch, fit_images, image_cross_entropy, image_data


def coupling_loss(
    target: int, weight: float
) -> Callable[[ImageClassifier, ImageBatch], tuple[Tensor, dict]]:
    """Make the loss of a victim whose backdoor hides among the target class's features.

    Cross-entropy plus ``weight`` times the mean squared distance per feature between marked
    (poisoned) rows and the batch mean of the target class's unmarked rows.

    Source: BI-BAU paper, section 5.7 ("minimizing their Euclidean distance"; the weight is ours).
    """

    def loss(model: ImageClassifier, batch: ImageBatch) -> tuple[Tensor, dict]:
        features = model.features(batch.images)
        value = F.cross_entropy(model.head(features).float(), batch.labels)
        reference = ((batch.labels == target) & ~batch.marks).float()[:, None]
        marks = batch.marks.float()[:, None]
        features = features.float()
        centre = (reference * features).sum(0) / reference.sum().clamp(min=1)
        distance = (features - centre).square().mean(1, keepdim=True)
        # Without a row of either kind there is nothing to couple in this batch.
        mean_distance = (marks * distance).sum() / marks.sum().clamp(min=1) * (reference.sum() > 0)
        log = {"loss": value.detach(), "apart": mean_distance.detach()}
        return value + weight * mean_distance, log

    return loss


def smoothed(smoothing: float) -> Callable[[ImageClassifier, ImageBatch], tuple[Tensor, dict]]:
    """Make the cross-entropy in nats with labels that give ``smoothing`` to all classes alike."""
    if not smoothing:
        return image_cross_entropy

    def loss(model: ImageClassifier, batch: ImageBatch) -> tuple[Tensor, dict]:
        logits = model(batch.images).float()
        value = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        return value, {"loss": value.detach()}

    return loss


def fit_victim(
    network: ImageClassifier,
    data: ImageDataset,
    settings: TrainSettings | CycleSettings,
    crop: int = 0,
    flip: bool = False,
    marks: np.ndarray | None = None,
    target: int | None = None,
    coupling: float = 0.0,
    smoothing: float = 0.0,
    cutout: int = 0,
) -> list[dict]:
    """Train a classifier in place; returns its history. A ``Whitened`` one is whitened first.

    Args:
        data: clean rows for a reference model, poisoned ones for a victim.
        crop, flip, cutout: augmentation.
        marks, target, coupling: the poisoned rows, their class and the weight of
            ``coupling_loss``; ignored at weight 0.
        smoothing: of the labels, where nothing is coupled.

    Raises:
        ValueError: coupling without marks and a target.
    """
    if coupling and (marks is None or target is None):
        raise ValueError("coupling needs marks and a target: which rows are poisoned, and to what")
    loss = coupling_loss(target, coupling) if coupling else smoothed(smoothing)
    device = next(network.parameters()).device
    rows = image_data(data, device, marks if coupling else None)
    if isinstance(network.encoder, Whitened):
        images = rows.images[torch.linspace(0, len(rows) - 1, min(2000, len(rows))).long()]
        network.encoder.whiten((images.float() / 255 - network.mean) / network.std)
    return fit_images(network, rows, settings, crop, flip, loss, cutout=cutout)


# -------------------------------------------------------------- the order of the two tasks (E.1)

ORDERS = ("together", "backdoor first", "clean first")


def task_order(
    case: ImageScenario, order: str, model: str, settings: TrainSettings, first: int,
    measure: Callable[[nn.Module], dict], width: float = 1.0, crop: int = 0, flip: bool = False,
) -> list[dict]:  # fmt: skip
    """Learn the clean and the backdoor task together, or one after the other.

    Each task is rehearsed a little while the other is learned: 10 % of the clean rows beside the
    poison, 1 % of the poison beside the clean rows, or 0.2 % where the clean task comes first.

    Args:
        order: one of ORDERS. settings: of all epochs together.
        first: how many of them the backdoor task gets. measure: of the network, after each epoch.

    Returns: one dict per epoch: ``epoch``, and what ``measure`` returned.

    Raises:
        ValueError: unknown order.

    Source: appendix E.1 and Figure 6, BI-BAU.
    """
    one_of("order", order, ORDERS)
    data, device, rows, past_epochs = case.poisoned.dataset, default_device(), [], 0
    network = image_classifier(model, data.num_classes, data.shape, width, settings.seed)
    network = network.to(device)
    for index, epochs in _stages(case, order, settings, first):
        stage_data = image_data(data.select(index), device)
        fit_images(
            network, stage_data, replace(settings, epochs=epochs), crop, flip,
            on_epoch=lambda trained, epoch, past=past_epochs: rows.append(
                {"epoch": past + epoch, **measure(trained)}
            ) or {},
        )  # fmt: skip
        past_epochs += epochs
    return rows


def _stages(case: ImageScenario, order: str, settings: TrainSettings, first: int) -> list[tuple]:
    """What is learned one after the other: indices of rows, and epochs."""
    data, mask = case.poisoned.dataset, case.poisoned.mask
    rng = np.random.default_rng([settings.seed, 1])
    poisons, clean_rows = (rng.permutation(np.flatnonzero(rows)) for rows in (mask, ~mask))
    if order == "together":
        return [(np.arange(len(data)), settings.epochs)]
    backdoor_task = np.concatenate([poisons, clean_rows[: max(1, len(clean_rows) // 10)]]), first
    share = 100 if order == "backdoor first" else 500
    task_rows = np.concatenate([clean_rows, poisons[: max(1, len(poisons) // share)]])
    clean_task = task_rows, settings.epochs - first
    return [backdoor_task, clean_task] if order == "backdoor first" else [clean_task, backdoor_task]
