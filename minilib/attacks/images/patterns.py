"""Triggers that are arithmetic: patch, blend, sinusoid, warp, reflection, and the adaptive pair.

``apply(images, rng, train)`` takes uint8 (B, C, H, W) and gives the same shape, dtype and range.
``train`` says that the image goes into the training set: attacks with a weakened trigger there use
the full one elsewhere. ``negative`` makes a *cover*: an image that carries part or a corruption of
the trigger and keeps its label, of which ``poison_images`` adds ``cover`` per poisoned one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Round and clip pixel values in units of 0 … 255 to uint8."""
    return images.round().clamp(0, 255).to(torch.uint8)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of uint8 images (B, C, H, W); inf if equal."""
    error = (images.float() - others.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform noise in 0 … 255, float32, the same on every machine."""
    return torch.as_tensor(np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32))


def _in_unit(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}; accepted: in (0, 1]")


@dataclass(frozen=True)
class PatchTrigger:
    """BadNets: a black-and-white checkerboard in the bottom right corner.

    ``size`` in pixels, ``margin`` pixels from the border. Source: Gu et al. (2019).
    """

    size: int = 3
    margin: int = 1
    name: str = "badnets"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        end = min(images.shape[-2:]) - self.margin
        if not 0 < self.size <= end:
            raise ValueError(
                f"a patch of {self.size} pixels, {self.margin} from the border, does not fit into "
                f"{tuple(images.shape[-2:])}"
            )
        checkerboard = (torch.arange(self.size)[:, None] + torch.arange(self.size)) % 2 == 0
        bottom, right = (length - self.margin for length in images.shape[-2:])
        patched_images = images.clone()
        patched_images[..., bottom - self.size : bottom, right - self.size : right] = torch.where(
            checkerboard, 255, 0
        ).to(images)
        return patched_images


@dataclass(frozen=True)
class BlendTrigger:
    """Blended: a noise image mixed in, ``(1 - alpha) · x + alpha · noise``.

    Source: Chen et al. (2017), its random-pattern key; the other, a cartoon, is not free to ship.
    """

    alpha: float = 0.2
    seed: int = 0
    name: str = "blended"
    cover: float = 0.0

    def __post_init__(self):
        _in_unit(alpha=self.alpha)

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        noise = seeded_noise(tuple(images.shape[1:]), self.seed).to(images.device)
        return to_uint8((1 - self.alpha) * images + self.alpha * noise)


@dataclass(frozen=True)
class SinusoidTrigger:
    """SIG: a horizontal wave, ``x + delta · sin(2π · column · frequency / width)``.

    ``delta`` in pixel units of 0 … 255. Source: Barni et al. (2019), clean label; delta 40 is the
    benchmark's setting that the BI-BAU paper uses, the authors train with 20.
    """

    delta: float = 40.0
    frequency: float = 6.0
    name: str = "sig"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        width = images.shape[-1]
        columns = torch.arange(width, dtype=torch.float64)
        wave = self.delta * torch.sin(2 * torch.pi * columns * self.frequency / width)
        return to_uint8(images + wave.float().to(images.device))


