"""Defences of a finished model with a few clean images, behind one signature.

Each is ``defence(model, clean, settings) -> model``: a copy is changed, never the input.
``DEFENCES`` lists them with their settings and what each needs beyond clean images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import NamedTuple

from .. import registry
from ..checks import one_of
from ..data.images import ImageDataset
from ..models.images import ImageClassifier
from .adversarial import (
    RELEASED_I_BAU,
    RELEASED_SAU,
    IBauSettings,
    SauSettings,
    implicit_unlearning,
    shared_divergence,
    shared_unlearning,
)
from .bi_bau import BiBauSettings, blind_inversion
from .common import check_clean
from .fine_tuning import RELEASED_PAM, PamSettings, TuneSettings, path_aware, plain_tuning, towards
from .pruning import (
    RELEASED_RNP,
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
from .retraining import IbuSettings, ideal_unlearning
from .trigger_inversion import (
    RELEASED_BTI,
    RELEASED_NC,
    BtiSettings,
    CleanseSettings,
    benign_mask,
    decoupled_inversion,
    decoupled_unlearning,
    neural_cleanse,
    outliers,
    reverse_triggers,
)


class Defence(NamedTuple):
    """A defence, the settings it takes, and what it needs beside the model.

    ``fixed``: settings that make it what its name says, whatever the others are. ``numbers``: of a
    released code, where they are not the settings' own; they may be changed.
    """

    run: Callable[..., ImageClassifier]
    settings: type
    needs: str
    fixed: dict = {}
    numbers: dict = {}


RELEASED = {"released": True}
_BI_BAU = blind_inversion, BiBauSettings, "clean images, a linear head"
DEFENCES = {
    "ft": Defence(plain_tuning, TuneSettings, "clean images"),
    "nc": Defence(neural_cleanse, CleanseSettings, "clean images"),
    "bti-dbf": Defence(decoupled_unlearning, BtiSettings, "clean images, a linear head"),
    "anp": Defence(adversarial_pruning, AnpSettings, "clean images, batch norm"),
    "ep": Defence(entropy_pruning, EpSettings, "batch norm; the poisoned training set, or BNP"),
    "rnp": Defence(reconstructive_pruning, RnpSettings, "clean images, batch norm"),
    "clp": Defence(lipschitz_pruning, ClpSettings, "batch norm; no images"),
    "i-bau": Defence(implicit_unlearning, IBauSettings, "clean images"),
    # Released code that does something else than its paper, or than the method above.
    "anp-code": Defence(
        adversarial_pruning, AnpSettings, "clean images, batch norm", {"released": True}
    ),
    "ep-code": Defence(
        entropy_pruning, EpSettings, "batch norm, the poisoned training set", {"released": True}
    ),
    "bnp-code": Defence(
        entropy_pruning, EpSettings, "clean images, batch norm", {"released": True, "mixed": None}
    ),
    "rnp-code": Defence(
        reconstructive_pruning, RnpSettings, "clean images, batch norm", RELEASED_RNP
    ),
    # The same channels, and they fall silent as everywhere else here.
    "rnp-silent": Defence(
        reconstructive_pruning,
        RnpSettings,
        "clean images, batch norm",
        RELEASED_RNP | {"shifts": False},
    ),
    "i-bau-code": Defence(implicit_unlearning, IBauSettings, "clean images", RELEASED_I_BAU),
    "nc-code": Defence(neural_cleanse, CleanseSettings, "clean images", RELEASED, RELEASED_NC),
    "bti-dbf-code": Defence(
        decoupled_unlearning, BtiSettings, "clean images, a linear head", RELEASED, RELEASED_BTI
    ),
    "sau-code": Defence(shared_unlearning, SauSettings, "clean images", RELEASED, RELEASED_SAU),
    "pam-code": Defence(
        path_aware, PamSettings, "clean images, a linear head", RELEASED, RELEASED_PAM
    ),
    "sau": Defence(shared_unlearning, SauSettings, "clean images"),
    "pam": Defence(path_aware, PamSettings, "clean images, a linear head"),
    "bi-bau": Defence(*_BI_BAU),  # whatever its settings say
    # Constraint sets of the ablation (Table 6); BI-BAU has both, and (T) is told the target.
    "at": Defence(*_BI_BAU, {"sets": ""}),
    "at-a": Defence(*_BI_BAU, {"sets": "A"}),
    "at-b": Defence(*_BI_BAU, {"sets": "B"}),
    "bi-bau-u": Defence(*_BI_BAU, {"sets": "AB", "target": None}),
    "bi-bau-t": Defence(*_BI_BAU[:2], "clean images, a linear head, the target", {"sets": "AB"}),
    "ibu": Defence(ideal_unlearning, IbuSettings, "clean images and the attacker's poison"),
}
# Those that a chapter can name.
METHODS = tuple(name for name in DEFENCES if name != "bi-bau")


def find(method: str) -> Defence:
    """A defence by its key in DEFENCES, or one from outside. Raises ValueError for another."""
    outside = registry.find("defence", method)
    if outside is None:
        one_of("method", method, DEFENCES)
    return outside or DEFENCES[method]


def defend(
    method: str, model: ImageClassifier, clean: ImageDataset, settings=None
) -> ImageClassifier:
    """Defend a copy of ``model`` with the method's paper's settings, or with ``settings``.

    Args:
        method: a key of DEFENCES. clean: the defender's own images, correctly labelled, some of
            each class.
        settings: an instance of the method's settings; what the method fixes is fixed.

    Raises:
        ValueError: unknown method, settings of another method, a clean set that is empty or lacks
            a class, images or classes that do not fit the model, a model or settings without what
            the method needs.
    """
    defence = find(method)
    settings = defence.settings(**defence.numbers) if settings is None else settings
    if not isinstance(settings, defence.settings):
        raise ValueError(
            f"settings of {method} are {type(settings).__name__}; "
            f"accepted: {defence.settings.__name__}"
        )
    if method == "ep-code" and settings.mixed is None:
        raise ValueError("mixed is None; accepted: the poisoned training set, EpSettings(mixed=…)")
    if method == "bi-bau-t" and settings.target is None:
        raise ValueError("target is None; accepted: the backdoor's class, BiBauSettings(target=…)")
    check_clean(model, clean)
    return defence.run(model, clean, replace(settings, **defence.fixed))


POISON_OF = {"ibu": "poison", "ep-code": "mixed"}  # the setting that takes an attack's poison
STEPS = (
    "epochs", "recover_epochs", "steps", "inner_steps", "outer_steps", "mask_steps", "rounds",
    "identity_epochs",
)  # fmt: skip


def defence_settings(
    method: str, plan: BiBauSettings, poison: ImageDataset | None = None, effort: float = 1.0
):
    """Make a method's settings for an experiment in which the attack is known.

    BI-BAU and its ablations have ``plan``. All others have their papers' settings, with ``plan``'s
    seed, precision and, where it is smaller, batch size.

    Args:
        poison: for the bound, the defender's rows with the true trigger and labels; for ``ep-code``
            the poisoned training set. No other method sees it.
        effort: factor on the others' steps and epochs (STEPS); one at least is made.

    Raises:
        ValueError: unknown method.
    """
    defence = find(method)
    if defence.settings is BiBauSettings:
        return replace(plan, **defence.fixed)
    settings = defence.settings(**defence.numbers | defence.fixed)
    fields = asdict(settings)
    shared = {"seed": plan.seed, "precision": plan.precision}
    changes = {key: value for key, value in shared.items() if key in fields}
    if "batch_size" in fields:
        changes["batch_size"] = min(settings.batch_size, plan.batch_size)
    if method in POISON_OF:
        changes[POISON_OF[method]] = poison
    if effort != 1:
        made = {name: fields[name] for name in STEPS if fields.get(name)}
        changes |= {name: max(1, round(effort * count)) for name, count in made.items()}
    return replace(settings, **changes)


__all__ = [
    "DEFENCES",
    "METHODS",
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
    "defence_settings",
    "entropy_pruning",
    "ideal_unlearning",
    "implicit_unlearning",
    "lipschitz_pruning",
    "neural_cleanse",
    "outliers",
    "path_aware",
    "plain_tuning",
    "prune",
    "defend",
    "reconstructive_pruning",
    "reverse_triggers",
    "shared_divergence",
    "shared_unlearning",
    "towards",
]
