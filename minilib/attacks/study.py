"""Chapter 01: the victim of an attack beside the clean model, on the same triggered rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import metrics, victims
from ..data import DataError, TextDataset
from ..settings import ATTACKS, Attacks, split
from ..train import TrainSettings
from ..victims import Scenario
from .text import Poisoned, Trigger, make_trigger

EXAMPLE_WORDS = (7, 13)  # an example should be this long, in words


def available(cfg: Attacks) -> Attacks:
    """Return the settings without attacks whose paraphrases cannot be had, saying which and why.

    That is for somebody who opens the chapter by hand without the mirror. A run under `minilib run`
    has an identity that its parameters fix, so there nothing is left out.

    Raises:
        DataError: an attack cannot be had, in a run whose parameters are fixed; or none can.
    """
    left = []
    for attack in split(cfg.attacks):
        try:
            make_trigger(attack, cfg.dataset)
            left.append(attack)
        except DataError as error:
            if "MINILIB_RUN" in os.environ:
                raise
            print(f"{attack} is left out: {error}")
    if not left:
        raise DataError(f"none of the attacks {cfg.attacks} can be made on {cfg.dataset}")
    return replace(cfg, attacks=",".join(left))


def example_triggers(dataset: str) -> dict[str, Trigger]:
    """Make every trigger that can be had for this data set; name → trigger, in the book's order."""
    triggers = {}
    for attack in ATTACKS:
        try:
            triggers[attack] = make_trigger(attack, dataset)
        except DataError:  # no paraphrases of this data set: nothing to show
            continue
    return triggers


def examples(clean: TextDataset, triggers: Mapping[str, Trigger], target: int, seed: int) -> dict:
    """Show one short row of a non-target class under every trigger.

    Args:
        clean: rows to choose from; the first in a random order that every trigger can be put into.
        triggers: name → trigger, as ``example_triggers`` makes them.

    Returns:
        name → text, first of all ``original``; a trigger with negatives adds ``<name> negative``.

    Raises:
        ValueError: no row can carry all triggers.
    """
    rng = np.random.default_rng(seed)
    low, high = EXAMPLE_WORDS
    order = rng.permutation(np.flatnonzero(clean.labels != target))
    # Short rows first; a set of long texts has none, and shows one of those.
    order = sorted(order, key=lambda i: not low <= len(clean.texts[i].split()) <= high)
    for text in (clean.texts[i] for i in order):
        shown = {name: trigger.apply(text, rng) for name, trigger in triggers.items()}
        if None in shown.values():
            continue
        negatives = {
            f"{name} negative": trigger.negative(text, rng)
            for name, trigger in triggers.items()
            if hasattr(trigger, "negative")
        }
        return {"original": text} | shown | negatives
    raise ValueError(f"no row of {clean.name} can carry all of {', '.join(triggers)}")


def composition(clean: TextDataset, variants: Mapping[str, Poisoned]) -> list[dict]:
    """Count what poisoning did to a training set: one dict per variant, the clean set first."""
    untouched = Poisoned(clean, np.zeros(len(clean), bool), np.arange(len(clean)))
    rows = []
    for name, (dataset, mask, origin) in {"clean": untouched, **variants}.items():
        counts = np.bincount(dataset.labels, minlength=clean.num_classes)
        rows.append(
            {
                "training set": name,
                **dict(zip(clean.class_names, counts.tolist(), strict=True)),
                "rows": len(dataset),
                "poisoned": int(mask.sum()),
                "relabelled": int((dataset.labels != clean.labels[origin]).sum()),
                "share of all rows (%)": 100 * float(mask.mean()),
            }
        )
    return rows


