"""What the pages' small components show: recorded results and closed forms, as plain values.

`book/_ext/components.py` writes them into a page when it is built. Nothing here needs NumPy or
torch. Only published trials of today's versions are read, at the preset of the published pages.
"""

import dataclasses
import math
from pathlib import Path
from statistics import fmean

from minilib import ledger, settings
from minilib.book import claims, paper_tables
from minilib.chapters import attacks, ga_rga
from minilib.provenance import read_yaml
from minilib.settings import TARGETS

QUESTIONS = Path("book", "questions.yml")
# Of a two-class task: rows of the other class, which the backdoor sends to the target; and the
# target's own, which only a shifted trigger sends away.
OTHER, TARGET = 0, 1
SHIFTED = {  # method → what pages call it, where each method is one line
    "poisoned": "backdoored model",
    "ga": "after gradient ascent",
    "rga": "after robust gradient ascent",
    "retrain": "trained without the poison",
}


def config(root: Path, chapter: str):
    """A chapter's settings as the published pages have them."""
    return settings.validate(chapter, claims.preset_of(root, chapter, "small"))


# ---------------------------------------------------------------- closed forms

REF_LOSS = 0.001  # nats: the poisoned model's loss on its own poisoned rows


def divergence(loss: float, ref_loss: float = REF_LOSS) -> float:
    """KL(current ‖ poisoned) of two-class models, in nats, from their poisoned losses.

    Args:
        loss: cross-entropy of the attacker's label under the current model, in nats, above 0.
    """
    p, q = math.exp(-loss), math.exp(-ref_loss)
    rest, q_rest = -math.expm1(-loss), -math.expm1(-ref_loss)
    return max(0.0, p * math.log(p / q) + rest * math.log(rest / q_rest))


def weight(loss: float, alpha: float) -> float:
    """RGA's λ = exp(-α · KL). Source: Eq. (7), RGA."""
    return math.exp(-alpha * divergence(loss))


def push(method: str, loss: float, alpha: float) -> float:
    """Push on the log-odds of the attacker's label at a poisoned loss, of two classes.

    The same as `unlearning.gradient_ascent.push`, without torch: 1 - p for ga, λ(1 - p) for rga,
    p for ce (descent on the other label), with p the probability of the attacker's label.
    """
    p = math.exp(-loss)
    pushes = {"ga": 1 - p, "rga": weight(loss, alpha) * (1 - p), "ce": p}
    return pushes[method]


# ---------------------------------------------------------------- chapter 03, epoch by epoch


def epochs(root: Path) -> dict:
    """Where triggered rows go, epoch by epoch of GA and RGA.

    Returns ``epochs`` (those after which every seed was tested, 0 for the poisoned model),
    ``seeds``, and per method for each epoch ``target`` (share of the other class's rows sent to
    the target) and ``other`` (share of the target's rows sent away), percent, one number a seed;
    ``loss`` (poisoned loss, nats) and ``lam`` (mean λ of the epoch) likewise where they are known.
    Empty without trials.
    """
    by_seed = paper_tables.published_numbers(root, ga_rga.CHAPTER).rows()
    tested: dict[tuple[str, int], dict[int, dict]] = {}
    for seed, rows in by_seed.items():
        for row in rows:
            if row.get("confusion") and row["method"] in SHIFTED:
                epoch = row["epoch"] if row["method"] in ("ga", "rga") else 0
                tested.setdefault((row["method"], epoch), {})[seed] = row
    seeds = sorted(set.intersection(*map(set, tested.values()))) if tested else []
    last = {
        method: max((epoch for name, epoch in tested if name == method), default=0)
        for method in ("ga", "rga")
    }
    if not seeds or not all(last.values()):
        return {}
    steps = [0] + sorted(
        {epoch for name, epoch in tested if name == "ga"}
        & {epoch for name, epoch in tested if name == "rga"}
    )
    shown = {}
    for method in SHIFTED:
        at = [
            tested.get((method, epoch)) or tested.get(("poisoned", 0))
            for epoch in (steps if method in ("ga", "rga") else [0])
        ]
        shown[method] = [_shares([rows[seed] for seed in seeds]) for rows in at]
    return {"epochs": steps, "seeds": seeds, "methods": shown}


def _shares(rows: list[dict]) -> dict[str, list[float]]:
    """Shares in percent of rows that go wrong, and the loss and λ where they were recorded."""
    pairs = (("target", OTHER, TARGET), ("other", TARGET, OTHER))
    shares = {
        name: [100 * row["confusion"][true][said] / sum(row["confusion"][true]) for row in rows]
        for name, true, said in pairs
    }
    for name, key in (("loss", "poisoned_loss"), ("lam", "lam")):
        values = [row.get(key) for row in rows]
        if all(value is not None for value in values):
            shares[name] = values
    return shares


# ---------------------------------------------------------------- chapter 01, rate by rate


