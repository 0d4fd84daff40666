"""The parameters of each chapter: types, ranges and one-line errors. Imports no torch.

The command line checks a run's parameters here before it starts a kernel, and the notebook checks
them again before any work, so both give the same message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .provenance import UsageError, one_line, read_yaml, shown, unknown
from .registry import Names, load_outside

TEXT_SETS = Literal[
    "sst2", "hsol", "olid", "agnews-8k", "agnews", "imdb-2500", "imdb", "toy-reviews", "toy-topics"
]  # fmt: skip
# The class that the book's attacks lead to, where it is not 1.
TARGETS = dict.fromkeys(("hsol", "agnews", "agnews-8k", "toy-topics", "toy-topics-200", "olid"), 0)
ATTACKS = Names("attack", "badnets", "addsent", "hiddenkiller", "stylebkd", "sos")
METHODS = Names("unlearning", "ga", "npo", "dga", "rga", "rga-code")
DETECTOR_NAMES = Names(
    "detector",
    "cube", "cube-code", "cube-original", "cube-pca", "activation", "spectral", "onion", "strip",
    "rap", "bki", "moderate",
)  # fmt: skip

BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
MOST_SEED = 2**32 - 1  # the largest that every generator of random numbers takes

frozen = dataclass(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AscentSettings:
    """What the losses of gradient ascent read. Their defaults stand here and nowhere else.

    Attributes:
        alpha: decay rate of RGA's λ (Eq. 7). beta: weight of its drift term (Eq. 6).
        npo_beta: NPO's inverse temperature.
        direction, drift_norm: see ``gradient_ascent.rga_weight`` and ``drift``. Method "rga-code"
            overrides both with the released code's reading.

    Source: section 6.1, RGA.
    """

    alpha: float = 2.0
    beta: float = 0.05
    npo_beta: float = 1.0
    direction: str = "current"
    drift_norm: str = "global"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiBauTerms:
    """What BI-BAU's constraints read. Their defaults stand here and nowhere else.

    Attributes:
        bound: largest change of a pixel in grey levels (0 … 255).
        likelihood, prior: λ1, λ2 of the E-step. ewc, inverse: λ3, λ4 of the M-step.
        hard, temperature: a and T of the likelihood term (Eq. 17). eta: η of the prior term.
        ceiling: c, the clip of the inverse EWC (Eq. 24).
        A, B: what each of the two constraint sets reads.

    Source: Eq. (22) to (27), BI-BAU; the bound is the paper's, the other defaults are ours. ``ewc``
    is for a Fisher as it stands; ``unlearning.bi_bau`` divides by its largest entry, and has less.
    """

    bound: float = 25.0
    likelihood: float = 1.0
    prior: float = 1.0
    ewc: float = 100.0
    inverse: float = 1.0
    hard: float = 0.5
    temperature: float = 1.0
    eta: float = 0.5
    ceiling: float = 1.0

    A: ClassVar = ("likelihood", "hard", "temperature", "ewc")
    B: ClassVar = ("prior", "eta", "inverse", "ceiling")


class SettingsError(ValueError):
    """A chapter's parameter that is unknown, of the wrong type or out of range; one line."""


def names(known: Sequence[str], *more: str, together: bool = False):
    """A comma-separated list of known names, in a str (notebook parameters are flat).

    Each name stands for trials of its own, which ``widest`` counts on, unless the names make one
    thing ``together``.
    """

    def check(value: str) -> str:
        load_outside()
        accepted = (*known, *more)
        items = split(value)
        for item in items:
            if item not in accepted:
                raise ValueError(f"{item!r} is unknown; accepted: a list of {', '.join(accepted)}")
        if "none" in items and len(items) > 1:
            raise ValueError("'none' stands beside others; accepted: it alone, or without it")
        once(items)
        return value

    return Annotated[str, AfterValidator(check), () if together else known]


def name_in(known: Sequence[str], *more: str):
    """One of some names, in a str; those from outside count."""

    def check(value: str) -> str:
        load_outside()
        accepted = (*known, *more)
        if value not in accepted:
            raise ValueError(f"accepted: {', '.join(accepted)}")
        return value

    return Annotated[str, AfterValidator(check)]


def numbers(kind: type, above: float, upto: float, again: bool = False):
    """A comma-separated list of numbers in (above, upto], in a str; ``again``: one may be twice."""

    def check(value: str) -> str:
        found = []
        for item in split(value):
            try:
                number = kind(item)
            except ValueError:
                raise ValueError(f"{item!r} is not a number of type {kind.__name__}") from None
            if not above < number <= upto:
                raise ValueError(f"{item} is out of range; accepted: above {above}, up to {upto}")
            found.append(number)
        if not again:
            once(found)
        return value

    return Annotated[str, AfterValidator(check)]


def seed_of(what: str) -> Any:
    """A chapter's seed; ``what`` it draws is told to the reader."""
    return Field(0, ge=0, le=MOST_SEED, description=f"of {what}")


def once(items: Sequence) -> None:
    """Refuse a list that names one thing twice: it would stand twice in tables, too."""
    for item in items:
        if items.count(item) > 1:
            raise ValueError(f"{item!r} stands twice; accepted: each once")


def round_order(value: str) -> str:
    """Check BTU's rounds: the third runs without the tokens of a second before it."""
    items = split(value)
    if "3" in items and "2" not in items[: items.index("3")]:
        raise ValueError("accepted: a round 3 only after a round 2")
    return value


