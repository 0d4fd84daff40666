"""Is there a class that images are led to too easily? A reversed trigger per class, and its test.

Neural Cleanse compares the sizes of the smallest masks that lead to each class. Three things limit
it. Its index needs classes: of K sizes, half lie within one median deviation by construction, so
that with two classes no index can pass 0.67. Classes differ without a backdoor, too: some are far
from all others. And on a network that a few pixels fool anyway, the smallest mask is as small for a
class without a backdoor.

``confident_triggers`` asks for more than a changed label: the network must be as sure of the
patched images as it is of clean images of the class. That is what a backdoor was trained to do,
and what a class without one gives away for a larger mask only. ``trigger_test`` compares the sizes,
class by class, with those of networks of the same architecture that are trained on the defender's
clean images, and are clean for certain. So it works for two classes as for many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above_zero, one_of
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, frozen_copy, model_copy, pixels
from ..training.devices import autocast
from ..training.fitting import SgdSettings, TrainSettings, fit, seeded
from ..training.images import ImageBatches, fit_images, image_data, predict_images
from .common import check_clean, prepared, unit

INDEX_CLASSES = 6  # below this an anomaly index means nothing
CHUNK_VALUES = 2**21  # of the images that are patched at once: 42 classes of 32 × 32, one of 224
SCALE_CLASSES = 4  # from this on, the classes tell how easily a network is fooled at all


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
        held: share of the clean images that is kept back: what was found on the others is tested on
            them, and reference networks are trained on them.
        seed: of the halves, the start and the batches.
    """

    kind: str = "patch"
    steps: int = 150
    step: float = 0.1
    images: int = 16
    share: float = 0.9
    confidence: float = 1.0
    cost: float = 1e-2
    factor: float = 1.3
    held: float = 0.7
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


