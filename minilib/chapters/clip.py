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
from ..trials.images import (
    ImageDefence,
    ImageDefenceMeasure,
    ImageMeasure,
    ImageVictim,
    augmentation,
    ideal,
    poison,
    retuning_poisons,
)

CHAPTER = "08_clip"


def first(cfg: Settings) -> str:
    """The attack whose retrieval is shown."""
    return split(cfg.attacks)[0]


def base(cfg: Settings, dataset: str, **other) -> ClipBase:
    """The clean CLIP that an attacker starts from; ``other`` fields of it as given."""
    small = {
        "width": cfg.width,
        "depth": cfg.depth,
        "patch": cfg.patch,
        "epochs": cfg.base_epochs,
        "lr": cfg.base_lr,
        "batch_size": cfg.victim_batch,
        **augmentation(dataset, cfg.augment),
    }
    return ClipBase(dataset=dataset, seed=cfg.seed, model=cfg.model, **small | other)  # fmt: skip


def victim(cfg: Settings, attack: str) -> ClipVictim:
    """The victim of an attack."""
    return ClipVictim(
        base=base(cfg, cfg.dataset), attack=attack, seed=cfg.seed, rate=cfg.rate,
        epochs=cfg.victim_epochs, lr=cfg.victim_lr, batch_size=cfg.victim_batch,
        trigger_epochs=cfg.trigger_epochs,
    )  # fmt: skip


# Settings of a defence, under the same names here and there: of all networks, and of a CLIP.
_TERMS = (
    "share", "batch_size", "epochs", "lr", "steps", "step", "bound", "likelihood", "prior",
    "inverse",
)  # fmt: skip
_SHARED = (*_TERMS, "tune_epochs", "tune_lr", "ewc", "pairs")
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


# Table 3 of the paper: the same four terms, in the portable setting of chapter 06.
_PORTABLE = {"scale": "maximum", "ewc": 0.1}


def tower_victim(cfg: Settings, attack: str) -> ImageVictim:
    """CLIP's visual encoder with a linear head, all of it tuned on a poisoned image set.

    Not on random crops, which move the trigger or cut it off: ten epochs are too few for those.
    """
    dataset = cfg.tower_dataset
    return ImageVictim(
        data=poison(dataset, attack, cfg.seed), model="clip", seed=cfg.seed,
        epochs=cfg.tower_epochs, lr=cfg.tower_lr, batch_size=cfg.victim_batch,
        pretrained=base(cfg, dataset, part=cfg.tower_part),
    )  # fmt: skip


def tower(cfg: Settings) -> list:
    """Every attack on the visual encoder with a head, and every method on it, attacked again."""
    attacks = () if cfg.tower_attacks == "none" else split(cfg.tower_attacks)
    again = {"seed": cfg.seed, "retuning": "original"}
    trials = []
    for attack in attacks:
        poisoned = tower_victim(cfg, attack)
        clean, count = ideal(poisoned), retuning_poisons(attack)
        trials += [
            ImageMeasure(victim=one, trigger=poisoned.data.trigger) for one in (clean, poisoned)
        ]
        shared = {name: getattr(cfg, name) for name in _TERMS} | _PORTABLE
        trials += [
            ImageDefenceMeasure(
                defence=ImageDefence(victim=poisoned, method=method, seed=cfg.seed, **shared),
                poisons=count, ra_share=cfg.ra_share, qra_epochs=cfg.qra_epochs, **again,
            )
            for method in split(cfg.tower_methods)
        ]  # fmt: skip
    return trials


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
    return list(dict.fromkeys([*victims(cfg), *defences(cfg), *shown, *tower(cfg)]))


# ---------------------------------------------------------------- rows


def rows(results: Iterable[Trial], cfg: Settings | None = None) -> list[dict]:
    """Rows by ``part``, ``attack`` and ``method``; each has its recipe's columns.

    Parts: ``start`` (never poisoned, ``method`` clean), ``main`` (victims, ``method`` none, and
    every defence), ``control`` (the never poisoned CLIP retuned); ``tower-start`` and
    ``tower-main`` are the same for the visual encoder with a linear head.
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
    if isinstance(recipe, ImageMeasure):
        clean = recipe.victim == ideal(recipe.victim)
        name = ("start", "clean") if clean else ("main", "none")
        return {"part": f"tower-{name[0]}", "method": name[1], "attack": recipe.trigger.attack}
    if isinstance(recipe, ImageDefenceMeasure):
        return {"part": "tower-main"}
    return {}
