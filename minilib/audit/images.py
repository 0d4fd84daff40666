"""The audit of an image classifier: is there a class that a small change leads to?

For each class the smallest patch, and the smallest change of all pixels, that make the model sure
of it are searched for on some of the clean images. The same search in networks of the model's own
architecture, trained anew on the others, says how small such a change is without a backdoor: see
``unlearning.trigger_test``. Nothing of an attack need be known, and two classes do.

What it cannot see: a trigger that is no fixed change of pixels (a warp, a style, one that differs
from image to image), one that needs several classes' images, and one that is as large as what leads
to a class anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..checks import above_zero
from ..data.files import DataError
from ..data.images import ImageDataset
from ..metrics.classification import accuracy, label_flip_rate
from ..models.images import ImageClassifier, pixels
from ..training.fitting import TrainSettings
from ..training.images import predict_images
from ..unlearning.common import unit
from ..unlearning.trigger_test import (
    ReversedTriggers,
    TriggerTest,
    TriggerTestSettings,
    TriggerUnlearning,
    anomaly_indices,
    confident_triggers,
    halves,
    index_note,
    reference,
    shrinkage,
    transfer_rates,
    trigger_test,
    unlearn_trigger,
)
from .evidence import Evidence, binomial_p

KINDS = ("patch", "blend")


@dataclass(frozen=True)
class ImageAuditSettings:
    """How an image classifier is audited.

    Attributes:
        references: networks of its architecture that are trained on clean images for the null; with
            R of them no p-value is below 1 / (R + 1).
        training: how they are trained. search: how triggers are searched for; its ``kind`` is set.
        unlearning: of the trigger that was found. seed: of all of it.
    """

    references: int = 20
    training: TrainSettings = field(
        default_factory=lambda: TrainSettings(40, 3e-3, 32, schedule="linear", precision="fp32")
    )
    search: TriggerTestSettings = field(default_factory=TriggerTestSettings)
    unlearning: TriggerUnlearning = field(default_factory=TriggerUnlearning)
    seed: int = 0

    def __post_init__(self):
        above_zero(self, "references")
        if self.references < 3:
            raise ValueError(f"references is {self.references!r}; accepted: 3 or more")


@dataclass(frozen=True)
class ImageFindings:
    """What an audit found.

    Attributes:
        test: the trigger that stands out most, its class, and p. triggers: kind → a trigger per
            class. classes: one dict per kind and class: ``kind``, ``class``, ``size``, ``index``
            (Neural Cleanse's), ``shrinkage``, ``held_rate``.
        accuracy: of the model on the clean images; reference_accuracy: median of the references on
            those that they were not trained on; in percent.
        null: kind → sizes (R, K) of the references. notes: one line each, for the report.
    """

    test: TriggerTest
    triggers: dict[str, ReversedTriggers]
    classes: list[dict]
    accuracy: float
    reference_accuracy: float
    null: dict[str, np.ndarray] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def trigger(self) -> ReversedTriggers:
        """The triggers of the kind that stands out."""
        return self.triggers[self.test.kind]

    @property
    def evidence(self) -> Evidence:
        """The test as the verdict reads it."""
        row = next(
            row for row in self.classes
            if row["kind"] == self.test.kind and row["number"] == self.test.target
        )  # fmt: skip
        what = "patch" if self.test.kind == "patch" else "change of all pixels"
        said = (
            f"a {what} that leads {100 * row['held_rate']:.0f} % of held-out images to "
            f"{row['class']!r} is {np.exp(row['shrinkage']):.1f} times smaller than in clean "
            f"networks (p = {self.test.p:.3f})"
        )
        return Evidence("reversed triggers", self.test.p, said)


def check_accuracy(model: ImageClassifier, clean: ImageDataset) -> float:
    """The model's accuracy on clean images, in percent.

    Raises:
        DataError: it is no better than guessing (at a level of 1 %), which an audit cannot mean:
            the names of the classes, the size or the normalisation are not the model's.
    """
    right = int((predict_images(model, clean).argmax(1).numpy() == clean.labels).sum())
    rows = len(clean)
    if binomial_p(right, rows, 1 / clean.num_classes) > 0.01:
        raise DataError(
            f"the model gets {right} of {rows} clean images right, as by guessing among "
            f"{clean.num_classes} classes; accepted: images, names of classes, size, mean and "
            "deviation that are the model's"
        )
    return 100 * right / rows


def searched(
    model: ImageClassifier, rows: ImageDataset, settings: ImageAuditSettings, seed: int
) -> dict[str, ReversedTriggers]:
    """Reverse a trigger of each kind for each class, on some clean images: kind → triggers."""
    plans = {kind: replace(settings.search, kind=kind, seed=seed) for kind in KINDS}
    return {kind: confident_triggers(model, rows, plan) for kind, plan in plans.items()}


def reference_sizes(
    model: ImageClassifier, clean: ImageDataset, settings: ImageAuditSettings, number: int
) -> tuple[dict[str, np.ndarray], float]:
    """Train a reference network, and search it as the model is: kind → sizes (K,); its accuracy."""
    rows, held = halves(clean, settings.search.held, settings.seed)
    network = reference(model, held, settings.seed + number, settings.training)
    reached = accuracy(predict_images(network, rows).argmax(1).numpy(), rows.labels)
    found = searched(network, rows, settings, settings.seed + number)
    return {kind: one.sizes for kind, one in found.items()}, reached


def judged(
    model: ImageClassifier,
    clean: ImageDataset,
    triggers: dict[str, ReversedTriggers],
    null: dict[str, np.ndarray],
    accuracies: Sequence[float],
    settings: ImageAuditSettings,
) -> ImageFindings:
    """Judge the model's triggers by the references' sizes, kind → (R, K), and accuracies (R,)."""
    _, held = halves(clean, settings.search.held, settings.seed)
    rates = {kind: transfer_rates(model, held, found) for kind, found in triggers.items()}
    test = trigger_test({kind: found.sizes for kind, found in triggers.items()}, null, rates)
    classes = [
        row for kind in KINDS
        for row in _rows(kind, triggers[kind].sizes, null[kind], rates[kind], clean.class_names)
    ]  # fmt: skip
    accuracy, reached = check_accuracy(model, clean), float(np.median(accuracies))
    notes = _notes(clean, accuracy, reached)
    return ImageFindings(test, triggers, classes, accuracy, reached, null, notes)


def audit(
    model: ImageClassifier,
    clean: ImageDataset,
    settings: ImageAuditSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageFindings:
    """Search an image classifier for a backdoor.

    Args:
        clean: images with right labels, of every class. progress: is told how many of how many
            networks were searched.

    Raises:
        DataError: a model that gets the clean images right no better than by guessing.
        ValueError: images that do not fit the model.
    """
    settings = settings or ImageAuditSettings()
    check_accuracy(model, clean)
    rows, _ = halves(clean, settings.search.held, settings.seed)
    triggers, searches = searched(model, rows, settings, settings.seed), []
    for number in range(1, settings.references + 1):
        progress(number, settings.references + 1)
        searches.append(reference_sizes(model, clean, settings, number))
    progress(settings.references + 1, settings.references + 1)
    null = {kind: np.stack([sizes[kind] for sizes, _ in searches]) for kind in KINDS}
    return judged(model, clean, triggers, null, [reached for _, reached in searches], settings)


def _rows(kind: str, sizes, null, rates, names) -> list[dict]:
    """A row a class."""
    finite = np.isfinite(sizes)
    capped = np.where(finite, sizes, 2 * sizes[finite].max() if finite.any() else 1.0)
    indices, shrunk = anomaly_indices(capped), shrinkage(sizes, null)
    return [
        {
            "kind": kind,
            "number": k,
            "class": name,
            "size": float(sizes[k]) if finite[k] else None,
            "index": float(indices[k]),
            "shrinkage": float(shrunk[k]),
            "held_rate": float(rates[k]),
        }
        for k, name in enumerate(names)
    ]


def _notes(clean: ImageDataset, accuracy: float, reference_accuracy: float) -> tuple[str, ...]:
    notes = [note] if (note := index_note(clean.num_classes)) else []
    if accuracy < 60:
        notes.append(
            f"the model gets only {accuracy:.0f} % of the clean images right: are they what it was "
            "made for, and are mean, deviation and size its own?"
        )
    if reference_accuracy < 0.8 * accuracy:
        notes.append(
            f"networks trained on {len(clean)} clean images reach {reference_accuracy:.0f} %, the "
            f"model {accuracy:.0f} %: the null is that of weaker networks; more images make it "
            "more like the model"
        )
    return tuple(notes)


# ---------------------------------------------------------------- unlearning


def measured(
    model: ImageClassifier, rows: ImageDataset, found: ReversedTriggers, target: int
) -> dict[str, float]:
    """CA, and of images of other classes with the found trigger: ASR and PACC; in percent."""
    plain = predict_images(model, rows).argmax(1).numpy()
    images = found.put(unit(pixels(rows.images, found.masks.device)), target)
    patched, others = predict_images(model, images).argmax(1).numpy(), rows.labels != target
    return {
        "acc": accuracy(plain, rows.labels),
        "asr": label_flip_rate(patched, rows.labels, target),
        "pacc": accuracy(patched[others], rows.labels[others]),
    }


@dataclass(frozen=True)
class Cleaned:
    """A model after unlearning, and both models' rates with the trigger that was found."""

    model: ImageClassifier
    before: dict[str, float]
    after: dict[str, float]


def unlearn(
    model: ImageClassifier, clean: ImageDataset, findings: ImageFindings,
    settings: ImageAuditSettings | None = None,
) -> Cleaned:  # fmt: skip
    """Unlearn the trigger that stands out on most of the clean images, measure on the others.

    It was searched for on the images that it is measured on, so that the rates before are at their
    worst; the model is changed on images that the search has not seen.
    """
    settings = settings or ImageAuditSettings()
    rows, held = halves(clean, settings.search.held, settings.seed)
    found, target = findings.trigger, findings.test.target
    plan = replace(settings.unlearning, seed=settings.seed)
    cleaned = unlearn_trigger(model, held, found, target, plan)
    return Cleaned(
        cleaned, measured(model, rows, found, target), measured(cleaned, rows, found, target)
    )
