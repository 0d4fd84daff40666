"""Adversarial unlearning in the habits of SAU's released code, with BI-BAU's objective; minilib's.

Every PGD step runs f_b on the clean images again, the backward pass collects gradients of all
weights of both models, everything is fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.data.images import ImageDataset
from minilib.models.images import frozen_copy, image_classifier, model_copy
from minilib.training.devices import autocast
from minilib.training.fitting import fit
from minilib.training.images import ImageBatches, image_data
from minilib.unlearning import BiBauSettings
from minilib.unlearning.bi_bau import CleanBatch, inverted, unlearning_loss
from minilib.unlearning.common import unit


def terms(original, model, x: Tensor, perturbed: Tensor, y: Tensor, how: BiBauSettings):
    """Rows' terms of the E-step, (B,) each, not yet weighted. Source: Eq. (17), (20), (27)."""
    features = original.features(perturbed)
    theirs = original.head(features)
    if how.sets:
        clean_features = original.features(x)  # constant, and computed again at every step
        teacher, clean_features = original.head(clean_features).detach(), clean_features.detach()
    rivals = theirs.detach().clone()
    rivals[torch.arange(len(y)), y] = -torch.inf
    goal = rivals.argmax(1) if how.target is None else torch.full_like(y, how.target)
    if how.target is None:
        row_terms = {"trigger": -F.cross_entropy(theirs, y, reduction="none")}
    else:
        row_terms = {"trigger": F.cross_entropy(theirs, goal, reduction="none")}
    if how.weight("likelihood") > 0:
        ours, t = model(perturbed), how.temperature
        soft = F.kl_div(F.log_softmax(ours / t, 1), F.softmax(teacher / t, 1), reduction="none")
        hard = F.cross_entropy(ours, y, reduction="none")
        row_terms["likelihood"] = how.hard * hard + (1 - how.hard) * t**2 * soft.sum(1)
    if how.weight("prior") > 0:
        if how.features == "current":
            features, clean_features = model.features(perturbed), model.features(x).detach()
        change = features - clean_features
        direction = (original.head.weight - model.head.weight)[goal].detach()
        angle = F.cosine_similarity(change, clean_features, 1).abs()
        row_terms["prior"] = how.eta * angle - (1 - how.eta) * (change * direction).sum(1)
    return row_terms


def inversion(original, model, x: Tensor, y: Tensor, how: BiBauSettings, start=0.0) -> Tensor:
    """PGD from ``x + start`` whose every step does everything again → the perturbed images."""
    perturbed, bound = (x + start).clamp(0, 1), how.bound / 255
    for _ in range(how.steps):
        perturbed.requires_grad_(True)
        row_terms = terms(original, model, x, perturbed, y, how)
        value = row_terms.pop("trigger")
        for name, term in row_terms.items():
            value = value + how.weight(name) * term
        value.sum().backward()
        with torch.no_grad():
            moved = perturbed - how.step / 255 * perturbed.grad.sign()
            perturbed = (x + (moved - x).clamp(-bound, bound)).clamp(0, 1)
    return perturbed


def adversarial_training(
    original, model, batches: Iterable, how: BiBauSettings
) -> list[list[float]]:
    """Train a model in place on clean images and on such as fool f_b.

    Args:
        batches: of images in grey levels with their labels. how: ``sets`` says which terms the
            inversion has; a ``start`` of "random" is drawn uniformly from the ball.

    Returns: clean and adversarial cross-entropy of each step.
    """
    decay = {"momentum": how.momentum, "weight_decay": how.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), how.lr, **decay)
    losses, bound = [], how.bound / 255
    for batch in batches:
        x, y = batch.images / 255, batch.labels
        start = torch.empty_like(x).uniform_(-bound, bound) if how.start == "random" else 0.0
        perturbed = inversion(original, model.eval(), x, y, how, start)
        model.train()
        optimizer.zero_grad()
        own, other = model(torch.cat([x, perturbed])).split(len(y))
        keep = torch.ones_like(y) if how.target is None else (y != how.target).long()
        clean = F.cross_entropy(own, y)
        adversarial = (F.cross_entropy(other, y, reduction="none") * keep).sum() / keep.sum()
        (clean + adversarial).backward()
        optimizer.step()
        losses.append(torch.stack([clean.detach(), adversarial.detach()]))
    return torch.stack(losses).tolist()


