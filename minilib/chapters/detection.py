"""Chapter 02: which rows are poisoned?"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from ..ledger import Trial
from ..settings import DetectionChapter as Settings
from ..settings import GaRga, split
from ..trials.chat import ChatBase
from ..trials.images import (
    ImageDetection,
    ImageMap,
    ImageMeasure,
    ImageSilhouette,
    ImageVictim,
    ideal,
    pictured,
    poison,
)
from ..trials.nulls import DetectorNull
from ..trials.text import (
    Detector,
    SpoiltMask,
    TextClusters,
    TextDetection,
    TextExcerpts,
    TextMap,
    TextMeasure,
    TextPoison,
    TextTrigger,
    TextUnlearning,
    TextVictim,
    retrained,
)

CHAPTER = "02_detection"
# The detectors that look at nothing but features and labels, which images have too.
GEOMETRIC = ("cube", "cube-code", "activation", "spectral")
HARD = "badnets"  # the attack at low rates, and with clean labels
# Training of models that start from random weights, and of chapter 05's language model.
FROM_SCRATCH = {"epochs": 10, "lr": 1e-3}
SMALL_CAUSAL, FROM_WORDS = "small-causal", {"lr": 5e-4}


# ---------------------------------------------------------------- settings → recipes


def victim(cfg: Settings, attack: str, **poison) -> TextVictim:
    """The victim of an attack; ``poison`` has what differs: ``rate``, ``label``."""
    trigger = TextTrigger(dataset=cfg.dataset, attack=attack)
    return TextVictim(
        data=TextPoison(trigger=trigger, seed=cfg.seed, **{"rate": cfg.rate, **poison}),
        model=ChatBase() if cfg.model == SMALL_CAUSAL else cfg.model,
        seed=cfg.seed,
        epochs=cfg.epochs,
        lr=cfg.lr,
        batch_size=cfg.batch_size,
        max_length=cfg.max_length,
    )


def first(cfg: Settings) -> str:
    """The attack that is looked at closely."""
    return split(cfg.attacks)[0]


def detector(cfg: Settings, name: str) -> Detector:
    """A detector with the chapter's parameters."""
    return Detector(
        name=name,
        seed=cfg.seed,
        neighbours=cfg.neighbours,
        min_cluster=cfg.min_cluster,
        min_samples=cfg.min_samples,
        epochs=cfg.moderate_epochs,
        lr=cfg.moderate_lr,
        rank=cfg.moderate_rank,
    )


def detectors(cfg: Settings, attack: str) -> list[str]:
    """Who is asked about an attack: the slow ones about the first alone."""
    slow = () if cfg.slow_detectors == "none" else split(cfg.slow_detectors)
    return list(dict.fromkeys((*split(cfg.detectors), *(slow if attack == first(cfg) else ()))))


def _asked(cfg: Settings, one: TextVictim, names: Iterable[str]) -> list:
    return [TextDetection(victim=one, detector=detector(cfg, name)) for name in names]


def _cubes(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("cube")]


def maps(cfg: Settings) -> list:
    """Where each attack's rows lie in its victim's hidden space."""
    return [_map(cfg, victim(cfg, attack)) for attack in split(cfg.attacks)]


def _map(cfg: Settings, one: TextVictim, how: str = "umap") -> TextMap:
    return TextMap(victim=one, seed=cfg.seed, how=how, neighbours=cfg.neighbours)


def excerpts(cfg: Settings) -> list:
    """Some rows of the first attack."""
    return [TextExcerpts(data=victim(cfg, first(cfg)).data)]


def embeddings(cfg: Settings) -> list:
    """The first attack's map by two methods, all parameters trained or the embeddings alone."""
    victims = [victim(cfg, first(cfg)), replace(victim(cfg, first(cfg)), trained="embeddings")]
    return [_map(cfg, one, how) for how in ("umap", "tsne") for one in victims]


def trees(cfg: Settings) -> list:
    """The tree that CUBE cuts its clusters from, of the first attack."""
    names = [name for name in _cubes(detectors(cfg, first(cfg))) if name != "cube-code"]
    one = victim(cfg, first(cfg))
    return [TextClusters(victim=one, detector=detector(cfg, name)) for name in names[:1]]


def detections(cfg: Settings) -> list:
    """Every detector on every attack that it is asked about."""
    return [
        one
        for attack in split(cfg.attacks)
        for one in _asked(cfg, victim(cfg, attack), detectors(cfg, attack))
    ]


