"""Pruning of channels: ANP, EP (and BNP), RNP, CLP. A channel is one of a batch norm's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..checks import above_zero
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, model_copy
from ..training.devices import autocast
from ..training.fitting import SgdSettings, seeded
from ..training.images import EVAL_IMAGES, ImageBatches, ImageData, image_data
from .common import accuracy_on, batch_norms, forever, prepared
from .pgd import pgd, signed

Scales = dict[str, Tensor]  # batch norm's name → (channels,)


def prune(model: nn.Module, channels: dict[str, Tensor], shift: bool = True) -> nn.Module:
    """Silence channels in place: scale and shift of their batch norm become 0.

    Args:
        channels: batch norm's name → (channels,) bool, True where pruned.
        shift: else the shift stays, and a pruned channel is a constant, not 0. The released codes
            of ANP, RNP, EP and BNP prune like that, CLP's does not.
    """
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, mask in channels.items():
            modules[name].weight[mask] = 0
            if shift:
                modules[name].bias[mask] = 0
    return model


def rescaled(model: nn.Module, weight: Scales, bias: Scales) -> Callable[[Tensor], Tensor]:
    """Return the model with batch norms' scales and shifts multiplied, without touching it."""
    modules = dict(model.named_modules())
    override = {f"{name}.weight": modules[name].weight * value for name, value in weight.items()}
    override |= {f"{name}.bias": modules[name].bias * value for name, value in bias.items()}
    return lambda x: functional_call(model, override, (x,))


# --------------------------------------------------------------------------------------- ANP


