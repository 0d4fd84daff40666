"""BI-BAU's PGD step and epoch against plain loops in the shape of released adversarial unlearning.

The plain loops have the habits of SAU's released code: every PGD step runs f_b on the clean images
again, though what comes out is constant; the backward pass collects gradients of all weights of
both models; everything is fp32. The objective is BI-BAU's. Victims are random networks (time does
not depend on the weights). The Fisher diagonal of the clean images, made once a run, is not timed;
that of the perturbed images is part of every epoch.

``epoch``: BI-BAU against adversarial training without its terms, by the plain loop and by
minilib's own. The paper has 1.36 for ResNet-18 (418 s to 308 s, section 5.8). With ``--switches``
also PGD through networks that torch.compile has made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

from . import timing
from .timing import Options

MOST_PIXELS = 0.01  # share of pixels that may differ: a sign may tip where a slope is nearly 0
PAPER = 418 / 308
PGD = ("plain", "minilib", "minilib fp32")
EPOCHS = ("bi-bau", "adversarial training, plain", "adversarial training, minilib")


@dataclass(frozen=True)
class Case:
    """What is timed: networks, images, settings."""

    model: str
    width: float
    rows: ImageDataset
    settings: BiBauSettings
    device: str


def make_case(options: Options) -> Case:
    """Random 32 × 32 colour images; a quarter-width ResNet-18 on a CPU, full width on a GPU."""
    rng, cuda, quick = np.random.default_rng(0), options.device == "cuda", options.quick
    count, side = (24, 8) if quick else (2500 if cuda else 64, 32)
    rows = ImageDataset(
        "random", "train", rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        rng.integers(0, 10, count), tuple("0123456789"), "built-in",
    )  # fmt: skip
    batch, steps = (12, 3) if quick else (256 if cuda else 64, 20)
    settings = BiBauSettings(
        epochs=1, batch_size=batch, steps=steps, start="zero", fisher_rows=batch
    )
    model, width = ("cnn", 0.25) if quick else ("resnet18", 1.0 if cuda else 0.25)
    return Case(model, width, rows, settings, options.device)


def models_of(case: Case) -> tuple[ImageClassifier, ImageClassifier]:
    """f_b, and f_θ a little away from it, so that no term is idle."""
    original = image_classifier(case.model, 10, case.rows.shape, case.width).to(case.device).eval()
    model = model_copy(original)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-2 * p.std().nan_to_num() * torch.randn(p.shape, generator=draw).to(p.device))
    return original, model


def compiled(network: ImageClassifier) -> ImageClassifier:
    """Have a network's features compiled; on a GPU they are replayed as a CUDA graph."""
    mode = "reduce-overhead" if next(network.parameters()).is_cuda else None
    network.features = torch.compile(network.features, mode=mode)
    return network


def build(case: Case, name: str, exact: bool):
    """PGD of one batch by a name in PGD, behind it perhaps ``compiled``; or an epoch of EPOCHS."""
    if name in EPOCHS:
        sets = "AB" if name == "bi-bau" else ""
        precision = timing.precision_of(name, case.device, exact)
        return plain_epoch(case) if "plain" in name else our_epoch(case, sets, precision)
    if name == "plain":
        return plain_steps(case)
    return our_steps(case, timing.precision_of(name, case.device, exact), "compiled" in name)


def our_steps(case: Case, precision: str, through_compiler: bool = False):
    """→ the perturbed images of one batch."""
    original, model = (frozen_copy(m) for m in models_of(case))
    if through_compiler:
        original, model = compiled(original), compiled(model)
    batch = image_data(case.rows, case.device).batch(np.arange(case.settings.batch_size))

    def run(steps=None) -> Tensor:
        with autocast(torch.device(case.device), precision, scaled=False):
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
    original, model = models_of(case)
    model.eval()
    batch = image_data(case.rows, case.device).batch(np.arange(case.settings.batch_size))

    def run(steps=None) -> Tensor:
        x = unit(batch.images)
        return plain_inversion(original, model, x, batch.labels, case.settings).cpu()

    return run