def clean_victims(cfg: Settings) -> list:
    """The same detectors on the clean rows and a model trained on them."""
    return _asked(cfg, retrained(victim(cfg, first(cfg))), split(cfg.detectors))


def unlearning(cfg: Settings, forget: str | Detector | SpoiltMask) -> TextUnlearning:
    """RGA with a list of suspects, in as many steps as with the true one."""
    # With the true list this is a trial of the chapter on RGA, tested as often as there.
    eval_epochs = GaRga().eval_epochs if forget == "oracle" else ""
    return TextUnlearning(
        victim=victim(cfg, first(cfg)),
        method="rga",
        seed=cfg.seed,
        forget=forget,
        epochs=cfg.unlearn_epochs,
        lr=cfg.unlearn_lr,
        batch_size=cfg.batch_size,
        beta=cfg.beta,
        eval_epochs=tuple(int(epoch) for epoch in eval_epochs.split(",") if epoch),
        same_steps=True,
    )


def costs(cfg: Settings) -> list:
    """RGA with the true list, and with it spoilt to each precision and recall."""
    masks = [
        SpoiltMask(precision=float(precision), recall=float(recall), seed=cfg.seed)
        for precision in split(cfg.precisions)
        for recall in split(cfg.recalls)
    ]
    lists = [mask for mask in masks if (mask.precision, mask.recall) != (1, 1)]
    return [unlearning(cfg, forget) for forget in ("oracle", *lists)]


def real_lists(cfg: Settings) -> list:
    """RGA with the lists that CUBE makes."""
    names = _cubes(detectors(cfg, first(cfg)))
    return [unlearning(cfg, detector(cfg, name)) for name in names]


def hard(cfg: Settings) -> list:
    """CUBE at lower rates, and with clean labels."""
    poisonings = [{"rate": float(rate)} for rate in split(cfg.rates)] + [{"label": "clean"}]
    names = _cubes(split(cfg.detectors))
    return [one for case in poisonings for one in _asked(cfg, victim(cfg, HARD, **case), names)]


def other_victims(cfg: Settings) -> list:
    """CUBE about the first attack on other data and models, and how well those victims do."""
    recipes: list = []
    for pair in split(cfg.other_victims):
        if pair == "none":
            continue
        dataset, model = pair.split("/", 1)
        changes = FROM_SCRATCH if model.startswith("tiny") else {}
        changes = FROM_WORDS if model == SMALL_CAUSAL else changes
        one = victim(replace(cfg, dataset=dataset, model=model, **changes), first(cfg))
        recipes.append(TextMeasure(victim=one, trigger=one.data.trigger))
        recipes += _asked(cfg, one, _cubes(split(cfg.detectors)))
    return recipes


def images(cfg: Settings) -> list:
    """Each image attack: how far its poisons lie apart, and who finds them."""
    recipes: list = []
    for one in _image_victims(cfg):
        recipes.append(ImageSilhouette(victim=one))
        recipes += [ImageDetection(victim=one, detector=detector(cfg, it)) for it in GEOMETRIC]
    return recipes


def image_maps(cfg: Settings) -> list:
    """A map of each image attack's training set. The page draws those that the ledger has."""
    return [
        ImageMap(victim=one, seed=cfg.seed, neighbours=cfg.neighbours)
        for one in _image_victims(cfg)
    ]


def _image_victims(cfg: Settings) -> list:
    if cfg.image_dataset == "none":
        return []
    return [pictured(cfg, attack) for attack in split(cfg.image_attacks)]


# The victims of the detectors' nulls: built in and small, so that anybody makes the table again.
NULL_TEXTS, NULL_IMAGES = "toy-reviews", "digits"


def null_victim(cfg: Settings) -> TextVictim:
    """BadNets on built-in reviews, learnt by a tiny model."""
    trigger = TextTrigger(dataset=NULL_TEXTS, attack=HARD)
    data = TextPoison(trigger=trigger, seed=cfg.seed, rate=0.1)
    return TextVictim(data=data, model="tiny", seed=cfg.seed, epochs=3, lr=1e-3)


def null_image_victim(cfg: Settings) -> ImageVictim:
    """BadNets on digits, learnt by a small CNN."""
    return ImageVictim(
        data=poison(NULL_IMAGES, HARD, cfg.seed), model="cnn", seed=cfg.seed, width=0.5,
        epochs=15, lr=1e-2, batch_size=64,
    )  # fmt: skip


