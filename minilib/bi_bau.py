"""Chapter 06: BI-BAU's experiments, and the proxy by which a defender chooses its settings.

The method itself stands beside the other defences, in ``minilib.purify.bi_bau``, and behind the
same ``purify``; what the chapter explains of it is named here too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import audits, cache, metrics
from .attacks.images import PatchTrigger, poison_images, trigger_images
from .audits import QuerySettings, RetuneSettings
from .descent import SgdSettings, descend
from .image_victims import ImageScenario, audited
from .images import ImageDataset
from .purify import BiBauSettings, purify
from .purify.bi_bau import (
    Known,
    ewc,
    fisher_diagonal,
    inverse_ewc,
    inversion_terms,
    inverted,
    likelihood_loss,
    pgd,
    prior_loss,
    unlearning_loss,
)
from .purify.common import unit
from .train import TrainSettings
from .vision import (
    ImageBatches,
    ImageClassifier,
    fit_images,
    frozen_copy,
    image_classifier,
    image_cross_entropy,
    image_data,
    model_copy,
    predict_images,
)

__all__ = [
    "Known",
    "Proxy",
    "ewc",
    "fisher_diagonal",
    "inverse_ewc",
    "inversion_terms",
    "inverted",
    "likelihood_loss",
    "pgd",
    "prior_loss",
    "unlearning_loss",
]


# ------------------------------------------------------------------- the defender's own proxy


@dataclass(frozen=True)
class Proxy:
    """A backdoor that the defender planted: everything about it is known.

    Attributes:
        model: the suspicious model with the defender's own backdoor beside whatever it has.
        tune: clean rows to purify it with. held: clean rows to judge by.
        triggered: ``held`` with the proxy's trigger, own labels. trigger, target: the proxy's.
        asr: how well it took, in percent.
    """

    model: ImageClassifier
    tune: ImageDataset
    held: ImageDataset
    triggered: ImageDataset
    trigger: object
    target: int
    asr: float


PLANT = SgdSettings(epochs=20, batch_size=32)


def plant_proxy(
    model: ImageClassifier,
    clean: ImageDataset,
    seed: int = 0,
    rate: float = 0.3,
    settings: SgdSettings = PLANT,
) -> Proxy:
    """Plant a backdoor of one's own into a copy of a model, to choose a defence's settings by.

    Two thirds of the defender's rows are tuned on, a third is held back to judge. The trigger is a
    square of noise at a random place and its target a random class, both drawn under ``seed``.

    Args:
        clean: the defender's rows. rate: share of the other classes' rows that get the trigger,
            beside their clean originals.
    """
    rng = np.random.default_rng([seed, 6])
    order = rng.permutation(len(clean))
    tune, held = np.split(order, [2 * len(clean) // 3])
    tune, held = clean.select(np.sort(tune)), clean.select(np.sort(held))
    target = int(rng.integers(clean.num_classes))
    trigger = noise_patch(clean.shape, rng)
    poisoned = poison_images(tune, trigger, target, rate, seed, keep_originals=True).dataset
    copy = model_copy(model).requires_grad_(True)
    data = image_data(poisoned, next(copy.parameters()).device)
    descend(copy, ImageBatches(data, settings.batch_size), image_cross_entropy, settings)
    triggered = trigger_images(held, trigger)
    asr = audits.audit_images(copy, held, triggered, target)["asr"]
    return Proxy(copy, tune, held, triggered, trigger, target, asr)


@dataclass(frozen=True)
class NoisePatch:
    """A square of fixed random pixels at a fixed place; the proxy's trigger."""

    pixels: Tensor
    top: int
    left: int
    name: str = "proxy"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        """Put the square into (B, C, H, W) uint8 images."""
        side = self.pixels.shape[-1]
        done = images.clone()
        place = (..., slice(self.top, self.top + side), slice(self.left, self.left + side))
        done[place] = self.pixels.to(images.device)
        return done


def noise_patch(shape: tuple[int, int, int], rng: np.random.Generator) -> NoisePatch:
    """Draw a square a fifth of the image wide, anywhere."""
    channels, height, width = shape
    side = max(3, height // 5)
    noise = torch.as_tensor(rng.integers(0, 256, (channels, side, side)), dtype=torch.uint8)
    top, left = (int(rng.integers(0, size - side + 1)) for size in (height, width))
    return NoisePatch(noise, top, left)


def judge(proxy: Proxy, purified: ImageClassifier, precision: str = "auto") -> dict:
    """Measure a purified proxy on the defender's own rows.

    Returns: ``acc``, ``asr``, ``r_asr`` in percent.
    """
    found = audits.audit_images(purified, proxy.held, proxy.triggered, proxy.target)
    how = RetuneSettings(share=0.5, precision=precision)
    rows = audits.retuning_rows(
        proxy.tune, lambda part: trigger_images(part, proxy.trigger), proxy.target, how
    )
    again = audits.retune(purified, image_data(rows, next(purified.parameters()).device), how)
    pred = predict_images(again, proxy.triggered).argmax(1).numpy()
    r_asr = metrics.label_flip_rate(pred, proxy.triggered.labels, proxy.target)
    return {"acc": found["acc"], "asr": found["asr"], "r_asr": r_asr}


def try_on_proxy(
    proxy: Proxy, candidates: Mapping[str, BiBauSettings], targeted: bool = False
) -> list[dict]:
    """Purify the proxy with each candidate and judge it. Nothing of the attack is seen.

    Returns: one dict per candidate: its name and what ``judge`` measures.
    """
    rows = []
    for name, settings in candidates.items():
        settings = replace(settings, target=proxy.target if targeted else None)
        purified = purify("bi-bau", proxy.model, proxy.tune, settings)
        rows.append({"candidate": name, **judge(proxy, purified, settings.precision)})
    return rows


def chosen(rows: Sequence[Mapping], most: float = 20.0) -> str:
    """Choose a candidate: of those that hold ASR and R-ASR below ``most``, the best accuracy.

    Where none does, the one with the lowest R-ASR. Ties go to the earlier.
    """
    good = [row for row in rows if max(row["asr"], row["r_asr"]) <= most]
    if good:
        return max(good, key=lambda row: row["acc"])["candidate"]
    return min(rows, key=lambda row: row["r_asr"])["candidate"]
