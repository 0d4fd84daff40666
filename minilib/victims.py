"""From a data set's name and an attack to a poisoned victim and the means to measure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from torch import nn

from . import cache, metrics, train
from .attacks.text import Poisoned, Trigger, make_trigger, poison, trigger_all
from .data import TextDataset, load_text
from .models import TextClassifier, default_device, text_classifier
from .train import TrainSettings

# Target classes of the RGA paper, section 6.1: positive, non-hate, world.
TARGETS = {"hsol": 0, "agnews": 0, "toy-topics": 0, "olid": 0}
NO_DEV = {"hsol"}
MEASURE = ("train", "models", "metrics", "victims")  # the modules that `evaluator` runs
# The mirror has syntactic paraphrases of both SST-2 classes for train and dev only.
TRIGGERED_SPLIT = {("sst2", "hiddenkiller"): "dev"}


@dataclass(frozen=True)
class Scenario:
    """One attack on one data set.

    Attributes:
        clean: the training rows before the attack.
        poisoned: the training rows after it, with the oracle's mask.
        dev: clean rows that a defender may tune on. test: clean rows for CACC.
        triggered: rows of all classes with the trigger and their own labels, for LFR and PACC;
            ``untriggered`` holds the same rows without it.
        target: class that the trigger leads to.
    """

    clean: TextDataset
    poisoned: Poisoned
    dev: TextDataset
    test: TextDataset
    triggered: TextDataset
    trigger: Trigger
    target: int
    seed: int

    def info(self) -> list[dict]:
        """Return what a run record says of the data used."""
        return [d.info() for d in (self.clean, self.dev, self.test, self.triggered)]


def scenario(
    dataset: str, attack: str, rate: float, seed: int, position: str = "random"
) -> Scenario:
    """Load a data set and poison it as the RGA paper does (All2One, copies appended).

    HSOL has no dev split: a fixed tenth of its training rows is held out for one, so that victims
    train on 5,241 rows there instead of the paper's 5,823.
    """
    clean, test = load_text(dataset, "train"), load_text(dataset, "test")
    if dataset in NO_DEV:
        order = np.random.default_rng(0).permutation(len(clean))
        held = len(clean) // 10
        clean, dev = clean.select(np.sort(order[held:])), clean.select(order[:held])
        dev = replace(dev, split="dev (held out of train)")
    else:
        dev = load_text(dataset, "dev")
    trigger = make_trigger(attack, dataset, position)
    target = TARGETS.get(dataset, 1)
    poisoned = poison(clean, trigger, target, rate, seed)
    pool = dev if TRIGGERED_SPLIT.get((dataset, attack)) == "dev" else test
    # One fixed draw of trigger positions for all seeds: the test set is the same for every model.
    triggered = replace(trigger_all(pool, trigger, seed=0), name=f"{dataset}+{trigger.name}")
    return Scenario(clean, poisoned, dev, test, triggered, trigger, target, seed)


def victim(
    dataset: TextDataset, model: str, settings: TrainSettings
) -> tuple[TextClassifier, list[dict]]:
    """Fine-tune ``model`` on ``dataset``, or take the result of having done so from the cache."""
    device = default_device()
    settings = replace(settings, precision=train.resolve_precision(settings.precision, device))
    key = {
        "data": dataset.sha256,
        "model": model,
        "settings": asdict(settings),
        **cache.conditions(device, ("train", "models"), "fine_tune", "text_classifier"),
    }
    return cache.cached_model(
        key,
        build=lambda: text_classifier(model, dataset.num_classes, settings.seed).to(device),
        train=lambda network: train.fine_tune(network, dataset, settings),
    )


def evaluator(case: Scenario, tokenizer, device) -> Callable[[nn.Module], dict]:
    """Return a function that measures a model on the scenario's test sets.

    Tokenises once. The function returns ``cacc``, ``dev_cacc``, ``lfr``, ``pacc`` (percent) and
    ``confusion`` on the triggered rows (nested list, row = true class).
    """
    sets = {
        name: train.encode(part.texts, part.labels, tokenizer, device=device)
        for name, part in (("test", case.test), ("dev", case.dev), ("triggered", case.triggered))
    }
    classes = case.clean.num_classes

    def evaluate(model: nn.Module) -> dict:
        pred = {name: train.predict(model, data).argmax(1).numpy() for name, data in sets.items()}
        labels = case.triggered.labels
        return {
            "cacc": metrics.accuracy(pred["test"], case.test.labels),
            "dev_cacc": metrics.accuracy(pred["dev"], case.dev.labels),
            "lfr": metrics.label_flip_rate(pred["triggered"], labels, case.target),
            "pacc": metrics.pacc(pred["triggered"], labels),
            "confusion": metrics.confusion(pred["triggered"], labels, classes).tolist(),
        }

    return evaluate


def measured(case: Scenario, model: TextClassifier) -> dict:
    """Measure a model as ``evaluator`` does, at most once for the same weights and test rows."""
    device = next(model.parameters()).device
    key = {
        "model": cache.weights_digest(model),
        "test": [part.sha256 for part in (case.test, case.dev, case.triggered)],
        "target": case.target,
        **cache.conditions(device, MEASURE, "evaluator"),
    }
    return cache.cached_json(
        "measured", key, lambda: evaluator(case, model.tokenizer, device)(model)
    )
