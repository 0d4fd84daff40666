"""Chapter 04: backdoor tokens move most when only word embeddings train."""

from __future__ import annotations

from collections.abc import Iterable

from .. import ledger
from ..ledger import Trial
from ..settings import Btu as Settings
from ..settings import split
from ..trials.text import (
    BackdoorTokens,
    Detector,
    EmbeddingChange,
    EmbeddingTraining,
    FlaggedTokens,
    Recovery,
    RgaAfterTokens,
    TextMeasure,
    TextPoison,
    TextTrigger,
    TextUnlearning,
    TextVictim,
    TokenExposure,
    TokenRanks,
    TokenUnlearning,
    TrainingDefence,
    TriggerQuantity,
    ZeroedLayer,
    one_victim,
    retrained,
    with_retrain,
)

CHAPTER = "04_btu"


# ---------------------------------------------------------------- settings → recipes


def victim(cfg: Settings) -> TextVictim:
    """The chapter's victim."""
    return one_victim(cfg, triggers=cfg.triggers)


def flagged(cfg: Settings) -> FlaggedTokens:
    """The chapter's rounds of token detection."""
    return FlaggedTokens(
        data=victim(cfg).data,
        training=_training(cfg),
        alpha=cfg.alpha,
        rounds=tuple(int(number) for number in split(cfg.rounds)),
        exclude=() if cfg.exclude == "none" else tuple(split(cfg.exclude)),
    )


def _training(cfg: Settings) -> EmbeddingTraining:
    return EmbeddingTraining(
        model=cfg.model,
        seed=cfg.seed,
        epochs=cfg.round_epochs,
        lr=cfg.round_lr,
        batch_size=cfg.batch_size,
        max_length=cfg.max_length,
    )


def unlearning(cfg: Settings, method: str) -> TokenUnlearning:
    """One method on the chapter's victim."""
    recovery = None
    if cfg.recovery:
        recovery = Recovery(
            rows=cfg.recovery,
            epochs=cfg.recovery_epochs,
            lr=cfg.recovery_lr,
            batch_size=cfg.batch_size,
        )
    return TokenUnlearning(
        victim=victim(cfg), method=method, tokens=flagged(cfg), recovery=recovery, seed=cfg.seed
    )


def start(cfg: Settings) -> list:
    """The victim and ReTrain, measured."""
    return with_retrain(victim(cfg))


def oracle(cfg: Settings) -> list:
    """The oracle's list of tokens."""
    return [BackdoorTokens(data=victim(cfg).data, model=cfg.model)]


def exposures(cfg: Settings) -> list:
    """How far rows move, with embeddings alone and with all parameters."""
    return [
        TokenExposure(data=victim(cfg).data, training=_training(cfg), trained=trained)
        for trained in ("embeddings", "all")
    ]


def tokens(cfg: Settings) -> list:
    """What the rounds flag, and where the backdoor's tokens stand."""
    return [flagged(cfg), TokenRanks(tokens=flagged(cfg))]


def quantities(cfg: Settings) -> list:
    """The trigger with the attacker's labels, and with the rows' own."""
    return [
        TriggerQuantity(
            data=victim(cfg).data, training=_training(cfg), share=float(share), labels=labels
        )
        for share in split(cfg.quantity_rates)
        for labels in ("clean", "dirty")
    ]


def unlearnings(cfg: Settings) -> list:
    """Every way of overwriting."""
    return [unlearning(cfg, method) for method in split(cfg.methods)]


def changes(cfg: Settings) -> list:
    """How far the victim's embeddings moved."""
    return [EmbeddingChange(victim=victim(cfg), tokens=flagged(cfg))]


def defences(cfg: Settings) -> list:
    """Detectors as training-time defences."""
    return [
        TrainingDefence(victim=victim(cfg), detector=Detector(name=name, seed=cfg.seed))
        for name in split(cfg.defences)
        if name != "none"
    ]


def layers(cfg: Settings) -> list:
    """The same idea on transformer layers."""
    return [ZeroedLayer(victim=victim(cfg), layer=int(layer)) for layer in split(cfg.layers)]


def chain(cfg: Settings) -> list:
    """RGA alone and after BTU; of several triggers neither."""
    if cfg.then_rga == "none" or cfg.triggers != "single":
        return []
    rga = TextUnlearning(
        victim=victim(cfg),
        method="rga",
        seed=cfg.seed,
        epochs=cfg.rga_epochs,
        lr=cfg.rga_lr,
        batch_size=cfg.batch_size,
    )
    return [rga, RgaAfterTokens(first=unlearning(cfg, cfg.then_rga), then=rga)]


