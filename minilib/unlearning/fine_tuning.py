"""Defences that fine-tune on clean images: plainly, or on a path-aware way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import not_negative
from ..data.images import ImageDataset
from ..models.images import ImageClassifier
from ..training.fitting import SgdSettings, fit
from ..training.images import ImageBatches, image_cross_entropy
from .common import check_clean, prepared, unit
from .trigger_inversion import (
    RELEASED_BTI,
    BtiSettings,
    ReleasedGenerator,
    RoundBatches,
    decoupled_inversion,
)


@dataclass(frozen=True)
class TuneSettings(SgdSettings):
    """Fine-tuning of all weights; ``crop`` and ``flip`` augment as in training."""

    epochs: int = 20
    batch_size: int = 128
    crop: int = 0
    flip: bool = False


def plain_tuning(
    model: ImageClassifier, clean: ImageDataset, settings: TuneSettings
) -> ImageClassifier:
    """FT: fine-tune all weights on clean images, the defence that all others are measured by."""
    model, data = prepared(model, clean)
    batches = ImageBatches(data, settings.batch_size, settings.crop, settings.flip)
    fit(model, batches, image_cross_entropy, settings)
    return model


# --------------------------------------------------------------------------------------- PAM


@dataclass(frozen=True)
class PamSettings(SgdSettings):
    """Path-aware minimisation.

    Attributes:
        rho: length of the step towards the backdoored weights at which gradients are taken.
        inversion: how BTI-DBF makes the backdoor-like images that are unlearned.
        released: as the released code does it: the released generator, trained on in each of
            ``inversion.rounds`` rounds of ``epochs``, and a share of one batch in place of a second
            batch.

    ``RELEASED_PAM`` has what else differs there.
    """

    epochs: int = 20
    batch_size: int = 128
    rho: float = 0.5
    inversion: BtiSettings = field(default_factory=BtiSettings)
    released: bool = False

    def __post_init__(self):
        super().__post_init__()
        not_negative(self, "rho")


RELEASED_PAM = {
    "released": True, "epochs": 30, "momentum": 0.1, "weight_decay": 0.0,
    "inversion": BtiSettings(**RELEASED_BTI | {"rounds": 3, "share": 0.2}),
}  # fmt: skip


def towards(
    model: nn.Module, goal: dict[str, Tensor], rho: float
) -> Callable[[], AbstractContextManager]:
    """Make a context in which the weights stand ``rho`` nearer to ``goal``, and back after it.

    The step is ``rho · (goal - θ) / ‖goal - θ‖`` over all weights together; at the goal itself, and
    with ``rho`` 0, there is none. Source: Min et al. (2024).
    """
    weights = dict(model.named_parameters())

    @contextmanager
    def around() -> Iterator[None]:
        if rho == 0:
            yield
            return
        saved_weights = [w.detach().clone() for w in weights.values()]
        with torch.no_grad():
            steps = [goal[name] - w for name, w in weights.items()]
            norm = torch.stack(torch._foreach_norm(steps)).norm()
            scale = torch.where(norm > 0, rho / norm, 0.0)
            for w, step in zip(weights.values(), steps, strict=True):
                w.add_(scale * step)
        try:
            yield
        finally:
            with torch.no_grad():
                for w, value in zip(weights.values(), saved_weights, strict=True):
                    w.copy_(value)

    return around


def path_aware(
    model: ImageClassifier, clean: ImageDataset, settings: PamSettings
) -> ImageClassifier:
    """PAM: unlearn BTI-DBF's images with gradients taken on the way back to the backdoor.

    Minimises CE on clean images and on their backdoor-like versions with true labels. A minimum
    that holds a step further towards the backdoored weights has left their basin.

    Source: Min et al. (2024).
    """
    check_clean(model, clean)
    if settings.released:
        return _released_path(model, clean, settings)
    make = decoupled_inversion(model, clean, settings.inversion)
    goal = {name: w.detach().clone() for name, w in model.named_parameters()}
    model, data = prepared(model, clean)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = batch.images.float() / 255
        with torch.no_grad():
            generated_images = make(x)
        logits = model(torch.cat([x, generated_images])).float()
        value = F.cross_entropy(logits, batch.labels.repeat(2))
        return value, {"loss": value.detach()}

    around = towards(model, goal, settings.rho)
    fit(model, ImageBatches(data, settings.batch_size), loss, settings, around=around)
    return model


def _released_path(
    model: ImageClassifier, clean: ImageDataset, settings: PamSettings
) -> ImageClassifier:
    goal = {name: w.detach().clone() for name, w in model.named_parameters()}
    model, data = prepared(model, clean)
    generator = ReleasedGenerator(model, data, settings.inversion)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        value = F.cross_entropy(model(generator.mixed(unit(batch.images))).float(), batch.labels)
        return value, {"loss": value.detach()}

    batches = RoundBatches(
        ImageBatches(data, settings.batch_size), settings.epochs, lambda: generator.renew(model)
    )
    around = towards(model, goal, settings.rho)
    rounds = replace(settings, epochs=settings.epochs * settings.inversion.rounds)
    fit(model, batches, loss, rounds, around=around)
    return model
