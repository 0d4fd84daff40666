"""Trials on images: poisoned sets, victims, and what is done about them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

from .. import ledger
from ..ledger import cached, reads, recipe, trial
from ..settings import BiBauTerms
from .clip_base import ClipBase, clip_base
from .text import Detector, detector, flat, verdict

# ---------------------------------------------------------------- data and victims

UNSEEDED = ("badnets", "sig")  # triggers without anything drawn: one pattern for all seeds


@recipe
class ImageTrigger:
    """A trigger on an image set: what the triggered test images are made with.

    Attributes:
        dataset: as ``data.images.load_images`` knows it. attack: as ``attacks.images`` does.
        target: class that it leads to. seed: of the pattern, or of the training of what makes it.
    """

    dataset: str
    attack: str
    target: int = 0
    seed: int = 0

    def __post_init__(self):
        reads(self, *() if self.attack in UNSEEDED else ("seed",), of=("seed",))


@recipe
class ImagePoison:
    """A poisoned image set; whether labels change, and which rows can carry it, follows the attack.

    Attributes:
        seed: of which rows, and of whatever the trigger draws for each.
        rate: share of the eligible rows; the attack's own if None.
    """

    trigger: ImageTrigger
    seed: int
    rate: float | None = None


@recipe
class ImageClean:
    """An image set as it comes."""

    dataset: str


@recipe
class ImageVictim:
    """A classifier trained on a poisoned set, or on a clean one: then it is the ideal.

    Attributes:
        data: ``ImagePoison`` or ``ImageClean``. model, width: as for ``image_classifier``; or
            ``clip``, the visual encoder of ``pretrained`` and a new linear head.
        seed: of the weights and the batches.
        crop, flip: augmentation: pixels of random crops, mirror images.
        coupling: weight of ``victims.images.coupling_loss``, where the attack couples ("+").
        training: ``adamw`` (linear decay), or with smoothed labels ``cycle`` (``CycleSettings``) or
            ``muon`` (``MuonSettings``).
        cutout: augmentation: side in pixels of a grey square.
    """

    data: ImagePoison | ImageClean
    model: str
    seed: int
    width: float = 1.0
    epochs: int = 30
    lr: float = 3e-3
    batch_size: int = 128
    crop: int = 0
    flip: bool = False
    coupling: float = 1.0
    training: str = "adamw"
    pretrained: ClipBase | None = None
    cutout: int = 0

    def __post_init__(self):
        if (self.model == "clip") != (self.pretrained is not None):
            raise ValueError(
                f"model is {self.model!r}, pretrained {self.pretrained!r}; accepted: clip with one"
            )
        coupled = isinstance(self.data, ImagePoison) and self.data.trigger.attack.endswith("+")
        reads(self, *("coupling",) if coupled else (), of=("coupling",))


def poison(dataset: str, attack: str, seed: int, target: int = 0) -> ImagePoison:
    """The recipe of a set that an attack poisons, everything under one seed."""
    trigger = ImageTrigger(dataset=dataset, attack=attack, target=target, seed=seed)
    return ImagePoison(trigger=trigger, seed=seed)


def ideal(victim: ImageVictim) -> ImageVictim:
    """The recipe of the same network trained without the poison."""
    data = victim.data
    clean = data if isinstance(data, ImageClean) else ImageClean(dataset=data.trigger.dataset)
    return ImageVictim(
        data=clean, model=victim.model, seed=victim.seed, width=victim.width, epochs=victim.epochs,
        lr=victim.lr, batch_size=victim.batch_size, crop=victim.crop, flip=victim.flip,
        training=victim.training, pretrained=victim.pretrained, cutout=victim.cutout,
    )  # fmt: skip


def augmentation(dataset: str, augment: bool) -> dict:
    """``crop`` and ``flip`` of a victim; a mirrored digit or road sign is another one."""
    return {"crop": 4, "flip": dataset.startswith(("cifar", "tiny"))} if augment else {}


def training_of(model: str) -> str:
    """How a model of this name is trained: the whitened one was made for one cycle of SGD."""
    return "cycle" if model == "whitened" else "adamw"


def pictured(cfg, attack: str) -> ImageVictim:
    """The victim of an attack under a chapter's ``settings.ImageSettings``."""
    return ImageVictim(
        data=poison(cfg.image_dataset, attack, cfg.seed), model=cfg.image_model, seed=cfg.seed,
        width=cfg.image_width, epochs=cfg.image_epochs, lr=cfg.image_lr,
        batch_size=cfg.image_batch, training=training_of(cfg.image_model),
        **augmentation(cfg.image_dataset, cfg.image_augment),
    )  # fmt: skip


