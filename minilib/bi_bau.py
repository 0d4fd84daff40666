"""Chapter 06: BI-BAU's experiments, and the proxy by which a defender chooses its settings.

The method itself stands beside the other defences, in ``minilib.purify.bi_bau``, and behind the
same ``purify``; what the chapter explains of it is named here too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import audits, cache, metrics
from .attacks.images import poison_images, trigger_images
from .audits import QuerySettings, RetuneSettings
from .descent import SgdSettings, descend, seeded
from .image_victims import ImageScenario, audited
from .images import ImageDataset
from .models import default_device
from .purify import DEFENCES, BiBauSettings, purify
from .purify.bi_bau import (
    Known,
    ewc,
    fisher_diagonal,
    inverse_ewc,
    inversion_terms,
    inverted,
    likelihood_loss,
    pgd,
    prior_loss,
    random_start,
    unlearning_loss,
)
from .purify.common import unit
from .train import Diverged, TrainSettings
from .vision import (
    ImageBatches,
    ImageClassifier,
    fit_images,
    frozen_copy,
    image_classifier,
    image_cross_entropy,
    image_data,
    model_copy,
    predict_images,
)

__all__ = [
    "Known",
    "Proxy",
    "ewc",
    "fisher_diagonal",
    "inverse_ewc",
    "inversion_terms",
    "inverted",
    "likelihood_loss",
    "pgd",
    "prior_loss",
    "unlearning_loss",
]


# ------------------------------------------------------------------- the defender's own proxy


@dataclass(frozen=True)
class Proxy:
    """A backdoor that the defender planted: everything about it is known.

    Attributes:
        model: the suspicious model with the defender's own backdoor beside whatever it has.
        tune: clean rows to purify it with. held: clean rows to judge by.
        triggered: ``held`` with the proxy's trigger, own labels. trigger, target: the proxy's.
        asr: how well it took, in percent.
    """

    model: ImageClassifier
    tune: ImageDataset
    held: ImageDataset
    triggered: ImageDataset
    trigger: object
    target: int
    asr: float


PLANT = SgdSettings(epochs=20, batch_size=32)


def plant_proxy(
    model: ImageClassifier,
    clean: ImageDataset,
    seed: int = 0,
    rate: float = 0.3,
    settings: SgdSettings = PLANT,
) -> Proxy:
    """Plant a backdoor of one's own into a copy of a model, to choose a defence's settings by.

    Two thirds of the defender's rows are tuned on, a third is held back to judge. The trigger is a
    square of noise at a random place and its target a random class, both drawn under ``seed``.

    Args:
        clean: the defender's rows. rate: share of the other classes' rows that get the trigger,
            beside their clean originals.
    """
    rng = np.random.default_rng([seed, 6])
    order = rng.permutation(len(clean))
    tune, held = np.split(order, [2 * len(clean) // 3])
    tune, held = clean.select(np.sort(tune)), clean.select(np.sort(held))
    target = int(rng.integers(clean.num_classes))
    trigger = noise_patch(clean.shape, rng)
    poisoned = poison_images(tune, trigger, target, rate, seed, keep_originals=True).dataset
    copy = model_copy(model).requires_grad_(True)
    data = image_data(poisoned, next(copy.parameters()).device)
    descend(copy, ImageBatches(data, settings.batch_size), image_cross_entropy, settings)
    triggered = trigger_images(held, trigger)
    asr = audits.audit_images(copy, held, triggered, target)["asr"]
    return Proxy(copy, tune, held, triggered, trigger, target, asr)


@dataclass(frozen=True)
class NoisePatch:
    """A square of fixed random pixels at a fixed place; the proxy's trigger."""

    pixels: Tensor
    top: int
    left: int
    name: str = "proxy"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        """Put the square into (B, C, H, W) uint8 images."""
        side = self.pixels.shape[-1]
        done = images.clone()
        place = (..., slice(self.top, self.top + side), slice(self.left, self.left + side))
        done[place] = self.pixels.to(images.device)
        return done


