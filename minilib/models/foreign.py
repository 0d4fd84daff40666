"""Image networks as torchvision and BackdoorBench name their layers, built from a state dict.

The name says what the numbers cannot: where a VGG pools, and which norm comes first in a residual
block. Everything else (widths, classes, the size of the stem, biases) is read off the weights, so
that a narrow network loads like a full one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import one_of
from .images import VGG19
from .names import ModelError

VGG = {
    "vgg11": (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg13": (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg16": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
    "vgg19": (*VGG19, 0),
}
RESNETS = ("resnet18", "resnet34", "resnet50", "preactresnet18", "preactresnet34")
ARCHITECTURES = (*RESNETS, *VGG, *(f"{name}_bn" for name in VGG))


class Residual(nn.Module):
    """A residual block: two 3 × 3 convolutions, or three (1, 3, 1); ``before``: norms come first.

    Args:
        weights: the block's part of a state dict, from which widths are read.
        stride: of the block; it lies on the last convolution but one of three, as in torchvision.
    """

    def __init__(self, weights: Mapping[str, Tensor], stride: int, before: bool):
        super().__init__()
        self.before, self.number = before, sum(f"conv{i}.weight" in weights for i in (1, 2, 3))
        for i in range(1, self.number + 1):
            outer, inner, size, _ = weights[f"conv{i}.weight"].shape
            step = stride if i == self.number - 1 else 1
            self.add_module(f"conv{i}", nn.Conv2d(inner, outer, size, step, size // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(inner if before else outer))
        self.way = next(
            (w for w in ("shortcut", "downsample") if f"{w}.0.weight" in weights), "shortcut"
        )
        around = nn.Sequential()
        if f"{self.way}.0.weight" in weights:
            outer, inner, size, _ = weights[f"{self.way}.0.weight"].shape
            around.append(nn.Conv2d(inner, outer, size, stride, bias=False))
            if f"{self.way}.1.weight" in weights:
                around.append(nn.BatchNorm2d(outer))
        self.add_module(self.way, around)

    def forward(self, x: Tensor) -> Tensor:
        around, out = getattr(self, self.way), x
        for i in range(1, self.number + 1):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
            if self.before:
                out = F.relu(norm(out))
                if i == 1 and len(around):
                    x = out  # the shortcut branches off behind the first norm
                out = conv(out)
            else:
                out = norm(conv(out))
                out = F.relu(out) if i < self.number else out
        out = out + around(x)
        return out if self.before else F.relu(out)


class ForeignResNet(nn.Module):
    """A ResNet with torchvision's names (``fc``, ``downsample``) or kuangliu's (``linear``)."""

    def __init__(self, weights: Mapping[str, Tensor], before: bool):
        super().__init__()
        outer, channels, size, _ = weights["conv1.weight"].shape
        # A 7 × 7 stem halves the image and is pooled; a 3 × 3 stem is that of small images.
        self.large, self.before = size == 7, before
        stride = 2 if self.large else 1
        self.conv1 = nn.Conv2d(channels, outer, size, stride, size // 2, bias=False)
        if not before:
            self.bn1 = nn.BatchNorm2d(outer)
        for stage in range(1, 5):
            blocks, number = nn.Sequential(), 0
            while f"layer{stage}.{number}.conv1.weight" in weights:
                own = _below(weights, f"layer{stage}.{number}.")
                blocks.append(Residual(own, 2 if stage > 1 and number == 0 else 1, before))
                number += 1
            self.add_module(f"layer{stage}", blocks)
        self.end = "fc" if "fc.weight" in weights else "linear"
        if before and "bn.weight" in weights:
            self.bn = nn.BatchNorm2d(len(weights["bn.weight"]))
        classes, width = weights[f"{self.end}.weight"].shape
        self.add_module(self.end, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.before:
            x = F.relu(self.bn1(x))
        if self.large:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        if hasattr(self, "bn"):
            x = F.relu(self.bn(x))
        return getattr(self, self.end)(x.mean((2, 3)))


class ForeignVgg(nn.Module):
    """A VGG with torchvision's names; its classifier may be one linear layer, as for CIFAR-10."""

    def __init__(self, weights: Mapping[str, Tensor], plan: tuple[int, ...], norms: bool):
        super().__init__()
        self.features = nn.Sequential()
        for size in plan:
            if size == 0:
                self.features.append(nn.MaxPool2d(2))
                continue
            outer, inner, side, _ = weights[f"features.{len(self.features)}.weight"].shape
            self.features.append(nn.Conv2d(inner, outer, side, padding=side // 2))
            if norms:
                self.features.append(nn.BatchNorm2d(outer))
            self.features.append(nn.ReLU())
        inside = (n.split(".") for n in _below(weights, "classifier."))
        places = {int(name[0]) for name in inside if len(name) == 2}
        self.classifier = nn.Sequential() if places else _linear(weights["classifier.weight"])
        for place in sorted(places):
            while len(self.classifier) < place:  # torchvision: linear, ReLU, dropout, linear …
                self.classifier.append(nn.ReLU() if len(self.classifier) % 3 == 1 else nn.Dropout())
            self.classifier.append(_linear(weights[f"classifier.{place}.weight"]))
        width = weights[f"classifier.{min(places)}.weight" if places else "classifier.weight"]
        self.side = round((width.shape[1] / outer) ** 0.5)  # of the maps that it is given

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), self.side).flatten(1))


