"""Whether a backdoor is gone or asleep: images' rates, the retuning and the query attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.images import ImageScenario
from ..checks import not_negative
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, model_copy, pixels
from ..models.loading import frozen
from ..training.fitting import SgdSettings, fit, seeded
from ..training.images import (
    EVAL_IMAGES,
    ImageBatches,
    image_cross_entropy,
    image_data,
    predict_images,
)
from . import classification, internals

# ------------------------------------------------------------------------------ CA, ASR, PACC


def image_rates(model: nn.Module, test: ImageDataset, triggered: ImageDataset, target: int) -> dict:
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
    clean_pred = predict_images(model, test).argmax(1).numpy()
    triggered_pred = predict_images(model, triggered).argmax(1).numpy()
    return {
        "acc": classification.accuracy(clean_pred, test.labels),
        "asr": classification.label_flip_rate(triggered_pred, triggered.labels, target),
        "pacc": classification.pacc(triggered_pred, triggered.labels),
        "pacc_by_class": by_class(triggered_pred, triggered.labels, test.num_classes),
    }


def by_class(pred: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """Accuracy of each class in percent; None where a class has no rows."""
    table = classification.confusion(pred, labels, num_classes)
    rows = table.sum(1)
    return [float(100 * table[k, k] / rows[k]) if rows[k] else None for k in range(num_classes)]


# -------------------------------------------------------------------------- retuning attack (RA)


@dataclass(frozen=True)
class RetuneSettings(SgdSettings):
    """The retuning attack.

    Attributes:
        epochs: of tuning, and more of them until there are ``steps``. The authors' five epochs of
            1,000 rows in batches of 128 are forty steps; of a smaller set they are fewer.
        poisons: triggered rows that the attacker slips in (the BI-BAU paper: 1, 2 or 5).
        share: rows tuned on, a share of the training set. The paper's text says 0.02 %, which would
            be ten rows of CIFAR-10; the code that it refers to has a ratio of 0.02.
        replacing: the poisons take the place of clean rows, as in the authors' code; else they are
            added to them.
    """

    epochs: int = 5
    weight_decay: float = 0.0
    poisons: int = 5
    share: float = 0.02
    steps: int = 40
    replacing: bool = True

    def __post_init__(self):
        super().__post_init__()
        not_negative(self, "steps")
        if not self.poisons >= 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"poisons is {self.poisons!r}, share {self.share!r}; accepted: ≥ 1, in (0, 1]"
            )


# What many published trials have: five epochs however few their steps are, poisons added.
SHORT_RETUNING = {"steps": 0, "replacing": False}


def retuning_rows(
    dataset: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    target: int,
    settings: RetuneSettings,
) -> ImageDataset:
    """Draw RA's tuning set: a share of the rows, a few of them triggered and labelled ``target``.

    Args:
        dataset: clean training rows. trigger: puts the trigger into every row of a set.

    Raises:
        ValueError: fewer rows of other classes than poisons wanted.
    """
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(dataset))
    clean_rows, others = np.split(order, [max(1, round(settings.share * len(dataset)))])
    candidates = clean_rows if settings.replacing else others
    poison_rows = candidates[dataset.labels[candidates] != target][: settings.poisons]
    if len(poison_rows) < settings.poisons:
        raise ValueError(
            f"{settings.poisons} poisons wanted, {len(poison_rows)} rows can carry them"
        )
    if settings.replacing:
        clean_rows = clean_rows[~np.isin(clean_rows, poison_rows)]
    clean, poisons = dataset.select(clean_rows), trigger(dataset.select(poison_rows))
    return replace(
        clean,
        images=np.concatenate([clean.images, poisons.images]),
        labels=np.concatenate([clean.labels, np.full(len(poison_rows), target)]),
    )


def retune(
    model: nn.Module,
    data,
    settings: RetuneSettings | None = None,
    loss: Callable = image_cross_entropy,
) -> nn.Module:
    """Fine-tune a copy of ``model`` on data with a few poisons in it: the retuning attack.

    Args:
        data: ``training.images.ImageData`` or ``training.text.Encoded``, on the model's device.
        loss: the loss that belongs to it (``training.text.cross_entropy`` for texts).

    Source: Min et al. (2024); SGD 0.01, momentum 0.9, batch 128, 5 epochs of 1,000 rows.
    """
    settings = settings or RetuneSettings()
    tuned, batches = model_copy(model).requires_grad_(True), ImageBatches(data, settings.batch_size)
    epochs = max(settings.epochs, -(-settings.steps // len(batches)))
    fit(tuned, batches, loss, replace(settings, epochs=epochs))
    return tuned


def retuning_steps(rows: int, settings: RetuneSettings) -> int:
    """Steps that ``retune`` makes on so many rows."""
    an_epoch = -(-rows // settings.batch_size)
    return an_epoch * max(settings.epochs, -(-settings.steps // an_epoch))


# ----------------------------------------------------------------------- query-based attack (QRA)


def retuned_asr(
    unlearned: nn.Module,
    clean: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    triggered: ImageDataset,
    target: int,
    settings: RetuneSettings,
) -> float:
    """Attack a model by RA alone; arguments as for ``reactivation``. Returns R-ASR in percent."""
    rows = retuning_rows(clean, trigger, target, settings)
    retuned = retune(unlearned, image_data(rows, next(unlearned.parameters()).device), settings)
    pred = predict_images(retuned, triggered).argmax(1).numpy()
    return classification.label_flip_rate(pred, triggered.labels, target)


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
    unlearned: nn.Module,
    retuned: nn.Module,
    clean_model: nn.Module,
    clean: ImageDataset,
    triggered: ImageDataset,
    settings: QuerySettings | None = None,
) -> QueryGenerator:
    """Train QRA's generator of perturbations against one unlearned model.

    Minimises ``balance · KL(retuned(x) ‖ unlearned(x + δ)) + CE(clean(x + δ), y)`` over clean and
    triggered images with their true labels: the unlearned model shall do what the retuned one does,
    a clean one shall not. ``retuned(x)`` is constant and computed once.

    Args:
        unlearned, retuned, clean_model: what is attacked, retuned, and one never poisoned.
        clean, triggered: images with true labels; the first ``rows`` of a random order are used.

    Source: Min et al. (2024); our reading of which term 0.2 weighs.
    """
    settings = settings or QuerySettings()
    device = next(unlearned.parameters()).device
    with seeded(settings.seed, device) as rng:
        samples = [
            dataset.select(rng.permutation(len(dataset))[: settings.rows])
            for dataset in (clean, triggered)
        ]
        generator = QueryGenerator(clean.shape, settings.hidden, settings.bound).to(device)
    training_set = replace(
        samples[0],
        images=np.concatenate([sample.images for sample in samples]),
        labels=np.concatenate([sample.labels for sample in samples]),
    )
    data = image_data(training_set, device)
    retuned_probs = predict_images(retuned, data.images).softmax(1).to(device)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = batch.images.float() / 255
        perturbed_images = (x + model(x)).clamp(0, 1)
        goal = retuned_probs[torch.as_tensor(batch.rows, device=device)]
        imitation_loss = F.kl_div(
            unlearned(perturbed_images).float().log_softmax(1), goal, reduction="batchmean"
        )
        clean_loss = F.cross_entropy(clean_model(perturbed_images).float(), batch.labels)
        return settings.balance * imitation_loss + clean_loss, {"imitate": imitation_loss.detach()}

    with frozen(unlearned, clean_model):
        fit(generator, ImageBatches(data, settings.batch_size), loss, settings)
    return generator


def under_query(generator: QueryGenerator, images: Tensor) -> Tensor:
    """Add the generator's perturbation to uint8 images; float in 0 … 1, in chunks."""
    with torch.inference_mode():
        perturbed_images = []
        for batch in images.split(EVAL_IMAGES):
            x = batch.float() / 255
            perturbed_images.append((x + generator(x)).clamp(0, 1))
    return torch.cat(perturbed_images)


