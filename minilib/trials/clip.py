"""Trials on CLIP: a clean one, victims of poisoned captions, defences, and what comes back."""

from __future__ import annotations

from .. import ledger
from ..ledger import cached, reads, recipe, trial
from ..settings import BiBauTerms
from .clip_base import ClipBase, clip_base
from .images import clean_images, kept_defence, noted

# ---------------------------------------------------------------- clean and poisoned models


@recipe
class ClipVictim:
    """A clean CLIP tuned on poisoned pairs, or, where the attack is ``none``, on clean ones.

    Attributes:
        attack: one of ``settings.CLIP_ATTACKS``, or ``none``. seed: of the poison and the tuning.
        rate: share of the images of other classes than ``target``.
        trigger_epochs: of the optimisation of BadCLIP's patch.
    """

    base: ClipBase
    attack: str
    seed: int
    target: int = 0
    rate: float = 0.1
    epochs: int = 4
    lr: float = 1e-3
    batch_size: int = 128
    trigger_epochs: int = 5

    def __post_init__(self):
        names = () if self.attack == "none" else ("target", "rate")
        names += ("trigger_epochs",) if self.attack == "badclip" else ()
        reads(self, *names, of=("target", "rate", "trigger_epochs"))


def never_poisoned(victim: ClipVictim) -> ClipVictim:
    """The recipe of the same CLIP tuned on the same pairs without the poison."""
    return ClipVictim(
        base=victim.base, attack="none", seed=victim.seed, epochs=victim.epochs, lr=victim.lr,
        batch_size=victim.batch_size,
    )  # fmt: skip


@ledger.kept_in_memory(4)
def case_of(one: ClipVictim):
    """The ``attacks.images.ImageScenario`` of a poisoned victim, noted for the trial that asks."""
    from ..attacks.clip import BadClipSettings
    from ..victims.clip import clip_scenario

    base, _ = clip_base(one.base)
    badclip = BadClipSettings(epochs=one.trigger_epochs, seed=one.seed)
    case = clip_scenario(
        one.base.dataset, one.attack, base, one.rate, one.seed, one.target, badclip=badclip
    )
    return noted(case)


@cached(version=1)
@ledger.kept_in_memory(4)
def clip_victim(one: ClipVictim):
    """Tune a victim, or take it from the cache: (model in eval mode, history)."""
    from .. import cache
    from ..data.captions import captioned
    from ..models.images import model_copy
    from ..training.clip import fit_pairs
    from ..training.fitting import TrainSettings

    base, _ = clip_base(one.base)
    if one.attack == "none":
        pairs = captioned(clean_images(one.base.dataset), one.seed)
    else:
        pairs = case_of(one).poisoned.dataset
    settings = TrainSettings(one.epochs, one.lr, one.batch_size, schedule="linear", seed=one.seed)
    return cache.kept_model(
        one, lambda: model_copy(base), lambda net: fit_pairs(net, pairs, settings)
    )


@recipe
class ClipMeasure:
    """A victim, or the same CLIP never poisoned, on clean and on an attack's triggered images."""

    victim: ClipVictim
    trigger: ClipVictim


@trial(version=1)
def clip_measure(one: ClipMeasure) -> list[dict]:
    """Measure a CLIP; one row, see ``metrics.clip.zero_shot_rates``."""
    from ..metrics.clip import zero_shot_rates

    case, (model, _) = case_of(one.trigger), clip_victim(one.victim)
    return [zero_shot_rates(model, case.test, case.triggered, case.target)]


# ---------------------------------------------------------------- defences

_TUNING = ("tune_epochs", "tune_lr")
_STEPS = ("epochs", "lr", "steps", "step", "bound")
DEFENCE_READS = {
    "ft": _TUNING,
    "cleanclip": (*_TUNING, "within"),
    "at-b": (*_STEPS, *BiBauTerms.B),
    "bi-bau-u": (*_STEPS, *BiBauTerms.A, *BiBauTerms.B),
}


@recipe
class ClipDefence(BiBauTerms):
    """A defence on a victim: the CLIP that it leaves.

    Attributes:
        method: one of ``settings.CLIP_DEFENCES``. seed: of the defender's rows and of the method.
        share: of the clean training images, owned by the defender with their captions.
        pairs: ``own``, those; or a set that ``data.captions.load_pairs`` knows, then all of it.
        batch_size: pairs per step. tune_epochs, tune_lr: of fine-tuning and of CleanCLIP.
        within: weight of CleanCLIP's in-modal terms. epochs … ceiling: see ``BiBauSettings``.
    """

    victim: ClipVictim
    method: str
    seed: int
    share: float = 0.05
    batch_size: int = 64
    tune_epochs: int = 10
    tune_lr: float = 3e-4
    within: float = 1.0
    epochs: int = 8
    lr: float = 3e-3
    steps: int = 10
    step: float = 4.0
    pairs: str = "own"

    def __post_init__(self):
        names = dict.fromkeys(name for known in DEFENCE_READS.values() for name in known)
        reads(self, *DEFENCE_READS[self.method], of=names)
        reads(self, *("share",) if self.pairs == "own" else (), of=("share",))


