"""BI-BAU's PGD step and epoch against plain loops in the shape of released adversarial unlearning.

``python -m bench.bi_bau``. The plain loops have the habits of SAU's released code: every PGD step
runs f_b on the clean images again, though what comes out is constant; the backward pass
collects gradients of all weights of both models; everything is fp32. The objective is BI-BAU's.

What is compared, and how fairly:

* First, same weights, images and start, fp32: the objective agrees at each PGD step, the perturbed
  images agree, and so do the losses of the epochs' first batches.
* Then the loops are timed in turns after a warm-up, all in one process. Victims are random networks
  (time does not depend on the weights). The Fisher diagonal of the clean images, made once per run,
  stands in ``setup_seconds``; that of the perturbed images is part of every epoch.
* ``epoch``: BI-BAU against adversarial training without its terms, by the plain loop and by
  minilib's own. The paper has 1.36 for ResNet-18 (418 s to 308 s, section 5.8).
* With ``--switches`` also PGD through networks that torch.compile has made, against the same
  through those that the library runs. What compiling takes stands beside the ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import limits
from bench.timing import hardware, in_turns, ratios, spread, turns, versions, wait, write
from minilib.descent import descend, mixed
from minilib.images import ImageDataset
from minilib.purify import BiBauSettings
from minilib.purify.bi_bau import Known, inverted, unlearning_loss
from minilib.purify.common import unit
from minilib.vision import (
    ImageBatches,
    ImageClassifier,
    frozen_copy,
    image_classifier,
    image_data,
    model_copy,
)

TOLERANCE = 1e-3  # relative, of the objective at each step and of the losses of a batch
SAME_PIXELS = 0.99  # share of pixels that must agree: a sign may tip where a slope is nearly 0
PAPER = 418 / 308
FEW = 5  # PGD steps, beside the paper's 20


@dataclass(frozen=True)
class Case:
    """What is timed: networks, images, settings."""

    model: str
    width: float
    rows: ImageDataset
    settings: BiBauSettings
    device: str
    threads: int


def make_case(device: str, threads: int, quick: bool) -> Case:
    """Random 32 × 32 colour images; a quarter-width ResNet-18 on a CPU, full width on a GPU."""
    rng = np.random.default_rng(0)
    count, side = (24, 8) if quick else (2500 if device == "cuda" else 64, 32)
    rows = ImageDataset(
        "random", "train", rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        rng.integers(0, 10, count), tuple("0123456789"), "built-in",
    )  # fmt: skip
    batch = 12 if quick else (256 if device == "cuda" else 64)
    steps = 3 if quick else 20
    settings = BiBauSettings(
        epochs=1, batch_size=batch, steps=steps, start="zero", fisher_rows=batch
    )
    model, width = ("cnn", 0.25) if quick else ("resnet18", 1.0 if device == "cuda" else 0.25)
    return Case(model, width, rows, settings, device, threads)


def models_of(case: Case) -> tuple[ImageClassifier, ImageClassifier]:
    """f_b, and f_θ a little away from it, so that no term is idle."""
    original = image_classifier(case.model, 10, case.rows.shape, case.width).to(case.device).eval()
    model = model_copy(original)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-2 * p.std().nan_to_num() * torch.randn(p.shape, generator=draw).to(p.device))
    return original, model


# --------------------------------------------------------------------------------- PGD steps


Steps = Callable[[], tuple[float, Tensor, list[float]]]  # → seconds, x', objective at each step


def compiled(network: ImageClassifier) -> ImageClassifier:
    """Have a network's features compiled; on a GPU they are replayed as a CUDA graph."""
    mode = "reduce-overhead" if next(network.parameters()).is_cuda else None
    network.features = torch.compile(network.features, mode=mode)
    return network


def our_steps(case: Case, precision: str, change: Callable = lambda network: network) -> Steps:
    """minilib's steps; ``change`` is done to both networks first."""
    original, model = (change(frozen_copy(m)) for m in models_of(case))
    data = image_data(case.rows, case.device)
    part = data.batch(np.arange(case.settings.batch_size))

    def run() -> tuple[float, Tensor, list[float]]:
        with mixed(torch.device(case.device), precision):
            x = unit(part.images)
            with torch.no_grad():
                features = original.features(x).float().clone()  # a graph writes to its own again
                known = Known(x, part.labels, original.head(features).float(), features)
            started = wait(case.device)
            shown = inverted(original, model, known, case.settings)
            return wait(case.device) - started, shown, []

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
        soft = F.kl_div(
            F.log_softmax(ours / how.temperature, 1),
            F.softmax(clean_logits / how.temperature, 1),
            reduction="sum",
        )
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