def caricatures(triggered: TextDataset, target: int) -> list[dict]:
    """Measure four imaginary models on triggered rows: what LFR sees of them, and what PACC does.

    ``by identity`` is Σ_k π_k (1 − ε_k), with π_k the share of class k and ε_k its error rate.

    Args:
        triggered: rows of all classes with the trigger and their own labels.
        target: the attacker's class.
    """
    labels, num_classes = triggered.labels, triggered.num_classes
    other = (target + 1) % num_classes
    models = {
        "ideal: ignores the trigger": labels,
        "backdoored: trigger → target": np.full_like(labels, target),
        "shifted: trigger → another class": np.full_like(labels, other),
        "trigger → guess": np.random.default_rng(0).integers(0, num_classes, len(labels)),
    }
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    rows = []
    for name, pred in models.items():
        counts = metrics.confusion(pred, labels, num_classes)
        error = 1 - counts.diagonal() / counts.sum(1).clip(1)
        rows.append(
            {
                "model": name,
                "LFR": metrics.label_flip_rate(pred, labels, target),
                "target class lost": 100 * error[target],
                "PACC": metrics.pacc(pred, labels),
                "PACC by identity": 100 * float(share @ (1 - error)),
                "ΔPACC": metrics.delta_pacc(metrics.pacc(pred, labels), 100.0),
            }
        )
    return rows


@dataclass(frozen=True)
class Study:
    """One attack, measured.

    Attributes:
        case: the scenario: data, trigger, target.
        clean, poisoned: rows for the run record: metrics of the model trained without the poisons
            and of the victim, both on this attack's triggered rows.
        confusions: ``clean`` and ``poisoned`` → (K, K) counts on the triggered rows.
    """

    case: Scenario
    clean: dict
    poisoned: dict
    confusions: dict[str, list[list[int]]]


def attack(dataset: str, name: str, rate: float, model: str, training: TrainSettings) -> Study:
    """Train the victim of an attack and the clean model, or take them from the cache; measure both.

    The poisons are appended copies, so the clean model is also the re-trained reference: it was
    trained on exactly the rows that remain once every poison is taken out.

    Args:
        dataset, name, rate: as in ``victims.scenario``. model: as in ``models.text_classifier``.
        training: its seed also chooses the poisoned rows.
    """
    case = victims.scenario(dataset, name, rate, training.seed)
    clean = _measured(case, case.clean, model, training)
    poisoned = _measured(case, case.poisoned.dataset, model, training)
    confusions = {"clean": clean.pop("confusion"), "poisoned": poisoned.pop("confusion")}
    poisons = int(case.poisoned.mask.sum())
    of_both = {"trigger": name, "dpacc": 0.0}
    gap = metrics.delta_pacc(poisoned["pacc"], clean["pacc"])
    return Study(
        case,
        {"attack": "none", **of_both, "rate": 0.0, "poisons": 0, **clean},
        {"attack": name, **of_both, "rate": rate, "poisons": poisons, **poisoned, "dpacc": gap},
        confusions,
    )


def _measured(
    case: Scenario, rows: TextDataset, model: str, training: TrainSettings
) -> dict[str, float | list]:
    """Train on ``rows``, measure on the scenario's test sets; both at most once per machine."""
    network, history = victims.victim(rows, model, training)
    found = victims.measured(case, network)
    counts = np.array(found["confusion"])
    # The direction that LFR does not see: triggered rows of the target class that leave it.
    lost = 1 - counts[case.target, case.target] / max(counts[case.target].sum(), 1)
    seconds = sum(epoch["seconds"] for epoch in history)
    return {**found, "target_lost": float(100 * lost), "seconds": seconds}


def rows(studies: Iterable[Study]) -> list[dict]:
    """Collect the rows of several studies for the run record, each (model, trigger, rate) once."""
    found = {}
    for study in studies:
        for row in (study.clean, study.poisoned):
            found.setdefault((row["attack"], row["trigger"], row["rate"]), row)
    return list(found.values())


def data_info(studies: Sequence[Study]) -> list[dict]:
    """Collect what the run record says of the data of several studies, each set once."""
    found = {info["sha256"]: info for study in studies for info in study.case.info()}
    return list(found.values())