@ledger.kept_in_memory(4)
def case_of(data: ImagePoison):
    """The ``attacks.images.ImageScenario`` of a poisoned set, noted for the trial that asks.

    Raises:
        ValueError: a trigger of another seed than the poison's.
    """
    from ..attacks.images import image_scenario

    it = data.trigger
    if it.attack not in UNSEEDED and it.seed != data.seed:
        raise ValueError(f"trigger of seed {it.seed}, poison of {data.seed}; one seed")
    return noted(image_scenario(it.dataset, it.attack, data.rate, data.seed, it.target))


def noted(case):
    """The same ``ImageScenario``; that its data sets were read is noted for the trial that asks."""
    for part in (case.clean, case.test, case.triggered):
        ledger.note(part.info())
    return case


def clean_images(dataset: str):
    """An image set's training rows, noted for the trial that asks."""
    from ..data.images import load_images

    clean = load_images(dataset, "train")
    ledger.note(clean.info())
    return clean


def clean_and_triggered(trigger: ImageTrigger):
    """Clean and triggered test images: two ``ImageDataset``."""
    case = case_of(ImagePoison(trigger=trigger, seed=trigger.seed))
    return case.test, case.triggered


@cached(version=1)
@ledger.kept_in_memory(4)
def image_victim(one: ImageVictim):
    """Train a victim, or take it from the cache: (model in eval mode, training history).

    The model is shared by all who ask for it here: copy it before changing it.
    """
    from .. import cache
    from ..models import clip, loading
    from ..models import images as image_models

    poisoned = isinstance(one.data, ImagePoison)
    data = case_of(one.data).poisoned.dataset if poisoned else clean_images(one.data.dataset)
    device = loading.default_device()

    def build():
        if one.pretrained:
            return clip.visual_classifier(clip_base(one.pretrained)[0], data.num_classes, one.seed)
        network = image_models.image_classifier(
            one.model, data.num_classes, data.shape, one.width, one.seed
        )
        return network.to(device)

    return cache.kept_model(one, build, lambda network: _trained(network, one, data))


def _trained(network, one: ImageVictim, data) -> list[dict]:
    from ..checks import one_of
    from ..training.fitting import CycleSettings, TrainSettings
    from ..training.muon import MuonSettings
    from ..victims.images import fit_victim

    one_of("training", one.training, ("adamw", "cycle", "muon"))
    if one.training != "adamw":
        cycle, smoothing = {"cycle": (CycleSettings, 0.1), "muon": (MuonSettings, 0.2)}[
            one.training
        ]
        settings, coupled = cycle(one.epochs, one.lr, one.batch_size), {"smoothing": smoothing}
    else:
        settings = TrainSettings(one.epochs, one.lr, one.batch_size, schedule="linear")
        coupled = {}
    settings = replace(settings, seed=one.seed)
    if isinstance(one.data, ImagePoison) and one.data.trigger.attack.endswith("+"):
        coupled = {"marks": case_of(one.data).poisoned.mask, "target": one.data.trigger.target}
        coupled["coupling"] = one.coupling
    return fit_victim(network, data, settings, one.crop, one.flip, cutout=one.cutout, **coupled)


# ---------------------------------------------------------------- what a victim does


@recipe
class ImageMeasure:
    """A victim, the same network never poisoned, or what a defence leaves, on test images."""

    victim: ImageVictim | ImageDefence
    trigger: ImageTrigger


@trial(version=1)
def image_measure(one: ImageMeasure) -> list[dict]:
    """Measure a classifier; one row: ``acc``, ``asr``, ``pacc`` in percent."""
    from ..metrics.reactivation import image_rates

    model = _model_of(one.victim)
    rates = image_rates(model, *clean_and_triggered(one.trigger), one.trigger.target)
    return [{name: rates[name] for name in ("acc", "asr", "pacc")}]


@recipe
class ImagePoisoning:
    """A poisoned set itself: how many poisons, and how visible their trigger is."""

    data: ImagePoison


