"""Defences that purify a finished model with a few clean images, behind one signature.

Each is ``defence(model, clean, settings) -> model``: a copy is purified, the input never changed.
``DEFENCES`` lists them with their settings and what each needs beyond clean images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..images import ImageDataset
from ..vision import ImageClassifier
from .adversarial import (
    IBauSettings,
    SauSettings,
    implicit_unlearning,
    shared_divergence,
    shared_unlearning,
)
from .bi_bau import BiBauSettings, blind_inversion
from .common import check_clean
from .inversion import (
    BtiSettings,
    CleanseSettings,
    benign_mask,
    decoupled_inversion,
    decoupled_unlearning,
    neural_cleanse,
    outliers,
    reverse_triggers,
)
from .pruning import (
    AnpSettings,
    ClpSettings,
    EpSettings,
    RnpSettings,
    adversarial_pruning,
    channel_lipschitz,
    entropy_pruning,
    lipschitz_pruning,
    prune,
    reconstructive_pruning,
)
from .tuning import (
    IbuSettings,
    PamSettings,
    TuneSettings,
    ideal_unlearning,
    path_aware,
    plain_tuning,
    towards,
)


class Defence(NamedTuple):
    """A defence, the settings it takes, and what it needs beside the model."""

    run: Callable[..., ImageClassifier]
    settings: type
    needs: str


DEFENCES = {
    "ft": Defence(plain_tuning, TuneSettings, "clean images"),
    "nc": Defence(neural_cleanse, CleanseSettings, "clean images"),
    "bti-dbf": Defence(decoupled_unlearning, BtiSettings, "clean images, a linear head"),
    "anp": Defence(adversarial_pruning, AnpSettings, "clean images, batch norm"),
    "ep": Defence(entropy_pruning, EpSettings, "batch norm; the poisoned training set, or BNP"),
    "rnp": Defence(reconstructive_pruning, RnpSettings, "clean images, batch norm"),
    "clp": Defence(lipschitz_pruning, ClpSettings, "batch norm; no images"),
    "i-bau": Defence(implicit_unlearning, IBauSettings, "clean images"),
    "sau": Defence(shared_unlearning, SauSettings, "clean images"),
    "pam": Defence(path_aware, PamSettings, "clean images, a linear head"),
    "bi-bau": Defence(blind_inversion, BiBauSettings, "clean images, a linear head"),
    "ibu": Defence(ideal_unlearning, IbuSettings, "clean images and the attacker's poison"),
}


def purify(
    method: str, model: ImageClassifier, clean: ImageDataset, settings=None
) -> ImageClassifier:
    """Purify a copy of ``model`` with the method's paper's settings, or with ``settings``.

    Args:
        method: a key of DEFENCES. clean: the defender's own images, correctly labelled.
        settings: an instance of the method's settings.

    Raises:
        ValueError: unknown method, settings of another method, an empty clean set, images or
            classes that do not fit the model, a model without what the method needs.
    """
    if method not in DEFENCES:
        raise ValueError(f"method is {method!r}; accepted: {', '.join(DEFENCES)}")
    defence = DEFENCES[method]
    settings = defence.settings() if settings is None else settings
    if not isinstance(settings, defence.settings):
        raise ValueError(
            f"settings of {method} are {type(settings).__name__}; "
            f"accepted: {defence.settings.__name__}"
        )
    check_clean(model, clean)
    return defence.run(model, clean, settings)


__all__ = [
    "DEFENCES",
    "AnpSettings",
    "BiBauSettings",
    "BtiSettings",
    "CleanseSettings",
    "ClpSettings",
    "Defence",
    "EpSettings",
    "IBauSettings",
    "IbuSettings",
    "PamSettings",
    "RnpSettings",
    "SauSettings",
    "TuneSettings",
    "adversarial_pruning",
    "benign_mask",
    "blind_inversion",
    "channel_lipschitz",
    "check_clean",
    "decoupled_inversion",
    "decoupled_unlearning",
    "entropy_pruning",
    "ideal_unlearning",
    "implicit_unlearning",
    "lipschitz_pruning",
    "neural_cleanse",
    "outliers",
    "path_aware",
    "plain_tuning",
    "prune",
    "purify",
    "reconstructive_pruning",
    "reverse_triggers",
    "shared_divergence",
    "shared_unlearning",
    "towards",
]
