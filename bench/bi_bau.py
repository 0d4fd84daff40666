"""BI-BAU's PGD step and epoch against plain loops in the shape of released adversarial unlearning.

The plain loops have the habits of SAU's released code: every PGD step runs f_b on the clean images
again, the backward pass collects gradients of all weights of both models, everything is fp32. The
objective is BI-BAU's; victims are random networks. The Fisher diagonal of the clean images, made
once a run, is not timed; that of the perturbed images is part of every epoch. With ``--switches``
also PGD through networks that torch.compile has made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.data.images import ImageDataset
from minilib.models.images import ImageClassifier, frozen_copy, image_classifier, model_copy
from minilib.training.devices import autocast
from minilib.training.fitting import fit
from minilib.training.images import ImageBatches, image_data
from minilib.unlearning import BiBauSettings
from minilib.unlearning.bi_bau import CleanBatch, inverted, unlearning_loss
from minilib.unlearning.common import unit

from .timing import Bench, Options

PAPER = 418 / 308  # an epoch of ResNet-18 over one of adversarial training, section 5.8
PGD = ("plain", "minilib", "minilib fp32")
EPOCHS = ("bi-bau", "adversarial training, plain", "adversarial training, minilib")


@dataclass(frozen=True)
class Case:
    """What is timed: networks, images, settings."""

    model: str
    width: float
    rows: ImageDataset
    settings: BiBauSettings
    options: Options

    @property
    def data(self):
        """The images on the device."""
        return image_data(self.rows, self.options.device)

    def models(self) -> tuple[ImageClassifier, ImageClassifier]:
        """f_b, and f_θ a little away from it, so that no term is idle."""
        original = image_classifier(self.model, 10, self.rows.shape, self.width)
        original = original.to(self.options.device).eval()
        model = model_copy(original)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=draw).to(p.device)
                p.add_(1e-2 * p.std().nan_to_num() * noise)
        return original, model


def make_case(options: Options) -> Case:
    """Random 32 × 32 colour images; a quarter-width ResNet-18 on a CPU, full width on a GPU."""
    rng, cuda, quick = np.random.default_rng(0), options.device == "cuda", options.quick
    count, side = (24, 8) if quick else (2500 if cuda else 64, 32)
    rows = ImageDataset(
        "random", "train", rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        rng.integers(0, 10, count), tuple("0123456789"), "built-in",
    )  # fmt: skip
    batch, steps = (12, 3) if quick else (256 if cuda else 64, 20)
    how = BiBauSettings(epochs=1, batch_size=batch, steps=steps, start="zero", fisher_rows=batch)
    model, width = ("cnn", 0.25) if quick else ("resnet18", 1.0 if cuda else 0.25)
    return Case(model, width, rows, how, options)


def build(case: Case, name: str):
    """``pgd of N steps, `` and a name of PGD, behind it perhaps ``compiled``; or one of EPOCHS."""
    precision = case.options.precision(name)
    if name in EPOCHS:
        sets = "AB" if name == "bi-bau" else ""
        return plain_epoch(case) if "plain" in name else our_epoch(case, sets, precision)
    steps, whose = int(name.split()[2]), name.split(", ")[1]
    case = replace(case, settings=replace(case.settings, steps=steps))
    return plain_steps(case) if whose == "plain" else our_steps(case, precision, "compiled" in name)


def compiled(network: ImageClassifier) -> ImageClassifier:
    """Have a network's features compiled; on a GPU they are replayed as a CUDA graph."""
    mode = "reduce-overhead" if next(network.parameters()).is_cuda else None
    network.features = torch.compile(network.features, mode=mode)
    return network


def our_steps(case: Case, precision: str, through_compiler: bool = False):
    """→ the perturbed images of one batch."""
    original, model = (frozen_copy(m) for m in case.models())
    if through_compiler:
        original, model = compiled(original), compiled(model)
    batch = case.data.batch(np.arange(case.settings.batch_size))

    def run(steps=None) -> Tensor:
        with autocast(torch.device(case.options.device), precision, scaled=False):
            x = unit(batch.images)
            with torch.no_grad():
                features = original.features(x).float().clone()  # a graph writes to its own again
                known = CleanBatch(x, batch.labels, original.head(features).float(), features)
            return inverted(original, model, known, case.settings).float().cpu()

    return run


