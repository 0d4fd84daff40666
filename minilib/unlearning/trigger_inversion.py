"""Trigger synthesis: Neural Cleanse (NC), and inversion by decoupled benign features (BTI-DBF)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above_zero, not_negative
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, ImageToImage, frozen_copy, model_copy
from ..training.devices import autocast
from ..training.fitting import SgdSettings, TrainSettings, fit, seeded
from ..training.images import ImageBatches, ImageData, fit_images, image_data, predict_images
from .common import check_clean, forever, prepared, unit
from .trigger_test import anomaly_indices, index_note

# ------------------------------------------------------------------------------ Neural Cleanse


@dataclass(frozen=True)
class CleanseSettings(SgdSettings):
    """Neural Cleanse.

    Attributes:
        steps: of Adam per class; step: its learning rate.
        images: images per class and step.
        success: share of images that a reversed trigger must turn before it is made smaller.
        cost: first weight of the mask's size, multiplied or divided by ``factor`` as the trigger
            succeeds or fails.
        threshold: anomaly index above which a class is flagged.
        share: of each batch that carries a reversed trigger while it is unlearned.
        released: as BackdoorBench does it: class by class (``released_trigger``), ``steps`` being
            passes over all images; then a fixed ``share`` of the rows carries the stretched
            trigger, once for each flagged class, and the rate falls along a cosine.

    ``RELEASED_NC`` has what else differs there.
    """

    epochs: int = 10
    steps: int = 500
    step: float = 0.1
    images: int = 32
    success: float = 0.99
    cost: float = 1e-3
    factor: float = 1.5
    threshold: float = 2.0
    share: float = 0.2
    released: bool = False

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "steps", "step", "images", "success", "cost", "threshold", "share")
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor!r}; accepted: above 1")

    @property
    def schedule(self) -> str:
        """Of the learning rate while a trigger is unlearned."""
        return "cosine" if self.released else "constant"


RELEASED_NC = {
    "released": True, "epochs": 100, "batch_size": 256, "steps": 80, "images": 256,
    "success": 0.98, "factor": 2.0,
}  # fmt: skip


def reverse_triggers(
    model: ImageClassifier, data: ImageData, settings: CleanseSettings
) -> tuple[Tensor, Tensor]:
    """Find the smallest mask and pattern that lead to each class, all classes at once.

    Minimises ``CE(f((1 - m_k) · x + m_k · p_k), k) + cost_k · |m_k|₁`` over the K masks and
    patterns. Of each class the smallest mask that reached ``success`` is kept.

    Returns:
        masks (K, 1, H, W) and patterns (K, C, H, W), float in 0 … 1.

    Source: Wang et al. (2019). One forward serves all classes; their code visits the
    classes one after another.
    """
    model = frozen_copy(model)
    device, classes = data.labels.device, model.head.out_features
    _, channels, height, width = data.images.shape
    with seeded(settings.seed, device) as rng:
        raw_triggers = torch.rand(classes, channels + 1, height, width, device=device) - 0.5
        raw_triggers[:, 0] -= 2.0  # masks start at an opacity of about 0.1
        raw_triggers.requires_grad_(True)
        optimizer = torch.optim.Adam([raw_triggers], settings.step, betas=(0.5, 0.9))
        cost = torch.full((classes,), settings.cost, device=device)
        hit_rates = torch.zeros(classes, device=device)  # running share of images turned
        best_triggers, smallest_sizes = (
            raw_triggers.detach().sigmoid(),
            torch.full((classes,), torch.inf, device=device),
        )
        batches = forever(data, min(settings.images, len(data)), rng)
        goals = torch.arange(classes, device=device)
        for step in range(settings.steps):
            images = unit(next(batches).images)
            mask, pattern = raw_triggers.sigmoid().split([1, channels], 1)
            patched_images = images + mask[:, None] * (pattern[:, None] - images)  # (K, B, C, H, W)
            with autocast(device, settings.precision, scaled=False):
                logits = model(patched_images.flatten(0, 1)).float()
            labels = goals.repeat_interleave(len(images))
            errors = F.cross_entropy(logits, labels, reduction="none").view(classes, -1).mean(1)
            size = mask.sum((1, 2, 3))
            (raw_triggers.grad,) = torch.autograd.grad((errors + cost * size).sum(), raw_triggers)
            with torch.no_grad():
                rates = (logits.argmax(1) == labels).view(classes, -1).float().mean(1)
                hit_rates = 0.7 * hit_rates + 0.3 * rates
                better = (hit_rates >= settings.success) & (size < smallest_sizes)
                best_triggers = torch.where(
                    better[:, None, None, None], raw_triggers.sigmoid(), best_triggers
                )
                smallest_sizes = torch.where(better, size, smallest_sizes)
                if step % 10 == 9:
                    up = hit_rates >= settings.success
                    cost = torch.where(up, cost * settings.factor, cost / settings.factor)
            optimizer.step()
        # A class that nothing small leads to keeps what its last trigger came to.
        last = raw_triggers.detach().sigmoid()
        best_triggers = torch.where(
            smallest_sizes.isinf()[:, None, None, None], last, best_triggers
        )
    return best_triggers[:, :1], best_triggers[:, 1:]


PATIENCE, STANDSTILL = 5, 25  # passes until BackdoorBench changes the cost, and until it gives up


def released_triggers(
    model: ImageClassifier, data: ImageData, settings: CleanseSettings
) -> tuple[Tensor, Tensor]:
    """What ``reverse_triggers`` returns, each class by itself as BackdoorBench does it."""
    model, channels = frozen_copy(model), data.images.shape[1]
    with seeded(settings.seed, data.labels.device) as rng:
        triggers = [
            released_trigger(model, data, goal, settings, rng)
            for goal in range(model.head.out_features)
        ]
    masks, patterns = torch.stack(triggers).split([1, channels], 1)
    return masks, patterns


def released_trigger(
    model: ImageClassifier, data: ImageData, goal: int, settings: CleanseSettings, rng
) -> Tensor:
    """Mask and pattern (1 + C, H, W) in 0 … 1 of one class, from a mask that hides most.

    Mask and pattern are squashed numbers that start at 1. After a pass, what it came to is kept
    where the pass had ``success`` and, on its average, the smallest mask so far. Five passes with
    success double the cost, five without divide it by 2.8; where both have been and 25 passes
    brought nothing smaller by a hundredth, it ends. A class without any success keeps what the
    first pass came to.

    Source: BackdoorBench's code for Wang et al. (2019).
    """
    device = data.labels.device
    shape = data.images.shape[1] + 1, *data.images.shape[2:]
    raw = torch.ones(shape, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([raw], settings.step, betas=(0.5, 0.9))
    batches, best, smallest = ImageBatches(data, settings.images), None, torch.inf
    cost, standing, streak, reached, moves = settings.cost, 0, 0, torch.inf, set()
    for _ in range(settings.steps):
        rates, sizes = [], []
        for batch in batches(rng):
            x = unit(batch.images)
            trigger = raw.tanh() / 2 + 0.5
            with autocast(device, settings.precision, scaled=False):
                logits = model(x + trigger[:1] * (trigger[1:] - x)).float()
            goals = torch.full_like(batch.labels, goal)
            size = trigger[:1].sum()
            (raw.grad,) = torch.autograd.grad(F.cross_entropy(logits, goals) + cost * size, raw)
            optimizer.step()
            rates.append((logits.argmax(1) == goal).float().mean())
            sizes.append(size.detach())
        rate, size = float(torch.stack(rates).mean()), float(torch.stack(sizes).mean())
        hit = rate >= settings.success
        if best is None or (hit and size < smallest):
            best = raw.detach().clone()
            smallest = size if hit else smallest
        standing = standing + 1 if 0.99 * reached <= smallest < torch.inf else 0
        reached = min(reached, smallest)
        if len(moves) == 2 and standing >= STANDSTILL:
            break
        streak = streak + (1 if hit else -1) if streak * (hit - 0.5) >= 0 else (1 if hit else -1)
        if abs(streak) >= PATIENCE:
            moves.add(hit)
            cost, streak = cost * (settings.factor if hit else settings.factor**-1.5), 0
    return best.tanh() / 2 + 0.5


def stamped_rows(
    data: ImageData, masks: Tensor, patterns: Tensor, settings: CleanseSettings
) -> ImageData:
    """Clean rows, and a fixed ``share`` of the rows once for each trigger (k, …) in its place.

    A mask, and its product with the pattern, are stretched to 0 … 1, as an image is that is saved.
    """
    with seeded(settings.seed, data.labels.device) as rng:
        order = torch.as_tensor(rng.permutation(len(data)), device=data.labels.device)
    clean, carriers = order.tensor_split([int(len(data) * (1 - settings.share))])
    images = [data.images[clean]]
    for mask, pattern in zip(masks, patterns, strict=True):
        cover, patch = map(_stretched, (mask, mask * pattern))
        stamped = unit(data.images[carriers]) * (1 - cover) + patch
        images.append((255 * stamped.clamp(0, 1)).to(torch.uint8))
    rows = torch.cat([clean, carriers.repeat(len(masks))])
    return ImageData(torch.cat(images), data.labels[rows], data.marks[rows])


def _stretched(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min()).clamp(min=1e-5)


def outliers(sizes: Tensor, threshold: float) -> Tensor:
    """Classes (indices) whose mask is far smaller than the others'.

    The anomaly index is the distance to the median in units of 1.4826 · median absolute deviation.
    ``sizes`` (K,). Source: Wang et al. (2019).
    """
    distance = sizes.median() - sizes
    spread = 1.4826 * distance.abs().median()
    return torch.where(distance > threshold * spread.clamp(min=1e-12))[0]


def neural_cleanse(
    model: ImageClassifier, clean: ImageDataset, settings: CleanseSettings
) -> ImageClassifier:
    """NC: reverse a trigger for each class, flag outliers, unlearn theirs with true labels.

    Where no class is flagged the model comes back unchanged, as in the paper. With classes too few
    for the test (INDEX_CLASSES) it says so in a warning, with the largest index.

    Source: Wang et al. (2019).
    """
    model, data = prepared(model, clean)
    reverse = released_triggers if settings.released else reverse_triggers
    masks, patterns = reverse(model, data, settings)
    if note := index_note(clean.num_classes):
        index = anomaly_indices(masks.sum((1, 2, 3)).tolist()).max()
        warnings.warn(f"{note}; the largest index here is {index:.2f}", stacklevel=3)
    flagged_classes = outliers(masks.sum((1, 2, 3)), settings.threshold)
    if not len(flagged_classes):
        return model
    if settings.released:
        stamped = stamped_rows(data, masks[flagged_classes], patterns[flagged_classes], settings)
        fit_images(model, stamped, settings)
        return model

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = unit(batch.images)
        classes = flagged_classes[torch.randint(len(flagged_classes), (len(x),), device=x.device)]
        carriers = torch.rand(len(x), 1, 1, 1, device=x.device) < settings.share
        mixed_images = torch.where(carriers, x + masks[classes] * (patterns[classes] - x), x)
        value = F.cross_entropy(model(mixed_images).float(), batch.labels)
        return value, {"loss": value.detach()}

    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model


# ------------------------------------------------------------------------------------ BTI-DBF


@dataclass(frozen=True)
class BtiSettings(SgdSettings):
    """Inversion by decoupled benign features, and unlearning of what it makes.

    Attributes:
        mask_steps: of Adam (0.01) on the mask over features.
        slack: the mask shrinks to as few features as keep the clean loss within this many
            nats of the unmasked one (ours); None is the paper's objective alone.
        generator: how the generator is trained, each round.
        bound: largest change of a pixel, in units of 255.
        rounds: the generator is made anew for the model as it then is; epochs are per round.
        released: as the released code does it: see ``ReleasedGenerator``. Adam unlearns; a
            ``share`` of each batch is the generator's, and its features are pulled to the clean
            images'.
        share: see ``released``. identity_epochs: of the generator's training to change nothing.
        feature_bound: largest mean square change of the benign features, there.

    ``RELEASED_BTI`` has what else differs there; in it ``mask_steps`` are twenty passes over the
    code's 2,500 images, and ``bound`` is that of the mean square of a change.
    """

    epochs: int = 5
    mask_steps: int = 500
    generator: TrainSettings = field(
        default_factory=lambda: TrainSettings(10, 2e-3, 64, schedule="linear")
    )
    slack: float | None = 0.1
    bound: float = 0.3
    rounds: int = 3
    released: bool = False
    share: float = 0.1
    identity_epochs: int = 50
    feature_bound: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "mask_steps", "bound", "rounds", "share", "identity_epochs")
        above_zero(self, "feature_bound")
        if self.slack is not None:
            not_negative(self, "slack")

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new SGD, or the released code's Adam."""
        if self.released:
            return torch.optim.Adam(parameters, self.lr)
        return super().optimizer(parameters)