def plain_inversion(
    original, model, x: Tensor, y: Tensor, how: BiBauSettings
) -> tuple[Tensor, list[float]]:
    """PGD whose every step does everything again, and asks for all gradients there are."""
    delta, values = torch.zeros_like(x, requires_grad=True), []
    for _ in range(how.steps):
        delta.grad = None
        value = plain_objective(original, model, x, x + delta, y, how)
        value.backward()
        with torch.no_grad():
            moved = delta - how.step / 255 * delta.grad.sign()
            moved = moved.clamp(-how.bound / 255, how.bound / 255)
            delta.data = (x + moved).clamp(0, 1) - x
        values.append(value.detach())
    return (x + delta).detach(), values


def plain_steps(case: Case) -> Steps:
    original, model = models_of(case)
    model.eval()
    data = image_data(case.rows, case.device)
    part = data.batch(np.arange(case.settings.batch_size))

    def run() -> tuple[float, Tensor, list[float]]:
        x = unit(part.images)
        started = wait(case.device)
        shown, values = plain_inversion(original, model, x, part.labels, case.settings)
        seconds = wait(case.device) - started
        return seconds, shown, torch.stack(values).tolist()

    return run


# ------------------------------------------------------------------------------------ epochs


Epoch = Callable[[], tuple[float, dict]]  # → seconds, the mean losses


def our_epoch(case: Case, sets: str, precision: str) -> tuple[Epoch, float]:
    """An epoch of BI-BAU, or with no sets of plain adversarial training; seconds of set-up."""
    original, model = models_of(case)
    original = frozen_copy(original)
    data = image_data(case.rows, case.device)
    how = replace(case.settings, sets=sets, precision=precision)
    started = wait(case.device)
    loss = unlearning_loss(original, data, how)
    setup = wait(case.device) - started

    def run() -> tuple[float, dict]:
        network = model_copy(model).requires_grad_(True)
        started = wait(case.device)
        log = descend(network, ImageBatches(data, how.batch_size), loss, how)[0]
        return wait(case.device) - started, log

    return run, setup


def plain_epoch(case: Case) -> Epoch:
    """Adversarial training against f_b, in the plain loop's manner."""
    original, model = models_of(case)
    data, how = image_data(case.rows, case.device), replace(case.settings, sets="")

    def run() -> tuple[float, dict]:
        network = model_copy(model)
        optimizer = torch.optim.SGD(
            network.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay
        )
        logs = []
        started = wait(case.device)
        for batch in ImageBatches(data, how.batch_size)(np.random.default_rng(how.seed)):
            x, y = unit(batch.images), batch.labels
            network.eval()
            shown, _ = plain_inversion(original, network, x, y, how)
            network.train()
            optimizer.zero_grad()
            own, other = network(torch.cat([x, shown])).split(len(y))
            clean, adversarial = F.cross_entropy(own, y), F.cross_entropy(other, y)
            (clean + adversarial).backward()
            optimizer.step()
            logs.append(torch.stack([clean.detach(), adversarial.detach()]))
        seconds = wait(case.device) - started
        clean, adversarial = torch.stack(logs).mean(0).tolist()
        return seconds, {"clean": clean, "adversarial": adversarial}

    return run


# ----------------------------------------------------------------------------------- measure


def check_equal(case: Case) -> dict:
    """Compare what the loops compute, in fp32; raises RuntimeError where they differ."""
    (_, shown, _), our_flops = limits.count(our_steps(case, "fp32"))
    (_, others, values), plain_flops = limits.count(plain_steps(case))
    same = (shown - others).abs().lt(1e-6).float().mean().item()
    original, model = (frozen_copy(m) for m in models_of(case))
    part = image_data(case.rows, case.device).batch(np.arange(case.settings.batch_size))
    with torch.no_grad():
        ends = [
            plain_objective(original, model, unit(part.images), v, part.labels, case.settings)
            for v in (shown, others)
        ]
    apart = [abs(ends[0] / ends[1] - 1).item()]
    ours, plain = our_epoch(case, "", "fp32")[0]()[1], plain_epoch(case)()[1]
    apart += [abs(ours[name] / plain[name] - 1) for name in plain]
    if same < SAME_PIXELS or max(apart) > TOLERANCE:
        raise RuntimeError(
            f"the loops differ: {same:.4f} of the pixels agree, losses differ by {max(apart):.1e}; "
            f"accepted: {SAME_PIXELS}, {TOLERANCE:.0e}"
        )
    return {
        "steps": len(values), "pixels_that_agree": same,
        "largest_relative_difference": max(apart), "tolerance": TOLERANCE,
        "flops": {"plain": plain_flops, "minilib": our_flops, "minilib fp32": our_flops},
    }  # fmt: skip