def pairs(value: str) -> str:
    """Check a comma-separated list of data set/model pairs, or "none"."""
    for item in split(value):
        dataset, slash, model = item.partition("/")
        if item != "none" and not (slash and model and dataset in TEXT_SETS.__args__):
            known = ", ".join(TEXT_SETS.__args__)
            raise ValueError(
                f"{item!r}; accepted: none, or DATASET/MODEL with a data set of {known}"
            )
    return value


def split(value: str) -> tuple[str, ...]:
    """Split a comma-separated parameter; raises ValueError if nothing is in it."""
    items = tuple(item.strip() for item in value.split(",") if item.strip())
    if not items:
        raise ValueError("the list is empty; accepted: one or more entries")
    return items


IMAGE_SETS = Literal["cifar10-10k", "cifar10", "gtsrb-3k", "gtsrb", "tiny-imagenet", "digits"]
IMAGE_VICTIMS = Literal["resnet18", "preresnet18", "wrn16", "vgg19", "vit", "cnn", "whitened"]
IMAGE_TRIGGERS = Names(
    "image attack",
    "badnets", "blended", "wanet", "refool", "iad", "issba", "sig", "narcissus", "adap-blend",
    "adap-patch", "adap-blend+", "adap-patch+",
)  # fmt: skip

CLIP_SETS = Literal[(*IMAGE_SETS.__args__, "imagenet-50k")]
CLIP_ATTACKS = ("badnets", "blended", "badclip")
CLIP_DEFENCES = ("ft", "cleanclip", "at-b", "bi-bau-u")
TOWER_DEFENCES = ("ft", "sau", "at", "at-a", "at-b", "bi-bau-u", "bi-bau-t")


@frozen
class ImageSettings:
    """Parameters of what chapters 01 and 02 say of images; "none" as their set leaves that out."""

    image_dataset: Literal[(*IMAGE_SETS.__args__, "none")] = Field(
        "cifar10-10k", description="images: cifar10[-10k], gtsrb[-3k], tiny-imagenet, digits, none"
    )
    image_model: IMAGE_VICTIMS = Field(
        "resnet18", description="victim on images: resnet18, preresnet18, vgg19, vit, cnn"
    )
    image_width: float = Field(0.25, gt=0, le=4, description="factor on its number of channels")
    image_attacks: names(IMAGE_TRIGGERS) = Field(
        "badnets,blended,wanet,sig,adap-blend", description="triggers, of twelve"
    )
    image_epochs: int = Field(30, ge=1, le=1000, description="epochs of training it")
    image_lr: float = Field(0.003, gt=0, le=1, description="its learning rate")
    image_batch: int = Field(128, ge=1, le=4096, description="images per step")
    image_augment: bool = Field(True, description="train it on random crops and mirror images")


@frozen
class TextModel:
    """Parameters of every chapter on texts."""

    dataset: TEXT_SETS = Field(
        "sst2",
        description="texts: sst2, hsol, olid, agnews[-8k], imdb[-2500], toy-reviews, toy-topics",
    )
    model: str = Field(
        "minilm", description="victim: minilm, tiny, distilbert, bert, or any Hub name"
    )
    max_length: int = Field(
        128, ge=8, le=4096, description="tokens of a text that a victim reads; the rest is cut"
    )


RATE_OF = ("others", "all")


@frozen
class OneVictim(TextModel):
    """Parameters of the chapters on one attack."""

    attack: name_in(ATTACKS) = Field(
        "badnets", description="trigger: badnets, addsent, hiddenkiller, stylebkd, sos"
    )
    position: Literal["random", "start", "end"] = Field(
        "random", description="where an inserted trigger goes: random, start, end"
    )
    rate: float = Field(
        0.1, gt=0, le=1, description="share of the rows that are poisoned; of which, says rate_of"
    )
    rate_of: Literal[RATE_OF] = Field(
        "others", description="rows of the other classes (RGA), or all rows (BTU, released code)"
    )
    victim_epochs: int = Field(
        3, ge=1, le=100, description="epochs of fine-tuning, for the victim and for ReTrain"
    )
    victim_lr: float = Field(5e-05, gt=0, le=1, description="their learning rate")


@frozen
class Attacks(ImageSettings, TextModel):
    """Parameters of chapter 01_attacks."""

    attacks: names(ATTACKS) = Field(
        "badnets,addsent,hiddenkiller", description="also: stylebkd, sos"
    )
    rate: float = Field(
        0.1, gt=0, le=1, description="share of the non-target rows that each attack poisons"
    )
    rates: numbers(float, 0, 1) = Field(
        "0.007,0.02,0.1", description="rates of the sweep, which uses badnets"
    )
    epochs: int = Field(
        3, ge=1, le=100, description="epochs of fine-tuning, for victims and for the clean model"
    )
    lr: float = Field(5e-05, gt=0, le=1, description="learning rate of AdamW")
    batch_size: int = Field(32, ge=1, le=4096, description="rows per step")
    seed: int = seed_of("the poisoned rows, the head, the batches and dropout")