@dataclass(frozen=True)
class AnpSettings:
    """Adversarial neuron pruning.

    Attributes:
        steps: mini-batches. lr, momentum: of SGD on the masks.
        eps: largest relative perturbation of a scale or shift.
        alpha: weight of the unperturbed loss, 1 - alpha of the perturbed.
        threshold: channels whose mask ends below it are pruned.
        released: as the released code does it: the signed step from the random start is not held
            to eps, so a perturbation is up to twice as large, and pruning leaves the shifts.
    """

    steps: int = 2000
    lr: float = 0.2
    momentum: float = 0.9
    batch_size: int = 128
    eps: float = 0.4
    alpha: float = 0.2
    threshold: float = 0.2
    precision: str = "auto"
    seed: int = 0
    released: bool = False

    def __post_init__(self):
        above_zero(self, "steps", "lr", "batch_size", "eps")
        for name in ("alpha", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 … 1")


def adversarial_masks(model: ImageClassifier, data: ImageData, settings: AnpSettings) -> Scales:
    """Learn ANP's mask per channel, in 0 … 1.

    Each step perturbs scales and shifts by one signed step of size eps in the direction that hurts
    most, then moves the masks down ``alpha · CE(m) + (1 - alpha) · CE(m + δ, 1 + ξ)``. Batch norm
    uses the statistics of each batch, as in the released code: with frozen ones every perturbation
    shifts all later layers, and masks of channels that the clean task needs close too.

    Source: Wu and Wang (2021).
    """
    device, norms = data.labels.device, batch_norms(model, "anp")
    # All channels in one vector: a mask, and for the perturbation a row of scales, one of shifts.
    sizes = [len(norm.weight) for norm in norms.values()]
    mask = torch.ones(sum(sizes), device=device, requires_grad=True)
    optimizer = torch.optim.SGD([mask], settings.lr, settings.momentum)

    def named(vector: Tensor) -> Scales:
        return dict(zip(norms, vector.split(sizes), strict=True))

    def error(batch, scale: Tensor, shift: Tensor) -> Tensor:
        with autocast(device, settings.precision, scaled=False):
            logits = rescaled(model, named(scale), named(shift))(batch.images)
        return F.cross_entropy(logits.float(), batch.labels)

    def held(noise: Tensor) -> Tensor:
        return noise if settings.released else noise.clamp(-settings.eps, settings.eps)

    model = model_copy(model).train().requires_grad_(False)
    with seeded(settings.seed, device) as rng:
        batches = forever(data, settings.batch_size, rng)
        for _ in range(settings.steps):
            batch = next(batches)
            noise = torch.empty(2, len(mask), device=device).uniform_(-settings.eps, settings.eps)
            noise = pgd(
                lambda xi, batch=batch: -error(batch, mask.detach() + xi[0], 1 + xi[1]),
                noise, 1, signed(settings.eps), held,
            )  # fmt: skip
            plain = error(batch, mask, torch.ones_like(mask))
            robust = error(batch, mask + noise[0], 1 + noise[1])
            value = settings.alpha * plain + (1 - settings.alpha) * robust
            (mask.grad,) = torch.autograd.grad(value, mask)
            optimizer.step()
            mask.data.clamp_(0, 1)
    return named(mask.detach())


def adversarial_pruning(
    model: ImageClassifier, clean: ImageDataset, settings: AnpSettings
) -> ImageClassifier:
    """ANP: prune the channels that an adversary would amplify. Source: Wu and Wang (2021)."""
    model, data = prepared(model, clean)
    masks = adversarial_masks(model, data, settings)
    closed = {name: mask < settings.threshold for name, mask in masks.items()}
    return prune(model, closed, shift=not settings.released)


# ---------------------------------------------------------------------------------- EP and BNP


@dataclass(frozen=True)
class EpSettings:
    """Entropy-based pruning.

    Attributes:
        mixed: the training set that holds the poison. Without it the same paper's second method,
            BNP, is used, which needs clean images alone.
        deviations: channels this many standard deviations out within their layer are pruned. In a
            layer of ten channels or fewer none can be three out.
        released: as the released code does it: a map stands for a neuron by its largest value
            before the norm, entropy is that of a histogram, over 500 random images of the mixture,
            and pruning leaves the shifts.
        seed: of which 500 those are.
    """

    mixed: ImageDataset | None = None
    deviations: float = 3.0
    released: bool = False
    seed: int = 0

    def __post_init__(self):
        above_zero(self, "deviations")


def spacing_entropy(values: Tensor) -> Tensor:
    """Differential entropy in nats of each column of (N, k), from spacings of order √N.

    Source: Vasicek (1976).
    """
    count = len(values)
    gap = max(1, round(count**0.5))
    rank = torch.arange(count, device=values.device)
    ordered = values.sort(0).values
    high = ordered[(rank + gap).clamp(max=count - 1)]
    low = ordered[(rank - gap).clamp(min=0)]
    return ((high - low).clamp(min=1e-6) * count / (2 * gap)).log().mean(0)


def histogram_entropy(values: Tensor, width: float = 0.01) -> Tensor:
    """Entropy in nats of each column of (N, k), over bars of one width from the least value on.

    Bars are open on both sides, and what lies beyond the last whole one is lost, as in the
    released code of Zheng et al. (2022b).
    """
    low = values.min()
    entropy = torch.zeros_like(values[0])
    for bar in range(int((values.max() - low) / width)):
        inside = (values > low + bar * width) & (values < low + (bar + 1) * width)
        share = inside.to(values.dtype).mean(0)
        entropy -= torch.special.xlogy(share, share)
    return entropy


def norm_outputs(
    model: nn.Module, data: ImageData, method: str, largest: bool = False
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """What each batch norm sees and gives on these images.

    Returns:
        outputs: name → (N, channels), the mean of each output map, or with ``largest`` the largest
        value of each input map; and inputs: name → mean and variance (channels,) over rows and
        places of what goes in.
    """
    norms = batch_norms(model, method)
    outputs = {name: [] for name in norms}
    sums = {name: 0.0 for name in norms}

    def hook(name: str):
        def keep(module, inputs, output):
            x = inputs[0].detach().float()
            kept = x.amax((2, 3)) if largest else output.detach().float().mean((2, 3))
            outputs[name].append(kept)
            sums[name] = sums[name] + torch.stack([x.mean((2, 3)), x.square().mean((2, 3))]).sum(1)

        return keep

    handles = [norm.register_forward_hook(hook(name)) for name, norm in norms.items()]
    with torch.inference_mode():
        for images in data.images.split(EVAL_IMAGES):
            model(images)
    for handle in handles:
        handle.remove()
    moments = {name: value / len(data) for name, value in sums.items()}
    inputs = {name: (mean, square - mean**2) for name, (mean, square) in moments.items()}
    return {name: torch.cat(parts) for name, parts in outputs.items()}, inputs


def entropy_pruning(
    model: ImageClassifier, clean: ImageDataset, settings: EpSettings
) -> ImageClassifier:
    """EP: prune channels whose standardised response to the poisoned set has too little entropy.

    A channel that reacts to the trigger is bimodal on a mixture of clean and triggered images, and
    two narrow heaps have less entropy than one Gaussian of the same variance. BNP, in its place
    where no mixture is given, prunes channels whose clean statistics are far (KL between Gaussians)
    from those that batch norm gathered on the poisoned training set.

    Source: Zheng et al. (2022b); a map stands for a neuron by its mean.
    """
    model, data = prepared(model, clean)
    mixed, released = settings.mixed, settings.released
    if mixed is not None:
        few = np.random.default_rng(settings.seed).permutation(len(mixed))[:EVAL_IMAGES]
        data = image_data(mixed.select(few) if released else mixed, data.labels.device)
    outputs, inputs = norm_outputs(model, data, "ep", largest=released)
    norms, pruned_channels = batch_norms(model, "ep"), {}
    for name, norm in norms.items():
        if mixed is not None:
            x = outputs[name]
            standardised = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
            score = -(histogram_entropy if released else spacing_entropy)(standardised)
            # A constant channel has no entropy to speak of, and nothing to say of a trigger.
            score[x.std(0) < 1e-6] = -torch.inf
        else:
            mean, variance = inputs[name][0], inputs[name][1].clamp(min=1e-8)
            running_variance = norm.running_var.clamp(min=1e-8)
            score = 0.5 * (
                (variance + (mean - norm.running_mean) ** 2) / running_variance
                - 1
                - (variance / running_variance).log()
            )
        pruned_channels[name] = _far_out(score, settings.deviations)
    return prune(model, pruned_channels, shift=not released)


def _far_out(score: Tensor, deviations: float) -> Tensor:
    """Channels whose score lies more than ``deviations`` standard deviations above the mean."""
    finite_scores = score[score.isfinite()]
    if len(finite_scores) < 2:
        return torch.zeros_like(score, dtype=torch.bool)
    return score > finite_scores.mean() + deviations * finite_scores.std(correction=0)


# --------------------------------------------------------------------------------------- RNP


@dataclass(frozen=True)
class RnpSettings(SgdSettings):
    """Reconstructive neuron pruning.

    Attributes:
        epochs: at most, of unlearning. lr, momentum, …: of unlearning.
        stop: unlearning ends when accuracy on the clean images (0 … 1) is at or below it.
        clip: largest norm of unlearning's gradient.
        recover_epochs, recover_lr: of SGD on the masks.
        threshold: channels whose mask ends below it are pruned. The authors choose it per attack by
            what it does to ASR, which a defender cannot; 0.2 is ours.
        released: as the released code unlearns: batch norm has the statistics of each
            batch, ``stop`` is compared with the accuracy over the epoch's own batches, the rate
            falls tenfold at the tenth epoch, and nothing is clipped.
        shifts: whether a pruned channel keeps its shift, as in the released code.

    ``RELEASED_RNP`` has what else differs there: it stops at 0.2, and a fifth of the recovery's
    loss is what moves the masks, which is a fifth of the rate.
    """

    epochs: int = 20
    stop: float = 0.1
    clip: float = 20.0
    recover_epochs: int = 20
    recover_lr: float = 0.2
    threshold: float = 0.2
    released: bool = False
    shifts: bool = False

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "clip", "recover_epochs", "recover_lr")
        for name in ("stop", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 … 1")


RELEASED_RNP = {"released": True, "stop": 0.2, "recover_lr": 0.04, "shifts": True}
RELEASED_FALL = 10  # epochs of unlearning until the released code's rate falls tenfold


def unlearn_clean(model: ImageClassifier, data: ImageData, settings: RnpSettings) -> None:
    """Ascend the clean loss in place until accuracy falls to ``stop``; batch norm stays frozen.

    Source: Li et al. (2023).
    """
    device, released = data.labels.device, settings.released
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )
    with seeded(settings.seed, device) as rng:
        for epoch in range(settings.epochs):
            model.train(released)
            optimizer.param_groups[0]["lr"] = settings.lr / (
                10 if released and epoch >= RELEASED_FALL else 1
            )
            correct = 0
            for batch in ImageBatches(data, settings.batch_size)(rng):
                with autocast(device, settings.precision, scaled=False):
                    logits = model(batch.images)
                (-F.cross_entropy(logits.float(), batch.labels)).backward()
                correct += (logits.argmax(1) == batch.labels).sum()
                if not released:
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            accuracy = correct.item() / len(data) if released else accuracy_on(model, data)
            if accuracy <= settings.stop:
                return


def recovery_masks(model: ImageClassifier, data: ImageData, settings: RnpSettings) -> Scales:
    """Learn which channels of an unlearned model bring clean accuracy back: masks in 0 … 1.

    Batch norm uses the statistics of each batch, as in the released code; ``model`` is used up.

    Source: Li et al. (2023).
    """
    device, norms = data.labels.device, batch_norms(model, "rnp")
    model.train().requires_grad_(False)
    masks = {
        name: torch.ones_like(norm.weight).requires_grad_(True) for name, norm in norms.items()
    }
    ones = {name: torch.ones_like(norm.weight) for name, norm in norms.items()}
    optimizer = torch.optim.SGD(masks.values(), settings.recover_lr, settings.momentum)
    with seeded(settings.seed, device) as rng:
        for _ in range(settings.recover_epochs):
            for batch in ImageBatches(data, settings.batch_size)(rng):
                with autocast(device, settings.precision, scaled=False):
                    logits = rescaled(model, masks, ones)(batch.images)
                F.cross_entropy(logits.float(), batch.labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                for mask in masks.values():
                    mask.data.clamp_(0, 1)
    return {name: mask.detach() for name, mask in masks.items()}


def reconstructive_pruning(
    model: ImageClassifier, clean: ImageDataset, settings: RnpSettings
) -> ImageClassifier:
    """RNP: unlearn the clean task, recover it by closing channels, prune the closed ones.

    Unlearning clean images leaves the backdoor's channels in charge; masks that recover the clean
    task close them. Source: Li et al. (2023).
    """
    model, data = prepared(model, clean)
    batch_norms(model, "rnp")
    unlearned = model_copy(model)
    unlearn_clean(unlearned, data, settings)
    masks = recovery_masks(unlearned, data, settings)
    closed = {name: mask < settings.threshold for name, mask in masks.items()}
    return prune(model, closed, shift=not settings.shifts)


# --------------------------------------------------------------------------------------- CLP


@dataclass(frozen=True)
class ClpSettings:
    """Channel-Lipschitz pruning: ``deviations`` above the layer's mean at which a channel goes."""

    deviations: float = 3.0

    def __post_init__(self):
        above_zero(self, "deviations")


def channel_lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Upper bound (channels,) of how strongly each channel can react.

    Largest singular value of the channel's kernel as a matrix (inputs × places), times the batch
    norm's |γ| / σ. Source: Zheng et al. (2022a).
    """
    kernel = convolution.weight.detach().float().flatten(2)  # (outputs, inputs, places)
    gain = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    return torch.linalg.matrix_norm(kernel, 2) * gain


def judged_with(model: nn.Module, image: Tensor) -> dict[str, nn.Conv2d]:
    """Batch norm's name → the convolution that ran last before it, where their channels agree.

    Where norms come ahead of convolutions, the order in which a block defines its layers is not
    that in which they run; and a norm of a sum is judged with the last convolution in it.

    Args:
        image: (1, C, H, W), put through the model once, in eval mode.
    """
    last, pairs = [], {}

    def ran(name: str):
        def note(module, inputs, output):
            if isinstance(module, nn.Conv2d):
                last[:] = [module]
            elif last and last[0].out_channels == module.num_features:
                pairs[name] = last[0]

        return note

    kinds = nn.Conv2d, nn.BatchNorm2d
    handles = [
        module.register_forward_hook(ran(name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    with torch.inference_mode():
        model(image)
    for handle in handles:
        handle.remove()
    return pairs


def lipschitz_pruning(
    model: ImageClassifier, clean: ImageDataset, settings: ClpSettings
) -> ImageClassifier:
    """CLP: prune channels that can react far more strongly than the others of their layer.

    Of the images it needs the shape alone. Source: Zheng et al. (2022a).
    """
    model, data = prepared(model, clean)
    norms, pruned_channels = batch_norms(model, "clp"), {}
    for name, convolution in judged_with(model, data.images[:1]).items():
        if name in norms:
            bound = channel_lipschitz(convolution, norms[name])
            pruned_channels[name] = _far_out(bound, settings.deviations)
    return prune(model, pruned_channels)