def plain_objective(original, model, x: Tensor, shown: Tensor, y: Tensor, how: BiBauSettings):
    """BI-BAU's untargeted objective, written down without a thought for what is constant."""
    features = original.features(shown)
    theirs = original.head(features)
    if how.sets:
        clean_features = original.features(x)  # constant, and computed again at every step
        clean_logits = original.head(clean_features).detach()
        clean_features = clean_features.detach()
    value = -F.cross_entropy(theirs, y, reduction="sum")
    if how.weight("likelihood") > 0:
        ours = model(shown)
        log_p = F.log_softmax(ours / how.temperature, 1)
        soft = F.kl_div(log_p, F.softmax(clean_logits / how.temperature, 1), reduction="sum")
        hard = F.cross_entropy(ours, y, reduction="sum")
        likelihood = how.hard * hard + (1 - how.hard) * how.temperature**2 * soft
        value = value + how.likelihood * likelihood
    if how.weight("prior") > 0:
        rivals = theirs.detach().clone()
        rivals[torch.arange(len(y)), y] = -torch.inf
        line = (original.head.weight - model.head.weight)[rivals.argmax(1)].detach()
        change = features - clean_features
        angle = F.cosine_similarity(change, clean_features, 1).abs()
        prior = how.eta * angle - (1 - how.eta) * (change * line).sum(1)
        value = value + how.prior * prior.sum()
    return value


def plain_inversion(original, model, x: Tensor, y: Tensor, how: BiBauSettings) -> Tensor:
    """PGD whose every step does everything again, and asks for all gradients there are."""
    delta = torch.zeros_like(x, requires_grad=True)
    for _ in range(how.steps):
        delta.grad = None
        plain_objective(original, model, x, x + delta, y, how).backward()
        with torch.no_grad():
            moved = delta - how.step / 255 * delta.grad.sign()
            moved = moved.clamp(-how.bound / 255, how.bound / 255)
            delta.data = (x + moved).clamp(0, 1) - x
    return (x + delta).detach()


def plain_steps(case: Case):
    """→ the same images."""
    original, model = case.models()
    batch = case.data.batch(np.arange(case.settings.batch_size))
    x, y = unit(batch.images), batch.labels
    return lambda steps=None: plain_inversion(original, model.eval(), x, y, case.settings).cpu()


def our_epoch(case: Case, sets: str, precision: str):
    """An epoch of BI-BAU, or with no sets of plain adversarial training → the mean losses."""
    original, model = case.models()
    data, how = case.data, replace(case.settings, sets=sets, precision=precision)
    loss = unlearning_loss(frozen_copy(original), data, how)

    def run(steps=None) -> list[float]:
        network = model_copy(model).requires_grad_(True)
        log = fit(network, ImageBatches(data, how.batch_size), loss, how)[0]
        return [log["clean"], log["adversarial"]]

    return run


def plain_epoch(case: Case):
    """Adversarial training against f_b, in the plain loop's manner."""
    original, model = case.models()
    data, how = case.data, replace(case.settings, sets="")

    def run(steps=None) -> list[float]:
        network, logs = model_copy(model), []
        decay = {"momentum": how.momentum, "weight_decay": how.weight_decay}
        optimizer = torch.optim.SGD(network.parameters(), how.lr, **decay)
        for batch in ImageBatches(data, how.batch_size)(np.random.default_rng(how.seed)):
            x, y = unit(batch.images), batch.labels
            shown = plain_inversion(original, network.eval(), x, y, how)
            network.train()
            optimizer.zero_grad()
            own, other = network(torch.cat([x, shown])).split(len(y))
            clean, adversarial = F.cross_entropy(own, y), F.cross_entropy(other, y)
            (clean + adversarial).backward()
            optimizer.step()
            logs.append(torch.stack([clean.detach(), adversarial.detach()]))
        return torch.stack(logs).mean(0).tolist()

    return run


def benches(options: Options) -> list[Bench]:
    """PGD of many and of few steps, and the epoch; ``switches``: compiled, too."""
    case = make_case(options)
    how = case.settings
    counts = {"pgd": how.steps, f"pgd of {min(5, how.steps)} steps": min(5, how.steps)}
    pgd = {(said, name): f"pgd of {n} steps, {name}" for said, n in counts.items() for name in PGD}
    ratios = {
        f"{said}, {name} to plain": (pgd[said, "plain"], pgd[said, name])
        for said, name in (*((said, "minilib") for said in counts), ("pgd", "minilib fp32"))
    }
    for whose, other in zip(("plain", "minilib's"), EPOCHS[1:], strict=True):
        ratios[f"epoch, bi-bau to {whose} adversarial training"] = EPOCHS[0], other
    for name in PGD[1:] if options.switches else ():
        alone = pgd["pgd", name]
        ratios[f"pgd, {name} to itself compiled"] = alone, f"{alone}, compiled"

    def more(seconds: dict) -> dict:
        per_second = {
            loop: how.batch_size * counts[said] / seconds[loop]["median"]
            for (said, _), loop in pgd.items()
        }
        return {"images_per_second": per_second, "ratios": {"epoch, the paper's": PAPER}}

    return [Bench(
        "BI-BAU: PGD steps and an epoch, plain loops against minilib",
        {"model": case.model, "width": case.width, "images": len(case.rows),
         "shape": list(case.rows.shape), "batch_size": how.batch_size, "steps": how.steps},
        partial(build, case), ratios, more=more,
        parts={f"{how.steps} PGD steps, {name}": pgd["pgd", name] for name in PGD},
    )]  # fmt: skip