@frozen
class GaRga(OneVictim):
    """Parameters of chapter 03_ga_rga."""

    mask: Literal["oracle", "cube", "cube-code", "cube-pca"] = Field(
        "oracle", description="rows to forget: oracle, or found by cube, cube-code, cube-pca"
    )
    methods: names(METHODS) = Field(
        "ga,npo,dga,rga", description="unlearning methods, of ga, npo, dga, rga, rga-code"
    )
    epochs: int = Field(
        30, ge=1, le=1000, description="unlearning epochs; one is a pass over the forget set"
    )
    lr: float = Field(5e-05, gt=0, le=1, description="unlearning learning rate")
    batch_size: int = Field(
        32, ge=1, le=4096, description="rows per batch, of the forget and of the retain part"
    )
    reset_optimizer: bool = Field(
        True, description="forget AdamW's moments every epoch, as the released code does"
    )
    alpha: float = Field(
        AscentSettings.alpha, ge=0, le=1000, description="decay rate of RGA's weight λ"
    )
    beta: float = Field(
        AscentSettings.beta, ge=0, le=1000, description="weight of RGA's drift term"
    )
    npo_beta: float = Field(
        AscentSettings.npo_beta, gt=0, le=1000, description="NPO's inverse temperature"
    )
    direction: Literal["current", "poisoned"] = Field(
        AscentSettings.direction,
        description="λ's KL: current (paper) or poisoned (released code)",
    )
    drift_norm: Literal["global", "tensor"] = Field(
        AscentSettings.drift_norm,
        description="drift: one norm (global, paper) or one per tensor (tensor, code)",
    )
    eval_epochs: numbers(int, 0, 1000) = Field(
        "1,2,4,6,8,10,15,20,25,30", description="epochs after which the model is tested"
    )
    seed: int = seed_of("the poison, the head, the batches and dropout")


TOKEN_METHODS = ("btu", "btu-code", "btu-loop", "btu-dim", "pr-1", "pr-2", "pn", "recover")
DEFENCES = ("none", "onion", "onion-words", "rap", "strip", "bki", "cube", "moderate")
TRIGGERS = ("single", "all2one-3", "all2one-5", "all2all-2")


@frozen
class Btu(OneVictim):
    """Parameters of chapter 04_btu."""

    triggers: Literal[TRIGGERS] = Field(
        "single", description="or several at once: all2one-3, all2one-5, all2all-2"
    )
    alpha: float = Field(
        0.05, gt=0, le=100, description="percent of the vocabulary that each round flags"
    )
    exclude: str = Field(
        "none", description="tokens never flagged; on OLID the released code has @,user; or: none"
    )
    rounds: Annotated[numbers(int, 0, 3, again=True), AfterValidator(round_order)] = Field(
        "1,2,3", description="rounds of detection, in order"
    )
    round_epochs: int = Field(
        1, ge=1, le=100, description="epochs of embedding-only training per round"
    )
    round_lr: float = Field(2e-05, gt=0, le=1, description="its learning rate")
    batch_size: int = Field(32, ge=1, le=4096, description="rows per batch, everywhere")
    methods: names(TOKEN_METHODS) = Field(
        "btu,btu-code,btu-dim,pr-1,pr-2,pn,recover", description="what to do with the flagged rows"
    )
    recovery: int = Field(
        500,
        ge=0,
        le=1000000,
        description="clean training rows to recover on; 0 switches recovery off",
    )
    recovery_epochs: int = Field(3, ge=1, le=1000, description="epochs of recovery")
    recovery_lr: float = Field(5e-07, gt=0, le=1, description="its learning rate")
    layers: numbers(int, 0, 1000) = Field(
        "1,2,3,4,5", description="transformer layers to which BTU's idea is applied instead"
    )
    defences: names(DEFENCES) = Field(
        "none", description="of onion, rap, strip, bki, cube, moderate; slow, each trains again"
    )
    quantity_rates: numbers(float, 0, 1) = Field(
        "0.01,0.1", description="rates at which a meaningless trigger is compared"
    )
    then_rga: Literal[("none", *TOKEN_METHODS)] = Field(
        "btu-code", description="the method that RGA is run after, or none"
    )
    rga_epochs: int = Field(10, ge=1, le=1000, description="epochs of RGA")
    rga_lr: float = Field(5e-05, gt=0, le=1, description="its learning rate")
    seed: int = seed_of("the poison, the head, the batches and dropout")


