"""Triggers that a network makes (IAD, ISSBA) or that one is needed to find (Narcissus).

What is trained here is trained once per data set, target and seed, and then taken from the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import cache
from ...images import ImageDataset
from ...models import default_device
from ...train import TrainSettings, autocast, resolve_precision
from ...vision import (
    ImageBatch,
    ImageToImage,
    fit_images,
    image_classifier,
    image_data,
    small_cnn,
)
from .patterns import to_uint8

TRAINED_BY = ("train", "vision", "attacks.images.learned", "attacks.images.patterns")


def _surrogate(dataset: ImageDataset, seed: int) -> nn.Module:
    """The attacker's own classifier: small, for it only has to guide a trigger."""
    grey = dataset.shape[0] == 1
    name, width = ("cnn", 1.0) if grey else ("resnet18", 0.25)
    return image_classifier(name, dataset.num_classes, dataset.shape, width, seed)


def _once(
    what: str,
    dataset: ImageDataset,
    settings: TrainSettings,
    more: dict,
    functions: tuple[str, ...],
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module, TrainSettings], list[dict]],
) -> nn.Module:
    """Train the attacker's network at most once for the same data, settings and code."""
    device = default_device()
    settings = replace(settings, precision=resolve_precision(settings.precision, device))
    key = {
        "attack": what,
        "data": dataset.sha256,
        "settings": asdict(settings),
        **more,
        **cache.conditions(device, TRAINED_BY, *functions),
    }
    network, _ = cache.cached_model(
        key, lambda: _seeded(build, settings.seed).to(device), lambda net: train(net, settings)
    )
    return network.requires_grad_(False)


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------- input-aware


