"""The experiments of chapter 02, one call each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from .. import cache, train, victims
from ..attacks.text import InsertWord, Poisoned, poison
from ..data import TextDataset
from ..models import TextClassifier, default_device, text_classifier
from ..rga import UnlearnSettings
from ..settings import DetectionStudy, split
from ..train import TrainSettings
from ..victims import Scenario
from . import (
    DETECTORS,
    RECIPES,
    Detection,
    Knowledge,
    detect_cube,
    flat_map,
    hidden_states,
    refilter,
    survey,
)

# The modules whose code decides what a detector finds.
MODULES = (
    *(f"detection.{name}" for name in ("evidence", "geometry", "perturb", "fluency", "moderate")),
    "train",
    "models",
)

# Training of models that start from random weights.
FROM_SCRATCH = {"epochs": 10, "lr": 1e-3}
# Chapter 05's language model as a classifier: as many epochs as others, a rate for its size.
SMALL_CAUSAL = "small-causal"
FROM_WORDS = {"lr": 5e-4}


@dataclass(frozen=True)
class Suspects:
    """What the detectors said of one attack's training set.

    Attributes:
        case: data and oracle. victim: trained on the poisoned rows. known: the defender's, with the
            hidden states. found: detector → Detection. rows: for the run record.
    """

    case: Scenario
    victim: TextClassifier
    known: Knowledge
    found: dict[str, Detection]
    rows: list[dict]


def victim_training(cfg: DetectionStudy) -> TrainSettings:
    """Return how the chapter's victims are trained."""
    return TrainSettings(epochs=cfg.epochs, lr=cfg.lr, batch_size=cfg.batch_size, seed=cfg.seed)


def chapter_victim(cfg: DetectionStudy, dataset: TextDataset) -> TextClassifier:
    """Train the chapter's victim on a poisoned data set."""
    settings = victim_training(cfg)
    if cfg.model == SMALL_CAUSAL:
        from . import language  # only this victim needs what chapter 05 needs

        return language.causal_classifier(language.chat_base(), dataset, settings)[0]
    return victims.victim(dataset, cfg.model, settings)[0]


def lineup(cfg: DetectionStudy, wanted: str) -> dict:
    """Return the detectors named in ``wanted`` ("none" for none), with the chapter's parameters."""
    sizes = {"neighbours": cfg.neighbours, "min_samples": cfg.min_samples}
    rga = replace(RECIPES["rga"], min_cluster=cfg.min_cluster, **sizes)
    own = {
        "cube": partial(detect_cube, recipe=rga),
        "cube-code": partial(detect_cube, recipe=replace(rga, keep="global")),
        "cube-original": partial(
            detect_cube, recipe=replace(RECIPES["cube"], neighbours=cfg.neighbours)
        ),
        "moderate": partial(
            DETECTORS["moderate"],
            rank=cfg.moderate_rank,
            settings=TrainSettings(epochs=cfg.moderate_epochs, lr=cfg.moderate_lr),
        ),
    }
    names = () if wanted == "none" else split(wanted)
    return {name: own.get(name, DETECTORS[name]) for name in names}


def remembered(name: str, detect, victim, rows: TextDataset, known: Knowledge) -> Detection:
    """Ask one detector, at most once for the same victim, rows, settings and code.

    Of ``Detection.extra`` only arrays are kept.
    """
    inner = getattr(detect, "func", detect)
    keywords = getattr(detect, "keywords", {})
    key = {
        "detector": [inner.__name__, {k: repr(v) for k, v in sorted(keywords.items())}],
        "victim": cache.weights_digest(victim),
        "rows": rows.sha256,
        "known": [known.clean.sha256 if known.clean else None, known.model, known.seed],
        **cache.conditions(next(victim.parameters()).device, MODULES, inner.__name__),
    }

    def compute() -> dict:
        one = detect(victim, rows, known)
        arrays = {k: v for k, v in one.extra.items() if isinstance(v, np.ndarray) and v.ndim <= 2}
        return {
            "mask": one.mask.astype(int).tolist(),
            "score": None if one.score is None else one.score.tolist(),
            "seconds": one.seconds,
            "extra": {k: [v.dtype.name, v.tolist()] for k, v in arrays.items()},
        }

    kept = cache.cached_json("detected", key, compute)
    extra = {k: np.array(values, dtype) for k, (dtype, values) in kept["extra"].items()}
    score = None if kept["score"] is None else np.array(kept["score"])
    return Detection(name, np.array(kept["mask"], bool), score, kept["seconds"], extra)


