"""A surrogate for the trigger: what a defender can ask of an unlearned model without it.

Images that fool the backdoored model stand in for triggered ones. Two questions are put to the
unlearned model: does it read them, and do they come back when it is retuned with a few of them?
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageDataset
from ..metrics.classification import accuracy
from ..metrics.reactivation import RetuneSettings, retune
from ..models.images import ImageClassifier, frozen_copy
from ..training.fitting import seeded
from ..training.images import image_data, predict_images
from .bi_bau import BiBauSettings, row_cross_entropy
from .common import unit
from .pgd import ball, pgd, random_start, signed


@dataclass(frozen=True)
class Surrogate:
    """Clean images of the defender, perturbed on the backdoored model f_b.

    Attributes:
        held: clean images that no defence has seen. fooling: the same, perturbed away from their
            classes, whose labels they keep.
        aimed: the same, each perturbed towards a class, which is its label.
        tune: the images that the defence had; a few are perturbed towards, and labelled, a class.
    """

    held: ImageDataset
    fooling: ImageDataset
    aimed: ImageDataset
    tune: ImageDataset


def surrogate(
    original: ImageClassifier,
    tune: ImageDataset,
    held: ImageDataset,
    seed: int = 0,
    share: float = 0.1,
) -> Surrogate:
    """Perturb the defender's images on the backdoored model.

    The backdoor's class is unknown, so the images lead to all classes in equal numbers.

    Args:
        original: f_b. tune, held: clean images.
        share: of ``tune`` that is perturbed, one image a class at least. The retuning attack has
            five poisons among 55 rows of ``gtsrb-3k``, a share of 0.09.

    Source: ours, after the retuning attack of Min et al. (2024).
    """
    original, rng = frozen_copy(original), np.random.default_rng([seed, 7])
    classes = tune.num_classes
    count = min(len(tune), max(classes, round(share * len(tune))))
    rows = rng.permutation(len(tune))[:count]
    with seeded(seed, next(original.parameters()).device):
        poisons = _towards(original, tune.select(rows), _goals(tune.labels[rows], classes, rng))
        aimed = _towards(original, held, _goals(held.labels, classes, rng))
        fooling = _perturbed(original, held, held.labels, -1)
    images, labels = tune.images.copy(), tune.labels.copy()
    images[rows], labels[rows] = poisons.images, poisons.labels
    return Surrogate(held, fooling, aimed, replace(tune, images=images, labels=labels))


def _goals(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """A class for each row, (N,), not its own; all classes about equally often."""
    goals = rng.permutation(np.resize(np.arange(classes), len(labels)))
    return np.where(goals == labels, (goals + 1) % classes, goals)


def _towards(original: ImageClassifier, rows: ImageDataset, goals: np.ndarray) -> ImageDataset:
    return replace(_perturbed(original, rows, goals, 1), labels=goals)


def _perturbed(
    original: ImageClassifier, rows: ImageDataset, classes: np.ndarray, sign: int
) -> ImageDataset:
    """Images that f_b puts into ``classes`` (sign 1) or not into them (-1), own labels.

    By PGD as in base AT: see ``BiBauSettings`` for steps and bound.
    """
    how, data = BiBauSettings(), image_data(rows, next(original.parameters()).device)
    x, bound = unit(data.images), how.bound / 255
    aims = torch.as_tensor(classes, device=x.device)

    def objective(perturbed_images: Tensor) -> Tensor:
        return sign * row_cross_entropy(original(perturbed_images).float(), aims)

    move, project = signed(how.step / 255), ball(x, bound)
    shown = pgd(objective, random_start(x, bound), how.steps, move, project)
    images = (255 * shown).round().byte().permute(0, 2, 3, 1)  # (N, H, W, C)
    return replace(rows, images=images.cpu().numpy())


def scored(
    unlearned: ImageClassifier, images: Surrogate, settings: RetuneSettings | None = None
) -> dict:
    """Score an unlearned model without its trigger.

    Args:
        settings: of the retuning, of which rows and poisons are ``images``' own.

    Returns: in percent ``held_acc``, the accuracy on clean images held back; ``perturbed_acc``,
    that on the same images perturbed until f_b errs (high: what fooled f_b is unlearned);
    ``surrogate_asr``, the share of images that go where they are perturbed to on f_b, after the
    model was retuned with a few of such images (low: what fooled f_b does not come back).
    """
    device = next(unlearned.parameters()).device

    def right(model: ImageClassifier, rows: ImageDataset) -> float:
        return accuracy(predict_images(model, rows).argmax(1).numpy(), rows.labels)

    retuned = retune(unlearned, image_data(images.tune, device), settings)
    return {
        "held_acc": right(unlearned, images.held),
        "perturbed_acc": right(unlearned, images.fooling),
        "surrogate_asr": right(retuned, images.aimed),
    }
