"""The parameters of each chapter: types, ranges and one-line errors. Imports no torch.

The command line checks a run's parameters here before it starts a kernel, and the notebook checks
them again before any work, so both give the same message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

TEXT_SETS = Literal["sst2", "hsol", "agnews", "olid", "imdb", "toy-reviews", "toy-topics"]
ATTACKS = ("badnets", "addsent", "hiddenkiller", "stylebkd", "sos")
METHODS = ("ga", "npo", "dga", "rga", "rga-code")
SUSPECTERS = (
    "cube", "cube-code", "cube-original", "cube-pca", "activation", "spectral", "onion", "strip",
    "rap", "bki", "moderate",
)  # fmt: skip

frozen = dataclass(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)


class SettingsError(ValueError):
    """A chapter's parameter that is unknown, of the wrong type or out of range; one line."""


def names(known: tuple[str, ...]):
    """A comma-separated list of known names, in a str (notebook parameters are flat)."""

    def check(value: str) -> str:
        for item in split(value):
            if item not in known:
                raise ValueError(f"{item!r} is unknown; accepted: a list of {', '.join(known)}")
        return value

    return Annotated[str, AfterValidator(check)]


def numbers(kind: type, above: float, upto: float):
    """A comma-separated list of numbers in (above, upto], in a str."""

    def check(value: str) -> str:
        for item in split(value):
            try:
                number = kind(item)
            except ValueError:
                raise ValueError(f"{item!r} is not a number of type {kind.__name__}") from None
            if not above < number <= upto:
                raise ValueError(f"{item} is out of range; accepted: above {above}, up to {upto}")
        return value

    return Annotated[str, AfterValidator(check)]


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


IMAGE_SETS = Literal["cifar10", "gtsrb", "tiny-imagenet", "digits"]
IMAGE_VICTIMS = Literal["resnet18", "preresnet18", "vgg19", "vit", "cnn"]
IMAGE_TRIGGERS = (
    "badnets", "blended", "wanet", "refool", "iad", "issba", "sig", "narcissus", "adap-blend",
    "adap-patch", "adap-blend+", "adap-patch+",
)  # fmt: skip


@frozen
class Pictures:
    """Parameters of what chapters 01 and 02 say of images; "none" as their set leaves that out."""

    image_dataset: Literal[(*IMAGE_SETS.__args__, "none")] = "cifar10"
    image_model: IMAGE_VICTIMS = "resnet18"
    image_width: float = Field(0.25, gt=0, le=4)
    image_attacks: names(IMAGE_TRIGGERS) = "badnets,blended,wanet,sig,adap-blend"
    image_epochs: int = Field(30, ge=1, le=1000)
    image_lr: float = Field(3e-3, gt=0, le=1)
    image_batch: int = Field(128, ge=1, le=4096)
    image_augment: bool = True


@frozen
class Attacks(Pictures):
    """Parameters of chapter 01_attacks."""

    dataset: TEXT_SETS = "sst2"
    model: str = "minilm"
    attacks: names(ATTACKS) = "badnets,addsent,hiddenkiller"
    rate: float = Field(0.1, gt=0, le=1)
    rates: numbers(float, 0, 1) = "0.007,0.02,0.1"
    epochs: int = Field(3, ge=1, le=100)
    lr: float = Field(5e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=4096)
    seed: int = Field(0, ge=0)


@frozen
class GaRga:
    """Parameters of chapter 03_ga_rga."""

    dataset: TEXT_SETS = "sst2"
    model: str = "minilm"
    attack: Literal[ATTACKS] = "badnets"
    position: Literal["random", "start", "end"] = "random"
    rate: float = Field(0.1, gt=0, le=1)
    victim_epochs: int = Field(3, ge=1, le=100)
    victim_lr: float = Field(5e-5, gt=0, le=1)
    mask: Literal["oracle", "cube", "cube-code", "cube-pca"] = "oracle"
    methods: names(METHODS) = "ga,npo,dga,rga"
    epochs: int = Field(30, ge=1, le=1000)
    lr: float = Field(5e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=4096)
    reset_optimizer: bool = True
    alpha: float = Field(2.0, ge=0, le=1000)
    beta: float = Field(0.05, ge=0, le=1000)
    npo_beta: float = Field(1.0, gt=0, le=1000)
    direction: Literal["current", "poisoned"] = "current"
    drift_norm: Literal["global", "tensor"] = "global"
    eval_epochs: numbers(int, 0, 1000) = "1,2,3,4,6,8,10,15,20,25,30"
    seed: int = Field(0, ge=0)


TOKEN_METHODS = ("btu", "btu-code", "btu-dim", "pr-1", "pr-2", "pn", "recover")
DEFENCES = ("none", "onion", "rap", "strip", "bki", "cube", "moderate")
TRIGGERS = ("single", "all2one-3", "all2one-5", "all2all-2")