PARTS = (
    start, oracle, exposures, tokens, quantities, unlearnings, changes, defences, layers, chain
)  # fmt: skip


def trials(cfg: Settings) -> list:
    """All that the chapter computes."""
    return [one for part in PARTS for one in part(cfg)]


# ---------------------------------------------------------------- trials → rows


def rows(results: Iterable[Trial]) -> list[dict]:
    """Rows by ``method``, ``trained``, ``map``, ``round`` or ``labels``; see the kinds of trials.

    A row has those of the chapter's settings that its trial depends on, under their names, and its
    trial's ``kind`` and ``key``; ``dpacc`` is against the ReTrain of the same training and seed.
    """
    pairs = [(trial, ledger.recipe_of(trial)) for trial in results]
    ideal_pacc = {
        (recipe.victim, recipe.trigger): trial.rows[0]["pacc"]
        for trial, recipe in pairs
        if trial.kind == "text_measure" and recipe.victim == retrained(recipe.victim)
    }
    labelled_rows = []
    for trial, recipe in pairs:
        for row in trial.rows:
            row = {
                "kind": trial.kind,
                "key": trial.key,
                **_settings(recipe),
                **_called(recipe, row),
                **row,
            }
            if trial.kind == "text_measure":
                clean_pacc = ideal_pacc.get((retrained(recipe.victim), recipe.trigger))
                row |= {"dpacc": abs(clean_pacc - row["pacc"])} if clean_pacc is not None else {}
            if trial.kind == "text_unlearning":  # only where it was tested
                row |= {"rga_epochs": row["epoch"]}
                if "pacc" not in row:
                    continue
            labelled_rows.append(row)
    return labelled_rows


def _called(it, row: dict) -> dict:
    """What a row is called: its method."""
    if isinstance(it, TextMeasure):
        return {"method": "retrain" if it.victim == retrained(it.victim) else "poisoned"}
    if isinstance(it, TokenExposure):
        return {} if "map" in row else {"trained": it.trained}
    if isinstance(it, FlaggedTokens):
        return {} if "round" in row else {"method": "tokens"}
    if isinstance(it, TrainingDefence):
        return {"method": it.detector.name}
    if isinstance(it, ZeroedLayer):
        return {"method": f"layer-{it.layer}"}
    if isinstance(it, RgaAfterTokens):
        return {"method": f"{it.first.method}+{it.then.method}"}
    return {"method": it.method} if isinstance(it, (TokenUnlearning, TextUnlearning)) else {}


def _settings(it) -> dict:
    """The chapter's settings that a recipe holds, by the chapter's names."""
    if isinstance(it, RgaAfterTokens):
        return _settings(it.then) | _settings(it.first)
    settings = {}
    for name in ("victim", "data", "trigger", "training", "tokens"):
        if (inner := getattr(it, name, None)) is not None:
            settings |= _settings(inner)
    names = {
        TextTrigger: ("dataset", "attack", "position", "triggers"),
        TextPoison: ("rate", "rate_of", "seed"),
        TextVictim: ("model", "seed", "batch_size"),
        EmbeddingTraining: ("model", "seed", "batch_size"),
        FlaggedTokens: ("alpha",),
        BackdoorTokens: ("model",),
    }
    settings |= {name: getattr(it, name) for name in names.get(type(it), ())}
    if isinstance(it, TextVictim):
        settings |= {"victim_epochs": it.epochs, "victim_lr": it.lr}
    if isinstance(it, EmbeddingTraining):
        settings |= {"round_epochs": it.epochs, "round_lr": it.lr}
    if isinstance(it, FlaggedTokens):
        settings |= {"rounds": ",".join(map(str, it.rounds))}
        settings |= {"exclude": ",".join(it.exclude) or "none"}
    if isinstance(it, TextUnlearning):
        settings |= {"rga_epochs": it.epochs, "rga_lr": it.lr}
    if isinstance(it, TokenUnlearning):
        recovery = it.recovery
        settings["recovery"] = recovery.rows if recovery else 0
        settings |= (
            {"recovery_epochs": recovery.epochs, "recovery_lr": recovery.lr} if recovery else {}
        )
    return settings