def ask(detectors: Mapping, victim, rows: TextDataset, known: Knowledge, truth: np.ndarray):
    """``survey`` through ``remembered``; both readings of RGA's recipe share one map."""
    asked = {name: partial(remembered, name, one) for name, one in detectors.items()}
    if {"cube", "cube-code"} <= set(asked):
        asked["cube-code"] = lambda *given: refilter(asked["cube"](*given), rows, "global")
    return survey(asked, victim, rows, known, truth)


def knowledge(cfg: DetectionStudy, case: Scenario, victim, rows: TextDataset) -> Knowledge:
    """Return what a detector may use: trusted dev rows, the victim's states, the model's name."""
    return Knowledge(case.dev, hidden_states(victim, rows), cfg.model, cfg.seed)


def suspects(cfg: DetectionStudy, attack: str) -> Suspects:
    """Train an attack's victim, or take it from the cache, and ask the detectors.

    The slow ones are asked about the first attack alone.
    """
    case = victims.scenario(cfg.dataset, attack, cfg.rate, cfg.seed)
    victim, _ = victims.victim(case.poisoned.dataset, cfg.model, victim_training(cfg))
    rows = case.poisoned.dataset
    known = knowledge(cfg, case, victim, rows)
    detectors = lineup(cfg, cfg.detectors)
    if attack == split(cfg.attacks)[0]:
        detectors |= lineup(cfg, cfg.slow_detectors)
    found, judged = ask(detectors, victim, rows, known, case.poisoned.mask)
    judged = [{"attack": attack, "rate": cfg.rate, **row} for row in judged]
    return Suspects(case, victim, known, found, judged)


def suspect_mask(cfg: DetectionStudy, name: str, case: Scenario, victim) -> np.ndarray:
    """Return one detector's mask (N,) bool over a scenario's poisoned rows, as ``suspects`` has it.

    "oracle" is the truth. ``cube-code`` reads the map that ``cube`` made.
    """
    if name == "oracle":
        return case.poisoned.mask
    rows = case.poisoned.dataset
    known = knowledge(cfg, case, victim, rows)
    detectors = lineup(cfg, "cube,cube-code" if name == "cube-code" else name)
    return ask(detectors, victim, rows, known, case.poisoned.mask)[0][name].mask


def accused_of_nothing(cfg: DetectionStudy, case: Scenario) -> list[dict]:
    """Ask every detector about the clean set and its model, where every suspect is a false one."""
    victim, _ = victims.victim(case.clean, cfg.model, victim_training(cfg))
    known = knowledge(cfg, case, victim, case.clean)
    nothing = np.zeros(len(case.clean), bool)
    _, rows = ask(lineup(cfg, cfg.detectors), victim, case.clean, known, nothing)
    return [{"attack": "none", "rate": 0.0, **row} for row in rows]


def maps(cfg: DetectionStudy, by_attack: Mapping[str, Suspects]) -> dict[str, np.ndarray]:
    """Draw each attack's hidden states on a plane (N, 2) with UMAP."""
    return {attack: plane(cfg, one.known.states, "umap") for attack, one in by_attack.items()}


def plane(cfg: DetectionStudy, states: np.ndarray, how: str) -> np.ndarray:
    """Flatten states (N, d) to (N, 2) float32 by PCA-20 and then ``umap`` or ``tsne``."""
    key = {
        "states": hashlib.sha256(states.tobytes()).hexdigest(),
        "how": [how, cfg.neighbours, cfg.seed],
        "code": cache.code_digest(("detection.study", "detection.geometry"), "plane"),
    }

    def compute() -> dict:
        recipe = replace(RECIPES["cube"], neighbours=cfg.neighbours, min_dist=0.25)
        recipe = recipe.scaled(len(states))
        if how == "umap":
            return {"points": flat_map(states, recipe, cfg.seed).tolist()}
        from sklearn.manifold import TSNE

        reduced = flat_map(states, replace(recipe, dims=0), cfg.seed)
        return {"points": TSNE(random_state=cfg.seed).fit_transform(reduced).tolist()}

    return np.array(cache.cached_json("maps", key, compute)["points"], np.float32)