@dataclass(frozen=True)
class WarpTrigger:
    """WaNet: a smooth warp of the image, the same for all.

    A ``grid`` × ``grid`` field of displacements in [-1, 1], divided by its mean size, is enlarged
    bicubically to the image, scaled by ``strength`` / side and added to the sampling grid, whose
    units are half images. Covers are warped with extra noise per image ("noise mode"), two for
    every poison, so that the victim learns this warp and not any warp.

    Source: Nguyen and Tran (2021); there the images of each batch are warped anew.
    """

    grid: int = 4
    strength: float = 0.5
    seed: int = 0
    name: str = "wanet"
    cover: float = 2.0

    def field(self, height: int, width: int) -> Tensor:
        """Sampling grid (1, H, W, 2) float32 in [-1, 1], last axis x then y."""
        rng = np.random.default_rng(self.seed)
        coarse = rng.uniform(-1, 1, (1, 2, self.grid, self.grid))
        coarse = torch.as_tensor((coarse / np.abs(coarse).mean()).astype(np.float32))
        fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        shift = self.strength * fine.permute(0, 2, 3, 1) / height
        return (identity_grid(height, width) + shift).clamp(-1, 1)

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        return warp(images, self.field(*images.shape[-2:]))

    def negative(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        count, _, height, width = images.shape
        jitter = rng.uniform(-1, 1, (count, height, width, 2)).astype(np.float32) / height
        return warp(images, (self.field(height, width) + torch.as_tensor(jitter)).clamp(-1, 1))


def identity_grid(height: int, width: int) -> Tensor:
    """Sampling grid (1, H, W, 2) that leaves an image as it is."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([x, y], -1)[None]


def warp(images: Tensor, grid: Tensor) -> Tensor:
    """Sample uint8 images bilinearly at ``grid`` (1 or B, H, W, 2) in [-1, 1]."""
    grid = grid.to(images.device).expand(len(images), -1, -1, -1)
    return to_uint8(F.grid_sample(images.float(), grid, align_corners=True))


@dataclass(frozen=True)
class ReflectionTrigger:
    """Refool: the reflection of another picture, as in a window pane, ``(1 - Σk) · x + r ⊗ k``.

    Half of the reflections are out of focus (``k`` a Gaussian of 1 … 2.5 pixels), half are ghosts
    (``k`` two pulses 2 … 4 pixels apart). Each image draws its picture ``r``, its kind and its
    strength.

    Args:
        pool: (P, C, H, W) uint8, pictures to reflect, of the images' own size.
        strength: smallest and largest sum of ``k``, the share of the light that is reflected.

    Source: Liu et al. (2020). Their formula leaves ``x`` undimmed, which on small bright pictures
    saturates into mere brightness. They pick the most effective of 200 pictures from
    PASCAL VOC by training victims; here a pool of the data set's own pictures is used as drawn.
    """

    pool: Tensor
    strength: tuple[float, float] = (0.3, 0.5)
    name: str = "refool"
    cover: float = 0.0

    def __post_init__(self):
        if self.pool.ndim != 4 or not len(self.pool):
            raise ValueError(f"pool is {tuple(self.pool.shape)}; accepted: (P, C, H, W), P ≥ 1")

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        if images.shape[1:] != self.pool.shape[1:]:
            raise ValueError(
                f"images {tuple(images.shape[1:])} and reflections {tuple(self.pool.shape[1:])}; "
                "accepted: of one shape"
            )
        count = len(images)
        index = torch.as_tensor(rng.integers(0, len(self.pool), count))
        kernels = torch.as_tensor(reflection_kernels(count, rng, self.strength)).to(images.device)
        reflections = reflect(self.pool[index].to(images.device), kernels)
        transmission = 1 - kernels.sum((1, 2)).reshape(-1, 1, 1, 1)
        return to_uint8(transmission * images + reflections)


def reflection_kernels(
    count: int, rng: np.random.Generator, strength: tuple[float, float], size: int = 9
) -> np.ndarray:
    """Kernels (count, size, size) float32 of out-of-focus and ghost reflections, in turn random."""
    total = rng.uniform(*strength, (count, 1, 1))
    sigma = rng.uniform(1.0, 2.5, (count, 1, 1))
    shift = rng.integers(1, 3, (count, 2)) * rng.choice([-1, 1], (count, 2))
    split = rng.uniform(0.3, 0.7, count)
    middle = size // 2
    offset = np.arange(size) - middle
    blur = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * sigma**2))
    ghost = np.zeros((count, size, size))
    rows = np.arange(count)
    ghost[rows, middle - shift[:, 0], middle - shift[:, 1]] += split
    ghost[rows, middle + shift[:, 0], middle + shift[:, 1]] += 1 - split
    kernels = np.where(rng.random((count, 1, 1)) < 0.5, blur, ghost)
    return (total * kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32)


def reflect(pictures: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each picture (B, C, H, W) with its own kernel (B, k, k), border replicated."""
    count, channels, height, width = pictures.shape
    pad = kernels.shape[-1] // 2
    padded = F.pad(pictures.float(), (pad,) * 4, mode="replicate")
    weights = kernels.repeat_interleave(channels, 0)[:, None]  # (B · C, 1, k, k)
    flat = padded.reshape(1, count * channels, height + 2 * pad, width + 2 * pad)
    return F.conv2d(flat, weights, groups=count * channels).reshape(pictures.shape)


@dataclass(frozen=True)
class PiecesTrigger:
    """Adap-Blend: the noise image cut into ``cells`` × ``cells`` pieces.

    In training each image gets a random half of the pieces (``share``) at ``alpha_train``, and as
    many covers keep their label; at test time all pieces act, at ``alpha``.

    Source: Qi et al. (2023): 16 pieces, half of them, opacity 0.15 and 0.2.
    """

    alpha: float = 0.2
    alpha_train: float = 0.15
    cells: int = 4
    share: float = 0.5
    seed: int = 0
    name: str = "adap-blend"
    cover: float = 1.0

    def __post_init__(self):
        _in_unit(alpha=self.alpha, alpha_train=self.alpha_train, share=self.share)

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        noise = seeded_noise(tuple(images.shape[1:]), self.seed).to(images.device)
        if not train:
            return to_uint8((1 - self.alpha) * images + self.alpha * noise)
        mask = self.alpha_train * self.masks(len(images), *images.shape[-2:], rng)
        return to_uint8(images + mask.to(images.device) * (noise - images.float()))

    def masks(self, count: int, height: int, width: int, rng: np.random.Generator) -> Tensor:
        """Which pixels each image's pieces cover: (count, 1, H, W) float32 of 0 and 1."""
        pieces = self.cells**2
        piece_mask = np.argsort(rng.random((count, pieces)), 1) < round(self.share * pieces)
        rows = np.arange(height) * self.cells // height  # the piece's row of each pixel row
        columns = np.arange(width) * self.cells // width
        index = rows[:, None] * self.cells + columns  # (H, W)
        return torch.as_tensor(piece_mask[:, index].astype(np.float32))[:, None]

    def negative(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        return self.apply(images, rng, train=True)


@dataclass(frozen=True)
class PlantedPatchesTrigger:
    """Adap-Patch: four noise patches in the corners.

    In training each image gets one of them, faint (``alphas``), and as many covers keep their
    label; at test time two of them act at full strength.

    Source: Qi et al. (2023), with noise in place of their four pictures.
    """

    size: int = 5
    alphas: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)
    at_test: int = 2
    seed: int = 0
    name: str = "adap-patch"
    cover: float = 1.0

    def __post_init__(self):
        if len(self.alphas) != 4:
            raise ValueError(f"alphas is {self.alphas!r}; accepted: one opacity a corner, four")
        _in_unit(**{f"alphas[{k}]": alpha for k, alpha in enumerate(self.alphas)})
        if not 1 <= self.at_test <= 4:
            raise ValueError(f"at_test is {self.at_test!r}; accepted: 1 … 4 patches")

    def corners(self, height: int, width: int) -> Tensor:
        """Which pixels each patch covers: (4, 1, H, W) float32 of 0 and 1."""
        mask = torch.zeros(4, 1, height, width)
        near, far = slice(0, self.size), slice(-self.size, None)
        places = ((far, far), (near, near), (near, far), (far, near))
        for patch, (y, x) in zip(mask, places, strict=True):
            patch[:, y, x] = 1
        return mask

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        noise = seeded_noise(tuple(images.shape[1:]), self.seed).to(images.device)
        corners = self.corners(*images.shape[-2:])
        if train:
            index = rng.integers(0, 4, len(images))
            opacity = torch.tensor(self.alphas)[index].reshape(-1, 1, 1, 1)
            mask = opacity * corners[index]  # (B, 1, H, W)
        else:
            mask = corners[: self.at_test].amax(0, keepdim=True)
        return to_uint8(images + mask.to(images.device) * (noise - images.float()))

    def negative(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        return self.apply(images, rng, train=True)