def noise_patch(shape: tuple[int, int, int], rng: np.random.Generator) -> NoisePatch:
    """Draw a square a fifth of the image wide, anywhere."""
    channels, height, width = shape
    side = max(3, height // 5)
    noise = torch.as_tensor(rng.integers(0, 256, (channels, side, side)), dtype=torch.uint8)
    top, left = (int(rng.integers(0, size - side + 1)) for size in (height, width))
    return NoisePatch(noise, top, left)


def judge(proxy: Proxy, purified: ImageClassifier, precision: str = "auto") -> dict:
    """Measure a purified proxy on the defender's own rows.

    Returns: ``acc``, ``asr``, ``r_asr`` in percent.
    """
    found = audits.audit_images(purified, proxy.held, proxy.triggered, proxy.target)
    how = RetuneSettings(share=0.5, precision=precision)
    r_asr = audits.retuned_asr(
        purified,
        proxy.tune,
        lambda part: trigger_images(part, proxy.trigger),
        proxy.triggered,
        proxy.target,
        how,
    )
    return {"acc": found["acc"], "asr": found["asr"], "r_asr": r_asr}


def try_on_proxy(
    proxy: Proxy, candidates: Mapping[str, BiBauSettings], targeted: bool = False
) -> list[dict]:
    """Purify the proxy with each candidate and judge it, once. Nothing of the attack is seen.

    Returns: one dict per candidate: its name and what ``judge`` measures, None where training
    diverged.
    """
    rows = []
    for name, settings in candidates.items():
        settings = replace(settings, target=proxy.target if targeted else None)
        key = {
            "proxy": cache.weights_digest(proxy.model),
            "rows": [part.sha256 for part in (proxy.tune, proxy.held, proxy.triggered)],
            "settings": asdict(settings),
            **cache.conditions(default_device(), USED, "blind_inversion", "judge"),
        }
        found = cache.cached_json("proxy", key, partial(_tried, proxy, settings))
        rows.append({"candidate": name, **found})
    return rows


def _tried(proxy: Proxy, settings: BiBauSettings) -> dict:
    try:
        purified = purify("bi-bau", proxy.model, proxy.tune, settings)
    except Diverged:
        return {"acc": None, "asr": None, "r_asr": None}
    return judge(proxy, purified, settings.precision)


def chosen(rows: Sequence[Mapping], held: int, most: float = 20.0) -> str:
    """Choose a candidate by the one-standard-error rule.

    Of those that hold ASR and R-ASR at ``most`` or below: among the ones whose accuracy is within
    a standard error of the best, the one with the lowest R-ASR. Where none holds, the lowest R-ASR
    of all. Ties go to the earlier.

    Args:
        rows: what ``try_on_proxy`` returns. held: rows that accuracy was measured on.

    Raises:
        ValueError: all of them diverged.
    """
    rows = [row for row in rows if row["acc"] is not None]
    if not rows:
        raise ValueError("every candidate diverged; lower the learning rate or ewc")
    good = [row for row in rows if max(row["asr"], row["r_asr"]) <= most]
    if good:
        best = max(row["acc"] for row in good)
        rows = [row for row in good if row["acc"] >= best - standard_error(best, held)]
    return min(rows, key=lambda row: row["r_asr"])["candidate"]


def standard_error(rate: float, rows: int) -> float:
    """Standard error of a rate in percent, measured on some rows; at least that of one row."""
    share = min(max(rate / 100, 1 / rows), 1 - 1 / rows)
    return 100 * (share * (1 - share) / rows) ** 0.5


# ------------------------------------------------------------------------- what is compared

# Constraint sets of the ablation (Table 6): BI-BAU (U) is all of them, plain AT none.
SETS = {"at": "", "at-a": "A", "at-b": "B", "bi-bau-u": "AB", "bi-bau-t": "AB"}
METHODS = (
    "ft", "nc", "bti-dbf", "anp", "ep", "rnp", "clp", "i-bau", "i-bau-code", "sau", "pam", *SETS,
    "ibu",
)  # fmt: skip
# Released code that does something else than its paper: the defence, and what is different.
RELEASED = {"i-bau-code": ("i-bau", {"portion": 0.01})}
KNOBS = (
    "likelihood", "prior", "ewc", "inverse", "temperature", "ceiling", "lr", "epochs", "steps",
)  # fmt: skip
# Poisons that the retuning attack gets (appendix D.2, CIFAR-10).
POISONS = {"badnets": 5, "wanet": 5, "iad": 5, "issba": 5, "blended": 1}


def poisons(attack: str) -> int:
    """How many poisons the paper gives the retuning attack after this one."""
    return POISONS.get(attack, 2)


# The paper has one setting for most attacks, a smaller η for Refool, and one more, with other outer
# weights and rate, for attacks whose features are entangled with the clean ones. Its values are
# lost; these are ours, and guesses: to choose by the attack one must know it.
FAMILIES = {
    "general": {},
    "refool": {"eta": 0.25},
    "entangled": {"eta": 0.1},
}
ENTANGLED = ("sig", "narcissus", "adap-blend", "adap-patch")


def family(attack: str) -> str:
    """Name the family that an attack's settings belong to: general, refool or entangled."""
    if attack.removesuffix("+") in ENTANGLED:
        return "entangled"
    return "refool" if attack == "refool" else "general"


def for_attack(plan: BiBauSettings, attack: str) -> BiBauSettings:
    """Change a plan as the paper does for the attack's family (appendix D.3)."""
    return replace(plan, **FAMILIES[family(attack)])


def defence(name: str, case: ImageScenario, plan: BiBauSettings) -> tuple[str, object]:
    """Turn a method's name in this chapter into the name and settings that ``purify`` takes.

    ``bi-bau-u`` and ``bi-bau-t`` are ``plan`` without and with the attack's target; ``at``,
    ``at-a`` and ``at-b`` are the first with fewer constraints, and RELEASED's are defences as their
    released code has them. All others have their papers' settings, with ``plan``'s seed, precision
    and, where it is smaller, batch size.

    Raises:
        ValueError: unknown method.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; accepted: {', '.join(METHODS)}")
    if name in SETS:
        target = case.target if name == "bi-bau-t" else None
        return "bi-bau", replace(plan, target=target, sets=SETS[name])
    name, different = RELEASED.get(name, (name, {}))
    settings = DEFENCES[name].settings(**different)
    have = asdict(settings)
    shared = {"seed": plan.seed, "precision": plan.precision}
    changes = {key: value for key, value in shared.items() if key in have}
    if "batch_size" in have:
        changes["batch_size"] = min(settings.batch_size, plan.batch_size)
    if name == "ibu":
        changes["poison"] = case.put(case.defender)
    return name, replace(settings, **changes)


@dataclass(frozen=True)
class Lab:
    """What a defence is tried on and judged by.

    Attributes:
        case: the attack. victim: its model. clean_model: the same, never poisoned.
        ra, qra: the two re-activation attacks.
    """

    case: ImageScenario
    victim: ImageClassifier
    clean_model: ImageClassifier
    ra: RetuneSettings
    qra: QuerySettings


def measured(lab: Lab, model: ImageClassifier, inside: bool = True) -> dict:
    """Measure everything that the chapter says of a model.

    Returns: ``acc``, ``asr``, ``pacc``, ``dpacc`` (distance of PACC from the clean model's),
    ``shift`` and ``shift_to`` (see ``shifted``), ``r_asr``, ``q_asr``; with ``inside`` and where
    the model has convolutions ``bec`` in percent. Percentages all.
    """
    case = lab.case
    found = {k: v for k, v in audited(case, model).items() if k != "pacc_by_class"}
    found["dpacc"] = metrics.delta_pacc(found["pacc"], audited(case, lab.clean_model)["pacc"])
    pred = predict_images(model, case.triggered).argmax(1).numpy()
    found["shift"], found["shift_to"] = shifted(pred, case.triggered.labels, case.target)
    found |= audits.reactivation(
        model, lab.clean_model, case.clean, case.put, case.triggered, case.target, lab.ra, lab.qra
    )
    if inside and any(isinstance(m, torch.nn.Conv2d) for m in model.modules()):
        device = next(model.parameters()).device
        pairs = [audits.image_inputs(part, device) for part in (case.test, case.triggered)]
        likeness = audits.backdoor_existence(lab.victim, lab.clean_model, model, *pairs)
        found["bec"] = 100 * likeness["bec"]
    return found


def by_poisons(lab: Lab, models: Mapping[str, ImageClassifier], counts: Sequence[int]) -> list:
    """Ask how many poisons the retuning attack needs, for each of several models.

    Args:
        models: name → model; the clean one among them shows what the attack can do without a
            backdoor to bring back. counts: numbers of poisons.

    Returns: one dict per model and count: ``method``, ``poisons``, ``r_asr``; cached.
    """
    case, rows = lab.case, []
    for name, model in models.items():
        for count in counts:
            settings = replace(lab.ra, poisons=count)
            key = {
                "model": cache.weights_digest(model),
                "rows": [case.clean.sha256, case.triggered.sha256],
                "attack": [asdict(settings), case.trigger.name],
                **cache.conditions(default_device(), USED, "retuned_asr"),
            }
            attack = (model, case.clean, case.put, case.triggered, case.target, settings)
            found = cache.cached_json("retuned", key, partial(_retuned, *attack))
            rows.append({"method": name, "poisons": count, **found})
    return rows


def _retuned(*attack) -> dict:
    return {"r_asr": audits.retuned_asr(*attack)}


def shifted(pred: np.ndarray, labels: np.ndarray, target: int) -> tuple[float, int]:
    """Ask whether the trigger now leads to *another* class.

    Returns: over all classes but the target, the largest share (percent) of triggered rows of
    other classes that are put into it, and that class.
    """
    classes = [k for k in np.unique(labels) if k != target]
    shares = [100 * float(np.mean(pred[labels != k] == k)) for k in classes]
    return max(shares), int(classes[int(np.argmax(shares))])


def purified(lab: Lab, name: str, plan: BiBauSettings) -> tuple[ImageClassifier, float]:
    """Purify the victim by one method, at most once.

    Returns: the purified model and the seconds it took when it was made.
    """
    method, settings = defence(name, lab.case, plan)
    device = next(lab.victim.parameters()).device
    key = {
        "victim": cache.weights_digest(lab.victim),
        "rows": lab.case.defender.sha256,
        "method": [method, _described(settings)],
        # The bound alone sees the true poison.
        "poison": lab.case.put(lab.case.defender).sha256 if method == "ibu" else None,
        # Only the method's own code: a change of one defence leaves the others' results standing.
        **cache.conditions(device, USED, DEFENCES[method].run.__name__),
    }

    def teach(model: ImageClassifier) -> list[dict]:
        started = time.perf_counter()
        done = purify(method, lab.victim, lab.case.defender, settings)
        seconds = time.perf_counter() - started
        model.load_state_dict(done.state_dict())
        return [{"seconds": seconds}]

    model, history = cache.cached_model(key, lambda: model_copy(lab.victim), teach)
    return model, history[0]["seconds"]


def _described(settings: object) -> dict:
    return {k: v for k, v in asdict(settings).items() if k not in ("poison", "mixed")}


def experiment(lab: Lab, name: str, plan: BiBauSettings, inside: bool = True) -> dict:
    """Purify the victim by one method and measure the result, at most once.

    Returns: ``measured``'s dict with ``method``, ``attack`` and ``seconds`` (of purifying).
    """
    model, seconds = purified(lab, name, plan)
    key = {
        "model": cache.weights_digest(model),
        "victim": cache.weights_digest(lab.victim),
        "clean_model": cache.weights_digest(lab.clean_model),
        "rows": [part.sha256 for part in (lab.case.clean, lab.case.test, lab.case.triggered)],
        "attacks": [asdict(lab.ra), asdict(lab.qra), lab.case.trigger.name, inside],
        **cache.conditions(next(model.parameters()).device, USED, "measured"),
    }
    found = cache.cached_json("purified", key, lambda: measured(lab, model, inside))
    return {"attack": lab.case.attack, "method": name, **found, "seconds": seconds}


USED = (
    "bi_bau", "audits", "descent", "train", "vision", "metrics", "image_victims", "purify",
    "purify.adversarial", "purify.bi_bau", "purify.common", "purify.inversion", "purify.pruning",
    "purify.tuning",
)  # fmt: skip


# -------------------------------------------------------------- the order of the two tasks (E.1)

ORDERS = ("together", "backdoor first", "clean first")


def task_orders(
    case: ImageScenario, model: str, settings: TrainSettings, first: int, width: float = 1.0,
    crop: int = 0, flip: bool = False,
) -> list[dict]:  # fmt: skip
    """Learn the clean and the backdoor task together, and one after the other in both orders.

    Each task is rehearsed a little while the other is learned: 10 % of the clean rows beside the
    poison, 1 % of the poison beside the clean rows, or 0.2 % where the clean task comes first.

    Args:
        settings: of all epochs together. first: how many of them the backdoor task gets.

    Returns: one dict per order and epoch: ``order``, ``epoch``, ``acc``, ``asr``.

    Source: appendix E.1 and Figure 6, BI-BAU.
    """
    data, mask = case.poisoned.dataset, case.poisoned.mask
    rng = np.random.default_rng([settings.seed, 1])
    poison, clean = (rng.permutation(np.flatnonzero(rows)) for rows in (mask, ~mask))
    some = max(1, len(clean) // 10)
    backdoor = np.concatenate([poison, clean[:some]])
    last = settings.epochs - first
    streams = {
        "together": [(np.arange(len(data)), settings.epochs)],
        "backdoor first": [
            (backdoor, first),
            (np.concatenate([clean, poison[: max(1, len(poison) // 100)]]), last),
        ],
        "clean first": [
            (np.concatenate([clean, poison[: max(1, len(poison) // 500)]]), last),
            (backdoor, first),
        ],
    }
    device = default_device()
    key = {
        "data": [part.sha256 for part in (data, case.test, case.triggered)],
        "model": [model, width, crop, flip],
        "settings": [asdict(settings), first],
        **cache.conditions(device, USED, "task_orders", "fit_images"),
    }

    def compute() -> dict:
        rows = []
        for order, stages in streams.items():
            network = image_classifier(model, data.num_classes, data.shape, width, settings.seed)
            network, past = network.to(device), 0
            for index, epochs in stages:
                part = image_data(data.select(index), device)
                fit_images(
                    network, part, replace(settings, epochs=epochs), crop, flip,
                    on_epoch=_tested(case, rows, order, past),
                )  # fmt: skip
                past += epochs
        return {"rows": rows}

    return cache.cached_json("task_orders", key, compute)["rows"]


def _tested(case: ImageScenario, rows: list[dict], order: str, past: int):
    def on_epoch(network, epoch: int) -> dict:
        found = audits.audit_images(network, case.test, case.triggered, case.target)
        rows.append(
            {"order": order, "epoch": past + epoch, "acc": found["acc"], "asr": found["asr"]}
        )
        return {}

    return on_epoch


# ------------------------------------------------------------------- what the E-step makes


def known_of(original: ImageClassifier, dataset: ImageDataset) -> Known:
    """Compute what is constant of some rows: x, y, f_b(x), h(x)."""
    data = image_data(dataset, next(original.parameters()).device)
    x = unit(data.images)
    with torch.no_grad():
        features = original.features(x)
        return Known(x, data.labels, original.head(features), features)


def story(
    original: ImageClassifier, model: ImageClassifier, dataset: ImageDataset, plan: BiBauSettings
) -> tuple[Tensor, list[dict]]:
    """Follow an E-step: what both models say of the images after each PGD step.

    Rows of the target class are left out where there is one.

    Returns:
        x', (N, C, H, W) in 0 … 1, and one dict per step: ``step``; mean probabilities in percent,
        ``backdoored_true``, ``backdoored_other`` (the target, or the likeliest wrong class) and
        ``current_true``; ``angle``, the mean absolute cosine between change and clean features.
    """
    if plan.target is not None:
        dataset = dataset.select(dataset.labels != plan.target)
    original, model = frozen_copy(original), frozen_copy(model)
    known, rows = known_of(original, dataset), []

    @torch.no_grad()
    def watch(shown: Tensor) -> None:
        theirs = original(shown).softmax(1)
        own = theirs.gather(1, known.labels[:, None])
        if plan.target is None:
            other = theirs.scatter(1, known.labels[:, None], 0).amax(1)
        else:
            other = theirs[:, plan.target]
        read = model(shown).softmax(1).gather(1, known.labels[:, None])
        change = original.features(shown) - known.features
        angle = F.cosine_similarity(change, known.features, dim=1).abs()
        means = {"backdoored_true": own, "backdoored_other": other, "current_true": read}
        means = {name: 100 * value.mean().item() for name, value in means.items()}
        rows.append({"step": len(rows), **means, "angle": angle.mean().item()})

    with seeded(plan.seed, known.x.device):
        shown = inverted(original, model, known, plan, watch)
    return shown, rows


def noise(dataset: ImageDataset, plan: BiBauSettings) -> Tensor:
    """Add uniform noise of the plan's bound, where PGD starts; (N, C, H, W) in 0 … 1."""
    x = unit(image_data(dataset, default_device()).images)
    with seeded(plan.seed, x.device):
        return random_start(x, plan.bound / 255, plan.norm)


def likeness_to_trigger(
    original: ImageClassifier, dataset: ImageDataset, triggered: ImageDataset, shown: Tensor
) -> dict:
    """Compare a perturbation with the true trigger in the backdoored model's feature space.

    For the book, not for the defender, who has no trigger.

    Args:
        dataset, triggered: the same rows without and with it. shown: the same rows perturbed.

    Returns: mean cosines of the feature change: ``to_trigger`` (with the trigger's own change) and
    ``to_clean`` (absolute, with the clean features).
    """
    known = known_of(original, dataset)
    shown = shown.to(known.x.device)
    with torch.no_grad():
        wanted = known_of(original, triggered).features - known.features
        change = original.features(shown) - known.features
        return {
            "to_trigger": F.cosine_similarity(change, wanted, dim=1).mean().item(),
            "to_clean": F.cosine_similarity(change, known.features, dim=1).abs().mean().item(),
        }


def variants(plan: BiBauSettings, knobs: Sequence[str], factors: Sequence[float]) -> dict:
    """Make a plan's neighbours: each knob multiplied by each factor, the rest as it was.

    Returns: "knob × factor" → settings, "as planned" first.

    Raises:
        ValueError: unknown knob.
    """
    unknown = [name for name in knobs if name not in KNOBS]
    if unknown:
        raise ValueError(f"knob is {unknown[0]!r}; accepted: {', '.join(KNOBS)}")
    found = {"as planned": plan}
    for name in knobs:
        for factor in factors:
            value = getattr(plan, name)
            value = max(1, round(value * factor)) if isinstance(value, int) else value * factor
            found[f"{name} × {factor:g}"] = replace(plan, **{name: value})
    return found
