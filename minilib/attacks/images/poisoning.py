"""Poisoning an image set: the arguments and the mask of ``attacks.text.poison``, batched.

``image_scenario`` goes all the way from two names to poisoned rows and what they are measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ... import registry
from ...checks import one_of
from ...data.images import SIDE, ImageDataset, defender_rows, load_images
from ...models.images import pixels
from ...models.loading import default_device
from ...settings import IMAGE_TRIGGERS
from ..text import Poisoned, _check_poison, _eligible
from . import learned, patterns

BATCH = 1000  # images triggered at once


class ImageTrigger(Protocol):
    """What ``poison_images`` needs of a trigger; ``negative`` only where ``cover`` is above 0."""

    name: str
    cover: float

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor: ...


IMAGE_ATTACKS = IMAGE_TRIGGERS
CLEAN_LABEL = ("sig", "narcissus")  # poison rows of the target class and leave their labels
COUPLED = ("adap-blend+", "adap-patch+")  # the victim is also trained with ``coupling_loss``
# Shares of the eligible rows: 10 % for all but the clean-label attacks (BI-BAU paper, D.2, whose
# figures for those two are lost; these are ours).
RATES = {"sig": 0.8, "narcissus": 0.1}


def make_image_trigger(
    attack: str, dataset: ImageDataset, target: int = 0, seed: int = 0
) -> ImageTrigger:
    """Make the trigger of ``attack``, with its paper's settings, for images of this set.

    Args:
        attack: one of IMAGE_ATTACKS; "+" marks the pair enhanced by feature coupling (BI-BAU
            paper, section 5.7), whose triggers are Adap-Blend's and Adap-Patch's.
        dataset: the attacker's clean training images: learned triggers are trained on them (once,
            then taken from the cache), Refool reflects some of them.
        target: the class that learned triggers shall lead to.
        seed: of the pattern, or of the training of what makes it.

    Raises:
        ValueError: unknown attack, or a target outside the classes.
    """
    make = registry.find("image attack", attack)
    one_of("attack", attack, IMAGE_ATTACKS)
    if not 0 <= target < dataset.num_classes:
        raise ValueError(f"target is {target!r}; accepted: 0 … {dataset.num_classes - 1}")
    if make:
        return make(dataset, target, seed)
    attack, coupled = attack.removesuffix("+"), attack.endswith("+")
    size = max(3, dataset.shape[1] * 5 // 32)  # Adap-Patch's patch, as large a part of any image
    builders = {
        # Three pixels of 32, as in its paper; the same part of a larger image, and never fewer.
        "badnets": lambda: patterns.PatchTrigger(size=max(3, dataset.shape[1] * 3 // 32)),
        "blended": lambda: patterns.BlendTrigger(seed=seed),
        "sig": lambda: patterns.SinusoidTrigger(),
        # Images below 32 pixels are enlarged ones here: a warp of as many of their own pixels.
        "wanet": lambda: patterns.WarpTrigger(
            strength=0.5 * max(1.0, SIDE / dataset.shape[1]), seed=seed
        ),
        "refool": lambda: patterns.ReflectionTrigger(_other_images(dataset, 200, seed)),
        "adap-blend": lambda: patterns.PiecesTrigger(seed=seed),
        "adap-patch": lambda: patterns.PlantedPatchesTrigger(size, seed=seed),
        "iad": lambda: learned.input_aware_trigger(dataset, target, seed),
        "issba": lambda: learned.stego_trigger(dataset, seed),
        "narcissus": lambda: learned.narcissus_trigger(dataset, target, seed),
    }
    trigger = builders[attack]()
    return replace(trigger, name=f"{attack}+") if coupled else trigger


def _other_images(dataset: ImageDataset, count: int, seed: int) -> Tensor:
    rows = np.random.default_rng(seed).permutation(len(dataset))[:count]
    return pixels(dataset.images[rows])


def poison_images(
    dataset: ImageDataset,
    trigger: ImageTrigger | Sequence[ImageTrigger],
    target: int | str | Sequence[int],
    rate: float,
    seed: int,
    *,
    source: int | None = None,
    keep_originals: bool = False,
    label: str = "dirty",
) -> Poisoned:
    """Poison an image set: put a trigger into some rows and give them the attacker's label.

    Args:
        dataset: clean rows.
        trigger: one trigger, or several, which get disjoint rows.
        target: the class the trigger shall lead to (All2One); with several triggers one class for
            all or one each (One2One); ``"next"`` sends class y to y + 1 (All2All).
        rate: share, in (0, 1], of the *eligible* rows that each trigger poisons: those of
            non-target classes, of ``source`` alone, or, for clean labels, of the target class.
        seed: which rows, and whatever the trigger draws for each.
        source: poison this class only.
        keep_originals: append the poisoned copies. By default they replace their originals, as in
            the vision papers (the text attacks append).
        label: ``dirty`` relabels; ``clean`` triggers rows of the target class and leaves labels.

    Returns:
        Poisoned(dataset, mask, origin), rows as in ``attacks.text.poison``: kept clean ones, then
        the poisoned ones, after each trigger's its covers, which are unmasked and keep their label.
        The same seed takes the same rows as there.

    Raises:
        ValueError: a rate, class or combination that cannot be, or too few rows.
    """
    triggers = list(trigger) if isinstance(trigger, Sequence) else [trigger]
    targets = list(target) if isinstance(target, (list, tuple)) else [target] * len(triggers)
    _check_poison(dataset, triggers, targets, rate, source, label)

    rng = np.random.default_rng(seed)
    free_rows = np.ones(len(dataset), dtype=bool)
    images, labels, mask, origin = [], [], [], []
    for one_trigger, goal in zip(triggers, targets, strict=True):
        eligible = _eligible(dataset.labels, goal, source, label)
        rows = _draw(
            dataset,
            one_trigger,
            eligible,
            free_rows,
            max(1, round(rate * int(eligible.sum()))),
            rng,
        )
        old_labels = dataset.labels[rows]
        new_labels = (
            (old_labels + 1) % dataset.num_classes
            if goal == "next"
            else np.full_like(old_labels, goal)
        )
        covers = _covers(dataset, one_trigger, free_rows, round(one_trigger.cover * len(rows)), rng)
        images += [_run(one_trigger.apply, dataset.images[rows], rng, True)]
        if len(covers):
            images += [_run(one_trigger.negative, dataset.images[covers], rng)]
        labels += [old_labels if label == "clean" else new_labels, dataset.labels[covers]]
        mask += [np.ones(len(rows), bool), np.zeros(len(covers), bool)]
        origin += [rows, covers]
    changed_rows = np.concatenate(origin)
    kept_rows = np.ones(len(dataset), dtype=bool)
    if not keep_originals:
        kept_rows[changed_rows] = False
    clean_rows = np.flatnonzero(kept_rows)
    poisoned = replace(
        dataset,
        images=np.concatenate([dataset.images[clean_rows], *images]),
        labels=np.concatenate([dataset.labels[clean_rows], *labels]).astype(np.int64),
    )
    mask = np.concatenate([np.zeros(len(clean_rows), bool), *mask])
    return Poisoned(poisoned, mask, np.concatenate([clean_rows, changed_rows]).astype(np.int64))


def _draw(dataset, trigger, eligible, free, wanted: int, rng) -> np.ndarray:
    """Draw ``wanted`` eligible rows that are still free, and take them."""
    order = rng.permutation(np.flatnonzero(eligible & free))
    if len(order) < wanted:
        raise ValueError(
            f"{trigger.name}: {wanted} rows of {dataset.name} wanted, but only {len(order)} "
            "eligible ones are still unpoisoned; lower the rate"
        )
    free[order[:wanted]] = False
    return order[:wanted]


def _covers(dataset, trigger, free, wanted: int, rng) -> np.ndarray:
    """Draw the rows of the covers from all classes; as many as are left where too few are."""
    order = rng.permutation(np.flatnonzero(free))[:wanted] if wanted else np.zeros(0, np.int64)
    free[order] = False
    return order


def _run(call, images: np.ndarray, rng: np.random.Generator, *more) -> np.ndarray:
    """Trigger (N, H, W, C) uint8 images on the device, in batches."""
    device = default_device()
    batches = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = call(pixels(images[start : start + BATCH], device), rng, *more)
            batches.append(batch.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    return np.concatenate(batches) if batches else images


def trigger_images(dataset: ImageDataset, trigger: ImageTrigger, seed: int = 0) -> ImageDataset:
    """Put the test-time trigger into every row of every class and keep the labels.

    The test set of PACC, and, less the rows of the target class, of ASR.
    """
    images = _run(trigger.apply, dataset.images, np.random.default_rng(seed), False)
    return replace(dataset, name=f"{dataset.name}+{trigger.name}", images=images)


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