RELEASED_BTI = {
    "released": True, "epochs": 30, "rounds": 5, "lr": 1e-4, "mask_steps": 400,
    "generator": TrainSettings(30, 1e-3, 128, weight_decay=0.0, clip=0.0),
}  # fmt: skip


def benign_mask(
    model: ImageClassifier,
    data: ImageData,
    steps: int,
    slack: float | None = None,
    step: float = 0.01,
) -> Tensor:
    """Tell benign features from the rest: a mask (d,) in 0 … 1.

    Minimises ``CE(head(m · h), y) - CE(head((1 - m) · h), y)``. The features h are constant and
    computed once; only the head runs in the loop.

    A feature that sleeps on clean images, as a backdoor's does, changes neither term: the objective
    leaves it where it began, and a mask of ones makes the generator the identity. With ``slack``
    (nats) a weight on the mask's mean grows while the first term is within it of its value
    unmasked and shrinks while it is not, which closes all that the clean task can do without.

    Source: Xu et al. (2024).
    """
    features = predict_images(model, data.images, output=model.features).to(data.labels.device)
    head = model.head
    mask = torch.ones(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([mask], step)
    limit = F.cross_entropy(head(features), data.labels).detach() + (slack or 0.0)
    weight = torch.tensor(0.0 if slack is None else 0.1, device=features.device)
    for _ in range(steps):
        benign_loss = F.cross_entropy(head(mask * features), data.labels)
        rest_loss = F.cross_entropy(head((1 - mask) * features), data.labels)
        (mask.grad,) = torch.autograd.grad(benign_loss - rest_loss + weight * mask.mean(), mask)
        optimizer.step()
        if slack is not None:
            weight = weight * torch.where(benign_loss.detach() < limit, 1.02, 1 / 1.02)
        # Clipped, not squashed: a squashed mask that once went to 1 for all would stay there.
        mask.data.clamp_(0, 1)
    return mask.detach()


def decoupled_inversion(
    model: ImageClassifier, clean: ImageDataset, settings: BtiSettings
) -> Callable[[Tensor], Tensor]:
    """Train a generator of backdoor-like images: benign features stay, the others move.

    Minimises ``‖m · (h(x) - h(G(x)))‖ - ‖(1 - m) · (h(x) - h(G(x)))‖``, the mean over images, with
    ``|G(x) - x| ≤ bound`` by construction (the authors punish larger changes instead).

    Returns:
        ``make(x)``: float images in 0 … 1 → the same, eval mode, no gradient needed.

    Source: Xu et al. (2024).
    """
    check_clean(model, clean)
    model = frozen_copy(model)
    device = next(model.parameters()).device
    data = image_data(clean, device)
    mask = benign_mask(model, data, settings.mask_steps, settings.slack)
    with seeded(settings.seed, device):
        generator = ImageToImage(clean.shape[0], clean.shape[0]).to(device)
    clean_features = predict_images(model, data.images, output=model.features).to(device)

    def change(network: nn.Module, x: Tensor) -> Tensor:
        return (x + settings.bound * network(2 * x - 1).float().tanh()).clamp(0, 1)

    def loss(network: nn.Module, batch) -> tuple[Tensor, dict]:
        generated_images = change(network, unit(batch.images))
        feature_change = (
            clean_features[torch.as_tensor(batch.rows, device=device)]
            - model.features(generated_images).float()
        )
        # The norm of a difference that is exactly 0 has no gradient.
        benign_norms, other_norms = (
            (part.square().sum(1) + 1e-8).sqrt() for part in _split(mask, feature_change)
        )
        value = (benign_norms - other_norms).mean()
        return value, {"benign": benign_norms.detach().mean(), "other": other_norms.detach().mean()}

    fit_images(generator, data, settings.generator, loss=loss)
    generator.requires_grad_(False)
    return lambda x: change(generator, x)


def _split(mask: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return mask * features, (1 - mask) * features


def decoupled_unlearning(
    model: ImageClassifier, clean: ImageDataset, settings: BtiSettings
) -> ImageClassifier:
    """BTI-DBF: unlearn the generator's images with true labels, renewing the generator each round.

    Source: Xu et al. (2024), the unlearning variant.
    """
    if settings.released:
        return _released_unlearning(model, clean, settings)
    model, data = prepared(model, clean)
    for _ in range(settings.rounds):
        make = decoupled_inversion(model_copy(model), clean, settings)

        def loss(model: nn.Module, batch, make=make) -> tuple[Tensor, dict]:
            x = unit(batch.images)
            with torch.no_grad():
                generated_images = make(x)
            logits = model(torch.cat([x, generated_images])).float()
            value = F.cross_entropy(logits, batch.labels.repeat(2))
            return value, {"loss": value.detach()}

        fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model


class ReleasedGenerator:
    """BTI-DBF's generator as the released code trains it: one network, further in each round.

    It begins as the identity. A round first learns the mask, as a squashed number per feature that
    starts at random, on a copy of the model whose batch norm has the statistics of each batch. On
    that copy the generator then maximises the change of the other features, less a hundredth of the
    benign ones'; where the mean square change of the image or of the benign features is above its
    bound, it minimises the former alone. Nothing holds a pixel. From the second round on its images
    are also led to the class that they went to after the first.

    Its network and the features are this library's: the authors' U-Net is larger, and in a ResNet
    their mask lies on maps, before they are pooled. Adam's moments begin anew in each round.

    Source: the released code of Xu et al. (2024).
    """

    def __init__(self, model: nn.Module, data: ImageData, settings: BtiSettings):
        self.data, self.settings, self.target = data, settings, None
        with seeded(settings.seed, data.labels.device):
            channels = data.images.shape[1]
            self.network = ImageToImage(channels, channels).to(data.labels.device)
        model = frozen_copy(model)

        def loss(network: nn.Module, batch) -> tuple[Tensor, dict]:
            x = unit(batch.images)
            image = network(x).float()
            features, new_features = model.features(x).float(), model.features(image).float()
            probabilities, new_probabilities = (
                model.head(part).softmax(1) for part in (features, new_features)
            )
            # Their cross-entropy squashes twice.
            value = F.cross_entropy(probabilities.float(), new_probabilities.float())
            value = value + F.mse_loss(features, new_features)
            size = F.mse_loss(x, image)
            value = value + torch.where(size > 0.1, 100.0, 0.01) * size
            return value, {"size": size.detach()}

        how = replace(settings.generator, epochs=settings.identity_epochs)
        fit_images(self.network, data, how, loss=loss)

    def renew(self, model: nn.Module) -> None:
        """Train on, for the model as it now is; it is left as it was."""
        settings, now = self.settings, frozen_copy(model)
        model = model_copy(model).requires_grad_(False).train()
        with seeded(settings.seed, self.data.labels.device) as rng:
            mask = self._mask(model, rng)
        model.eval()

        def loss(network: nn.Module, batch) -> tuple[Tensor, dict]:
            x = unit(batch.images)
            image = network(x).float()
            features = model.features(image).float()
            change = model.features(x).float() - features
            benign, other = (part.square().mean() for part in _split(mask, change))
            size = F.mse_loss(x, image)
            held = (size > settings.bound) | (benign > settings.feature_bound)
            value = torch.where(held, size, 0.01 * benign - other)
            if self.target is not None:
                goals = torch.full_like(batch.labels, self.target)
                value = value + F.cross_entropy(model.head(features), goals)
            return value, {"benign": benign.detach(), "other": other.detach()}

        fit_images(self.network, self.data, settings.generator, loss=loss)
        if self.target is None:
            x = unit(self.data.images)
            with seeded(settings.seed, x.device), torch.no_grad():
                images = self.network(x + 0.03 * torch.randn_like(x))
                self.target = int(now(images).argmax(1).bincount().argmax())

    def _mask(self, model: ImageClassifier, rng) -> Tensor:
        """Numbers (d,) in 0 … 1; moves the batch norms of ``model``, which is in training mode."""
        settings, head = self.settings, model.head
        raw = torch.randn(head.in_features, device=self.data.labels.device, requires_grad=True)
        optimizer = torch.optim.Adam([raw], 0.01)
        batches = forever(self.data, settings.batch_size, rng)
        for batch in islice(batches, settings.mask_steps):
            with torch.no_grad():
                features = model.features(unit(batch.images))
            benign, rest = _split(raw.tanh() / 2 + 0.5, features)
            value = F.cross_entropy(head(benign), batch.labels)
            value = value - F.cross_entropy(head(rest), batch.labels)
            (raw.grad,) = torch.autograd.grad(value, raw)
            optimizer.step()
        return raw.detach().tanh() / 2 + 0.5

    @torch.no_grad()
    def mixed(self, x: Tensor) -> Tensor:
        """A batch (B, C, H, W) float in which a random share of the images is the generator's."""
        rows = torch.randperm(len(x), device=x.device)[: int(self.settings.share * len(x) + 1)]
        return x.index_copy(0, rows, self.network(x[rows]).float())


@dataclass
class RoundBatches:
    """``batches``, with ``renew`` called ahead of every pass that begins a round.

    One ``fit`` then goes through all rounds, and its optimiser forgets nothing between them.
    """

    batches: ImageBatches
    epochs: int  # passes of a round
    renew: Callable[[], None]
    passes: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __call__(self, rng):
        if self.passes % self.epochs == 0:
            self.renew()
        self.passes += 1
        return self.batches(rng)


def _released_unlearning(
    model: ImageClassifier, clean: ImageDataset, settings: BtiSettings
) -> ImageClassifier:
    model, data = prepared(model, clean)
    generator = ReleasedGenerator(model, data, settings)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = unit(batch.images)
        clean_features, features = model.features(x), model.features(generator.mixed(x))
        value = F.cross_entropy(model.head(features).float(), batch.labels)
        value = value + F.mse_loss(clean_features.float(), features.float())
        return value, {"loss": value.detach()}

    batches = RoundBatches(
        ImageBatches(data, settings.batch_size), settings.epochs, lambda: generator.renew(model)
    )
    fit(model, batches, loss, replace(settings, epochs=settings.epochs * settings.rounds))
    return model