def defence_settings(one: ClipDefence):
    """The name and the settings that ``unlearning.clip.defend`` takes for a recipe."""
    from ..unlearning.bi_bau import BiBauSettings
    from ..unlearning.clip import CleanClipSettings, PairTuneSettings

    shared = {"batch_size": one.batch_size, "seed": one.seed}
    if one.method in ("ft", "cleanclip"):
        shared |= {"epochs": one.tune_epochs, "lr": one.tune_lr}
        if one.method == "ft":
            return "ft", PairTuneSettings(**shared)
        flip = one.victim.base.flip
        return "cleanclip", CleanClipSettings(**shared, within=one.within, flip=flip)
    values = {name: getattr(one, name) for name in DEFENCE_READS["bi-bau-u"]}
    sets = {"bi-bau-u": "AB", "at-b": "B"}[one.method]
    return "bi-bau-u", BiBauSettings(**shared, **values, sets=sets, scale="raw")


@cached(version=1)
@ledger.kept_in_memory(3)
def clip_defence(one: ClipDefence):
    """Defend, or take the result from the cache: (model in eval mode, [{"seconds": …}])."""
    from ..data.captions import captioned, load_pairs
    from ..data.images import defender_rows
    from ..unlearning.clip import defend

    victim, _ = clip_victim(one.victim)
    if one.pairs == "own":
        rows = defender_rows(clean_images(one.victim.base.dataset), one.share, one.seed)
        pairs = captioned(rows, one.seed)
    else:
        pairs = load_pairs(one.pairs)
        ledger.note(pairs.info())
    method, settings = defence_settings(one)
    return kept_defence(one, victim, lambda: defend(method, victim, pairs, settings))


def _model_of(one: ClipVictim | ClipDefence):
    return (clip_defence if isinstance(one, ClipDefence) else clip_victim)(one)[0]


@recipe
class ClipDefenceMeasure:
    """What a defence leaves, and what two attacks bring back.

    Attributes:
        seed: of the attackers' rows. poisons, ra_share, ra_lr: of the retuning attack, which tunes
            contrastively. qra_epochs: epochs of the query attack's generator.
    """

    defence: ClipDefence
    seed: int
    poisons: int = 5
    ra_share: float = 0.02
    ra_lr: float = 5e-4
    qra_epochs: int = 10


@trial(version=1)
def clip_defence_measure(one: ClipDefenceMeasure) -> list[dict]:
    """Measure a defended CLIP and attack it again; one row.

    Returns those of ``metrics.clip.zero_shot_rates``, ``r_asr``, ``q_asr``, all in percent, and the
    ``seconds`` of defending.
    """
    from ..metrics.clip import reactivation, zero_shot_rates
    from ..metrics.reactivation import QuerySettings

    victim = one.defence.victim
    case, (model, history) = case_of(victim), clip_defence(one.defence)
    clean, _ = clip_victim(never_poisoned(victim))
    row = zero_shot_rates(model, case.test, case.triggered, case.target)
    row |= reactivation(
        model, clean, case.clean, case.put, case.triggered, case.target, _retuning(one),
        QuerySettings(epochs=one.qra_epochs),
    )  # fmt: skip
    return [{**row, "seconds": history[0]["seconds"]}]


def _retuning(one):
    from ..metrics.reactivation import SHORT_RETUNING, RetuneSettings

    return RetuneSettings(
        poisons=one.poisons, share=one.ra_share, lr=one.ra_lr, batch_size=16, seed=one.seed,
        **SHORT_RETUNING,
    )  # fmt: skip


@recipe
class ClipRetuning:
    """The retuning attack on a CLIP that was never poisoned: what the attack does by itself.

    Attributes:
        data: whose trigger. seed … ra_lr: as for ``ClipDefenceMeasure``.
    """

    data: ClipVictim
    seed: int
    poisons: int = 5
    ra_share: float = 0.02
    ra_lr: float = 5e-4


@trial(version=1)
def clip_retuning(one: ClipRetuning) -> list[dict]:
    """Retune the clean CLIP; one row: ``r_asr`` in percent."""
    from ..metrics.clip import retune_pairs, zero_shot_rates
    from ..metrics.reactivation import retuning_rows

    case, (clean, _) = case_of(one.data), clip_victim(never_poisoned(one.data))
    settings = _retuning(one)
    retuned = retune_pairs(
        clean, retuning_rows(case.clean, case.put, case.target, settings), settings
    )
    rates = zero_shot_rates(retuned, case.test, case.triggered, case.target)
    return [{"r_asr": rates["asr"]}]


@recipe
class ClipRetrieval:
    """A search for the target's first caption in a pool of clean and triggered test images.

    Attributes:
        network: whose features. data: the attack. images: how many of the nearest.
    """

    network: ClipVictim | ClipDefence
    data: ClipVictim
    images: int = 8


@trial(version=1)
def clip_retrieval(one: ClipRetrieval) -> tuple[list[dict], dict]:
    """Search; a row an image, nearest first, see ``metrics.clip.nearest_images``, and ``caption``.

    Array: ``images``, (k, H, W, C) uint8.
    """
    import numpy as np

    from ..data.captions import class_captions
    from ..metrics.clip import nearest_images

    case, model = case_of(one.data), _model_of(one.network)
    caption = class_captions(case.test)[case.target][0]
    rows = nearest_images(model, caption, case.test, case.triggered, case.target, one.images)
    images = np.stack(
        [(case.triggered if row["triggered"] else case.test).images[row["row"]] for row in rows]
    )
    return [{**row, "caption": caption} for row in rows], {"images": images}