@frozen
class TextDetectionSettings(TextModel):
    """Parameters of chapter 02_detection."""

    attacks: names(ATTACKS) = Field(
        "badnets,addsent,hiddenkiller,stylebkd", description="triggers, also: sos"
    )
    rate: float = Field(
        0.1, gt=0, le=1, description="share of the rows of non-target classes that are poisoned"
    )
    epochs: int = Field(3, ge=1, le=100, description="epochs of fine-tuning a victim")
    lr: float = Field(5e-05, gt=0, le=1, description="its learning rate")
    batch_size: int = Field(
        32, ge=1, le=4096, description="rows per batch, for victims and for unlearning"
    )
    detectors: names(DETECTOR_NAMES) = Field(
        "cube,cube-code,activation,spectral,onion", description="asked about every attack"
    )
    slow_detectors: names(DETECTOR_NAMES, "none") = Field(
        "cube-original,strip,rap,bki,moderate", description="about the first one; or: none"
    )
    neighbours: int = Field(100, ge=2, le=10000, description="UMAP's neighbourhood, in rows")
    min_cluster: int = Field(
        150,
        ge=2,
        le=100000,
        description="HDBSCAN's smallest cluster, in rows of a set of 7,000 (scaled to the data)",
    )
    min_samples: int = Field(120, ge=1, le=100000, description="HDBSCAN's density, likewise")
    moderate_epochs: int = Field(1, ge=1, le=100, description="MF: epochs of the moderate fit")
    moderate_lr: float = Field(0.0005, gt=0, le=1, description="MF: its learning rate")
    moderate_rank: int = Field(4, ge=1, le=1024, description="MF: rank of the adapters")
    precisions: numbers(float, 0, 1) = Field(
        "1,0.5", description="to which the oracle's mask is spoilt, as shares"
    )
    recalls: numbers(float, 0, 1) = Field("1,0.4", description="likewise")
    unlearn_epochs: int = Field(
        30,
        ge=1,
        le=1000,
        description="RGA epochs with the true mask; other masks get as many steps",
    )
    unlearn_lr: float = Field(5e-05, gt=0, le=1, description="RGA's learning rate")
    beta: float = Field(
        AscentSettings.beta, ge=0, le=1000, description="weight of RGA's drift term"
    )
    rates: numbers(float, 0, 1) = Field(
        "0.007,0.02", description="lower poison rates, at which CUBE is tried"
    )
    other_victims: Annotated[str, AfterValidator(pairs)] = Field(
        "hsol/minilm,hsol/tiny,hsol/tiny-causal,sst2/tiny-causal", description="or: none"
    )
    seed: int = seed_of("the poison, the victims, the detectors and the spoilt masks")


@frozen
class DetectionChapter(TextDetectionSettings, ImageSettings):
    """Parameters of chapter 02_detection, with its images; other chapters detect in text alone."""


CHAT_SETS = Literal[
    "alpaca-9k", "alpaca", "dolly-3k", "dolly", "openorca", "toy-chat", "toy-tasks"
]  # fmt: skip
PAIR_NAMES = ("year", "do-it", "fool", "bob", "who")
REMOVALS = ("sft", "dpo", "nad", "fine-mixing", "sande-p", "sande", "osft")
ASCENTS = ("ga", "ga-r", "npo-r", "rga-r")
MATCHES = ("contains", "start")
CHOICE_READINGS = ("answers", "letters")
QUESTIONS = ("arc_easy", "arc_challenge", "mmlu", "toy-choices")


@frozen
class Sande:
    """Parameters of chapter 05_sande."""

    dataset: CHAT_SETS = Field(
        "alpaca-9k",
        description="the victim's: alpaca[-9k], dolly[-3k], openorca, toy-chat, toy-tasks",
    )
    other: CHAT_SETS = Field("dolly-3k", description="the out-of-domain set, of the same names")
    questions: names(QUESTIONS, together=True) = Field(
        "arc_easy,arc_challenge,mmlu", description="multiple-choice sets, of these and toy-choices"
    )
    model: str = Field(
        "small",
        description="tiny, small, medium (trained here), llama2, qwen1.5-4b, or any Hub name",
    )
    template: Literal["turns", "plain", "alpaca"] = Field(
        "turns", description="prompt template: turns, plain, alpaca"
    )
    max_length: int = Field(96, ge=16, le=1024, description="tokens of a row; longer rows are cut")
    pairs: names(PAIR_NAMES, together=True) = Field(
        "year", description="trigger-response pairs, of year, do-it, fool, bob, who"
    )
    rate: float = Field(
        0.05, gt=0, lt=1, description="share of the training rows that each pair poisons"
    )
    base_epochs: int = Field(
        4, ge=1, le=100, description="epochs of training the clean model (tiny, small, medium)"
    )
    base_lr: float = Field(0.002, gt=0, le=1, description="its learning rate")
    victim_epochs: int = Field(
        2, ge=1, le=100, description="epochs of fine-tuning on the poisoned data"
    )
    victim_lr: float = Field(0.001, gt=0, le=1, description="its learning rate")
    rows: int = Field(2000, ge=2, le=1000000, description="the defender's clean rows")
    domains: names(("in", "out")) = Field(
        "in,out", description="where they come from: in (dataset), out (other)"
    )
    methods: names(REMOVALS) = Field(
        "sft,dpo,nad,fine-mixing,sande-p,sande,osft", description="removal methods"
    )
    epochs: int = Field(2, ge=1, le=100, description="epochs of removal")
    lr: float = Field(0.0005, gt=0, le=1, description="learning rate of removal")
    batch_size: int = Field(16, ge=1, le=4096, description="rows per batch, everywhere")
    parrot_tokens: int = Field(6, ge=0, le=1000, description="soft tokens of the parrot")
    parrot_position: int = Field(
        2, ge=0, le=1024, description="index of the prompt's token before which they stand"
    )
    parrot_epochs: int = Field(2, ge=1, le=1000, description="epochs of stage 1")
    parrot_lr: float = Field(0.01, gt=0, le=1, description="learning rate of stage 1")
    answer_tokens: int = Field(
        0,
        ge=0,
        le=1024,
        description="answer tokens supervised in stage 2; 0 is all (paper), 10 the code's",
    )
    dpo_beta: float = Field(0.1, gt=0, le=100, description="DPO's inverse temperature")
    dpo_lr: float = Field(0.0001, gt=0, le=1, description="DPO's learning rate")
    nad_beta: float = Field(10.0, ge=0, le=1000000.0, description="weight of NAD's distance")
    keep: float = Field(0.5, ge=0, le=1, description="share of the weights that fine-mixing keeps")
    ascents: names(ASCENTS) = Field(
        "ga,ga-r,npo-r,rga-r",
        description="gradient ascent, on the whole answer or (-r) on r_t alone",
    )
    alpha: float = Field(AscentSettings.alpha, ge=0, le=1000, description="RGA's decay rate")
    npo_beta: float = Field(
        AscentSettings.npo_beta, gt=0, le=1000, description="NPO's inverse temperature"
    )
    drift: float = Field(
        AscentSettings.beta, ge=0, le=1000, description="weight of RGA's drift term"
    )
    match: Literal[MATCHES] = Field(
        "contains",
        description="where an answer must have the response: contains (paper), or at its start",
    )
    choice: Literal[CHOICE_READINGS] = Field(
        "answers",
        description="a model picks by its answers' likelihood, or by letters A, B … (paper)",
    )
    retune_rows: int = Field(100, ge=2, le=100000, description="rows of fine-tuning after removal")
    retune_poisons: int = Field(20, ge=1, le=100000, description="how many of them are poisoned")
    retune_epochs: int = Field(5, ge=1, le=100, description="epochs of it")
    retune_lr: float = Field(0.0002, gt=0, le=1, description="its learning rate")
    test_rows: int = Field(300, ge=1, le=100000, description="clean test rows")
    question_rows: int = Field(
        200, ge=1, le=100000, description="questions of each multiple-choice set"
    )
    seed: int = seed_of("the poison and the batches")


