"""Is there a class that images are led to too easily? A reversed trigger per class, and its test.

Neural Cleanse compares the sizes of the smallest masks that lead to each class. Two things limit
it. Its index needs classes: of K sizes, half lie within one median deviation by construction, so
that with two classes no index can pass 0.67. And on a network that a few pixels fool anyway, the
smallest mask is as small for a class without a backdoor.

``confident_triggers`` asks for more than a changed label: the network must be as sure of the
patched images as it is of clean images of the class. That is what a backdoor was trained to do, and
what a class without one gives away for a larger mask only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import above_zero, one_of
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, frozen_copy, pixels
from ..training.devices import autocast
from ..training.fitting import seeded
from ..training.images import predict_images
from .common import check_clean, unit

INDEX_CLASSES = 6  # below this an anomaly index means nothing


# ---------------------------------------------------------------- Neural Cleanse's index


def anomaly_indices(sizes: Sequence[float]) -> np.ndarray:
    """Neural Cleanse's index (K,) of mask sizes (K,): positive where a mask is smaller than most.

    The distance to the median in units of 1.4826 · median absolute deviation. Source: Wang et al.
    (2019), who flag classes above 2.
    """
    sizes = np.asarray(sizes, float)
    distance = np.median(sizes) - sizes
    return distance / max(1.4826 * float(np.median(np.abs(distance))), 1e-12)


def index_note(classes: int) -> str | None:
    """What there is to say of the index with so few classes; None where there are enough."""
    if classes >= INDEX_CLASSES:
        return None
    bound = " (with two, none can pass 0.67)" if classes == 2 else ""
    return (
        f"{classes} classes are too few for Neural Cleanse's index{bound}: it compares a class "
        f"with the spread of the others; about {INDEX_CLASSES} are needed"
    )


# ---------------------------------------------------------------- confident triggers


@dataclass(frozen=True)
class TriggerTestSettings:
    """How triggers are reversed and tested.

    Attributes:
        kind: ``patch``: a mask and a pattern; ``blend``: a change that is added to every pixel.
        steps, step: of Adam, and its learning rate. images: per class and step.
        share: of the images of other classes that a trigger must lead to its class.
        confidence: margin that they must reach, in medians of the margin that clean images of the
            class have.
        cost: first weight of the size, multiplied or divided by ``factor`` as triggers succeed.
        held: share of the clean images that is kept back to test what was found on the others.
        seed: of the halves, the start and the batches.
    """

    kind: str = "patch"
    steps: int = 200
    step: float = 0.1
    images: int = 24
    share: float = 0.9
    confidence: float = 1.0
    cost: float = 1e-2
    factor: float = 1.3
    held: float = 0.5
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self):
        one_of("kind", self.kind, ("patch", "blend"))
        above_zero(self, "steps", "step", "images", "share", "confidence", "cost", "held")
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor!r}; accepted: above 1")
        for name in ("share", "held"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: in (0, 1)")


@dataclass(frozen=True)
class ReversedTriggers:
    """A trigger per class.

    Attributes:
        masks: (K, 1, H, W) float in 0 … 1; patterns: (K, C, H, W) float in 0 … 1. Of the kind
            ``blend``, a mask of ones and a change in -1 … 1.
        sizes: (K,) float64: sum of the mask in pixels, or the change's Euclidean norm; infinite
            where none was found that succeeds.
    """

    masks: Tensor
    patterns: Tensor
    sizes: np.ndarray
    kind: str

    def put(self, images: Tensor, k: int) -> Tensor:
        """Put class k's trigger into float images (N, C, H, W) in 0 … 1."""
        if self.kind == "blend":
            return (images + self.patterns[k]).clamp(0, 1)
        return images + self.masks[k] * (self.patterns[k] - images)

    def picture(self, k: int) -> np.ndarray:
        """Class k's trigger on mid-grey, as an image (H, W, C) uint8."""
        grey = torch.full_like(self.patterns[k], 0.5)
        image = self.put(grey[None], k)[0]
        return (255 * image).round().byte().permute(1, 2, 0).cpu().numpy()


def margins(logits: Tensor, classes: Tensor) -> Tensor:
    """How far the logit of its class is above the next, (N,), for logits (N, K)."""
    own = logits.gather(1, classes[:, None])[:, 0]
    return own - logits.scatter(1, classes[:, None], -torch.inf).amax(1)