def reactivation(
    unlearned: nn.Module,
    clean_model: nn.Module,
    clean: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    triggered: ImageDataset,
    target: int,
    ra: RetuneSettings | None = None,
    qra: QuerySettings | None = None,
) -> dict:
    """Attack an unlearned model by RA and QRA.

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
    device = next(unlearned.parameters()).device
    rows = retuning_rows(clean, trigger, target, ra)
    retuned = retune(unlearned, image_data(rows, device), ra)
    order = np.random.default_rng(qra.seed + 1).permutation(len(clean))[: qra.rows]
    attacker_rows = clean.select(order)
    generator = query_generator(
        unlearned, retuned, clean_model, attacker_rows, trigger(attacker_rows), qra
    )
    perturbed_images = under_query(generator, pixels(triggered.images, device))
    pred = {
        "r_asr": predict_images(retuned, triggered).argmax(1).numpy(),
        "q_asr": predict_images(unlearned, perturbed_images).argmax(1).numpy(),
    }
    labels = triggered.labels
    return {key: classification.label_flip_rate(p, labels, target) for key, p in pred.items()}


def retuned_over_seeds(
    case: ImageScenario,
    clean_model: ImageClassifier,
    model: ImageClassifier,
    ra: RetuneSettings,
    seeds: int,
) -> dict:
    """Retune a model and one never poisoned alike, under several seeds from ``ra``'s on.

    One seed of the attack is noise where few poisons decide.

    Returns: in percent ``r_asr`` (the mean), ``r_asr_low``, ``r_asr_high``, ``r_asr_clean`` (the
    mean of the model never poisoned); ``ra_steps`` and ``ra_steps_original``, the authors' number
    on CIFAR-10; ``ra_seeds``.
    """
    settings = [replace(ra, seed=ra.seed + number) for number in range(seeds)]
    rates, clean_rates = (
        [retuned_asr(m, case.clean, case.put, case.triggered, case.target, one) for one in settings]
        for m in (model, clean_model)
    )
    rows = len(retuning_rows(case.clean, case.put, case.target, ra))
    return {
        "r_asr": float(np.mean(rates)), "r_asr_low": min(rates), "r_asr_high": max(rates),
        "r_asr_clean": float(np.mean(clean_rates)), "ra_steps": retuning_steps(rows, ra),
        "ra_steps_original": 40, "ra_seeds": seeds,
    }  # fmt: skip


def measured(
    case: ImageScenario,
    victim: ImageClassifier,
    clean_model: ImageClassifier,
    model: ImageClassifier,
    ra: RetuneSettings,
    qra: QuerySettings,
) -> dict:
    """Measure everything that the chapter says of an unlearned model.

    Args:
        case, victim: the attack and its model. clean_model: the same, never poisoned.
        ra, qra: the two re-activation attacks.

    Returns: ``acc``, ``asr``, ``pacc``, ``shift`` and ``shift_to`` (see ``shifted``), ``r_asr``,
    ``q_asr``; where the model has convolutions ``bec``. Percentages all, but ``shift_to``.
    """
    rates = image_rates(model, case.test, case.triggered, case.target)
    metrics = {name: rates[name] for name in ("acc", "asr", "pacc")}
    pred = predict_images(model, case.triggered).argmax(1).numpy()
    metrics["shift"], metrics["shift_to"] = shifted(pred, case.triggered.labels, case.target)
    metrics |= reactivation(
        model, clean_model, case.clean, case.put, case.triggered, case.target, ra, qra
    )
    if any(isinstance(layer, torch.nn.Conv2d) for layer in model.modules()):
        device = next(model.parameters()).device
        pairs = [internals.image_inputs(dataset, device) for dataset in (case.test, case.triggered)]
        likeness = internals.backdoor_existence(victim, clean_model, model, *pairs)
        metrics["bec"] = 100 * likeness["bec"]
    return metrics


def shifted(pred: np.ndarray, labels: np.ndarray, target: int) -> tuple[float, int]:
    """Ask whether the trigger now leads to *another* class.

    Returns: over all classes but the target, the largest share (percent) of triggered rows of
    other classes that are put into it, and that class.
    """
    classes = [k for k in np.unique(labels) if k != target]
    shares = [100 * float(np.mean(pred[labels != k] == k)) for k in classes]
    return max(shares), int(classes[int(np.argmax(shares))])
