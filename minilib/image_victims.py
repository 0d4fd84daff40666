"""From an image set's name and an attack to a poisoned victim and the means to measure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from . import audits, cache
from .attacks.images import (
    CLEAN_LABEL,
    COUPLED,
    ImageTrigger,
    make_image_trigger,
    poison_images,
    trigger_images,
)
from .attacks.text import Poisoned
from .images import ImageDataset, defender_rows, load_images
from .models import default_device
from .train import TrainSettings, resolve_precision
from .vision import (
    ImageBatch,
    ImageClassifier,
    fit_images,
    image_classifier,
    image_cross_entropy,
    image_data,
)

# Shares of the eligible rows: 10 % for all but the clean-label attacks (BI-BAU paper, D.2, whose
# figures for those two are lost; these are ours).
RATES = {"sig": 0.8, "narcissus": 0.1}


@dataclass(frozen=True)
class ImageScenario:
    """One attack on one image set.

    Attributes:
        clean: the training rows before the attack. poisoned: those after it, with the mask.
        defender: the few clean rows that a defence owns. test: clean rows for CA.
        triggered: the test rows of all classes with the test-time trigger and their own labels.
        target: class that the trigger leads to.
    """

    attack: str
    clean: ImageDataset
    poisoned: Poisoned
    defender: ImageDataset
    test: ImageDataset
    triggered: ImageDataset
    trigger: ImageTrigger
    target: int
    seed: int

    def put(self, part: ImageDataset) -> ImageDataset:
        """Put the test-time trigger into every row of a set, labels kept."""
        return trigger_images(part, self.trigger, self.seed)

    def info(self) -> list[dict]:
        """Return what a run record says of the data used."""
        return [d.info() for d in (self.clean, self.defender, self.test, self.triggered)]


def image_scenario(
    dataset: str,
    attack: str,
    rate: float | None = None,
    seed: int = 0,
    target: int = 0,
    share: float = 0.05,
) -> ImageScenario:
    """Load an image set and poison it as the BI-BAU paper does (All2One).

    Args:
        dataset: a name that ``load_images`` knows. attack: one of ``IMAGE_ATTACKS``.
        rate: share of the eligible rows; default 0.1, for the clean-label attacks ``RATES``.
        share: of the clean training rows, given to the defender.
    """
    clean, test = load_images(dataset, "train"), load_images(dataset, "test")
    trigger = make_image_trigger(attack, clean, target, seed)
    rate = RATES.get(attack, 0.1) if rate is None else rate
    label = "clean" if attack in CLEAN_LABEL else "dirty"
    poisoned = poison_images(clean, trigger, target, rate, seed, label=label)
    # One fixed draw for all seeds: whatever a trigger draws per image is the same for every model.
    triggered = trigger_images(test, trigger, seed=0)
    defender = defender_rows(clean, share, seed)
    return ImageScenario(attack, clean, poisoned, defender, test, triggered, trigger, target, seed)


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
        own = ((batch.labels == target) & ~batch.marks).float()[:, None]
        marked = batch.marks.float()[:, None]
        features = features.float()
        centre = (own * features).sum(0) / own.sum().clamp(min=1)
        distance = (features - centre).square().mean(1, keepdim=True)
        # Without a row of either kind there is nothing to couple in this batch.
        apart = (marked * distance).sum() / marked.sum().clamp(min=1) * (own.sum() > 0)
        log = {"loss": value.detach(), "apart": apart.detach()}
        return value + weight * apart, log

    return loss


def image_victim(
    data: ImageDataset,
    model: str,
    settings: TrainSettings,
    width: float = 1.0,
    crop: int = 0,
    flip: bool = False,
    marks: np.ndarray | None = None,
    target: int | None = None,
    coupling: float = 0.0,
) -> tuple[ImageClassifier, list[dict]]:
    """Train a classifier, or take the result of having done so from the cache.

    Args:
        data: clean rows for a reference model, poisoned ones for a victim.
        model, width: as for ``image_classifier``. crop, flip: augmentation.
        marks, target, coupling: the poisoned rows, their class and the weight of
            ``coupling_loss``; ignored at weight 0.

    Raises:
        ValueError: coupling without marks and a target.
    """
    if coupling and (marks is None or target is None):
        raise ValueError("coupling needs marks and a target: which rows are poisoned, and to what")
    device = default_device()
    settings = replace(settings, precision=resolve_precision(settings.precision, device))
    key = {
        "data": data.sha256,
        "model": [model, width],
        "settings": asdict(settings),
        "augment": [crop, flip],
        "coupling": [coupling, target, cache.digest({"marks": np.flatnonzero(marks).tolist()})]
        if coupling
        else None,
        **cache.conditions(
            device,
            ("train", "vision", "image_victims"),
            "fit_images",
            "image_classifier",
            "coupling_loss",
        ),
    }
    loss = coupling_loss(target, coupling) if coupling else image_cross_entropy

    def train(network: nn.Module) -> list[dict]:
        rows = image_data(data, device, marks if coupling else None)
        return fit_images(network, rows, settings, crop, flip, loss)

    return cache.cached_model(
        key,
        lambda: image_classifier(model, data.num_classes, data.shape, width, settings.seed).to(
            device
        ),
        train,
    )


def attacked(
    case: ImageScenario,
    model: str,
    settings: TrainSettings,
    width: float = 1.0,
    crop: int = 0,
    flip: bool = False,
    coupling: float = 1.0,
) -> tuple[ImageClassifier, list[dict]]:
    """Train the scenario's victim; ``coupling`` acts on the enhanced attacks alone."""
    return image_victim(
        case.poisoned.dataset,
        model,
        settings,
        width,
        crop,
        flip,
        case.poisoned.mask,
        case.target,
        coupling if case.attack in COUPLED else 0.0,
    )


def audited(case: ImageScenario, model: nn.Module) -> dict:
    """Measure a model as ``audits.audit_images`` does, once for the same weights and test rows."""
    device = next(model.parameters()).device
    key = {
        "model": cache.weights_digest(model),
        "kind": type(getattr(model, "encoder", model)).__name__,
        "test": [part.sha256 for part in (case.test, case.triggered)],
        "target": case.target,
        **cache.conditions(device, ("audits", "vision", "metrics"), "audit_images"),
    }
    return cache.cached_json(
        "audited",
        key,
        lambda: audits.audit_images(model, case.test, case.triggered, case.target),
    )
