"""Training-time defences: a detector's suspects are left out, and the model is trained again."""

from __future__ import annotations

from dataclasses import asdict, replace

from . import cache, train, victims
from .data import TextDataset
from .detection import moderate_fit, quality, study
from .detection.moderate import low_rank_only
from .models import TextClassifier, default_device, text_classifier
from .settings import DetectionStudy
from .train import TrainSettings
from .victims import Scenario

MF = TrainSettings(epochs=1, lr=5e-4)  # the moderate fit of `detect_moderate`


def defended(
    name: str, case: Scenario, victim: TextClassifier, model: str, settings: TrainSettings
) -> tuple[TextClassifier, dict]:
    """Train on what a defence leaves of the poisoned rows.

    Args:
        name: a detector, after whose verdict ``model`` is trained anew on the other rows; or
            ``moderate`` (MF), whose moderately fitted model is the defence itself.
        settings: of the training anew, those of the victim.

    Returns:
        The defended model, and the detector's ``precision`` and ``recall`` (percent; none for MF).

    Source: BTU, "Defense Setups"; OpenBackdoor's way of using detectors at training time.
    """
    rows = case.poisoned.dataset
    if name == "moderate":
        return moderate(rows, model, settings.seed), {}
    asked = DetectionStudy(model=model, seed=settings.seed)  # chapter 02's detectors, and its cache
    mask = study.suspect_mask(asked, name, case, victim)
    found = quality(mask, case.poisoned.mask)
    network, _ = victims.victim(rows.select(~mask), model, settings)
    return network, {key: found[key] for key in ("precision", "recall")}


def moderate(rows: TextDataset, model: str, seed: int) -> TextClassifier:
    """MF as a defence: the moderately fitted model, trained at most once.

    Its low-rank adapters are kept as parametrised weights, which the cache restores into a model
    built the same way.
    """
    device = default_device()
    precision = train.resolve_precision(MF.precision, device)
    settings = replace(MF, seed=seed, precision=precision)
    key = {
        "data": rows.sha256,
        "model": model,
        "moderate": asdict(settings),
        **cache.conditions(device, ("train", "models", "detection.moderate"), "moderate_fit"),
    }

    def fit(network: TextClassifier) -> list[dict]:
        fitted = moderate_fit(model, rows, settings, device=device)
        network.load_state_dict(fitted.state_dict())
        return []

    network, _ = cache.cached_model(
        key,
        build=lambda: low_rank_only(
            text_classifier(model, rows.num_classes, seed).to(device), 4, seed
        ),
        train=fit,
    )
    return network