def embedding_only(cfg: DetectionStudy, case: Scenario) -> TextClassifier:
    """Train nothing but the word embeddings of a fresh model on the poisoned rows, or take it
    from the cache. Source: BTU paper, Fig. 4.
    """
    settings = victim_training(cfg)
    device = default_device()
    precision = train.resolve_precision(settings.precision, device)
    settings = replace(settings, precision=precision)

    def fit(model: TextClassifier) -> list[dict]:
        model.requires_grad_(False)
        model.network.get_input_embeddings().weight.requires_grad_(True)
        history = train.fine_tune(model, case.poisoned.dataset, settings)
        model.requires_grad_(True)
        return history

    key = {
        "embedding_only": case.poisoned.dataset.sha256,
        "model": cfg.model,
        "settings": asdict(settings),
        **cache.conditions(device, ("detection.study", "train", "models"), "embedding_only"),
    }
    classes = case.clean.num_classes
    return cache.cached_model(
        key, lambda: text_classifier(cfg.model, classes, settings.seed).to(device), fit
    )[0]


def embedding_maps(cfg: DetectionStudy, one: Suspects) -> dict[str, np.ndarray]:
    """Draw the states of the victim and of embedding-only training, each by UMAP and by t-SNE."""
    rows = one.case.poisoned.dataset
    states = {
        "all parameters": one.known.states,
        "embeddings only": hidden_states(embedding_only(cfg, one.case), rows),
    }
    names = {"umap": "UMAP", "tsne": "t-SNE"}
    return {
        f"{what}, {names[how]}": plane(cfg, points, how)
        for how in names
        for what, points in states.items()
    }


def hard_cases(cfg: DetectionStudy, clean: TextDataset, target: int) -> dict[str, Poisoned]:
    """Poisonings that CUBE may not see: low rates, and clean labels."""
    word = InsertWord("mn")
    low = {
        f"{100 * float(rate):g} %": poison(clean, word, target, float(rate), cfg.seed)
        for rate in split(cfg.rates)
    }
    kept = poison(clean, word, target, cfg.rate, cfg.seed, label="clean")
    return {**low, f"{100 * cfg.rate:g} %, clean label": kept}


def cube_on(cfg: DetectionStudy, cases: Mapping[str, Poisoned]) -> list[dict]:
    """Train a victim on each poisoning and ask CUBE alone; one row each."""
    lines = lineup(cfg, cfg.detectors)
    cube = {name: one for name, one in lines.items() if name.startswith("cube")}
    rows = []
    for name, (dataset, mask, _) in cases.items():
        victim = chapter_victim(cfg, dataset)
        known = Knowledge(states=hidden_states(victim, dataset), seed=cfg.seed)
        _, judged = ask(cube, victim, dataset, known, mask)
        poisons = int(mask.sum())
        rows += [{"attack": "badnets", "poisoning": name, "poisons": poisons, **row}
                 for row in judged[1:]]  # fmt: skip
    return rows


def elsewhere(cfg: DetectionStudy) -> list[dict]:
    """Ask CUBE about the first attack on other data and models, ``cfg.elsewhere``; one row each.

    Besides the detector's quality a row holds the victim's ``cacc`` and ``lfr``: a detector cannot
    be blamed for a backdoor that did not take.
    """
    rows = []
    for item in split(cfg.elsewhere):
        if item == "none":
            continue
        dataset, model = item.split("/", 1)
        there = replace(cfg, dataset=dataset, model=model)
        if model.startswith("tiny"):
            there = replace(there, **FROM_SCRATCH)
        if model == SMALL_CAUSAL:
            there = replace(there, **FROM_WORDS)
        attack = split(cfg.attacks)[0]
        case = victims.scenario(dataset, attack, cfg.rate, cfg.seed)
        victim = chapter_victim(there, case.poisoned.dataset)
        found = victims.measured(case, victim)
        here = {"attack": attack, "data": dataset, "victim": model}
        here |= {name: found[name] for name in ("cacc", "lfr")}
        rows += [{**row, **here} for row in cube_on(there, {"elsewhere": case.poisoned})]
    return rows


def cost_grid(cfg: DetectionStudy) -> Sequence[tuple[float, float]]:
    """Return the (precision, recall) pairs to which the oracle's mask is spoilt."""
    return [(float(p), float(r)) for p in split(cfg.precisions) for r in split(cfg.recalls)]


def same_steps(plan: UnlearnSettings, suspects: np.ndarray, poisons: np.ndarray) -> UnlearnSettings:
    """Change a plan's epochs so that one mask takes the steps that another would.

    Args:
        plan: for ``poisons`` (N,) bool. suspects: (N,) bool, the rows that are to be forgotten.
    """
    epochs = max(1, round(plan.train.epochs * poisons.sum() / max(1, suspects.sum())))
    return replace(plan, train=replace(plan.train, epochs=epochs))