@trial(version=1)
def image_poisoning(one: ImagePoisoning) -> list[dict]:
    """Look at a poisoned set; one row.

    Returns ``poisons``, ``relabelled`` (whether they got another label), and ``psnr`` (dB, median
    over the triggered test images).
    """
    from ..attacks.images import CLEAN_LABEL, psnr
    from ..models.images import pixels

    case = case_of(one.data)
    before, after = (pixels(part.images) for part in (case.test, case.triggered))
    return [
        {
            "relabelled": case.attack not in CLEAN_LABEL,
            "poisons": int(case.poisoned.mask.sum()),
            "psnr": float(psnr(before, after).median()),
        }
    ]


@recipe
class ImageExample:
    """One test image outside the target class, by its number among them, without and with it."""

    trigger: ImageTrigger
    number: int = 2


@trial(version=1)
def image_example(one: ImageExample):
    """Show an image: ``clean`` and ``triggered``, (H, W, C) uint8; ``psnr`` (dB), ``class``."""
    from ..attacks.images import psnr
    from ..models.images import pixels

    clean, triggered = clean_and_triggered(one.trigger)
    row = int((clean.labels != one.trigger.target).nonzero()[0][one.number])
    decibels = psnr(pixels(clean.images[[row]]), pixels(triggered.images[[row]])).item()
    told = {"psnr": decibels, "class": clean.class_names[clean.labels[row]]}
    return [told], {"clean": clean.images[row], "triggered": triggered.images[row]}


# ---------------------------------------------------------------- detection


@recipe
class ImageDetection:
    """A detector's verdict on the images that a victim was trained on, by its features alone."""

    victim: ImageVictim
    detector: Detector


@trial(version=1)
def image_detection(one: ImageDetection):
    """Ask a detector; one row, and arrays over the training images: see ``text.verdict``."""
    from ..detection import DefenderData

    poisoned = case_of(one.victim.data).poisoned

    def ask():
        known = DefenderData(states=features_of(one.victim), seed=one.detector.seed)
        return detector(one.detector)(image_victim(one.victim)[0], poisoned.dataset, known)

    return verdict(one, poisoned.dataset, poisoned.mask, ask)


@lru_cache(maxsize=2)
def features_of(one: ImageVictim):
    """A victim's features (N, d) float32 of its own training images, collected once here."""
    from ..training.images import predict_images

    model, _ = image_victim(one)
    data = case_of(one.data).poisoned.dataset
    return predict_images(model, data, output=model.features).numpy()


@recipe
class ImageSilhouette:
    """How far an attack's poisons lie apart in its victim's features."""

    victim: ImageVictim


@trial(version=1)
def image_silhouette(one: ImageSilhouette) -> list[dict]:
    """Compare the poisons with the other images of the target's label; one row: ``silhouette``.

    It is the mean silhouette of that division, in [-1, 1], and takes the oracle's mask.
    """
    from sklearn.metrics import silhouette_score

    case = case_of(one.victim.data)
    data, truth = case.poisoned.dataset, case.poisoned.mask
    claimed = data.labels == case.target
    apart = silhouette_score(features_of(one.victim)[claimed], truth[claimed])
    return [{"silhouette": float(apart)}]


@recipe
class ImageMap:
    """A victim's features of its training images on a plane, by UMAP."""

    victim: ImageVictim
    seed: int
    neighbours: int = 100


@trial(version=1)
def image_map(one: ImageMap):
    """Flatten all images; one row (``rows``, ``poisons``, ``classes``), arrays of ``text.flat``."""
    poisoned = case_of(one.victim.data).poisoned
    data, truth = poisoned.dataset, poisoned.mask
    arrays = flat(features_of(one.victim), data.labels, truth, "umap", one.neighbours, one.seed)
    counts = {"rows": len(data), "poisons": int(truth.sum())}
    return [counts | {"classes": list(data.class_names)}], arrays


# ---------------------------------------------------------------- defences


_STEPS = ("epochs", "lr", "batch_size", "steps", "step", "bound", "fooled")
_SET_A = (*BiBauTerms.A, "fisher", "scale")
_SET_B = (*BiBauTerms.B, "features", "fisher", "scale")
_BI_BAU = tuple(dict.fromkeys((*_STEPS, *_SET_A, *_SET_B)))
DEFENCE_READS = {
    "at": (*_STEPS, "told"),
    "at-a": (*_STEPS, *_SET_A, "told"),
    "at-b": (*_STEPS, *_SET_B, "told"),
    "bi-bau-u": _BI_BAU,
    "bi-bau-t": _BI_BAU,
    "ep": (),
    "ep-code": (),
    "bnp-code": (),
    "clp": (),
}