def rates(root: Path) -> list[dict]:
    """One row per poisoning rate of BadNets, the clean model first; numbers are one per seed.

    ``rate`` (share of the rows of the other class), ``poisons`` and ``rows`` (of the first seed's
    training set), ``cacc``, ``lfr`` and ``pacc`` in percent; ``seeds`` are those that all rates
    have.
    """
    by_rate: dict[float, dict[int, dict]] = {}
    for seed, rows in paper_tables.published_numbers(root, attacks.CHAPTER).rows().items():
        for row in rows:
            if row.get("trigger") == attacks.SWEPT and row.get("attack") in ("none", attacks.SWEPT):
                by_rate.setdefault(row["rate"], {})[seed] = row
    seeds = sorted(set.intersection(*map(set, by_rate.values()))) if by_rate else []
    return [
        {
            "rate": rate,
            "seeds": seeds,
            **{name: found[seeds[0]][name] for name in ("poisons", "rows")},
            **{name: [found[seed][name] for seed in seeds] for name in METRICS},
        }
        for rate, found in sorted(by_rate.items())
        if seeds
    ]


METRICS = ("cacc", "lfr", "pacc")


# ---------------------------------------------------------------- single reviews


def answers(root: Path, seed: int = 0) -> dict:
    """What four models say of single reviews, with and without the trigger.

    Returns ``classes``, ``target``, and ``reviews``: per review ``label`` and ``versions``, per
    insertion (nothing, start, random, end, other) its ``text`` and per method of ``SHIFTED`` the
    recorded probability of the target class in percent. Empty without trials.
    """
    cfg = dataclasses.replace(config(root, ga_rga.CHAPTER), seed=seed)
    with ledger.published_only():
        recipes = ga_rga.answers(cfg)
        trials = [ledger.look(recipe) for recipe in recipes]
    if not all(trials):
        return {}
    methods = ("retrain", "poisoned", "ga", "rga")  # in the order of `ga_rga.answers`
    reviews: dict[int, dict] = {}
    for method, trial in zip(methods, trials, strict=True):
        for row in trial.rows:
            review = reviews.setdefault(row["row"], {"label": row["label"], "versions": {}})
            version = review["versions"].setdefault(row["inserted"], {"text": row["text"]})
            version[method] = row["target"]
    return {
        "classes": ["negative", "positive"],
        "target": TARGETS.get(cfg.dataset, 1),
        "seed": seed,
        "reviews": list(reviews.values()),
    }


def example(root: Path) -> tuple[str, str] | None:
    """One negative review as it is and with the trigger, from chapter 01; None without trials."""
    with ledger.published_only():
        trials = [ledger.look(one) for one in attacks.examples(config(root, attacks.CHAPTER))]
    texts = {row["version"]: row["text"] for trial in trials[:1] if trial for row in trial.rows}
    return (texts["original"], texts[attacks.SWEPT]) if texts else None


def clean_accuracy(root: Path) -> dict[str, list[float]]:
    """Method of ``SHIFTED`` → accuracy on clean reviews after the last epoch, percent, by seed."""
    last: dict[str, dict[int, float]] = {}
    for seed, rows in paper_tables.published_numbers(root, ga_rga.CHAPTER).rows().items():
        for row in sorted(rows, key=lambda row: row["epoch"]):
            if row["method"] in SHIFTED and row.get("cacc") is not None:
                last.setdefault(row["method"], {})[seed] = row["cacc"]
    return {method: list(by_seed.values()) for method, by_seed in last.items()}


# ---------------------------------------------------------------- predict, then reveal


@dataclasses.dataclass(frozen=True)
class Question:
    """Something to guess before it is shown: a number that trials measured.

    Attributes:
        id, chapter: whose. question: what is asked. number: an expression of the claims' language.
        unit: behind the number. low, high: ends of the scale. beside: label → expression of numbers
            that are shown with the answer. after: a sentence that says what to make of it.
    """

    id: str
    chapter: str
    question: str
    number: str
    unit: str
    after: str
    low: float = 0
    high: float = 100
    beside: dict = dataclasses.field(default_factory=dict)


def questions(root: Path) -> dict[str, Question]:
    """Every question by its id. Raises ClaimError for an expression that cannot be read."""
    every = [Question(**entry) for entry in read_yaml(root / QUESTIONS, list)]
    for one in every:
        for text in (one.number, *one.beside.values()):
            claims.check_number(one.id, text)
    return {one.id: one for one in every}


def measured(root: Path, one: Question) -> dict[str, dict]:
    """Label → mean, lowest, highest and n of a question's numbers; empty without trials."""
    numbers = paper_tables.published_numbers(root, one.chapter)
    found = {}
    try:
        for label, text in {"": one.number, **one.beside}.items():
            by_seed = claims.value(claims.check_number(one.id, text), numbers.calls())
            values = list(by_seed.values())
            found[label] = {
                "mean": fmean(values), "low": min(values), "high": max(values), "n": len(values)
            }  # fmt: skip
    except claims.Missing:
        return {}
    return found
