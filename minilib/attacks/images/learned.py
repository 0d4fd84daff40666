"""Triggers that a network makes (IAD, ISSBA) or that one is needed to find (Narcissus).

What is trained here is trained once per data set, target and seed, and then taken from the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import cache
from ...data.images import ImageDataset
from ...ledger import cached, recipe
from ...models.images import ImageToImage, image_classifier, small_cnn
from ...models.loading import default_device
from ...training.devices import autocast
from ...training.fitting import TrainSettings
from ...training.images import ImageBatch, fit_images, image_data
from .patterns import to_uint8


def _surrogate(dataset: ImageDataset, seed: int) -> nn.Module:
    """The attacker's own classifier: small, for it only has to guide a trigger."""
    grey = dataset.shape[0] == 1
    name, width = ("cnn", 1.0) if grey else ("resnet18", 0.25)
    return image_classifier(name, dataset.num_classes, dataset.shape, width, seed)


@recipe
class TriggerNetwork:
    """What an attacker trains to make a trigger.

    Attributes:
        data: sha256 of the images that it is trained on. seed … schedule: how.
        target: class that the trigger leads to, where it matters.
        bound: of the change of a pixel. bits, steps: ISSBA's secret, Narcissus' descent.
    """

    attack: str
    data: str
    seed: int
    epochs: int
    lr: float
    batch_size: int
    schedule: str
    target: int | None = None
    bound: float | None = None
    bits: int | None = None
    steps: int | None = None


@cached(version=1)
def trigger_network(
    one: TriggerNetwork,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], list[dict]],
) -> nn.Module:
    """Train the attacker's network at most once; frozen."""
    network, _ = cache.kept_model(one, lambda: _seeded(build, one.seed).to(default_device()), train)
    return network.requires_grad_(False)


def _network_of(
    attack: str, dataset: ImageDataset, settings: TrainSettings, **more
) -> TriggerNetwork:
    return TriggerNetwork(
        attack=attack, data=dataset.sha256, seed=settings.seed, epochs=settings.epochs,
        lr=settings.lr, batch_size=settings.batch_size, schedule=settings.schedule, **more,
    )  # fmt: skip


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
        planes = self.generator(2 * images - 1)
        return planes[:, :-1].sigmoid(), (planes[:, -1:] - 2).sigmoid()  # starts almost transparent


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
        carriers = x[: 2 * n]  # one row alone carries its own
        pattern, mask = model.make(carriers)
        others = torch.arange(n, len(carriers)).roll(1)
        givers = torch.cat([torch.arange(n), others]).to(x.device)
        triggered_images = carriers + mask[givers] * (pattern[givers] - carriers)
        y[:n] = target
        logits = model.classifier(torch.cat([triggered_images, x[2 * n :]])).float()
        value = F.cross_entropy(logits, y)
        image_distances = (carriers - carriers.roll(1, 0)).square().mean((1, 2, 3)).sqrt()
        pattern_distances = (
            (pattern - pattern.roll(1, 0)).float().square().mean((1, 2, 3)).add(1e-8).sqrt()
        )
        diversity = (image_distances / (pattern_distances + 1e-2)).mean()
        excess = F.relu(mask.float().mean() - density)
        log = {"loss": value.detach(), "diversity": diversity.detach(), "dense": excess.detach()}
        return value + diversity + weight * excess, log

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
    network = trigger_network(
        _network_of("iad", dataset, settings, target=target),
        lambda: InputAware(dataset, seed),
        lambda net: fit_images(
            net, image_data(dataset, default_device()), settings, loss=input_aware_loss(target)
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
        stego_images = model.hide(images, bits)
        logits = model.decoder(2 * stego_images - 1).float()
        bit_loss = F.binary_cross_entropy_with_logits(logits, bits)
        residual = (stego_images - images).float().square().mean()
        bit_accuracy = ((logits > 0) == (bits > 0)).float().mean()
        log = {"loss": bit_loss.detach(), "bits_right": bit_accuracy, "visible": residual.detach()}
        return bit_loss + weight * residual, log

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
    network = trigger_network(
        _network_of("issba", dataset, settings, bits=bits, bound=bound),
        lambda: Stego(dataset.shape, bits, bound),
        lambda net: fit_images(
            net, image_data(dataset, default_device()), settings, loss=stego_loss()
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
    with autocast(device):
        for step in range(steps):
            rows = order.roll(-128 * step)[:128].to(device)
            perturbed_images = ((images[rows] + delta) / 255).clamp(0, 1)
            value = F.cross_entropy(model(perturbed_images).float(), labels[rows])
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

    def train(network: Perturbation) -> list[dict]:
        device = default_device()
        data = image_data(dataset, device)
        surrogate = _surrogate(dataset, seed).to(device)
        history = fit_images(surrogate, data, settings, crop=1)
        target_images = data.images[data.labels == target]
        surrogate.requires_grad_(False)
        network.delta.data = inward_noise(surrogate, target_images, target, steps, bound)
        return history

    network = trigger_network(
        _network_of("narcissus", dataset, settings, target=target, steps=steps, bound=bound),
        lambda: Perturbation(dataset.shape),
        train,
    )
    return NarcissusTrigger(network.delta.detach())
