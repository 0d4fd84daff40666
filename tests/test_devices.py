"""Kernels on another device than the host's, without one.

A tensor on the device "meta" has a shape and no values, and what mixes it with the host's raises.
So what a kernel makes by itself must lie where its inputs lie, and nothing may ask for a value,
which on a GPU would wait for the device.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from minilib.attacks.images import patterns
from minilib.models.causal import ChatBatch
from minilib.models.loading import ModelError, default_device
from minilib.training.images import augment
from minilib.unlearning import adversarial, bi_bau, btu, gradient_ascent, pgd, sande
from minilib.unlearning.adversarial import IBauSettings, SauSettings

ROWS, CLASSES, SIDE = 4, 3, 16


def rand(*shape, grad=False):
    return torch.randn(shape, device="meta").requires_grad_(grad)


def logits():
    return rand(ROWS, CLASSES)


def images():
    return torch.rand(ROWS, 3, SIDE, SIDE, device="meta")


def labels(count=CLASSES):
    return torch.zeros(ROWS, dtype=torch.int64, device="meta")


class Net(nn.Module):
    """A convolution and a linear head whose weights lie on the device."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(rand(5, 3, 3, 3))
        self.head = nn.Linear(5, CLASSES, device="meta")

    def features(self, x):
        return F.conv2d(x, self.kernel).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def losses(net):
    return lambda x: F.cross_entropy(net(x), labels(), reduction="none")


def inversion():
    theirs, ours = Net(), Net()
    x = images()
    known = bi_bau.CleanBatch(x, labels(), theirs(x), theirs.features(x))
    plan = bi_bau.BiBauSettings(steps=2)
    return bi_bau.inversion_terms(theirs, ours, known, plan)(x)


def chat_batch():
    ids = torch.zeros(ROWS, 6, dtype=torch.int64, device="meta")
    return ChatBatch(ids, torch.ones(ROWS, 6, dtype=torch.bool, device="meta"), np.arange(ROWS))


# name → what runs one step of a kernel on fake tensors of the device
STEPS = {
    "ga": lambda: gradient_ascent.ga_loss(logits(), labels()),
    "npo": lambda: gradient_ascent.npo_loss(logits(), logits(), labels(), 1.0),
    "rga weight": lambda: gradient_ascent.rga_weight(logits(), logits(), 2.0),
    "rga weight, code": lambda: gradient_ascent.rga_weight(
        logits(), logits(), 2.0, "poisoned"
    ),
    "drift": lambda: gradient_ascent.drift(
        net := Net(), {name: torch.zeros_like(p) for name, p in net.named_parameters()}, "tensor"
    ),
    "row change": lambda: btu.row_change(rand(30, 8), rand(30, 8)),
    "pgd": lambda: pgd.pgd(
        losses(Net()), images(), 2, pgd.signed(0.01), pgd.ball(images(), 0.1)
    ),
    "pgd, l2": lambda: pgd.pgd(
        losses(Net()), images(), 2, pgd.straight(0.01), pgd.ball(images(), 0.1, "l2")
    ),
    "shared images": lambda: adversarial.shared_images(
        Net(), Net(), images(), labels(), SauSettings(steps=2)
    ),
    "e-step": inversion,
    "ewc": lambda: bi_bau.ewc(*(dict(Net().named_parameters()) for _ in range(3))),
    "js divergence": lambda: adversarial.shared_divergence(logits(), logits()),
    "universal perturbation": lambda: adversarial.universal_perturbation(
        Net(), images(), labels(), IBauSettings(inner_steps=2)
    ),
    "hypergradient": lambda: adversarial.hypergradient(
        net := Net(), list(net.parameters()), images()[:1], images(), labels(), IBauSettings()
    ),
    "parrot": lambda: sande.insert(
        rand(ROWS, 6, 8), rand(2, 8), torch.ones(ROWS, 1, dtype=torch.int64, device="meta")
    ),
    "parrot taken out": lambda: sande.crop(
        rand(ROWS, 8, 5), 2, torch.ones(ROWS, 1, dtype=torch.int64, device="meta")
    ),
    "dpo": lambda: sande.dpo_loss(rand(ROWS), rand(ROWS), rand(ROWS), rand(ROWS), 0.1),
    "nad": lambda: sande.attention_maps(None, chat_batch(), [rand(ROWS, 6, 8)] * 3),
    "augment": lambda: augment(images(), 2, True, np.random.default_rng(0)),
    **{
        name: lambda trigger=trigger: trigger.apply(
            torch.zeros(ROWS, 3, SIDE, SIDE, dtype=torch.uint8, device="meta"),
            np.random.default_rng(0),
        )
        for name, trigger in {
            "badnets": patterns.PatchTrigger(), "sig": patterns.SinusoidTrigger(),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_kernel_stays_on_its_device(name):
    leaves = torch.utils._pytree.tree_leaves(STEPS[name]())
    assert {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)} == {"meta"}


def test_a_mix_of_devices_is_found():
    with pytest.raises(Exception, match="device"):
        gradient_ascent.ga_loss(logits(), torch.zeros(ROWS, dtype=torch.int64))


@pytest.mark.parametrize("named", ["mps", "tpu", "cuda:9", "gpu please"])
def test_a_device_that_is_not_there_is_refused(monkeypatch, named):
    monkeypatch.setenv("MINILIB_DEVICE", named)
    with pytest.raises(ModelError, match=f"MINILIB_DEVICE is '{named}'; accepted here: cpu"):
        default_device()


def test_a_device_can_be_named(monkeypatch):
    monkeypatch.setenv("MINILIB_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


FOLDERS = ("data", "models", "training", "attacks", "victims", "metrics", "detection", "unlearning")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / "minilib" / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_no_kernel_names_a_gpu_or_forks_all_generators(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\.cuda\(|\.to\(\"cuda|device=\"meta", text)
    assert "fork_rng()" not in text, "name the devices whose generators are forked"