def nulls(cfg: Settings) -> list:
    """Every detector with known-clean rows laid among the training rows, with poison and without.

    Beside them, whether those backdoors took. CUBE is asked by one recipe: a map is slow to make.
    """
    slow = () if cfg.slow_detectors == "none" else split(cfg.slow_detectors)
    again = ("cube-code", "cube-original")
    text = null_victim(cfg)
    asked = [(text, [name for name in (*split(cfg.detectors), *slow) if name not in again])]
    recipes: list = [TextMeasure(victim=text, trigger=text.data.trigger)]
    if cfg.image_dataset != "none":
        pictures = null_image_victim(cfg)
        asked.append((pictures, [name for name in GEOMETRIC if name not in again]))
        recipes.append(ImageMeasure(victim=pictures, trigger=pictures.data.trigger))
    for one, names in asked:
        clean = ideal(one) if isinstance(one, ImageVictim) else retrained(one)
        recipes += [
            DetectorNull(victim=victim, detector=detector(cfg, name))
            for name in dict.fromkeys(names)
            for victim in (one, clean)
        ]
    return recipes


def null_rows(results: Iterable[Trial]) -> list[dict]:
    """One row per detector and set of rows: ``of`` (texts, images), ``poisoned``, ``detector`` …

    The rest is what ``trials.nulls.detector_null`` returns, and the seed.
    """
    return [
        trial.table()[0]
        | {
            "of": "images" if trial.recipe["victim"]["is"] == "ImageVictim" else "texts",
            "poisoned": trial.rows[0]["poisons"] > 0,
        }
        for trial in results
        if trial.kind == "detector_null"
    ]


def trials(cfg: Settings) -> list:
    """All of it but the maps of images, each of which needs its victim."""
    text = [*maps(cfg), *excerpts(cfg), *embeddings(cfg), *detections(cfg), *trees(cfg)]
    text += [*clean_victims(cfg), *nulls(cfg)]
    return [*text, *costs(cfg), *real_lists(cfg), *hard(cfg), *other_victims(cfg), *images(cfg)]


# ---------------------------------------------------------------- trials → rows


def rows(results: Iterable[Trial]) -> list[dict]:
    """One row per detector and victim, and per list that RGA was given.

    Of texts a row has ``attack`` ("none" of a clean set), ``rate``, ``poisoning`` ("10 %, clean
    label"), ``data``, ``victim``, and the victim's ``cacc`` and ``lfr`` where they are among the
    results. Lists have ``mask`` (oracle, spoilt, or a detector's name), the true and the spoilt
    ones ``asked_precision`` and ``asked_recall``. Of images: ``picture_attack``, ``silhouette``.
    """
    results = list(results)
    victims = {_victim(trial): trial.rows[0] for trial in results if trial.kind == "text_measure"}
    silhouettes = {
        _victim(trial): trial.rows[0] for trial in results if trial.kind == "image_silhouette"
    }
    labelled_rows = []
    for trial in results:
        if trial.kind == "text_detection":
            victim_row = victims.get(_victim(trial), {})
            labelled_rows.append(
                _text_row(trial) | {k: victim_row[k] for k in ("cacc", "lfr") if k in victim_row}
            )
        elif trial.kind == "text_unlearning":
            labelled_rows += _unlearned(trial)
        elif trial.kind == "image_detection":
            row = trial.table()[0]
            columns = {"picture_attack": row.pop("attack"), "image_dataset": row.pop("dataset")}
            labelled_rows.append(
                row | columns | silhouettes.get(_victim(trial), {}) | {"key": trial.key}
            )
    return labelled_rows


def _victim(one: Trial) -> str:
    return json.dumps(one.recipe["victim"], sort_keys=True)


def _text_row(one: Trial) -> dict:
    row = one.table()[0]
    clean = row["data"] == "TextClean"
    row |= {"data": row["dataset"], "key": one.key}
    row["victim"] = SMALL_CAUSAL if row["model"] == "ChatBase" else row["model"]
    if clean:
        return row | {"attack": "none", "rate": 0.0, "poisoning": "none"}
    label = ", clean label" if row["label"] == "clean" else ""
    return row | {"poisoning": f"{100 * row['rate']:g} %{label}"}


def _unlearned(one: Trial) -> list[dict]:
    """The last row of an unlearning, none where there was nothing to unlearn."""
    row = one.table()[-1]
    if "pacc" not in row:
        return []
    row |= {"mask": row["forget"], "key": one.key}
    if row["mask"] in ("oracle", "spoilt"):
        row |= {f"asked_{name}": 100 * row.get(name, 1.0) for name in ("precision", "recall")}
    return [row]