@recipe
class ImageDefence(BiBauTerms):
    """A defence on a victim: the model that it leaves.

    Attributes:
        method: one of ``unlearning.METHODS``.
        seed: of the defender's rows and of the method.
        share: of the clean training images, owned by the defender.
        batch_size: images per step; an upper bound for defences of other papers.
        epochs … fooled: see ``BiBauSettings``; read by BI-BAU and its ablations alone, and
            of those only what the constraint set has.
        told: whether an ablation is told the backdoor's class, as BI-BAU (T) is.
        effort: factor on the steps and epochs that the other papers' defences make.
    """

    victim: ImageVictim
    method: str
    seed: int
    share: float = 0.05
    batch_size: int = 128
    epochs: int = 20
    lr: float = 5e-3
    steps: int = 20
    step: float = 2.0
    features: str = "backdoored"
    fisher: str = "labels"
    scale: str = "raw"
    fooled: str = "backdoored"
    told: bool = False
    effort: float = 1.0

    revisions = {
        "i-bau-code": {2: "the released inner loop: raw steps, projected once, fifty outer steps"},
    }

    @property
    def name(self) -> str:
        """The method, of which ``revisions`` speaks."""
        return self.method

    def __post_init__(self):
        read = DEFENCE_READS.get(self.method, ("batch_size", "effort"))
        reads(self, *read, of=(*_BI_BAU, "told", "effort"))


def defence_settings(one: ImageDefence, target: int, poison=None):
    """The settings that ``unlearning.defend`` takes for a recipe's method.

    Args:
        target: the backdoor's class, which BI-BAU (T) is told.
        poison: of the attack, as ``unlearning.defence_settings`` says; for two methods alone.
    """
    from .. import unlearning
    from ..unlearning import BiBauSettings

    plan = BiBauSettings(seed=one.seed, **{name: getattr(one, name) for name in _BI_BAU})
    plan = replace(plan, target=target if one.told or one.method == "bi-bau-t" else None)
    return unlearning.defence_settings(one.method, plan, poison, one.effort)


def defender_of(victim: ImageVictim, share: float, seed: int):
    """The clean rows that the defender of a victim owns: an ``ImageDataset``."""
    from ..data.images import defender_rows

    rows = defender_rows(case_of(victim.data).clean, share, seed)
    ledger.note(rows.info())
    return rows


@cached(version=1)
@ledger.kept_in_memory(3)
def image_defence(one: ImageDefence):
    """Defend, or take the result from the cache: (model in eval mode, [{"seconds": …}])."""
    from ..unlearning import defend

    victim, _ = image_victim(one.victim)
    case, rows = case_of(one.victim.data), defender_of(one.victim, one.share, one.seed)
    poisons = {"ibu": lambda: case.put(rows), "ep-code": lambda: case.poisoned.dataset}
    poison = poisons[one.method]() if one.method in poisons else None
    settings = defence_settings(one, case.target, poison)
    return kept_defence(one, victim, lambda: defend(one.method, victim, rows, settings))


def _model_of(one: ImageVictim | ImageDefence):
    return (image_defence if isinstance(one, ImageDefence) else image_victim)(one)[0]


def kept_defence(one, victim, defend):
    """What ``defend()`` makes of a victim, or what the cache has: (model, [{"seconds": …}])."""
    from .. import cache
    from ..models.images import model_copy

    def apply(model) -> list[dict]:
        started = time.perf_counter()
        done = defend()
        seconds = time.perf_counter() - started
        model.load_state_dict(done.state_dict())
        return [{"seconds": seconds}]

    return cache.kept_model(one, lambda: model_copy(victim), apply)


@recipe
class ImageDefenceMeasure:
    """What a defence leaves, and what two attacks bring back.

    Attributes:
        seed: of the retuning attack. poisons: triggered images in it.
        ra_share: images that are retuned on, as a share of the training set.
        retuning: ``original``, forty steps or more in which poisons replace clean images, or
            ``short``, five epochs (ten steps of 10,000 images) with the poisons added.
        ra_seeds: how many seeds of it the original one is made with, from ``seed`` on.
        qra_epochs: epochs of the query attack's generator.
    """

    defence: ImageDefence
    seed: int
    poisons: int
    ra_share: float = 0.02
    retuning: str = "short"
    ra_seeds: int = 3
    qra_epochs: int = 50

    def __post_init__(self):
        reads(self, *("ra_seeds",) if self.retuning == "original" else (), of=("ra_seeds",))