@frozen
class Btu:
    """Parameters of chapter 04_btu."""

    dataset: TEXT_SETS = "sst2"
    model: str = "minilm"
    attack: Literal[ATTACKS] = "badnets"
    position: Literal["random", "start", "end"] = "random"
    triggers: Literal[TRIGGERS] = "single"
    rate: float = Field(0.1, gt=0, le=1)
    victim_epochs: int = Field(3, ge=1, le=100)
    victim_lr: float = Field(5e-5, gt=0, le=1)
    alpha: float = Field(0.05, gt=0, le=100)
    rounds: numbers(int, 0, 3) = "1,2,3"
    round_epochs: int = Field(1, ge=1, le=100)
    round_lr: float = Field(2e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=4096)
    methods: names(TOKEN_METHODS) = "btu,btu-code,btu-dim,pr-1,pr-2,pn,recover"
    recovery: int = Field(500, ge=0, le=1_000_000)
    recovery_epochs: int = Field(3, ge=1, le=1000)
    recovery_lr: float = Field(5e-7, gt=0, le=1)
    layers: numbers(int, 0, 1000) = "1,2,3,4,5"
    defences: names(DEFENCES) = "none"
    quantity_rates: numbers(float, 0, 1) = "0.01,0.1"
    then_rga: Literal[("none", *TOKEN_METHODS)] = "btu-code"
    rga_epochs: int = Field(10, ge=1, le=1000)
    rga_lr: float = Field(5e-5, gt=0, le=1)
    seed: int = Field(0, ge=0)


@frozen
class DetectionStudy:
    """Parameters of chapter 02_detection."""

    dataset: TEXT_SETS = "sst2"
    model: str = "minilm"
    attacks: names(ATTACKS) = "badnets,addsent,hiddenkiller,stylebkd"
    rate: float = Field(0.1, gt=0, le=1)
    epochs: int = Field(3, ge=1, le=100)
    lr: float = Field(5e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=4096)
    detectors: names(SUSPECTERS) = "cube,cube-code,activation,spectral,onion"
    slow_detectors: names((*SUSPECTERS, "none")) = "cube-original,strip,rap,bki,moderate"
    neighbours: int = Field(100, ge=2, le=10_000)
    min_cluster: int = Field(150, ge=2, le=100_000)
    min_samples: int = Field(120, ge=1, le=100_000)
    moderate_epochs: int = Field(1, ge=1, le=100)
    moderate_lr: float = Field(5e-4, gt=0, le=1)
    moderate_rank: int = Field(4, ge=1, le=1024)
    precisions: numbers(float, 0, 1) = "1,0.5"
    recalls: numbers(float, 0, 1) = "1,0.4"
    unlearn_epochs: int = Field(30, ge=1, le=1000)
    unlearn_lr: float = Field(5e-5, gt=0, le=1)
    beta: float = Field(0.05, ge=0, le=1000)
    rates: numbers(float, 0, 1) = "0.007,0.02"
    elsewhere: Annotated[str, AfterValidator(pairs)] = (
        "hsol/minilm,hsol/tiny,hsol/tiny-causal,sst2/tiny-causal"
    )
    seed: int = Field(0, ge=0)


@frozen
class DetectionChapter(DetectionStudy, Pictures):
    """Parameters of chapter 02_detection, with its images; other chapters detect in text alone."""


CHAT_SETS = Literal["alpaca", "dolly", "openorca", "toy-chat", "toy-tasks"]
PAIR_NAMES = ("year", "do-it", "fool", "bob", "who")
REMOVALS = ("sft", "dpo", "nad", "fine-mixing", "sande-p", "sande", "osft")
ASCENTS = ("ga", "ga-r", "npo-r", "rga-r")
QUESTIONS = ("arc_easy", "arc_challenge", "mmlu", "toy-choices")


@frozen
class Sande:
    """Parameters of chapter 05_sande."""

    dataset: CHAT_SETS = "alpaca"
    other: CHAT_SETS = "dolly"
    questions: names(QUESTIONS) = "arc_easy,arc_challenge,mmlu"
    model: str = "small"
    template: Literal["turns", "plain", "alpaca"] = "turns"
    max_length: int = Field(96, ge=16, le=1024)
    pairs: names(PAIR_NAMES) = "year"
    rate: float = Field(0.05, gt=0, lt=1)
    base_epochs: int = Field(4, ge=1, le=100)
    base_lr: float = Field(2e-3, gt=0, le=1)
    victim_epochs: int = Field(2, ge=1, le=100)
    victim_lr: float = Field(1e-3, gt=0, le=1)
    rows: int = Field(2000, ge=2, le=1_000_000)
    domains: names(("in", "out")) = "in,out"
    methods: names(REMOVALS) = "sft,dpo,nad,fine-mixing,sande-p,sande,osft"
    epochs: int = Field(2, ge=1, le=100)
    lr: float = Field(5e-4, gt=0, le=1)
    batch_size: int = Field(16, ge=1, le=4096)
    parrot_tokens: int = Field(6, ge=0, le=1000)
    parrot_position: int = Field(2, ge=0, le=1024)
    parrot_epochs: int = Field(2, ge=1, le=1000)
    parrot_lr: float = Field(1e-2, gt=0, le=1)
    answer_tokens: int = Field(0, ge=0, le=1024)
    dpo_beta: float = Field(0.1, gt=0, le=100)
    dpo_lr: float = Field(1e-4, gt=0, le=1)
    nad_beta: float = Field(10.0, ge=0, le=1e6)
    keep: float = Field(0.5, ge=0, le=1)
    ascents: names(ASCENTS) = "ga,ga-r,npo-r,rga-r"
    alpha: float = Field(2.0, ge=0, le=1000)
    npo_beta: float = Field(1.0, gt=0, le=1000)
    drift: float = Field(0.05, ge=0, le=1000)
    retune_rows: int = Field(100, ge=2, le=100_000)
    retune_poisons: int = Field(20, ge=1, le=100_000)
    retune_epochs: int = Field(5, ge=1, le=100)
    retune_lr: float = Field(2e-4, gt=0, le=1)
    test_rows: int = Field(300, ge=1, le=100_000)
    question_rows: int = Field(200, ge=1, le=100_000)
    seed: int = Field(0, ge=0)