def confident_triggers(
    model: ImageClassifier, clean: ImageDataset, settings: TriggerTestSettings
) -> ReversedTriggers:
    """Find for each class the smallest trigger that makes the model sure of it; all K at once.

    Minimises ``mean(max(0, g_k - margin_k(put(x, k))) / g_k) + cost_k · size_k`` over the images x
    of other classes; g_k is the median margin of clean images of class k. Of each class the
    smallest trigger is kept that succeeded on ``share`` of the latest images.

    Raises:
        ValueError: images that do not fit the model, or lack a class.

    Source: the mask, its cost and its schedule from Wang et al. (2019); the margin is ours.
    """
    check_clean(model, clean)
    model = frozen_copy(model)
    device = next(model.parameters()).device
    labels = torch.as_tensor(clean.labels, device=device)
    images, classes = pixels(clean.images, device), clean.num_classes
    goals = _clean_margins(model, images, labels, classes) * settings.confidence
    others = [torch.where(labels != k)[0] for k in range(classes)]
    _, channels, height, width = images.shape
    patch = settings.kind == "patch"
    with seeded(settings.seed, device) as rng:
        raw = torch.zeros(classes, channels + patch, height, width, device=device)
        if patch:
            raw.uniform_(-0.5, 0.5)
            raw[:, 0] -= 2.0  # masks start at an opacity of about 0.1
        raw.requires_grad_(True)
        step = settings.step if patch else settings.step / 5
        optimizer = torch.optim.Adam([raw], step, betas=(0.5, 0.9))
        cost = torch.full((classes,), settings.cost * (1 if patch else 10), device=device)
        hit_rates, best = torch.zeros(classes, device=device), raw.detach().clone()
        smallest = torch.full((classes,), torch.inf, device=device)
        target = torch.arange(classes, device=device).repeat_interleave(settings.images)
        for number in range(settings.steps):
            rows = torch.stack([
                rows[torch.as_tensor(rng.integers(0, len(rows), settings.images), device=device)]
                for rows in others
            ])  # fmt: skip
            patched, size = _patched(unit(images[rows]), raw, patch)
            with autocast(device, settings.precision, scaled=False):
                logits = model(patched.flatten(0, 1)).float()
            gaps = goals[:, None] - margins(logits, target).view(classes, -1)
            errors = (gaps.relu() / goals[:, None]).mean(1)
            (raw.grad,) = torch.autograd.grad((errors + cost * size).sum(), raw)
            with torch.no_grad():
                hits = (gaps <= 0.05 * goals[:, None]).float().mean(1)
                hit_rates = 0.8 * hit_rates + 0.2 * hits
                succeeded = hit_rates >= settings.share
                better = succeeded & (size < smallest)
                best = torch.where(better[:, None, None, None], raw, best)
                smallest = torch.where(better, size, smallest)
                if number % 5 == 4:
                    cost = torch.where(succeeded, cost * settings.factor, cost / settings.factor)
            optimizer.step()
        best = torch.where(smallest.isinf()[:, None, None, None], raw.detach(), best.detach())
    sizes = smallest.double().cpu().numpy()
    if not patch:
        return ReversedTriggers(torch.ones_like(best[:, :1]), best, sizes, "blend")
    mask, pattern = best.sigmoid().split([1, channels], 1)
    return ReversedTriggers(mask, pattern, sizes, "patch")


def _patched(images: Tensor, raw: Tensor, patch: bool) -> tuple[Tensor, Tensor]:
    """Images (K, B, C, H, W) with each class's trigger, and the triggers' sizes (K,)."""
    if patch:
        mask, pattern = raw.sigmoid().split([1, raw.shape[1] - 1], 1)
        return images + mask[:, None] * (pattern[:, None] - images), mask.sum((1, 2, 3))
    # The norm at 0 has no gradient.
    return (images + raw[:, None]).clamp(0, 1), (raw.square().sum((1, 2, 3)) + 1e-8).sqrt()


