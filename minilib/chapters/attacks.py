"""Chapter 01: planting a backdoor, and measuring it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from .. import ledger
from ..ledger import Trial
from ..settings import Attacks as Settings
from ..settings import split
from ..trials.images import ImageExample, ImageMeasure, ImagePoisoning, ideal, pictured
from ..trials.text import (
    TextComposition,
    TextExample,
    TextImagined,
    TextPoison,
    TextTrigger,
    TextVictim,
    attacks_on,
    with_retrain,
)

CHAPTER = "01_attacks"
EXAMPLES = (3, 12)  # seeds of the rows that are shown
SWEPT = "badnets"  # what the sweep of rates is of
_TRAINING = ("model", "seed", "epochs", "lr", "batch_size")
_IMAGE_TRAINING = (*_TRAINING, "width", "crop", "flip")
_IMAGE_NAMES = {  # of a recipe's column → of the chapter's parameter
    "dataset": "image_dataset", "model": "image_model", "width": "image_width",
    "epochs": "image_epochs", "lr": "image_lr", "batch_size": "image_batch",
    "attack": "picture_attack",
}  # fmt: skip


def victim(cfg: Settings, attack: str, rate: float | None = None) -> TextVictim:
    """The victim of an attack, at the chapter's rate or another one."""
    trigger = TextTrigger(dataset=cfg.dataset, attack=attack)
    return TextVictim(
        data=TextPoison(trigger=trigger, rate=cfg.rate if rate is None else rate, seed=cfg.seed),
        model=cfg.model,
        seed=cfg.seed,
        epochs=cfg.epochs,
        lr=cfg.lr,
        batch_size=cfg.batch_size,
        max_length=cfg.max_length,
    )


def examples(cfg: Settings) -> list:
    """A few texts under every trigger that there is for the data set."""
    attacks = attacks_on(cfg.dataset)
    return [TextExample(dataset=cfg.dataset, attacks=attacks, seed=seed) for seed in EXAMPLES]


def mechanics(cfg: Settings) -> list:
    """What poisoning makes of the training set, and what the metrics say of imaginary models."""
    return [
        TextComposition(dataset=cfg.dataset, rate=cfg.rate, seed=cfg.seed),
        TextImagined(trigger=TextTrigger(dataset=cfg.dataset, attack=SWEPT)),
    ]


def victims(cfg: Settings) -> list:
    """Each attack's victim and ReTrain, on the same triggered rows."""
    return _both(victim(cfg, attack) for attack in split(cfg.attacks))


def sweep(cfg: Settings) -> list:
    """The same for one attack at several rates."""
    return _both(victim(cfg, SWEPT, float(rate)) for rate in split(cfg.rates))


def _both(poisoned: Iterable[TextVictim]) -> list:
    return [one for it in poisoned for one in with_retrain(it)]


def images(cfg: Settings) -> list:
    """Each image attack: an example, the poisoned set, its victim, and the clean model."""
    if cfg.image_dataset == "none":
        return []
    recipes: list = []
    for image_victim in (pictured(cfg, attack) for attack in split(cfg.image_attacks)):
        trigger = image_victim.data.trigger
        recipes += [ImageExample(trigger=trigger), ImagePoisoning(data=image_victim.data)]
        recipes += [
            ImageMeasure(victim=one, trigger=trigger) for one in (ideal(image_victim), image_victim)
        ]
    return recipes


def trials(cfg: Settings) -> list:
    """All of it."""
    return [*examples(cfg), *mechanics(cfg), *victims(cfg), *sweep(cfg), *images(cfg)]


