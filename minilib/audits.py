"""What a purified model is judged by: accuracy, attack success, re-activation, inner likeness.

CA (``acc``): accuracy on clean test images. ASR: share of triggered non-target test images put into
the target class. PACC: accuracy on triggered images of all classes. R-ASR: ASR after the retuning
attack, Q-ASR: ASR under the query-based one (Min et al., 2024). TAC, CKA and BEC look inside (Zheng
et al., 2022a; Kornblith et al., 2019; Zhu et al., 2024). All rates in percent.

``retune``, ``channel_changes``, ``linear_cka`` and ``backdoor_existence`` know nothing of images:
they take batches of whatever arguments the models take, so that text victims can be audited too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import metrics
from .descent import SgdSettings, descend, seeded
from .images import ImageDataset
from .vision import (
    EVAL_IMAGES,
    ImageBatches,
    image_cross_entropy,
    image_data,
    model_copy,
    pixels,
    predict_images,
)

# ------------------------------------------------------------------------------ CA, ASR, PACC


def audit_images(
    model: nn.Module, test: ImageDataset, triggered: ImageDataset, target: int
) -> dict:
    """Measure CA, ASR and PACC.

    Args:
        test: clean test images. triggered: triggered images of all classes with their own labels.
        target: the attacker's class.

    Returns:
        ``acc``, ``asr``, ``pacc`` in percent and ``pacc_by_class``, a list over classes, with None
        for a class without rows.

    Raises:
        ValueError: a target outside the classes, or no triggered row of another class.
    """
    if not 0 <= target < test.num_classes:
        raise ValueError(f"target is {target!r}; accepted: 0 … {test.num_classes - 1}")
    clean = predict_images(model, test).argmax(1).numpy()
    fooled = predict_images(model, triggered).argmax(1).numpy()
    return {
        "acc": metrics.accuracy(clean, test.labels),
        "asr": metrics.label_flip_rate(fooled, triggered.labels, target),
        "pacc": metrics.pacc(fooled, triggered.labels),
        "pacc_by_class": by_class(fooled, triggered.labels, test.num_classes),
    }


def by_class(pred: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """Accuracy of each class in percent; None where a class has no rows."""
    table = metrics.confusion(pred, labels, num_classes)
    rows = table.sum(1)
    return [float(100 * table[k, k] / rows[k]) if rows[k] else None for k in range(num_classes)]


# -------------------------------------------------------------------------- retuning attack (RA)


@dataclass(frozen=True)
class RetuneSettings(SgdSettings):
    """The retuning attack.

    Attributes:
        poisons: triggered rows that the attacker slips in (the BI-BAU paper: 1, 2 or 5).
        share: clean rows tuned on beside them, a share of the training set. The paper's text says
            0.02 %, ten rows of CIFAR-10; the attack's authors use about 2 %. 2 % is the default.
    """

    epochs: int = 5
    weight_decay: float = 0.0
    poisons: int = 5
    share: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        if not self.poisons >= 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"poisons is {self.poisons!r}, share {self.share!r}; accepted: ≥ 1, in (0, 1]"
            )


def retuning_rows(
    dataset: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    target: int,
    settings: RetuneSettings,
) -> ImageDataset:
    """Draw RA's tuning set: a share of clean rows and a few triggered ones labelled ``target``.

    Args:
        dataset: clean training rows. trigger: puts the trigger into every row of a set.

    Raises:
        ValueError: fewer rows of other classes than poisons wanted.
    """
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(dataset))
    clean = dataset.select(order[: max(1, round(settings.share * len(dataset)))])
    rest = order[len(clean) :]
    others = rest[dataset.labels[rest] != target][: settings.poisons]
    if len(others) < settings.poisons:
        raise ValueError(f"{settings.poisons} poisons wanted, {len(others)} rows can carry them")
    poisons = trigger(dataset.select(others))
    return replace(
        clean,
        images=np.concatenate([clean.images, poisons.images]),
        labels=np.concatenate([clean.labels, np.full(len(others), target)]),
    )


def retune(
    model: nn.Module,
    data,
    settings: RetuneSettings | None = None,
    loss: Callable = image_cross_entropy,
) -> nn.Module:
    """Fine-tune a copy of ``model`` on data with a few poisons in it: the retuning attack.

    Args:
        data: ``vision.ImageData`` or ``train.Encoded``, on the model's device.
        loss: the loss that belongs to it (``train.cross_entropy`` for texts).

    Source: Min et al. (2024); SGD 0.01, momentum 0.9, batch 128, 5 epochs.
    """
    settings = settings or RetuneSettings()
    tuned = model_copy(model).requires_grad_(True)
    descend(tuned, ImageBatches(data, settings.batch_size), loss, settings)
    return tuned


# ----------------------------------------------------------------------- query-based attack (QRA)


def retuned_asr(
    purified: nn.Module,
    clean: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    triggered: ImageDataset,
    target: int,
    settings: RetuneSettings,
) -> float:
    """Attack a purified model by RA alone; arguments as for ``reactivation``. R-ASR in percent."""
    rows = retuning_rows(clean, trigger, target, settings)
    again = retune(purified, image_data(rows, next(purified.parameters()).device), settings)
    pred = predict_images(again, triggered).argmax(1).numpy()
    return metrics.label_flip_rate(pred, triggered.labels, target)


@dataclass(frozen=True)
class QuerySettings(SgdSettings):
    """The query-based re-activation attack.

    Attributes:
        rows: clean images, and as many triggered ones, that the generator is trained on.
        bound: largest change of a pixel, in units of 255.
        balance: weight of the term that imitates the retuned model.
        hidden: units of each hidden layer.
    """

    epochs: int = 50
    lr: float = 0.1
    weight_decay: float = 0.0
    rows: int = 500
    bound: float = 16 / 255
    balance: float = 0.2
    hidden: int = 1024


class QueryGenerator(nn.Module):
    """MLP from an image to its perturbation: float (B, C, H, W) in 0 … 1 → the same, in ±bound."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, bound: float):
        super().__init__()
        size, self.bound = int(np.prod(shape)), bound
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, size),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.bound * self.layers(images.contiguous()).reshape(images.shape)