def _clean_margins(model, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Median margin (K,) of the clean images of each class that the model gets right.

    Of a class of which it gets none right, the median over all classes.
    """
    margin = margins(predict_images(model, images), labels.cpu())
    right = [margin[(labels.cpu() == k) & (margin > 0)] for k in range(classes)]
    if not any(map(len, right)):
        raise ValueError("the model gets no clean image right; accepted: a model of these classes")
    overall = torch.cat(right).median()
    medians = [values.median() if len(values) else overall for values in right]
    return torch.stack(medians).to(images.device)


# ---------------------------------------------------------------- the statistic


def size_ratios(sizes: Sequence[float]) -> np.ndarray:
    """How many times smaller a class's trigger is than the median of the other classes', (K,).

    A size that is infinite (no trigger succeeded) is larger than all others: the ratio of such a
    class is 0, and a median that is infinite is taken as twice the largest finite size.
    """
    sizes = np.asarray(sizes, float)
    finite = sizes[np.isfinite(sizes)]
    if not len(finite):
        return np.zeros(len(sizes))
    capped = np.where(np.isfinite(sizes), sizes, 2 * finite.max())
    medians = np.array([np.median(np.delete(capped, k)) for k in range(len(sizes))])
    return np.where(np.isfinite(sizes), medians / np.maximum(sizes, 1e-12), 0.0)


def transfer_rates(model: ImageClassifier, held: ImageDataset, found: ReversedTriggers) -> list:
    """Share (K values) of held-out images of other classes that each trigger leads to its class."""
    images, rates = unit(pixels(held.images, found.masks.device)), []
    for k in range(held.num_classes):
        others = images[torch.as_tensor(held.labels != k, device=images.device)]
        classes = predict_images(model, found.put(others, k)).argmax(1)
        rates.append(float((classes == k).float().mean()))
    return rates


def halves(clean: ImageDataset, held: float, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Split a set class by class: to search on, and a share ``held`` to test on.

    Raises:
        ValueError: a class with a single image.
    """
    rng, test_rows = np.random.default_rng(seed), []
    for k, name in enumerate(clean.class_names):
        rows = rng.permutation(np.flatnonzero(clean.labels == k))
        if len(rows) < 2:
            raise ValueError(
                f"{clean.name} has {len(rows)} images of class {name}; accepted: 2 or more"
            )
        test_rows.append(rows[: min(max(1, round(held * len(rows))), len(rows) - 1)])
    mask = np.zeros(len(clean), bool)
    mask[np.concatenate(test_rows)] = True
    return clean.select(~mask), clean.select(mask)


def trigger_table(
    model: ImageClassifier, clean: ImageDataset, settings: TriggerTestSettings
) -> tuple[list[dict], ReversedTriggers]:
    """Reverse a trigger for each class and test it.

    Returns:
        One dict per class: ``class``, ``size`` (None where no trigger succeeded), ``ratio`` of
        ``size_ratios``, ``index`` of ``anomaly_indices``, ``held_rate``: share of held-out images
        of other classes that it leads to the class. And the triggers.
    """
    search, held = halves(clean, settings.held, settings.seed)
    found = confident_triggers(model, search, settings)
    rates = transfer_rates(model, held, found)
    ratios = size_ratios(found.sizes)
    finite = np.isfinite(found.sizes)
    capped = np.where(finite, found.sizes, 2 * found.sizes[finite].max() if finite.any() else 1.0)
    indices = anomaly_indices(capped)
    rows = [
        {
            "class": name,
            "size": float(found.sizes[k]) if finite[k] else None,
            "ratio": float(ratios[k]),
            "index": float(indices[k]),
            "held_rate": rates[k],
        }
        for k, name in enumerate(clean.class_names)
    ]
    return rows, found


HELD_RATE = 0.8  # of held-out images that a trigger must lead to its class to count at all


def statistic(rows: Sequence[dict]) -> tuple[float, int]:
    """The largest ratio among the classes whose trigger works on held-out images, and its class.

    0 where no trigger does.
    """
    values = [row["ratio"] if row["held_rate"] >= HELD_RATE else 0.0 for row in rows]
    return max(values), int(np.argmax(values))


def null_p_value(value: float, null: Sequence[float]) -> float:
    """Share of clean models at least as suspicious, counting this one: (1 + #{≥}) / (1 + n).

    If the model were one more of the clean ones, a p-value of at most α would come with a
    probability of at most α.
    """
    null = np.asarray(null, float)
    return float((1 + (null >= value).sum()) / (1 + len(null)))
