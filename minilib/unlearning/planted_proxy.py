"""The proxy: a backdoor that the defender plants to choose a defence's settings by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..attacks.images import poison_images, trigger_images
from ..data.images import ImageDataset
from ..metrics import reactivation
from ..metrics.reactivation import SHORT_RETUNING, RetuneSettings
from ..models.images import ImageClassifier, model_copy
from ..training.fitting import Diverged, SgdSettings, fit
from ..training.images import (
    ImageBatches,
    image_cross_entropy,
    image_data,
)
from . import defend

# ------------------------------------------------------------------- the defender's own proxy


@dataclass(frozen=True)
class Proxy:
    """A backdoor that the defender planted: everything about it is known.

    Attributes:
        model: the suspicious model with the defender's own backdoor beside whatever it has.
        tune: clean rows to unlearn it with. held: clean rows to judge by.
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

    Two thirds of the defender's rows are tuned on, one of each class at least, the others are held
    back to judge. The trigger is a square of noise at a random place and its target a random class,
    both drawn under ``seed``.

    Args:
        clean: the defender's rows. rate: share of the other classes' rows that get the trigger,
            beside their clean originals.
    """
    rng = np.random.default_rng([seed, 6])
    order = rng.permutation(len(clean))
    _, firsts = np.unique(clean.labels[order], return_index=True)
    order = np.concatenate([order[firsts], np.delete(order, firsts)])  # one of each class is tuned
    tune, held = np.split(order, [max(len(firsts), 2 * len(clean) // 3)])
    tune, held = clean.select(np.sort(tune)), clean.select(np.sort(held))
    if not len(held):
        raise ValueError(
            f"{len(clean)} rows, one a class; accepted: more, to hold some of them back"
        )
    target = int(rng.integers(clean.num_classes))
    trigger = noise_patch(clean.shape, rng)
    poisoned = poison_images(tune, trigger, target, rate, seed, keep_originals=True).dataset
    copy = model_copy(model).requires_grad_(True)
    data = image_data(poisoned, next(copy.parameters()).device)
    fit(copy, ImageBatches(data, settings.batch_size), image_cross_entropy, settings)
    triggered = trigger_images(held, trigger)
    asr = reactivation.image_rates(copy, held, triggered, target)["asr"]
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
        patched_images = images.clone()
        place = (..., slice(self.top, self.top + side), slice(self.left, self.left + side))
        patched_images[place] = self.pixels.to(images.device)
        return patched_images


def noise_patch(shape: tuple[int, int, int], rng: np.random.Generator) -> NoisePatch:
    """Draw a square a fifth of the image wide, anywhere."""
    channels, height, width = shape
    side = max(3, height // 5)
    noise = torch.as_tensor(rng.integers(0, 256, (channels, side, side)), dtype=torch.uint8)
    top, left = (int(rng.integers(0, size - side + 1)) for size in (height, width))
    return NoisePatch(noise, top, left)


def judge(proxy: Proxy, unlearned: ImageClassifier, precision: str = "auto") -> dict:
    """Measure an unlearned proxy on the defender's own rows.

    Returns: ``acc``, ``asr``, ``r_asr`` in percent.
    """
    rates = reactivation.image_rates(unlearned, proxy.held, proxy.triggered, proxy.target)
    retune_settings = RetuneSettings(share=0.5, precision=precision, **SHORT_RETUNING)
    r_asr = reactivation.retuned_asr(
        unlearned,
        proxy.tune,
        lambda dataset: trigger_images(dataset, proxy.trigger),
        proxy.triggered,
        proxy.target,
        retune_settings,
    )
    return {"acc": rates["acc"], "asr": rates["asr"], "r_asr": r_asr}


def tried(proxy: Proxy, settings, method: str = "bi-bau") -> dict:
    """Purify the proxy and judge it, without a look at the attack.

    Args:
        settings: of the method, a key of ``unlearning.DEFENCES``.

    Returns: what ``judge`` measures, None where training diverged.
    """
    try:
        unlearned = defend(method, proxy.model, proxy.tune, settings)
    except Diverged:
        return {"acc": None, "asr": None, "r_asr": None}
    return judge(proxy, unlearned, getattr(settings, "precision", "auto"))


def chosen(rows: Sequence[Mapping], held: int, most: float = 20.0) -> str:
    """Choose a candidate by the one-standard-error rule.

    Of those that hold ASR and R-ASR at ``most`` or below: among the ones whose accuracy is within
    a standard error of the best, the one with the lowest R-ASR. Where none holds, the lowest R-ASR
    of all. Ties go to the earlier.

    Args:
        rows: for each its name, ``candidate``, and what ``tried`` returns. held: rows that accuracy
            was measured on.

    Raises:
        ValueError: all of them diverged.
    """
    rows = [row for row in rows if row["acc"] is not None]
    if not rows:
        raise ValueError("every candidate diverged; lower the learning rate or ewc")
    safe_rows = [row for row in rows if max(row["asr"], row["r_asr"]) <= most]
    if safe_rows:
        best = max(row["acc"] for row in safe_rows)
        rows = [row for row in safe_rows if row["acc"] >= best - standard_error(best, held)]
    return min(rows, key=lambda row: row["r_asr"])["candidate"]


def standard_error(rate: float, rows: int) -> float:
    """Standard error of a rate in percent, measured on some rows; at least that of one row."""
    share = min(max(rate / 100, 1 / rows), 1 - 1 / rows)
    return 100 * (share * (1 - share) / rows) ** 0.5