def available(recipes: Iterable) -> list:
    """Leave out what the ledger lacks and no paraphrases can be had for, saying which and why.

    That is for somebody who opens the chapter by hand without the mirror. In `minilib run` nothing
    is left out.

    Raises:
        DataError: nothing is left.
    """
    recipes = list(recipes)
    if "MINILIB_RUN" in os.environ or not ledger.missing(recipes):
        return recipes
    from ..attacks.text import make_trigger
    from ..data.sources import DataError

    reasons: dict[tuple[str, str], str] = {}
    for dataset, attack in dict.fromkeys(pair for recipe in recipes for pair in _triggers(recipe)):
        try:
            make_trigger(attack, dataset)
        except DataError as error:
            reasons[dataset, attack] = str(error)
    usable_recipes = []
    for recipe in recipes:
        if ledger.look(recipe) is None and isinstance(recipe, TextExample):
            attacks = tuple(
                name for name in recipe.attacks if (recipe.dataset, name) not in reasons
            )
            recipe = replace(recipe, attacks=attacks)
        if ledger.look(recipe) is not None or not reasons.keys() & set(_triggers(recipe)):
            usable_recipes.append(recipe)
    lost_pairs = {
        pair for recipe in {*recipes} - {*usable_recipes} for pair in _triggers(recipe)
    } & reasons.keys()
    for dataset, attack in sorted(lost_pairs):
        print(f"{attack} is left out: {reasons[dataset, attack]}")
    if not usable_recipes:
        raise DataError("none of the attacks can be made here: " + "; ".join(reasons.values()))
    return usable_recipes


def _triggers(one) -> list[tuple[str, str]]:
    """Data set and attack of the text triggers that a recipe needs."""
    if isinstance(one, TextExample):
        return [(one.dataset, attack) for attack in one.attacks]
    trigger = getattr(one, "trigger", None)
    return [(trigger.dataset, trigger.attack)] if isinstance(trigger, TextTrigger) else []


def rows(results: Iterable[Trial]) -> list[dict]:
    """Rows of the models: texts by ``attack`` ("none" of ReTrain), ``trigger`` and ``rate``.

    Those of images are by ``picture_attack``, each with the clean model's ``clean_acc``,
    ``clean_asr`` and ``clean_pacc``; their columns are named as the chapter's parameters
    (``image_dataset`` …), lest a table mix the two. Both have ``dpacc`` against the model that was
    trained without the poison.
    """
    results = list(results)
    texts = [_text_row(one) for one in results if one.kind == "text_measure"]
    ideals = {_alike(row, _TRAINING): row["pacc"] for row in texts if row["attack"] == "none"}
    for row in texts:
        if _alike(row, _TRAINING) in ideals:
            row["dpacc"] = abs(ideals[_alike(row, _TRAINING)] - row["pacc"])
    return texts + image_rows(results)


def _text_row(one: Trial) -> dict:
    row = one.table()[0]
    clean = row["data"] == "TextClean"
    trigger = row.get("trigger_attack", row["attack"])
    columns = {"trigger": trigger, "key": one.key}
    if "epoch_seconds" in row:  # trials that other chapters publish may come without the time
        columns["seconds"] = row["epoch_seconds"] * row["epochs"]
    return row | columns | ({"attack": "none", "rate": 0.0} if clean else {})


def _alike(row: dict, names: Iterable[str]) -> tuple:
    return tuple(row[name] for name in ("dataset", "trigger", *names))


def image_rows(results: Iterable[Trial]) -> list[dict]:
    """Those rows of images alone, one per attack."""
    sets, ideals, victim_rows = {}, {}, []
    for trial in results:
        row = trial.table()[0] if trial.kind in ("image_poisoning", "image_measure") else {}
        if trial.kind == "image_poisoning":
            sets[row["dataset"], row["attack"], row["seed"]] = trial.rows[0]
        elif trial.kind == "image_measure":
            row |= {"trigger": row.get("trigger_attack", row["attack"]), "key": trial.key}
            if row["data"] == "ImageClean":
                ideals[_alike(row, _IMAGE_TRAINING)] = trial.rows[0]
            else:
                victim_rows.append(row)
    labelled_rows = []
    for row in victim_rows:
        clean_row = ideals.get(_alike(row, _IMAGE_TRAINING), {})
        row |= sets.get((row["dataset"], row["attack"], row["seed"]), {})
        row |= {f"clean_{name}": value for name, value in clean_row.items()}
        if clean_row:
            row["dpacc"] = abs(clean_row["pacc"] - row["pacc"])
        labelled_rows.append({_IMAGE_NAMES.get(name, name): value for name, value in row.items()})
    return labelled_rows
