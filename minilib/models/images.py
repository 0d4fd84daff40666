"""Image classifiers: one interface, the networks of the papers, and ``wrap`` for any other."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import one_of
from .loading import in_eval


class ImageClassifier(nn.Module):
    """An encoder, a linear head, and the normalisation that they were trained with.

    Args:
        encoder: normalised images (B, C, H, W) → features (B, d).
        head: linear layer d → K.
        mean, std: of the training pixels in units of 1 (= 255), one value or one per channel.

    ``forward(x)``: uint8 in 0 … 255 or float in 0 … 1 → logits (B, K).
    ``features(x)``: the same → (B, d), what the head sees.

    Raises:
        ValueError: a head that is not linear, or a deviation that is not above 0.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Linear,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ):
        super().__init__()
        if not isinstance(head, nn.Linear):
            raise ValueError(f"head is {type(head).__name__}; accepted: torch.nn.Linear")
        self.encoder, self.head = encoder, head
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, value)
        if not (self.std > 0).all():
            raise ValueError(f"std is {std!r}; accepted: above 0")

    def features(self, x: Tensor) -> Tensor:
        grey_levels = x.dtype == torch.uint8
        x = x.to(self.mean.dtype)  # NumPy's floats are doubles, which float32 weights do not take
        return self.encoder(((x.div(255) if grey_levels else x) - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Reached(Exception):
    """The head was reached: carries what it was to be given."""


class _Stop(nn.Module):
    """Stands where the head was and ends the forward pass: what follows it is not needed."""

    def forward(self, features: Tensor) -> Tensor:
        raise _Reached(features)


class Foreign(nn.Module):
    """A network made elsewhere, up to its head: images (B, C, H, W) → features (B, d).

    Attributes:
        network: it, with a stop in the head's place. name: the head's.
        scale: what the network multiplies its head's outputs by (1 / temperature).
    """

    def __init__(self, network: nn.Module, name: str, scale: float = 1.0):
        super().__init__()
        self.network, self.name, self.scale = network, name, scale

    def forward(self, x: Tensor) -> Tensor:
        try:
            # Our images lie channels last, and many networks reshape with ``view``.
            self.network(x.contiguous())
        except _Reached as reached:
            (features,) = reached.args
            if features.ndim != 2:
                raise ValueError(
                    f"head {self.name!r} is given {tuple(features.shape)}; accepted: (B, d)"
                ) from None
            return features
        raise ValueError(f"head {self.name!r} is not used by the network's forward pass")


def wrap(
    network: nn.Module,
    head: str,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    shape: tuple[int, int, int] = (3, 32, 32),
) -> ImageClassifier:
    """Turn a network made elsewhere into an ImageClassifier; it gets a copy, every mode as it was.

    One batch of noise is put through both. The network may return its logits in a tuple or as
    ``.logits``, and may follow its head by a (log-)softmax or a temperature; the latter goes into
    the copy's head. Anything else that follows the head is refused, for it would get lost.

    Args:
        head: name of its last, linear layer, e.g. ``"fc"`` or ``"classifier.6"``.
        mean, std: the normalisation the network expects. shape: of one image, channels first.

    Raises:
        ValueError: no such layer, one that is not linear, is not used or is not given (B, d), or
            outputs that are not the head's.
    """
    layer = dict(network.named_modules()).get(head)
    if not isinstance(layer, nn.Linear):
        names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
        raise ValueError(f"head {head!r} is no linear layer; accepted: {', '.join(names)}")
    foreign = copy.deepcopy(network)
    layer = _put(foreign, head, _Stop())
    model = ImageClassifier(Foreign(foreign, head), layer, mean, std)
    model.training = model.encoder.training = network.training
    noise = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    noise = noise.to(layer.weight.device, layer.weight.dtype)
    with in_eval(network, model), torch.inference_mode():
        ours = model.head(model.encoder(noise))
        theirs = _logits(network(noise), ours.shape)
    scale = _scale(ours, theirs, head)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(scale)
    model.encoder.scale = scale
    return model


def unwrap(model: ImageClassifier) -> nn.Module:
    """The network that ``wrap`` was given, with the weights that ``model`` has now; a copy.

    Raises:
        ValueError: a model that ``wrap`` did not make.
    """
    if not isinstance(model.encoder, Foreign):
        kind = type(model.encoder).__name__
        raise ValueError(f"the encoder is a {kind}; accepted: a model that wrap made")
    encoder, layer = copy.deepcopy((model.encoder, model.head))
    with torch.no_grad():
        for weight in layer.parameters():
            weight.div_(encoder.scale)
    _put(encoder.network, encoder.name, layer)
    return encoder.network


def _put(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace a module of a network, in place; returns the one that was there."""
    parent, _, last = name.rpartition(".")
    owner = network.get_submodule(parent)
    before = getattr(owner, last)
    setattr(owner, last, module)
    return before


def _logits(output, shape: torch.Size) -> Tensor:
    """The first tensor of the logits' shape that a network returned, in whatever container."""
    values = output.values() if isinstance(output, dict) else output
    values = [output] if isinstance(output, Tensor) else list(values)
    for value in values:
        if isinstance(value, Tensor) and value.shape == shape:
            return value
    raise ValueError(f"the network returns no tensor of shape {tuple(shape)}, its head's outputs")


def _scale(ours: Tensor, theirs: Tensor, head: str) -> float:
    """What logits are multiplied by after the head; a constant added to a row is no change.

    Raises:
        ValueError: outputs that are no multiple of the head's.
    """
    if (theirs >= 0).all() and torch.allclose(theirs.sum(1), torch.ones_like(theirs[:, 0])):
        theirs = theirs.log()  # probabilities
    ours, theirs = (v - v.mean(1, keepdim=True) for v in (ours.double(), theirs.double()))
    scale = ((ours * theirs).sum() / ours.square().sum()).item()
    away = (scale * ours - theirs).abs().max().item()
    if not (scale > 0 and away <= 1e-3 * theirs.abs().max().item()):
        raise ValueError(
            f"what follows head {head!r} changes its outputs (by up to {away:.3g}); accepted: "
            "nothing, a temperature, softmax or log-softmax"
        )
    return 1.0 if abs(scale - 1) < 1e-4 else scale


# ---------------------------------------------------------------------------------- encoders


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; ``before`` puts norm and ReLU ahead of each (v2)."""

    def __init__(self, inner: int, outer: int, stride: int, before: bool):
        super().__init__()
        self.before = before
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner if before else outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut.append(nn.Conv2d(inner, outer, 1, stride, bias=False))
            if not before:
                self.shortcut.append(nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            out = F.relu(self.bn1(x))
            shortcut = self.shortcut(out) if len(self.shortcut) else x
            return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """A residual network for small images: two blocks a stage, a stem of stride 1, no pooling.

    d = 2^(stages - 1) · width. Four stages are ResNet-18 (20 convolutions: the stem, 16 in blocks,
    3 in shortcuts); three, with norms ``before``, WRN-16-k where width = 16 · k, but for its stem,
    which has 16 channels there. Source: He et al. (2016a; b for ``before``), Zagoruyko and
    Komodakis (2016).
    """

    def __init__(self, channels: int = 3, width: int = 64, before: bool = False, stages: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 ** (stages - 1) * width if before else width)
        self.before, blocks, inner = before, [], width
        for stage in range(stages):
            outer = width * 2**stage
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(ResidualBlock(inner, outer, stride, before))
                inner = outer
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blocks(x) if self.before else self.blocks(F.relu(self.norm(x)))
        if self.before:
            x = F.relu(self.norm(x))
        return x.mean((2, 3))


VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)


def vgg19(channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """Make the convolutions of VGG-19 with batch norm; d = 512 · width (Simonyan et al., 2014)."""
    layers, inner = [], channels
    for size in VGG19:
        if size == 0:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # 16 × 16 images reach 1 × 1 early
            continue
        outer = max(8, int(size * width))
        layers += [nn.Conv2d(inner, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class VisionTransformer(nn.Module):
    """A small ViT: patches, learned positions, pre-norm layers, the mean of all tokens.

    Source: Dosovitskiy et al. (2020), with mean pooling in place of a class token.
    """

    def __init__(self, shape: tuple[int, int, int], dim: int = 192, depth: int = 6, patch: int = 4):
        super().__init__()
        channels, height, width = shape
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        tokens = (height // patch) * (width // patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        layer = nn.TransformerEncoderLayer(
            dim, max(1, dim // 64), 2 * dim, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (B, tokens, dim)
        return self.norm(self.layers(x)).mean(1)


class Whitened(nn.Module):
    """Six convolutions behind a fixed one that whitens patches of 2 × 2: quick to train on a CPU.

    Each of three stages halves the maps before its first norm; what is left is pooled by its
    maximum; d = 4 · width. Source: Jordan (2024), arXiv:2404.00498, made narrower, with ReLU.

    ``whiten`` sets the first layer from training images; until then it is random.
    """

    def __init__(self, channels: int = 3, width: int = 64):
        super().__init__()
        self.patches = nn.Conv2d(channels, 8 * channels, 2, bias=False)
        self.patches.requires_grad_(False)
        stages, inner = [], 8 * channels
        for outer in (width, 4 * width, 4 * width):
            first, second = (
                nn.Conv2d(inner, outer, 3, 1, 1, bias=False),
                nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            )
            for layer in (first, second):  # begin as near to the identity as the shapes allow
                nn.init.dirac_(layer.weight[: layer.in_channels])
            stages += [first, nn.MaxPool2d(2), nn.BatchNorm2d(outer), nn.ReLU()]
            stages += [second, nn.BatchNorm2d(outer), nn.ReLU()]
            inner = outer
        self.stages = nn.Sequential(*stages, nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def whiten(self, images: Tensor, floor: float = 1e-2) -> None:
        """Set the first layer: principal directions of the patches, at unit variance, both signs.

        Args:
            images: (N, C, H, W) float, normalised. floor: added to each direction's variance.
        """
        patches = F.unfold(images.contiguous(), 2).transpose(1, 2).flatten(0, 1)  # (N · places, 4C)
        patches = (patches - patches.mean(0)).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        rows = (directions / (variances + floor).sqrt()).T.flip(0)
        weight = self.patches.weight
        weight.data.copy_(torch.cat([rows, -rows]).view_as(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(F.relu(self.patches(x)))


def small_cnn(channels: int = 1, width: float = 1.0) -> nn.Sequential:
    """Make three convolutions with batch norm, for digits; d = 64 · width."""
    layers, inner = [], channels
    for size, stride in ((16, 1), (32, 2), (64, 2)):
        outer = max(4, int(size * width))
        layers += [
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
        ]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class ImageToImage(nn.Module):
    """A small U-Net, half the resolution inside: what draws triggers, for attack and defence.

    ``forward``: (B, ``inner``, H, W) → (B, ``outer``, H, W), unbounded; H and W even.
    """

    def __init__(self, inner: int, outer: int, width: int = 16):
        super().__init__()

        def block(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )

        self.top = block(inner, width)
        self.down = nn.Sequential(block(width, 2 * width, 2), block(2 * width, 2 * width))
        self.up = block(3 * width, width)
        self.last = nn.Conv2d(width, outer, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        low = F.interpolate(self.down(top), top.shape[-2:])
        return self.last(self.up(torch.cat([top, low], 1)))


IMAGE_MODELS = ("cnn", "resnet18", "preresnet18", "wrn16", "vgg19", "vit", "whitened")


def image_classifier(
    name: str,
    num_classes: int,
    shape: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
    seed: int = 0,
) -> ImageClassifier:
    """Make an untrained image classifier, its weights drawn under ``seed``.

    Args:
        name: ``cnn`` (three convolutions), ``resnet18``, ``preresnet18``, ``wrn16``, ``vgg19``,
            ``vit``, ``whitened``.
        shape: channels, height, width of an image.
        width: factor on the number of channels (of the ViT's 192 dimensions).

    Raises:
        ValueError: unknown name, or a width that is not above 0.
    """
    one_of("image model", name, IMAGE_MODELS)
    if not width > 0:
        raise ValueError(f"width is {width!r}; accepted: a factor above 0")
    channels, size = shape[0], max(8, int(64 * width))
    builder = {
        "cnn": lambda: small_cnn(channels, width),
        "resnet18": lambda: ResidualNetwork(channels, size),
        "preresnet18": lambda: ResidualNetwork(channels, size, before=True),
        "wrn16": lambda: ResidualNetwork(channels, max(4, int(16 * width)), before=True, stages=3),
        "vgg19": lambda: vgg19(channels, width),
        "vit": lambda: VisionTransformer(shape, max(32, int(192 * width))),
        "whitened": lambda: Whitened(channels, size),
    }[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = builder().eval()
        with torch.no_grad():
            dim = encoder(torch.zeros(1, *shape)).shape[1]
        model = ImageClassifier(encoder, nn.Linear(dim, num_classes))
    return model.to(memory_format=torch.channels_last)


def frozen_copy(model: ImageClassifier) -> ImageClassifier:
    """Copy a model for reference: eval mode, no gradients towards its weights."""
    return model_copy(model).eval().requires_grad_(False)


def model_copy(model: nn.Module) -> nn.Module:
    """Copy a model, its weights and its mode; every defence works on such a copy."""
    return copy.deepcopy(model)


# -------------------------------------------------------------------------- data on the device


def pixels(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Turn (N, H, W, C) uint8 into (N, C, H, W) uint8 on the device, channels last in memory.

    Raises:
        ValueError: another dtype or number of axes.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images are {images.shape} {images.dtype}; accepted: (N, H, W, C) uint8")
    return torch.as_tensor(images, device=device).permute(0, 3, 1, 2)


def check_images(images: Tensor) -> Tensor:
    """Return ``images`` if they are what a model takes.

    Raises:
        ValueError: not (B, C, H, W), or neither uint8 nor float in 0 … 1.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; accepted: (B, 1 or 3, H, W)")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; accepted: uint8, or float in 0 … 1")
    low, high = (v.item() for v in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"float images span {low:.3g} … {high:.3g}; accepted: 0 … 1 (or uint8 in 0 … 255)"
        )
    return images