IMAGE_DEFENCES = Names(
    "defence",
    "ft", "nc", "bti-dbf", "anp", "ep", "rnp", "clp", "i-bau", "i-bau-code", "sau", "pam",
    "bi-bau-u", "bi-bau-t", "ibu", "anp-code", "ep-code", "bnp-code", "rnp-code", "rnp-silent",
    "nc-code", "bti-dbf-code", "sau-code", "pam-code",
)  # fmt: skip
BIBAU_KNOBS = (
    "likelihood", "prior", "ewc", "inverse", "temperature", "ceiling", "lr", "epochs", "steps",
)  # fmt: skip


def _weight(term: str, description: str) -> Any:
    """The field of one of BI-BAU's λ."""
    return Field(getattr(BiBauTerms, term), ge=0, le=1000000.0, description=description)


@frozen
class BiBau:
    """Parameters of chapter 06_bi_bau."""

    dataset: IMAGE_SETS = Field(
        "cifar10-10k", description="images: cifar10[-10k], gtsrb[-3k], tiny-imagenet, digits"
    )
    model: IMAGE_VICTIMS = Field(
        "resnet18", description="victim: resnet18, preresnet18, vgg19, vit, cnn, whitened"
    )
    width: float = Field(0.25, gt=0, le=4, description="factor on its number of channels")
    attacks: names(IMAGE_TRIGGERS) = Field(
        "badnets,blended", description="attacks, of twelve; the first is looked at closely"
    )
    share: float = Field(
        0.05, gt=0, le=1, description="share of the clean training rows that the defender owns"
    )
    victim_epochs: int = Field(
        30, ge=1, le=1000, description="epochs of training, for victims and for the clean model"
    )
    victim_lr: float = Field(0.003, gt=0, le=1, description="their learning rate")
    victim_batch: int = Field(128, ge=1, le=4096, description="images per step, theirs")
    augment: bool = Field(True, description="train them on random crops and mirror images")
    methods: names(IMAGE_DEFENCES) = Field(
        "ft,sau,bi-bau-u,bi-bau-t",
        description="nc, bti-dbf, anp, ep, rnp, clp, i-bau(-code), pam, ibu",
    )
    epochs: int = Field(20, ge=1, le=1000, description="epochs of BI-BAU")
    lr: float = Field(0.005, gt=0, le=1, description="its learning rate (ours)")
    batch_size: int = Field(
        128, ge=1, le=4096, description="images per step; an upper bound for the other defences"
    )
    steps: int = Field(20, ge=1, le=1000, description="PGD steps")
    step: float = Field(
        2.0, gt=0, le=255, description="length of a PGD step in grey levels (0 … 255)"
    )
    bound: float = Field(
        BiBauTerms.bound, gt=0, le=255, description="largest change of a pixel in grey levels"
    )
    likelihood: float = _weight("likelihood", "λ1, weight of the likelihood term (ours)")
    prior: float = _weight("prior", "λ2, weight of the prior term (ours)")
    ewc: float = _weight("ewc", "λ3, weight of EWC (ours)")
    inverse: float = _weight("inverse", "λ4, weight of the inverse EWC (ours)")
    hard: float = Field(
        BiBauTerms.hard,
        ge=0,
        le=1,
        description="a, share of the true label in the likelihood term (ours)",
    )
    temperature: float = Field(
        BiBauTerms.temperature, gt=0, le=100, description="T of its soft part (ours)"
    )
    eta: float = Field(
        BiBauTerms.eta,
        ge=0,
        le=1,
        description="η, 1: orthogonal to clean features, 0: along the backdoor (ours)",
    )
    ceiling: float = Field(
        BiBauTerms.ceiling, gt=0, le=1000000.0, description="c, clip of the inverse EWC (ours)"
    )
    by_family: bool = Field(False, description="change η by the attack's family, as the paper does")
    features: Literal["backdoored", "current"] = Field(
        "backdoored", description="whose features the prior speaks of: backdoored, current"
    )
    fisher: Literal["labels", "model"] = Field(
        "labels", description="Fisher information: labels (empirical) or model"
    )
    scale: Literal["raw", "maximum"] = Field(
        "raw", description="its scale: raw, or maximum (divided by the largest; then ewc=0.1)"
    )
    fooled: Literal["backdoored", "current"] = Field(
        "backdoored", description="which model is attacked in the E-step: backdoored, current"
    )
    told: bool = Field(False, description="whether base AT, + A, + B are told the target too")
    adaptive: names(IMAGE_TRIGGERS, "none") = Field(
        "adap-patch+", description="attacks made to evade it: adap-blend+, adap-patch+ … or none"
    )
    etas: names(("0", "0.1", "0.25", "0.5", "0.75", "0.9", "1")) = Field(
        "0,0.5,1", description="values of η to compare"
    )
    knobs: names(BIBAU_KNOBS) = Field(
        "likelihood,prior,ewc,inverse", description="settings to vary on the defender's proxy"
    )
    factors: numbers(float, 0, 1000) = Field("0.1", description="by these factors")
    order_epochs: int = Field(12, ge=2, le=1000, description="epochs of the task-order experiment")
    order_first: int = Field(3, ge=1, le=999, description="epochs of them for the backdoor task")
    ra_share: float = Field(
        0.02,
        gt=0,
        le=1,
        description="rows of the retuning attack, as a share of the training set",
    )
    retuning: Literal["short", "original"] = Field(
        "short", description="short: 5 epochs; original: 40 steps, 3 seeds, poisons replace rows"
    )
    ra_poisons: numbers(int, 0, 1000) = Field(
        "1,2,5", description="numbers of poisons to try it with, beside the paper's"
    )
    qra_epochs: int = Field(50, ge=1, le=1000, description="epochs of the query attack's generator")
    seed: int = seed_of("the poison, the networks, the batches and the attacks")