def query_generator(
    purified: nn.Module,
    retuned: nn.Module,
    clean_model: nn.Module,
    clean: ImageDataset,
    triggered: ImageDataset,
    settings: QuerySettings | None = None,
) -> QueryGenerator:
    """Train QRA's generator of perturbations against one purified model.

    Minimises ``balance · KL(retuned(x) ‖ purified(x + δ)) + CE(clean(x + δ), y)`` over clean and
    triggered images with their true labels: the purified model shall do what the retuned one does,
    a clean one shall not. ``retuned(x)`` is constant and computed once.

    Args:
        purified, retuned, clean_model: the model attacked, its retuned version, one never poisoned.
        clean, triggered: images with true labels; the first ``rows`` of a random order are used.

    Source: Min et al. (2024); our reading of which term 0.2 weighs.
    """
    settings = settings or QuerySettings()
    device = next(purified.parameters()).device
    with seeded(settings.seed, device) as rng:
        parts = [
            part.select(rng.permutation(len(part))[: settings.rows]) for part in (clean, triggered)
        ]
        generator = QueryGenerator(clean.shape, settings.hidden, settings.bound).to(device)
    both = replace(
        parts[0],
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
    data = image_data(both, device)
    wanted = predict_images(retuned, data.images).softmax(1).to(device)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = batch.images.float() / 255
        shown = (x + model(x)).clamp(0, 1)
        goal = wanted[torch.as_tensor(batch.rows, device=device)]
        imitate = F.kl_div(purified(shown).float().log_softmax(1), goal, reduction="batchmean")
        keep = F.cross_entropy(clean_model(shown).float(), batch.labels)
        return settings.balance * imitate + keep, {"imitate": imitate.detach()}

    with _frozen(purified, clean_model):
        descend(generator, ImageBatches(data, settings.batch_size), loss, settings)
    return generator


@contextmanager
def _frozen(*models: nn.Module):
    """Put models into eval mode, without gradients towards their weights, and back."""
    before = [(model.training, [p.requires_grad for p in model.parameters()]) for model in models]
    for model in models:
        model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for model, (training, flags) in zip(models, before, strict=True):
            model.train(training)
            for parameter, flag in zip(model.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


def under_query(generator: QueryGenerator, images: Tensor) -> Tensor:
    """Add the generator's perturbation to uint8 images; float in 0 … 1, in chunks."""
    with torch.inference_mode():
        found = []
        for part in images.split(EVAL_IMAGES):
            x = part.float() / 255
            found.append((x + generator(x)).clamp(0, 1))
    return torch.cat(found)


def reactivation(
    purified: nn.Module,
    clean_model: nn.Module,
    clean: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    triggered: ImageDataset,
    target: int,
    ra: RetuneSettings | None = None,
    qra: QuerySettings | None = None,
) -> dict:
    """Attack a purified model by RA and QRA.

    Args:
        clean_model: one that was never poisoned; QRA spares it.
        clean: clean training rows that the attacker draws from.
        trigger: puts the trigger into every row of a set, e.g.
            ``lambda part: trigger_images(part, trigger)``.
        triggered: triggered test images of all classes, true labels.

    Returns:
        ``r_asr``, ``q_asr`` in percent.
    """
    ra, qra = ra or RetuneSettings(), qra or QuerySettings()
    device = next(purified.parameters()).device
    rows = retuning_rows(clean, trigger, target, ra)
    retuned = retune(purified, image_data(rows, device), ra)
    order = np.random.default_rng(qra.seed + 1).permutation(len(clean))[: qra.rows]
    part = clean.select(order)
    generator = query_generator(purified, retuned, clean_model, part, trigger(part), qra)
    shown = under_query(generator, pixels(triggered.images, device))
    pred = {
        "r_asr": predict_images(retuned, triggered).argmax(1).numpy(),
        "q_asr": predict_images(purified, shown).argmax(1).numpy(),
    }
    labels = triggered.labels
    return {key: metrics.label_flip_rate(p, labels, target) for key, p in pred.items()}


# ------------------------------------------------------------------------- inside: TAC, CKA, BEC


def last_convolutions(model: nn.Module, count: int = 10) -> tuple[str, ...]:
    """Names of the last ``count`` convolutions in the order of definition (BI-BAU paper, D.4).

    Raises:
        ValueError: a model without convolutions; name its layers yourself.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise ValueError("the model has no convolution; give the names of its layers")
    return tuple(names[-count:])


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[str]):
    """Record the output of each layer, as (B, channels, places) float32, at every forward."""
    modules, found = dict(model.named_modules()), {}
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(f"the model has no layer {', '.join(unknown)}")

    def hook(name: str):
        def keep(module, inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            if value.ndim == 3:  # (B, tokens, d): the last axis holds the channels
                value = value.transpose(1, 2)
            found[name] = value.detach().float().flatten(2) if value.ndim > 2 else value[..., None]

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield found
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


Inputs = Iterable[tuple]


def image_inputs(dataset: ImageDataset, device: torch.device | str = "cpu") -> list[tuple[Tensor]]:
    """Cut an image set into the batches of arguments that the functions below take."""
    return [(part,) for part in pixels(dataset.images, device).split(EVAL_IMAGES)]


def channel_changes(
    model: nn.Module, clean: Inputs, triggered: Inputs, layers: Sequence[str]
) -> dict[str, Tensor]:
    """TAC: how far the trigger moves each channel, the mean L2 norm of its map's change.

    Args:
        clean, triggered: batches of positional arguments of ``model``, row for row the same inputs
            without and with the trigger. layers: names from ``model.named_modules()``.

    Returns: layer → (channels,) float32 on the CPU. Source: Zheng et al. (2022a).
    """
    total, rows = {name: 0.0 for name in layers}, 0
    with _recorded(model, layers) as found:
        for before, after in zip(clean, triggered, strict=True):
            model(*before)
            first = dict(found)
            model(*after)
            for name in layers:
                change = (found[name] - first[name]).norm(dim=2)  # (B, channels)
                total[name] = total[name] + change.sum(0)
            rows += len(change)
    return {name: (value / rows).cpu() for name, value in total.items()}


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of features, (N, p) and (N, q), of the same N rows; 0 … 1.

    Invariant to rotation and scale of either. Source: Kornblith et al. (2019), from the
    N × N Gram matrices, for there are more features than rows.

    Raises:
        ValueError: another shape, fewer than two rows, or features that do not vary.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"features {tuple(x.shape)} and {tuple(y.shape)}; accepted: (N, p) and (N, q), N ≥ 2"
        )
    grams = []
    for part in (x.double(), y.double()):
        part = part - part.mean(0)
        grams.append(part @ part.T)
    norms = [gram.norm() for gram in grams]
    if not all(norm > 0 for norm in norms):
        raise ValueError("features are the same in every row; CKA is undefined")
    return float((grams[0] * grams[1]).sum() / (norms[0] * norms[1]))


def _channel_features(
    model: nn.Module, inputs: Inputs, channels: dict[str, Tensor]
) -> dict[str, Tensor]:
    parts = {name: [] for name in channels}
    with _recorded(model, tuple(channels)) as found:
        for args in inputs:
            model(*args)
            for name, index in channels.items():
                parts[name].append(found[name][:, index.to(found[name].device)].flatten(1))
    return {name: torch.cat(value) for name, value in parts.items()}


def backdoor_existence(
    backdoored: nn.Module,
    clean_model: nn.Module,
    purified: nn.Module,
    clean: Inputs,
    triggered: Inputs,
    layers: Sequence[str] | None = None,
    top: float = 0.1,
    steepness: float = 5.0,
    centre: float = 0.5,
) -> dict:
    """BEC: how much of the backdoored model's inner response to the trigger a purified one keeps.

    Per layer: the ``top`` share of channels by TAC in the backdoored model; CKA of those channels'
    maps on triggered inputs, between the backdoored model and the purified, and the clean one. The
    coefficient is the mean over layers of ``(s_purified - s_clean) / (1 - s_clean)``: 1 for the
    backdoored model itself, 0 for the clean one.

    Args:
        clean, triggered: lists of batches of arguments, row for row the same inputs; the three
            models share their architecture.
        layers: default: the last 10 convolutions (section 5.4 and D.4 of the BI-BAU paper).
        steepness, centre: of the sigmoid that Eq. (53) puts over it. top and these two are ours:
            the paper's values are lost.

    Returns:
        ``bec`` (after the sigmoid, 0 … 1), ``raw`` and ``by_layer`` (before it).

    Raises:
        ValueError: no layer tells the clean model from the backdoored one.

    Source: Zhu et al. (2024); Eq. (51) to (53), BI-BAU.
    """
    layers = tuple(layers or last_convolutions(backdoored))
    clean, triggered = list(clean), list(triggered)
    changes = channel_changes(backdoored, clean, triggered, layers)
    channels = {
        name: change.topk(max(1, round(top * len(change)))).indices
        for name, change in changes.items()
    }
    features = [
        _channel_features(model, triggered, channels)
        for model in (backdoored, clean_model, purified)
    ]
    rates = {}
    for name in layers:
        ours, base, other = (part[name] for part in features)
        low = linear_cka(base, ours)
        if 1 - low > 1e-6:
            rates[name] = (linear_cka(other, ours) - low) / (1 - low)
    if not rates:
        raise ValueError("the clean and the backdoored model agree in all layers: no BEC")
    raw = float(np.mean(list(rates.values())))
    bec = float(1 / (1 + np.exp(-steepness * (raw - centre))))
    return {"bec": bec, "raw": raw, "by_layer": rates}