def _linear(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0])


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, prefixes of data-parallel training taken off.

    Raises:
        ModelError: no such file, another format (nothing is unpickled), a damaged file.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}; accepted: one in safetensors")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path.name} is no safetensors file; accepted: .safetensors, made on a machine that "
            "may trust the file by safetensors.torch.save_file(torch.load(FILE, "
            'weights_only=True), "weights.safetensors")'
        )
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0][:80]
        raise ModelError(
            f"{path.name} cannot be read ({reason}); accepted: a whole safetensors file"
        ) from None
    if weights and all(name.startswith("module.") for name in weights):
        weights = _below(weights, "module.")
    broken = [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ModelError(f"{path.name}: {broken[0]} has values that are no numbers; accepted: none")
    return weights


def foreign_network(architecture: str, weights: Mapping[str, Tensor]) -> tuple[nn.Module, str]:
    """Build a network from its state dict, load it strictly, and name its head.

    Args:
        architecture: one of ARCHITECTURES; ``_bn`` are VGGs with batch norm.

    Returns:
        The network in eval mode, and the name of its last linear layer.

    Raises:
        ModelError: another architecture, or weights that are not this one's.
    """
    one_of("architecture", architecture, ARCHITECTURES, ModelError)
    try:
        if architecture in RESNETS:
            network = ForeignResNet(weights, architecture.startswith("preact"))
            _check_depth(architecture, network)
            head = network.end
        else:
            base = architecture.removesuffix("_bn")
            network = ForeignVgg(weights, VGG[base], architecture.endswith("_bn"))
            linear = network.classifier
            last = isinstance(linear, nn.Linear)
            head = "classifier" if last else f"classifier.{len(linear) - 1}"
        floats = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        network.load_state_dict(floats)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"the weights are no {architecture} ({reason}); accepted: the layers' names of "
            f"torchvision or BackdoorBench, architectures {', '.join(ARCHITECTURES)}"
        ) from None
    return network.eval(), head


BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}


def _check_depth(architecture: str, network: ForeignResNet) -> None:
    """Raise ModelError for another number of blocks, or of convolutions in a block."""
    counts = tuple(len(getattr(network, f"layer{stage}")) for stage in range(1, 5))
    depth, convolutions = architecture[-2:], network.layer1[0].number if counts[0] else 0
    if counts != BLOCKS[depth] or convolutions != (3 if depth == "50" else 2):
        raise ModelError(
            f"architecture is {architecture!r}, but the weights have {counts} blocks of "
            f"{convolutions} convolutions; accepted: {BLOCKS[depth]} of {3 if depth == '50' else 2}"
        )