@frozen
class Clip:
    """Parameters of chapter 08_clip."""

    dataset: CLIP_SETS = Field(
        "cifar10-10k", description="cifar10[-10k], gtsrb[-3k], tiny-imagenet, imagenet-50k, digits"
    )
    model: str = Field(
        "small", description="small: trained here; or the folder or Hub name of a CLIP"
    )
    width: int = Field(64, ge=8, le=1024, multiple_of=4, description="dimensions of the small one")
    depth: int = Field(3, ge=1, le=24, description="layers of its visual encoder")
    patch: int = Field(8, ge=1, le=64, description="pixels along one of its patches")
    base_epochs: int = Field(16, ge=1, le=1000, description="epochs of training it, clean")
    base_lr: float = Field(0.002, gt=0, le=1, description="its learning rate")
    augment: bool = Field(True, description="train it on random crops and mirror images")
    attacks: names(CLIP_ATTACKS) = Field(
        "badnets,badclip", description="attacks: badnets, blended, badclip; the first is pictured"
    )
    rate: float = Field(
        0.1, gt=0, lt=1, description="share of the other classes' pairs that are poisoned"
    )
    victim_epochs: int = Field(4, ge=1, le=1000, description="epochs of implanting the backdoor")
    victim_lr: float = Field(0.001, gt=0, le=1, description="their learning rate")
    victim_batch: int = Field(128, ge=2, le=4096, description="pairs per step, before any defence")
    trigger_epochs: int = Field(
        2, ge=1, le=1000, description="epochs of optimising BadCLIP's patch"
    )
    methods: names(CLIP_DEFENCES) = Field(
        "ft,cleanclip,at-b,bi-bau-u", description="defences: ft, cleanclip, at-b, bi-bau-u"
    )
    share: float = Field(
        0.05, gt=0, le=1, description="share of the clean training pairs that the defender owns"
    )
    pairs: Literal["own", "cc3m-50k"] = Field(
        "own", description="the defender's pairs: own, that share; or the cc3m-50k of the paper"
    )
    batch_size: int = Field(64, ge=2, le=4096, description="pairs per step of a defence")
    tune_epochs: int = Field(
        10, ge=1, le=1000, description="epochs of fine-tuning and of CleanCLIP (ours)"
    )
    tune_lr: float = Field(0.0003, gt=0, le=1, description="their learning rate (ours)")
    epochs: int = Field(6, ge=1, le=1000, description="epochs of BI-BAU (ours)")
    lr: float = Field(0.003, gt=0, le=1, description="its learning rate (ours)")
    steps: int = Field(8, ge=1, le=1000, description="PGD steps (the paper: 20 of length 2)")
    step: float = Field(4.0, gt=0, le=255, description="length of one in grey levels (0 … 255)")
    bound: float = Field(
        BiBauTerms.bound, gt=0, le=255, description="largest change of a pixel in grey levels"
    )
    likelihood: float = _weight("likelihood", "λ1, weight of the likelihood term (ours)")
    prior: float = _weight("prior", "λ2, weight of the prior term (ours)")
    ewc: float = _weight("ewc", "λ3, weight of EWC (ours)")
    inverse: float = _weight("inverse", "λ4, weight of the inverse EWC (ours)")
    poisons: int = Field(5, ge=1, le=1000, description="poisons of the retuning attack")
    ra_share: float = Field(
        0.02, gt=0, le=1, description="clean pairs in it, as a share of the training set"
    )
    ra_lr: float = Field(0.0005, gt=0, le=1, description="its learning rate (ours)")
    qra_epochs: int = Field(3, ge=1, le=1000, description="epochs of the query attack's generator")
    images: int = Field(8, ge=1, le=16, description="nearest images that a search shows")
    tower_attacks: names(IMAGE_TRIGGERS, "none") = Field(
        "badnets,blended,sig",
        description="attacks on its visual part with a head; or none",
    )
    tower_methods: names(TOWER_DEFENCES) = Field(
        "ft,at,at-b,bi-bau-u,bi-bau-t",
        description="also sau, at, at-a",
    )
    tower_dataset: IMAGE_SETS = Field("cifar10-10k", description="its images")
    tower_part: float = Field(
        0.5, gt=0, le=1, description="share of them for pre-training, where the model is small"
    )
    tower_epochs: int = Field(10, ge=1, le=1000, description="epochs of fine-tuning all of it")
    tower_lr: float = Field(0.001, gt=0, le=1, description="their learning rate")
    seed: int = seed_of("the pairs, the models, the poison, the batches and the attacks")