def alternate(runs: dict[str, Callable], repeats: int) -> dict[str, dict]:
    """Time the loops in turns, after a warm-up of each."""
    return {name: spread(values) for name, values in in_turns(runs, repeats).items()}


def pgd_loops(case: Case) -> dict[str, Steps]:
    return {
        "plain": plain_steps(case),
        "minilib": our_steps(case, "auto"),
        "minilib fp32": our_steps(case, "fp32"),
    }


def with_compiler(case: Case, repeats: int) -> dict:
    """PGD steps with compiled networks beside those without: seconds to compile, ratios, pixels.

    A compiler may add numbers up in another order, and in bf16 that tips the signs of many slopes;
    so the images are compared in fp32.
    """
    found = {}
    for name, precision in (("minilib", "auto"), ("minilib fp32", "fp32")):
        loops = {"as it is": our_steps(case, precision)}
        loops["compiled"] = our_steps(case, precision, compiled)
        started = wait(case.device)
        shown = loops["compiled"]()[1]
        first = wait(case.device) - started
        same = (shown - loops["as it is"]()[1]).abs().lt(1e-6).float().mean().item()
        if precision == "fp32" and same < SAME_PIXELS:
            raise RuntimeError(f"compiled: {same:.4f} of the pixels agree; accepted: {SAME_PIXELS}")
        seconds = alternate(loops, repeats)
        found[name] = {
            "first_seconds": first,
            "pixels_that_agree": same,
            "seconds": seconds,
            "ratio": ratios(seconds["as it is"], seconds["compiled"]),
        }
    return found


def measure(case: Case, repeats: int, switches: bool = False) -> dict:
    equal = check_equal(case)
    short = replace(case, settings=replace(case.settings, steps=min(FEW, case.settings.steps)))
    ours, setup = our_epoch(case, "AB", "auto")
    epochs = {
        "bi-bau": ours,
        "adversarial training, plain": plain_epoch(case),
        "adversarial training, minilib": our_epoch(case, "", "auto")[0],
    }
    how = case.settings
    pgd, epoch = alternate(pgd_loops(case), repeats), alternate(epochs, repeats)
    few = alternate(pgd_loops(short), repeats)
    rates = limits.machine(case.device, quick=case.model == "cnn")
    made = with_compiler(case, repeats) if switches else {}
    return {
        "what": "BI-BAU: PGD steps and an epoch, plain loops against minilib",
        "equal_losses": equal,
        "case": {
            "model": case.model, "width": case.width, "images": len(case.rows),
            "shape": list(case.rows.shape), "batch_size": how.batch_size, "steps": how.steps,
            "device": case.device,
        },
        "hardware": hardware(case),
        "versions": versions(),
        "pgd_seconds": pgd,
        "images_per_second": {
            f"{settings.steps} steps, {name}": settings.batch_size * settings.steps / part["median"]
            for settings, found in ((short.settings, few), (how, pgd))
            for name, part in found.items()
        },
        "epoch_seconds": epoch,
        "setup_seconds": setup,
        "ratios": {
            "pgd, minilib to plain": ratios(pgd["plain"], pgd["minilib"]),
            f"pgd of {short.settings.steps} steps, minilib to plain": ratios(
                few["plain"], few["minilib"]
            ),
            "pgd, minilib fp32 to plain": ratios(pgd["plain"], pgd["minilib fp32"]),
            "epoch, bi-bau to plain adversarial training": ratios(
                epoch["bi-bau"], epoch["adversarial training, plain"]
            ),
            "epoch, bi-bau to minilib's adversarial training": ratios(
                epoch["bi-bau"], epoch["adversarial training, minilib"]
            ),
            "epoch, the paper's": PAPER,
            **{f"pgd, {name} to itself compiled": part["ratio"] for name, part in made.items()},
        },
        "compiled": made,
        "limits": {
            "machine": rates,
            "parts": limits.loops(
                rates, case.device, pgd, equal["flops"], f"{how.steps} PGD steps, {{}}"
            ),
        },
    }  # fmt: skip


def main(
    folder: Path,
    device: str,
    threads: int,
    repeats: int | None,
    quick: bool,
    switches: bool = False,
) -> Path:
    """Measure and write ``bi_bau-<device>.json``; ``switches``: compile, too."""
    torch.set_num_threads(threads)
    record = measure(make_case(device, threads, quick), turns(repeats, quick, device), switches)
    for name, value in record["ratios"].items():
        print(f"{name}: {value['median'] if isinstance(value, dict) else value:.2f}")
    return write(folder, f"bi_bau-{device}{'-quick' if quick else ''}", record)