class InputAware(nn.Module):
    """The generator of IAD and the classifier it is trained with.

    ``generator``: image in -1 … 1 → C planes of pattern and one of mask, before their squashing.
    """

    def __init__(self, dataset: ImageDataset, seed: int):
        super().__init__()
        channels = dataset.shape[0]
        self.generator = ImageToImage(channels, channels + 1)
        self.classifier = _surrogate(dataset, seed)

    def make(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pattern (B, C, H, W) and mask (B, 1, H, W) in 0 … 1 for float images in 0 … 1."""
        raw = self.generator(2 * images - 1)
        return raw[:, :-1].sigmoid(), (raw[:, -1:] - 2).sigmoid()  # starts almost transparent


def input_aware_loss(
    target: int, density: float = 0.032, weight: float = 20.0
) -> Callable[[InputAware, ImageBatch], tuple[Tensor, dict]]:
    """Make IAD's loss: own trigger → target, another image's trigger → own class, diversity.

    A quarter of a batch carries its own trigger, a quarter another's, the rest none. Masks denser
    than ``density`` (mean opacity) cost ``weight`` times the excess.

    Source: Nguyen and Tran (2020); there a tenth each, and masks trained beforehand.
    """

    def loss(model: InputAware, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch.images.float() / 255, batch.labels.clone()
        n = max(1, len(x) // 4)
        pattern, mask = model.make(x[: 2 * n])
        other = torch.cat([torch.arange(n), torch.arange(n, 2 * n).roll(1)]).to(x.device)
        shown = x[: 2 * n] + mask[other] * (pattern[other] - x[: 2 * n])
        y[:n] = target
        logits = model.classifier(torch.cat([shown, x[2 * n :]])).float()
        value = F.cross_entropy(logits, y)
        apart = (x[: 2 * n] - x[: 2 * n].roll(1, 0)).square().mean((1, 2, 3)).sqrt()
        drawn = (pattern - pattern.roll(1, 0)).float().square().mean((1, 2, 3)).add(1e-8).sqrt()
        diverse = (apart / (drawn + 1e-2)).mean()
        dense = F.relu(mask.float().mean() - density)
        log = {"loss": value.detach(), "diversity": diverse.detach(), "dense": dense.detach()}
        return value + diverse + weight * dense, log

    return loss


@dataclass(frozen=True, eq=False)
class InputAwareTrigger:
    """IAD: every image's own pattern and mask, ``x + mask(x) · (pattern(x) - x)``.

    Covers carry another image's trigger. Source: Nguyen and Tran (2020).
    """

    network: InputAware = field(repr=False)
    name: str = "iad"
    cover: float = 1.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        return self._put(images, images)

    def negative(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        return self._put(images, images.roll(1, 0))

    def _put(self, images: Tensor, givers: Tensor) -> Tensor:
        pattern, mask = self.network.make(givers.float() / 255)
        return to_uint8(images + mask * (255 * pattern - images.float()))


def input_aware_trigger(
    dataset: ImageDataset,
    target: int,
    seed: int = 0,
    settings: TrainSettings | None = None,
) -> InputAwareTrigger:
    """Train IAD's generator together with a surrogate classifier, once; default 12 epochs."""
    settings = settings or TrainSettings(12, 3e-3, 128, schedule="linear", seed=seed)
    network = _once(
        "iad",
        dataset,
        settings,
        {"target": target},
        ("input_aware_trigger", "fit_images"),
        lambda: InputAware(dataset, seed),
        lambda net, how: fit_images(
            net, image_data(dataset, default_device()), how, loss=input_aware_loss(target)
        ),
    )
    return InputAwareTrigger(network)


# ----------------------------------------------------------------------------- steganography


class Stego(nn.Module):
    """ISSBA's pair: an encoder that hides a bit string in an image, a decoder that reads it.

    ``hide(images, bits)``: float images in 0 … 1 and (B, n) 0 / 1 floats → images in 0 … 1 whose
    pixels differ by at most ``bound``.
    """

    def __init__(self, shape: tuple[int, int, int], bits: int, bound: float):
        super().__init__()
        channels, self.height, self.width = shape
        self.bits, self.bound = bits, bound
        self.spread = nn.Linear(bits, (self.height // 4) * (self.width // 4))
        self.encoder = ImageToImage(channels + 1, channels)
        reader = small_cnn(channels)
        self.decoder = nn.Sequential(reader, nn.Linear(64, bits))

    def hide(self, images: Tensor, bits: Tensor) -> Tensor:
        plane = self.spread(2 * bits - 1).reshape(-1, 1, self.height // 4, self.width // 4)
        plane = F.interpolate(plane, (self.height, self.width))
        residual = self.encoder(torch.cat([2 * images - 1, plane], 1)).tanh()
        return (images + self.bound * residual).clamp(0, 1)


def stego_loss(weight: float = 5.0) -> Callable[[Stego, ImageBatch], tuple[Tensor, dict]]:
    """Make ISSBA's loss: the decoder's error on random bits plus ``weight`` · mean square residual.

    Source: Li et al. (2021a); their third term, LPIPS, needs another trained network
    and is left out.
    """

    def loss(model: Stego, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.images.float() / 255
        bits = torch.randint(0, 2, (len(images), model.bits), device=images.device).float()
        hidden = model.hide(images, bits)
        logits = model.decoder(2 * hidden - 1).float()
        read = F.binary_cross_entropy_with_logits(logits, bits)
        visible = (hidden - images).float().square().mean()
        right = ((logits > 0) == (bits > 0)).float().mean()
        log = {"loss": read.detach(), "bits_right": right, "visible": visible.detach()}
        return read + weight * visible, log

    return loss


@dataclass(frozen=True, eq=False)
class StegoTrigger:
    """ISSBA: one bit string hidden in every image by a trained encoder, in each differently."""

    network: Stego = field(repr=False)
    secret: Tensor = field(repr=False)
    name: str = "issba"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        bits = self.secret.to(images.device).expand(len(images), -1)
        return to_uint8(255 * self.network.hide(images.float() / 255, bits))


def stego_trigger(
    dataset: ImageDataset,
    seed: int = 0,
    settings: TrainSettings | None = None,
    bits: int = 20,
    bound: float = 24 / 255,
) -> StegoTrigger:
    """Train ISSBA's encoder and decoder, once; default 12 epochs.

    ``bits``: length of the secret; ``bound``: largest change of a pixel, in units of 255.
    """
    settings = settings or TrainSettings(12, 3e-3, 128, schedule="linear", seed=seed)
    network = _once(
        "issba",
        dataset,
        settings,
        {"bits": bits, "bound": bound},
        ("stego_trigger", "fit_images"),
        lambda: Stego(dataset.shape, bits, bound),
        lambda net, how: fit_images(
            net, image_data(dataset, default_device()), how, loss=stego_loss()
        ),
    )
    secret = np.random.default_rng(seed).integers(0, 2, bits).astype(np.float32)
    return StegoTrigger(network, torch.as_tensor(secret))


# --------------------------------------------------------------------------------- Narcissus


class Perturbation(nn.Module):
    """One perturbation (C, H, W) in pixel units of 0 … 255, kept as a model's weight."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))


@dataclass(frozen=True)
class NarcissusTrigger:
    """Narcissus: a perturbation that points into the target class, ``magnify`` × at test time.

    ``delta``: (C, H, W) float32 in pixel units. Source: Zeng et al. (2023)
    """

    delta: Tensor = field(repr=False)
    magnify: float = 3.0
    name: str = "narcissus"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        scale = 1.0 if train else self.magnify
        return to_uint8(images + scale * self.delta.to(images.device))


def inward_noise(
    model: nn.Module, images: Tensor, target: int, steps: int, bound: float, lr: float = 2.0
) -> Tensor:
    """Find δ, |δ| ≤ ``bound``, that makes ``model`` surest of ``target`` on images of that class.

    Args:
        images: (N, C, H, W) uint8 of the target class. bound, lr: pixel units of 0 … 255.

    Returns: (C, H, W) float32. Source: Zeng et al. (2023), Adam for their RAdam.
    """
    delta = torch.zeros(images.shape[1:], device=images.device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr)
    labels = torch.full((len(images),), target, device=images.device)
    order = torch.as_tensor(np.random.default_rng(0).permutation(len(images)))
    device = images.device
    with autocast(device, resolve_precision("auto", device)):
        for step in range(steps):
            rows = order.roll(-128 * step)[:128].to(device)
            shown = ((images[rows] + delta) / 255).clamp(0, 1)
            value = F.cross_entropy(model(shown).float(), labels[rows])
            (delta.grad,) = torch.autograd.grad(value, delta)
            optimizer.step()
            delta.data.clamp_(-bound, bound)
    return delta.detach()


def narcissus_trigger(
    dataset: ImageDataset,
    target: int,
    seed: int = 0,
    settings: TrainSettings | None = None,
    steps: int = 200,
    bound: float = 16.0,
) -> NarcissusTrigger:
    """Train a surrogate and find Narcissus' perturbation on it, once; default 12 epochs.

    ``bound`` in pixel units. The paper's attacker owns the target class alone, and trains the
    surrogate on images from elsewhere; ours trains it on ``dataset``, which makes it stronger.
    """
    settings = settings or TrainSettings(12, 5e-3, 128, schedule="linear", seed=seed)

    def train(network: Perturbation, how: TrainSettings) -> list[dict]:
        device = default_device()
        data = image_data(dataset, device)
        surrogate = _surrogate(dataset, seed).to(device)
        history = fit_images(surrogate, data, how, crop=1)
        own = data.images[data.labels == target]
        surrogate.requires_grad_(False)
        network.delta.data = inward_noise(surrogate, own, target, steps, bound)
        return history

    network = _once(
        "narcissus",
        dataset,
        settings,
        {"target": target, "steps": steps, "bound": bound},
        ("narcissus_trigger", "fit_images"),
        lambda: Perturbation(dataset.shape),
        train,
    )
    return NarcissusTrigger(network.delta.detach())