# ---------------------------------------------------------------------------------- both sides

EPOCHS = ("bi-bau", "adversarial training, plain", "adversarial training, minilib")


@dataclass(frozen=True)
class Case:
    """Random networks and images; ``side`` in pixels."""

    model: str = "cnn"
    width: float = 0.25
    images: int = 24
    side: int = 8
    batch_size: int = 12
    steps: int = 3
    device: str = "cpu"
    sets: str = "AB"

    @property
    def settings(self) -> BiBauSettings:
        """An epoch from perturbations of 0, whose Fisher has a whole batch."""
        return BiBauSettings(epochs=1, batch_size=self.batch_size, steps=self.steps, start="zero",
                             fisher_rows=self.batch_size, sets=self.sets)  # fmt: skip

    def material(self):
        """f_b, f_θ a little away from it so that no term is idle, and the images."""
        rng, shape = np.random.default_rng(0), (self.images, self.side, self.side, 3)
        images, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 10, self.images)
        rows = ImageDataset("random", "train", images, labels, tuple("0123456789"), "built-in")
        original = image_classifier(self.model, 10, rows.shape, self.width).to(self.device).eval()
        model = model_copy(original)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=draw).to(p.device)
                p.add_(1e-2 * p.std().nan_to_num() * noise)
        return original, model, image_data(rows, self.device)


def build(case: Case, name: str, precision: str):
    """One of EPOCHS; or ``pgd of N steps, ``, whose, and behind it perhaps ``, compiled``."""
    if name in EPOCHS:
        return epoch(case, name, precision)
    original, model, data = case.material()
    how = replace(case.settings, steps=int(name.split()[2]))
    batch = data.batch(np.arange(how.batch_size))
    if name.split(", ")[1] == "plain":
        told = original, model.eval(), unit(batch.images), batch.labels, how
        return lambda steps=None: inversion(*told).cpu()
    original, model = frozen_copy(original), frozen_copy(model)
    for network in (original, model) if "compiled" in name else ():
        # On a GPU a network is replayed as a CUDA graph.
        mode = "reduce-overhead" if case.device == "cuda" else None
        network.features = torch.compile(network.features, mode=mode)

    def run(steps=None) -> Tensor:
        with autocast(torch.device(case.device), precision, scaled=False):
            x = unit(batch.images)
            with torch.no_grad():
                features = original.features(x).float().clone()  # a graph writes to its own again
                known = CleanBatch(x, batch.labels, original.head(features).float(), features)
            return inverted(original, model, known, how).float().cpu()

    return run


def epoch(case: Case, name: str, precision: str):
    """Of BI-BAU, or with no sets of plain adversarial training → the mean losses.

    The Fisher diagonal of the clean images, made once a run, is no part of it; that of the
    perturbed images is.
    """
    how = replace(case.settings, sets=case.sets if name == EPOCHS[0] else "", precision=precision)
    original, model, data = case.material()
    batches = ImageBatches(data, how.batch_size)
    loss = unlearning_loss(frozen_copy(original), data, how)

    def plain(steps=None) -> list[float]:
        drawn = batches(np.random.default_rng(how.seed))
        return np.mean(adversarial_training(original, model_copy(model), drawn, how), 0).tolist()

    def ours(steps=None) -> list[float]:
        log = fit(model_copy(model).requires_grad_(True), batches, loss, how)[0]
        return [log["clean"], log["adversarial"]]

    return plain if "plain" in name else ours