IMAGE_DEFENCES = (
    "ft", "nc", "bti-dbf", "anp", "ep", "rnp", "clp", "i-bau", "i-bau-code", "sau", "pam",
    "bi-bau-u", "bi-bau-t", "ibu",
)  # fmt: skip
BIBAU_KNOBS = (
    "likelihood", "prior", "ewc", "inverse", "temperature", "ceiling", "lr", "epochs", "steps",
)  # fmt: skip


@frozen
class BiBau:
    """Parameters of chapter 06_bi_bau."""

    dataset: IMAGE_SETS = "cifar10"
    model: IMAGE_VICTIMS = "resnet18"
    width: float = Field(0.25, gt=0, le=4)
    attacks: names(IMAGE_TRIGGERS) = "badnets,blended"
    share: float = Field(0.05, gt=0, le=1)
    victim_epochs: int = Field(30, ge=1, le=1000)
    victim_lr: float = Field(3e-3, gt=0, le=1)
    victim_batch: int = Field(128, ge=1, le=4096)
    augment: bool = True
    methods: names(IMAGE_DEFENCES) = "ft,sau,bi-bau-u,bi-bau-t"
    epochs: int = Field(20, ge=1, le=1000)
    lr: float = Field(0.005, gt=0, le=1)
    batch_size: int = Field(128, ge=1, le=4096)
    steps: int = Field(20, ge=1, le=1000)
    step: float = Field(2.0, gt=0, le=255)
    bound: float = Field(25.0, gt=0, le=255)
    likelihood: float = Field(1.0, ge=0, le=1e6)
    prior: float = Field(1.0, ge=0, le=1e6)
    ewc: float = Field(100.0, ge=0, le=1e6)
    inverse: float = Field(1.0, ge=0, le=1e6)
    hard: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(1.0, gt=0, le=100)
    eta: float = Field(0.5, ge=0, le=1)
    ceiling: float = Field(1.0, gt=0, le=1e6)
    by_family: bool = False
    features: Literal["backdoored", "current"] = "backdoored"
    fisher: Literal["labels", "model"] = "labels"
    adaptive: names((*IMAGE_TRIGGERS, "none")) = "adap-patch+"
    etas: names(("0", "0.1", "0.25", "0.5", "0.75", "0.9", "1")) = "0,0.5,1"
    knobs: names(BIBAU_KNOBS) = "likelihood,prior,ewc,inverse"
    factors: numbers(float, 0, 1000) = "0.1"
    order_epochs: int = Field(12, ge=2, le=1000)
    order_first: int = Field(3, ge=1, le=999)
    ra_share: float = Field(0.02, gt=0, le=1)
    ra_poisons: numbers(int, 0, 1000) = "1,2,5"
    qra_epochs: int = Field(50, ge=1, le=1000)
    seed: int = Field(0, ge=0)


CHAPTERS: dict[str, type] = {
    "01_attacks": Attacks,
    "02_detection": DetectionChapter,
    "03_ga_rga": GaRga,
    "04_btu": Btu,
    "05_sande": Sande,
    "06_bi_bau": BiBau,
}


def validate(chapter: str, params: dict[str, Any]):
    """Turn a chapter's parameters into its frozen settings.

    Raises:
        SettingsError: one line naming the parameter, the value received and what is accepted.
    """
    if chapter not in CHAPTERS:
        raise SettingsError(f"unknown chapter {chapter!r}; accepted: {', '.join(CHAPTERS)}")
    try:
        return TypeAdapter(CHAPTERS[chapter]).validate_python(params)
    except ValidationError as error:
        raise SettingsError(f"{chapter}: {_line(CHAPTERS[chapter], error)}") from None


def _line(cls: type, error: ValidationError) -> str:
    """Say in one line what was wrong with the first bad parameter."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        known = ", ".join(cls.__dataclass_fields__)
        return f"unknown parameter {name!r}; accepted: {known}"
    says = first["msg"].removeprefix("Value error, ")
    says = says.replace("Input should be", "accepted:", 1)
    return f"{name} is {first['input']!r}; {says}"