def our_epoch(case: Case, sets: str, precision: str):
    """An epoch of BI-BAU, or with no sets of plain adversarial training → the mean losses."""
    original, model = models_of(case)
    data = image_data(case.rows, case.device)
    how = replace(case.settings, sets=sets, precision=precision)
    loss = unlearning_loss(frozen_copy(original), data, how)

    def run(steps=None) -> list[float]:
        network = model_copy(model).requires_grad_(True)
        log = fit(network, ImageBatches(data, how.batch_size), loss, how)[0]
        return [log["clean"], log["adversarial"]]

    return run


def plain_epoch(case: Case):
    """Adversarial training against f_b, in the plain loop's manner."""
    original, model = models_of(case)
    data, how = image_data(case.rows, case.device), replace(case.settings, sets="")

    def run(steps=None) -> list[float]:
        network, logs = model_copy(model), []
        optimizer = torch.optim.SGD(
            network.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay
        )
        for batch in ImageBatches(data, how.batch_size)(np.random.default_rng(how.seed)):
            x, y = unit(batch.images), batch.labels
            network.eval()
            shown = plain_inversion(original, network, x, y, how)
            network.train()
            optimizer.zero_grad()
            own, other = network(torch.cat([x, shown])).split(len(y))
            clean, adversarial = F.cross_entropy(own, y), F.cross_entropy(other, y)
            (clean + adversarial).backward()
            optimizer.step()
            logs.append(torch.stack([clean.detach(), adversarial.detach()]))
        return torch.stack(logs).mean(0).tolist()

    return run


def pixels(images: Tensor, others: Tensor) -> float:
    """Share of pixels that are not the same."""
    return (images - others).abs().ge(1e-6).float().mean().item()


def main(folder, options: Options):
    """Measure and write ``bi_bau-<device>.json``; ``switches``: compile, too."""
    case = make_case(options)
    how, rates = case.settings, timing.machine(options)
    few = replace(case, settings=replace(how, steps=min(5, how.steps)))
    made = [f"{name}, compiled" for name in PGD[1:]] if options.switches else []
    equal, flops = timing.compared(build, case, PGD, None, pixels, MOST_PIXELS)
    if made:
        timing.compared(build, case, (PGD[0], made[1]), None, pixels, MOST_PIXELS)
    epochs_equal, _ = timing.compared(build, case, EPOCHS[1:], accepted=1e-3)
    pgd = timing.timed(build, case, [*PGD, *made], options)
    short, epoch = (
        timing.timed(build, few, PGD, options),
        timing.timed(build, case, EPOCHS, options),
    )
    less, label = f"pgd of {few.settings.steps} steps", f"{how.steps} PGD steps, {{}}"
    result = timing.record(
        "BI-BAU: PGD steps and an epoch, plain loops against minilib",
        options,
        {"model": case.model, "width": case.width, "images": len(case.rows),
         "shape": list(case.rows.shape), "batch_size": how.batch_size, "steps": how.steps},
        equal_losses={"pixels": equal, "epoch": epochs_equal},
        pgd_seconds=pgd,
        images_per_second={
            f"{one.steps} steps, {name}": how.batch_size * one.steps / seconds[name]["median"]
            for one, seconds in ((few.settings, short), (how, pgd)) for name in PGD
        },
        epoch_seconds=epoch,
        ratios={
            "pgd, minilib to plain": timing.ratios(pgd["plain"], pgd["minilib"]),
            f"{less}, minilib to plain": timing.ratios(short["plain"], short["minilib"]),
            "pgd, minilib fp32 to plain": timing.ratios(pgd["plain"], pgd["minilib fp32"]),
            **{f"epoch, bi-bau to {whose} adversarial training":
               timing.ratios(epoch["bi-bau"], epoch[b])
               for whose, b in (("plain", EPOCHS[1]), ("minilib's", EPOCHS[2]))},
            "epoch, the paper's": PAPER,
            **{f"pgd, {name.partition(', ')[0]} to itself compiled":
               timing.ratios(pgd[name.partition(", ")[0]], pgd[name]) for name in made},
        },
        limits={"machine": rates,
                "parts": timing.beside(rates, case.device, pgd, flops, label)},
    )  # fmt: skip
    return timing.write(folder, "bi_bau", options, result)
