"""Chapter 08: BI-BAU where two modalities meet, on CLIP."""

from __future__ import annotations

from collections.abc import Iterable

from ..ledger import Trial, recipe_of
from ..settings import Clip as Settings
from ..settings import split
from ..trials.clip import (
    ClipBase,
    ClipDefence,
    ClipDefenceMeasure,
    ClipMeasure,
    ClipRetrieval,
    ClipRetuning,
    ClipVictim,
    never_poisoned,
)
from ..trials.images import augmentation

CHAPTER = "08_clip"


def first(cfg: Settings) -> str:
    """The attack whose retrieval is shown."""
    return split(cfg.attacks)[0]


def victim(cfg: Settings, attack: str) -> ClipVictim:
    """The victim of an attack."""
    base = ClipBase(
        dataset=cfg.dataset, seed=cfg.seed, model=cfg.model, width=cfg.width, depth=cfg.depth,
        patch=cfg.patch, epochs=cfg.base_epochs, lr=cfg.base_lr, batch_size=cfg.victim_batch,
        **augmentation(cfg.dataset, cfg.augment),
    )  # fmt: skip
    return ClipVictim(
        base=base, attack=attack, seed=cfg.seed, rate=cfg.rate, epochs=cfg.victim_epochs,
        lr=cfg.victim_lr, batch_size=cfg.victim_batch, trigger_epochs=cfg.trigger_epochs,
    )  # fmt: skip


# Settings of a defence, under the same names here and there.
_SHARED = (
    "share", "batch_size", "tune_epochs", "tune_lr", "epochs", "lr", "steps", "step", "bound",
    "likelihood", "prior", "ewc", "inverse",
)  # fmt: skip
_ATTACKERS = ("poisons", "ra_share", "ra_lr")


def defence(cfg: Settings, attack: str, method: str) -> ClipDefence:
    """A method on an attack's victim."""
    return ClipDefence(
        victim=victim(cfg, attack), method=method, seed=cfg.seed,
        **{name: getattr(cfg, name) for name in _SHARED},
    )  # fmt: skip


# ---------------------------------------------------------------- the chapter's parts


def victims(cfg: Settings) -> list:
    """Every attack's victim, and the same CLIP never poisoned, measured and retuned."""
    attackers = {name: getattr(cfg, name) for name in _ATTACKERS}
    poisoned = [victim(cfg, attack) for attack in split(cfg.attacks)]
    return [
        *(ClipMeasure(victim=v, trigger=t) for t in poisoned for v in (never_poisoned(t), t)),
        *(ClipRetuning(data=one, seed=cfg.seed, **attackers) for one in poisoned),
    ]


def defences(cfg: Settings) -> list:
    """Every method on every attack, measured and attacked again."""
    attackers = {name: getattr(cfg, name) for name in _ATTACKERS}
    return [
        ClipDefenceMeasure(
            defence=defence(cfg, attack, method), seed=cfg.seed, qra_epochs=cfg.qra_epochs,
            **attackers,
        )
        for attack in split(cfg.attacks)
        for method in split(cfg.methods)
    ]  # fmt: skip


def searches(cfg: Settings, attack: str | None = None) -> dict[str, ClipRetrieval]:
    """Key of a model → a search for the target's caption: clean, poisoned, and defended."""
    poisoned = victim(cfg, attack or first(cfg))
    models = {"clean": never_poisoned(poisoned), "none": poisoned}
    models |= {name: defence(cfg, poisoned.attack, name) for name in split(cfg.methods)}
    return {
        name: ClipRetrieval(network=one, data=poisoned, images=cfg.images)
        for name, one in models.items()
    }


def trials(cfg: Settings) -> list:
    """All that the chapter shows at these settings."""
    shown = [one for attack in split(cfg.attacks) for one in searches(cfg, attack).values()]
    return list(dict.fromkeys([*victims(cfg), *defences(cfg), *shown]))


# ---------------------------------------------------------------- rows


def rows(results: Iterable[Trial], cfg: Settings | None = None) -> list[dict]:
    """Rows by ``part``, ``attack`` and ``method``; each has its recipe's columns.

    Parts: ``start`` (never poisoned, ``method`` clean), ``main`` (victims, ``method`` none, and
    every defence), ``control`` (the never poisoned CLIP retuned).
    """
    labelled_rows = []
    for trial in results:
        recipe = recipe_of(trial)
        name = _part(recipe)
        if name:
            labelled_rows += [{**row, "key": trial.key, **name} for row in trial.table()]
    return labelled_rows


def _part(recipe) -> dict:
    """What the rows of a trial are called."""
    if isinstance(recipe, ClipMeasure):
        clean = recipe.victim.attack == "none"
        name = {"part": "start", "method": "clean"} if clean else {"part": "main", "method": "none"}
        return {**name, "attack": recipe.trigger.attack}
    if isinstance(recipe, ClipDefenceMeasure):
        return {"part": "main"}
    if isinstance(recipe, ClipRetuning):
        return {"part": "control", "method": "clean"}
    return {}