def margins(logits: Tensor, classes: Tensor | int) -> Tensor:
    """How far the logit of a class is above the next, (N,), for logits (N, K).

    ``classes``: (N,) int64, or one for all.
    """
    index = torch.as_tensor(classes, device=logits.device).expand(len(logits))[:, None]
    return logits.gather(1, index)[:, 0] - logits.scatter(1, index, -torch.inf).amax(1)


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
        at_once = max(1, CHUNK_VALUES // (settings.images * channels * height * width))
        parts = torch.arange(classes, device=device).split(at_once)
        for number in range(settings.steps):
            rows = torch.stack([
                rows[torch.as_tensor(rng.integers(0, len(rows), settings.images), device=device)]
                for rows in others
            ])  # fmt: skip
            gaps, size, gradient = [], [], torch.zeros_like(raw)
            for part in parts:
                patched, part_size = _patched(unit(images[rows[part]]), raw[part], patch)
                with autocast(device, settings.precision, scaled=False):
                    logits = model(patched.flatten(0, 1)).float()
                target = part.repeat_interleave(settings.images)
                reached = margins(logits, target).view(len(part), -1)
                gap, goal = goals[part, None] - reached, goals[part, None]
                loss = ((gap.relu() / goal).mean(1) + cost[part] * part_size).sum()
                gradient += torch.autograd.grad(loss, raw)[0]
                gaps.append(gap.detach())
                size.append(part_size.detach())
            gaps, size, raw.grad = torch.cat(gaps), torch.cat(size), gradient
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


# ---------------------------------------------------------------- on held-out images


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


# ---------------------------------------------------------------- the null: reference networks


def reference(
    model: ImageClassifier, clean: ImageDataset, seed: int, settings: TrainSettings
) -> ImageClassifier:
    """Train a network of the same architecture, all weights drawn anew, on clean images alone.

    They are moved by up to a sixteenth of their side, so that few of them go further.

    Returns it in eval mode; the model given is not changed.
    """
    network = model_copy(model).requires_grad_(True)
    device, crop = next(network.parameters()).device, max(1, min(clean.shape[1:]) // 16)
    with seeded(seed, device):
        for module in network.modules():
            if callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()
            else:  # position embeddings and the like
                for parameter in module.parameters(recurse=False):
                    nn.init.normal_(parameter, 0, 0.02)
    fit_images(network, image_data(clean, device), replace(settings, seed=seed), crop)
    return network.eval()


def shrinkage(sizes: np.ndarray, null: np.ndarray) -> np.ndarray:
    """How much smaller each trigger is than in reference networks, (K,), as a logarithm.

    ``log(median over the references / size)``. What all classes share (a network that is fooled
    more easily than those of the null) is taken off where SCALE_CLASSES or more tell it: the median
    over classes. A size that is infinite counts as twice the largest finite one of its class.

    Args:
        sizes: (K,) of the audited model. null: (R, K) of reference networks.
    """
    together = np.vstack([sizes, null])
    for column in together.T:
        finite = column[np.isfinite(column)]
        column[~np.isfinite(column)] = 2 * finite.max() if len(finite) else 1.0
    shrunk = np.log(np.median(together[1:], axis=0)) - np.log(np.maximum(together[0], 1e-12))
    return shrunk - np.median(shrunk) if len(shrunk) >= SCALE_CLASSES else shrunk


@dataclass(frozen=True)
class TriggerTest:
    """A model's triggers beside those of reference networks.

    Attributes:
        p: share of the models, the references and this one, in which some trigger has shrunk as
            much: (1 + #{≥}) / (1 + R). If the model were one more of the references, p at most α
            would come with a probability of at most α.
        kind, target: of the trigger that shrank most. statistic: by how much, in units of the
            references' spread of their own largest shrinkage. null: (R,), that of each reference.
    """

    p: float
    kind: str
    target: int
    statistic: float
    null: np.ndarray


def trigger_test(
    sizes: Mapping[str, np.ndarray],
    null: Mapping[str, np.ndarray],
    held_rates: Mapping[str, Sequence[float]] | None = None,
) -> TriggerTest:
    """Ask whether some class's trigger is smaller than chance among clean networks would have it.

    Of each network the largest shrinkage over classes counts, of each kind of trigger in units of
    its spread among the references, and of those the larger. A reference is compared with the
    others. A class whose trigger fails on held-out images does not count.

    Args:
        sizes: kind → (K,). null: kind → (R, K). held_rates: kind → (K,), shares.

    Raises:
        ValueError: fewer than three references.
    """
    kinds, own, others = list(sizes), [], []
    for kind in kinds:
        table = np.asarray(null[kind], float)
        if len(table) < 3:
            raise ValueError(f"{len(table)} reference networks; accepted: 3 or more")
        alone = np.array(
            [shrinkage(row, np.delete(table, r, 0)).max() for r, row in enumerate(table)]
        )
        centre, spread = np.median(alone), max(float(alone.std(ddof=1)), 1e-9)
        shrunk = shrinkage(np.asarray(sizes[kind], float), table)
        if held_rates is not None:
            shrunk = np.where(np.asarray(held_rates[kind]) >= HELD_RATE, shrunk, -np.inf)
        own.append((shrunk - centre) / spread)
        others.append((alone - centre) / spread)
    own, references = np.stack(own), np.max(others, axis=0)  # (kinds, K), (R,)
    where, target = np.unravel_index(int(own.argmax()), own.shape)
    p = (1 + int((references >= own.max()).sum())) / (1 + len(references))
    return TriggerTest(float(p), kinds[where], int(target), float(own.max()), references)


HELD_RATE = 0.8  # of held-out images that a trigger must lead to its class to count at all


# ---------------------------------------------------------------- unlearning what was found


@dataclass(frozen=True)
class TriggerUnlearning(SgdSettings):
    """Fine-tuning on clean images, a share of which carries a found trigger, all rightly labelled.

    Attributes:
        share: of each batch that carries the trigger.
    """

    epochs: int = 30
    batch_size: int = 32
    share: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "share")


def unlearn_trigger(
    model: ImageClassifier,
    clean: ImageDataset,
    found: ReversedTriggers,
    target: int,
    settings: TriggerUnlearning,
) -> ImageClassifier:
    """Unlearn a reversed trigger with true labels; returns a changed copy in eval mode.

    Source: Wang et al. (2019), section 6.2, where a fifth of the images carries the trigger.
    """
    model, data = prepared(model, clean)

    def loss(network: nn.Module, batch) -> tuple[Tensor, dict]:
        x = unit(batch.images)
        carriers = torch.rand(len(x), 1, 1, 1, device=x.device) < settings.share
        mixed_images = torch.where(carriers, found.put(x, target), x)
        value = F.cross_entropy(network(mixed_images).float(), batch.labels)
        return value, {"loss": value.detach()}

    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model