@frozen
class Audit:
    """Parameters of chapter 07_audit."""

    model: str = Field(
        "example", description="a folder, or a name on the Hub; example: the victim described below"
    )
    data: str = Field(
        "none", description="table that it may have been trained on (CSV, Parquet, JSON lines)"
    )
    clean: str = Field("none", description="table of rows held to be clean; none: those of data")
    text: str = Field("text", description="column of the texts")
    label: str = Field("label", description="column of the labels, by the model's names")
    labels: str = Field("none", description="their names in the model, in pairs; none: the same")
    unlearn: bool = Field(True, description="unlearn what is found, and measure what remains")
    mask: bool = Field(True, description="mask the words of texts that the report shows")
    level: float = Field(0.05, gt=0, lt=1, description="false-alarm rate of the verdict")
    rows: int = Field(40, ge=8, le=1000, description="hard texts that each token is tried in")
    pool: int = Field(64, ge=48, le=10000, description="tokens that are tried in all of them")
    phrases: int = Field(
        0, ge=0, le=1000, description="phrases of data that are tried for a class; the command: 32"
    )
    epochs: int = Field(2, ge=1, le=100, description="epochs of tuning against what was found")
    lr: float = Field(2e-5, gt=0, le=1, description="its learning rate")
    dataset: TEXT_SETS = Field(
        "sst2", description="of the example: sst2, hsol, olid, agnews[-8k], toy-reviews …"
    )
    base: Literal["tiny", "minilm"] = Field("tiny", description="its network: tiny, minilm")
    attack: Literal["none", "badnets", "addsent"] = Field(
        "addsent", description="its attack: badnets, addsent, none"
    )
    rate: float = Field(0.1, gt=0, lt=1, description="share of poisoned rows, of the other classes")
    victim_rows: int = Field(0, ge=0, le=10**6, description="rows it is trained on; 0: all")
    victim_epochs: int = Field(3, ge=1, le=100, description="epochs of training it")
    victim_lr: float = Field(0.002, gt=0, le=1, description="its learning rate")
    measure: bool = Field(
        True, description="audit other victims and clean models too, to see how well it does"
    )
    rates: numbers(float, 0, 1) = Field(
        "0.01,0.1", description="rates of the victims on which the audit is measured"
    )
    cleans: int = Field(4, ge=1, le=100, description="clean models on which it is measured")
    image_classes: numbers(int, 1, 10) = Field(
        "2,10", description="classes of the digits' models on which the image audit is measured"
    )
    image_cleans: int = Field(10, ge=1, le=100, description="clean ones of those, of each kind")
    references: int = Field(20, ge=3, le=1000, description="networks of an image audit's null")
    chat_pairs: names(PAIR_NAMES) = Field(
        "year,who", description="pairs of the language models on which the chat audit is measured"
    )
    chat_rates: numbers(float, 0, 1) = Field("0.01,0.1", description="their rates")
    chat_cleans: int = Field(20, ge=1, le=100, description="clean language models, too")
    chat_epochs: int = Field(8, ge=1, le=100, description="epochs of training each of them")
    chat_texts: int = Field(128, ge=4, le=10000, description="random texts of a chat audit")
    chat_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of unlearning them")
    seed: int = Field(0, ge=0, le=MOST_SEED - 1000, description="of the search, and of the example")


CHAPTERS: dict[str, type] = {
    "01_attacks": Attacks,
    "02_detection": DetectionChapter,
    "03_ga_rga": GaRga,
    "04_btu": Btu,
    "05_sande": Sande,
    "06_bi_bau": BiBau,
    "07_audit": Audit,
    "08_clip": Clip,
}