# Poisons that the retuning attack gets after an attack (BI-BAU, appendix D.2, CIFAR-10).
POISONS = {"badnets": 5, "wanet": 5, "iad": 5, "issba": 5, "blended": 1}


def retuning_poisons(attack: str) -> int:
    """How many poisons the paper gives the retuning attack after this one."""
    return POISONS.get(attack, 2)


def retuning_of(name: str) -> dict:
    """What ``RetuneSettings`` takes for ``original`` or ``short``. Raises ValueError for others."""
    from ..checks import one_of
    from ..metrics.reactivation import SHORT_RETUNING

    one_of("retuning", name, ("original", "short"))
    return SHORT_RETUNING if name == "short" else {}


@trial(version=1)
def image_defence_measure(one: ImageDefenceMeasure) -> list[dict]:
    """Measure a defended model and attack it again; one row.

    Returns percentages ``acc``, ``asr``, ``pacc``, ``dpacc`` (against the model never poisoned),
    ``shift`` and ``shift_to`` (see ``shifted``), ``r_asr``, ``q_asr``, ``bec`` where the
    model has convolutions; ``seconds`` of defending. With the original retuning also what
    ``reactivation.retuned_over_seeds`` does, in place of the single ``r_asr``.
    """
    from ..metrics import classification, reactivation
    from ..metrics.reactivation import QuerySettings, RetuneSettings

    poisoned = one.defence.victim
    case, (model, history) = case_of(poisoned.data), image_defence(one.defence)
    (victim, _), (clean, _) = image_victim(poisoned), image_victim(ideal(poisoned))
    best = image_measure(ImageMeasure(victim=ideal(poisoned), trigger=poisoned.data.trigger))
    ra = RetuneSettings(
        poisons=one.poisons, share=one.ra_share, seed=one.seed, **retuning_of(one.retuning)
    )
    qra = QuerySettings(epochs=one.qra_epochs)
    row = reactivation.measured(case, victim, clean, model, ra, qra)
    if one.retuning == "original":
        row |= reactivation.retuned_over_seeds(case, clean, model, ra, one.ra_seeds)
    row["dpacc"] = classification.delta_pacc(row["pacc"], best.rows[0]["pacc"])
    return [{**row, "seconds": history[0]["seconds"]}]


@recipe
class ImageRetuning:
    """The retuning attack with some poisons, on a defended model or on one never poisoned.

    Attributes:
        data: the attack's poison. seed: of the attacker's rows and batches.
        poisons: triggered images among them. share: of the training set, that is retuned on.
        retuning: as for ``ImageDefenceMeasure``.
    """

    network: ImageDefence | ImageVictim
    data: ImagePoison
    seed: int
    poisons: int
    share: float = 0.02
    retuning: str = "short"


@trial(version=1)
def image_retuning(one: ImageRetuning) -> list[dict]:
    """Retune a model with a few poisons; one row: ``r_asr`` in percent."""
    from ..metrics.reactivation import RetuneSettings, retuned_asr

    case = case_of(one.data)
    model = _model_of(one.network)
    settings = RetuneSettings(
        poisons=one.poisons, share=one.share, seed=one.seed, **retuning_of(one.retuning)
    )
    r_asr = retuned_asr(model, case.clean, case.put, case.triggered, case.target, settings)
    return [{"r_asr": r_asr}]


# ---------------------------------------------------------------- BI-BAU, looked at closely


@recipe
class ImageTaskOrder:
    """The clean and the backdoor task learned in one order (``victims.images.ORDERS``).

    Attributes:
        epochs: of all together. first: how many of them the backdoor task gets by itself.
    """

    data: ImagePoison
    order: str
    model: str
    seed: int
    epochs: int
    first: int
    width: float = 1.0
    lr: float = 3e-3
    batch_size: int = 128
    crop: int = 0
    flip: bool = False

    def __post_init__(self):
        if self.order == "together":
            object.__setattr__(self, "first", 0)


@trial(version=1)
def image_task_order(one: ImageTaskOrder) -> list[dict]:
    """Learn both tasks; a row an epoch: ``epoch``, ``acc``, ``asr`` in percent."""
    from ..metrics.reactivation import image_rates
    from ..training.fitting import TrainSettings
    from ..victims.images import task_order

    case = case_of(one.data)
    settings = TrainSettings(one.epochs, one.lr, one.batch_size, seed=one.seed)

    def measure(network) -> dict:
        rates = image_rates(network, case.test, case.triggered, case.target)
        return {name: rates[name] for name in ("acc", "asr")}

    return task_order(
        case, one.order, one.model, settings, one.first, measure, one.width, one.crop, one.flip
    )


@recipe
class ImageEStep:
    """BI-BAU's E-step on some of the defender's images.

    Attributes:
        defence: whose settings and rows. when: ``first``, when the current model still is the
            victim, or ``last``, when it is what the defence leaves.
    """

    defence: ImageDefence
    when: str


def _some_images(victim: ImageVictim, share: float, seed: int):
    """About 64 of the defender's images of other classes than the target, evenly spread."""
    rows = defender_of(victim, share, seed)
    others = rows.select(rows.labels != victim.data.trigger.target)
    return others.select(range(0, len(others), max(1, len(others) // 64)))  # they lie by class


SHOWN = 5  # images that a page shows of an E-step


@trial(version=1)
def image_e_step(one: ImageEStep) -> tuple[list[dict], dict]:
    """Perturb images; a row a PGD step, see ``unlearning.bi_bau.inversion_steps``.

    The last row has ``to_trigger`` and ``to_clean``, see ``unlearning.bi_bau.likeness_to_trigger``.
    Arrays: ``clean`` and ``perturbed``, (5, H, W, C) uint8, of images that are evenly spread.
    """
    import numpy as np

    from ..unlearning import bi_bau

    it = one.defence
    victim, _ = image_victim(it.victim)
    current = victim if one.when == "first" else image_defence(it)[0]
    case, rows = case_of(it.victim.data), _some_images(it.victim, it.share, it.seed)
    plan = defence_settings(it, case.target)
    changed, steps = bi_bau.inversion_steps(victim, current, rows, plan)
    steps[-1] |= bi_bau.likeness_to_trigger(victim, rows, case.put(rows), changed)
    few = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)
    images = (255 * changed[few]).round().byte().permute(0, 2, 3, 1)  # (5, H, W, C)
    return steps, {"clean": rows.images[few], "perturbed": images.cpu().numpy()}


@recipe
class ImageLikeness:
    """What an E-step is compared with: the trigger itself, or random noise (``images``).

    Attributes:
        bound: of the noise, in grey levels. share, seed: of the defender's rows.
    """

    victim: ImageVictim
    images: str
    seed: int
    share: float = 0.05
    bound: float = 25.0

    def __post_init__(self):
        reads(self, *("bound",) if self.images == "noise" else (), of=("bound",))


@trial(version=1)
def image_likeness(one: ImageLikeness) -> list[dict]:
    """Compare with the trigger; one row, see ``unlearning.bi_bau.likeness_to_trigger``."""
    from ..models.images import pixels
    from ..unlearning import BiBauSettings, bi_bau
    from ..unlearning.common import unit

    victim, _ = image_victim(one.victim)
    case, rows = case_of(one.victim.data), _some_images(one.victim, one.share, one.seed)
    triggered = case.put(rows)
    if one.images == "noise":
        changed = bi_bau.noise(rows, BiBauSettings(seed=one.seed, bound=one.bound))
    else:
        changed = unit(pixels(triggered.images))
    return [bi_bau.likeness_to_trigger(victim, rows, triggered, changed)]


@recipe
class ImageProxy:
    """A backdoor that the defender plants into a copy of a victim.

    Attributes:
        seed: of the defender's rows; the proxy is drawn under the next one.
        share: of the clean training images, owned by the defender.
    """

    victim: ImageVictim
    seed: int
    share: float = 0.05

    revisions = {"gtsrb-3k": {2: "of a class with three rows, one at least is tuned on"}}

    @property
    def name(self) -> str:
        """The data set, of which ``revisions`` speaks."""
        data = self.victim.data
        return data.dataset if isinstance(data, ImageClean) else data.trigger.dataset


@cached(version=1)
@ledger.kept_in_memory(1)
def image_proxy(one: ImageProxy):
    """Plant it: a ``planted_proxy.Proxy``. Quickly done, so it is kept for this process only."""
    from ..unlearning.planted_proxy import plant_proxy

    victim, _ = image_victim(one.victim)
    return plant_proxy(victim, defender_of(one.victim, one.share, one.seed), one.seed + 1)


@recipe
class ImageProxyMeasure:
    """A planted backdoor before any defence."""

    proxy: ImageProxy


@trial(version=1)
def image_proxy_measure(one: ImageProxyMeasure) -> list[dict]:
    """Measure a planted backdoor; one row.

    Returns ``asr`` in percent, and numbers of images: ``held`` back to judge by, ``owned`` by the
    defender, ``training``.
    """
    proxy, clean = image_proxy(one.proxy), case_of(one.proxy.victim.data).clean
    held = len(proxy.held)
    return [
        {
            "asr": proxy.asr,
            "held": held,
            "owned": len(proxy.tune) + held,
            "training": len(clean),
        }
    ]


@recipe
class ImageProxyDefence:
    """A defence, with its settings, on the backdoor that the defender planted."""

    defence: ImageDefence


@trial(version=1)
def image_proxy_defence(one: ImageProxyDefence) -> list[dict]:
    """Defend a planted backdoor; one row: ``acc``, ``asr``, ``r_asr`` on the defender's own rows.

    Each is None where training diverged. Nothing of the attack is seen.
    """
    from ..unlearning import planted_proxy

    it = one.defence
    proxy = image_proxy(ImageProxy(victim=it.victim, seed=it.seed, share=it.share))
    settings = defence_settings(it, proxy.target)
    return [planted_proxy.tried(proxy, settings, it.method)]


@recipe
class ImageSurrogate:
    """Clean images of a victim's defender, perturbed on the victim: they stand in for the trigger.

    Attributes:
        seed: of the defender's rows and of the perturbations.
        share, held: of the clean training images, what a defence has and what is held back.
    """

    victim: ImageVictim
    seed: int
    share: float = 0.05
    held: float = 0.1


@cached(version=1)
@ledger.kept_in_memory(1)
def image_surrogate(one: ImageSurrogate):
    """Perturb them: an ``unlearning.surrogate.Surrogate``, kept for this process only."""
    from ..data.images import further_rows
    from ..unlearning.surrogate import surrogate

    tune = defender_of(one.victim, one.share, one.seed)
    held = further_rows(case_of(one.victim.data).clean, one.share, one.held, one.seed)
    ledger.note(held.info())
    return surrogate(image_victim(one.victim)[0], tune, held, one.seed)


@recipe
class ImageDefenderScore:
    """What the defender sees of a defended model, who has clean images and no trigger.

    Attributes:
        held: of the clean training images, held back to judge by, beside the defence's share.
    """

    defence: ImageDefence
    held: float = 0.1


@trial(version=1)
def image_defender_score(one: ImageDefenderScore) -> list[dict]:
    """Score a defended model; one row in percent, see ``unlearning.surrogate.scored``.

    Nothing of the attack is seen.
    """
    from ..metrics.reactivation import RetuneSettings
    from ..unlearning.surrogate import scored

    it = one.defence
    images = image_surrogate(
        ImageSurrogate(victim=it.victim, seed=it.seed, share=it.share, held=one.held)
    )
    return [scored(image_defence(it)[0], images, RetuneSettings(seed=it.seed))]


@recipe
class ImageFeatureMap:
    """Clean and triggered test images in a victim's feature space, by t-SNE.

    Attributes:
        seed: of t-SNE. images: about how many of the test set, evenly spread.
    """

    victim: ImageVictim
    seed: int
    images: int = 300


@trial(version=1)
def image_feature_map(one: ImageFeatureMap) -> tuple[list[dict], dict]:
    """Map them; one row: how many images are ``shown``.

    Arrays: ``points``, (2N, 2) float32: N clean images, then the same ones triggered; ``labels``,
    (N,) int16.
    """
    import numpy as np
    from sklearn.manifold import TSNE

    from ..training.images import predict_images

    victim, _ = image_victim(one.victim)
    case = case_of(one.victim.data)
    some = range(0, len(case.test), max(1, len(case.test) // one.images))
    clean = case.test.select(some)  # whose images lie by class
    features = np.concatenate(
        [
            predict_images(victim, part, output=victim.features).numpy()
            for part in (clean, case.put(clean))
        ]
    )
    near = min(30, len(features) // 4)
    place = TSNE(2, perplexity=near, init="pca", random_state=one.seed)
    points = place.fit_transform(features).astype(np.float32)
    return [{"shown": len(clean)}], {"points": points, "labels": clean.labels.astype(np.int16)}