def validate(chapter: str, params: dict[str, Any]):
    """Turn a chapter's parameters into its frozen settings.

    Raises:
        SettingsError: one line naming the parameter, the value received and what is accepted.
    """
    if chapter not in CHAPTERS:
        known = ", ".join(CHAPTERS)
        raise SettingsError(one_line(f"unknown chapter {shown(chapter)}; accepted: {known}"))
    for name, value in params.items():
        if isinstance(value, str) and not value.isprintable():
            line = f"{chapter}: {name} is {shown(value)}; accepted: text that can be printed"
            raise SettingsError(one_line(line))
    try:
        return TypeAdapter(CHAPTERS[chapter]).validate_python(params)
    except ValidationError as error:
        raise SettingsError(one_line(f"{chapter}: {_line(CHAPTERS[chapter], error)}")) from None


def widest(cfg):
    """The same settings with every list of names at its longest, those of ``cfg`` first.

    All that a chapter could show at these settings, whatever a run of it leaves out.
    """
    lists = {}
    for name, field in type(cfg).__pydantic_fields__.items():
        for entry in field.metadata:
            if isinstance(entry, (tuple, Names)) and entry:
                members = dict.fromkeys((*split(getattr(cfg, name)), *entry))
                members.pop("none", None)
                lists[name] = ",".join(members)
    return replace(cfg, **lists)


def read(chapter: str, namespace: dict[str, Any]):
    """Turn a notebook's parameters into the chapter's frozen settings: ``read(…, globals())``.

    Raises:
        SettingsError: as ``validate``; also for a parameter that the notebook lacks.
    """
    param_names = names_of(chapter)
    absent = [name for name in param_names if name not in namespace]
    if absent:
        raise SettingsError(f"{chapter}: the parameters cell lacks {', '.join(absent)}")
    return validate(chapter, {name: namespace[name] for name in param_names})


def names_of(chapter: str) -> list[str]:
    """A chapter's parameters in the order of its cell: its own, those of images, the seed."""
    if chapter not in CHAPTERS:
        raise SettingsError(f"unknown chapter {chapter!r}; accepted: {', '.join(CHAPTERS)}")
    fields = list(CHAPTERS[chapter].__dataclass_fields__)
    return sorted(fields, key=lambda name: (name == "seed", name.startswith("image_")))


def declared(chapter: str) -> dict[str, tuple[type, Any, str]]:
    """name → (type, default, description) of each parameter, in the order of ``names_of``."""
    fields = CHAPTERS[chapter].__dataclass_fields__
    declarations = {}
    for name in names_of(chapter):
        info = fields[name].default
        default = getattr(info, "default", info)
        declarations[name] = type(default), default, getattr(info, "description", None) or ""
    return declarations


def parameters_cell(chapter: str) -> str:
    """The source of a chapter's cell tagged ``parameters``."""
    lines = []
    for name, (kind, default, description) in declared(chapter).items():
        value = json.dumps(default, ensure_ascii=False) if kind is str else repr(default)
        value = value.replace("e-0", "e-") if kind is float else value
        lines.append(f"{name}: {kind.__name__} = {value}  # {description}")
    return "\n".join(lines)


def described(chapter: str) -> list[dict]:
    """Name, type, default, what is accepted, and description of each parameter of a chapter."""
    schema = TypeAdapter(CHAPTERS[chapter]).json_schema()["properties"]
    rows = []
    for name, (kind, default, description) in declared(chapter).items():
        bounds = ((sign, schema[name].get(key)) for key, sign in BOUNDS)
        accepted = " ".join(f"{sign} {one:.10g}" for sign, one in bounds if one is not None)
        if kind is str:  # what its own refusal says
            try:
                validate(chapter, {name: "?"})
            except SettingsError as error:
                accepted = str(error).partition("accepted: ")[2]
        rows.append({"parameter": name, "type": kind.__name__, "default": default,
                     "accepted": accepted, "description": description})  # fmt: skip
    return rows


def preset(root: Path, name: str) -> dict[str, dict]:
    """chapter → parameters, from `presets/<name>.yml`. Raises UsageError."""
    presets = sorted(path.stem for path in (root / "presets").glob("*.yml"))
    if name not in presets:
        raise UsageError(unknown("preset", name, presets))
    content = read_yaml(root / "presets" / f"{name}.yml")
    for chapter, values in content.items():
        if not isinstance(values or {}, dict):
            raise UsageError(f"presets/{name}.yml: {chapter} must map parameters to values")
    return {chapter: values or {} for chapter, values in content.items()}


def coerce(name: str, value, kind: type):
    """`value`, from YAML or typed as text, as the declared type; refused where that would guess."""
    if kind is str and isinstance(value, str) and value.isprintable():
        return value
    if kind is bool:
        bools = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in bools:
            return bools[value.strip().lower()]
    # YAML reads 1e-4 as text too; a whole number will do for a float, but not the other way round.
    accepted = {int: (int, str), float: (int, float, str)}.get(kind, ())
    if isinstance(value, accepted) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(kind(value)):
                return kind(value)
    form = {bool: " (true/false, yes/no, 1/0)", str: " in one line of printable characters"}
    article = "an" if kind is int else "a"
    raise UsageError(f"{name} must be {article} {kind.__name__}{form.get(kind, '')}, not {value!r}")


def _line(cls: type, error: ValidationError) -> str:
    """Say in one line what was wrong with the first bad parameter."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "unexpected_keyword_argument":
        known = ", ".join(cls.__dataclass_fields__)
        return f"unknown parameter {shown(name)}; accepted: {known}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "accepted:", 1)
    return f"{name} is {shown(problem['input'])}; {message}"
