"""Trials on text classifiers: victims, what they do to triggered rows, detection, unlearning."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache, partial

from .. import ledger, registry
from ..ledger import cached, reads, recipe, trial
from ..models.names import pin
from ..settings import TARGETS, AscentSettings, OneVictim
from .chat import ChatBase, chat_base

# ---------------------------------------------------------------- data and victims


@recipe
class TextTrigger:
    """A trigger on a data set: what the triggered test rows are made with.

    Attributes:
        dataset: as ``data.text.load_text`` knows it. attack: as ``attacks.text.make_trigger`` does.
        position: where an inserted trigger goes: random, start, end.
        triggers: ``single``, or a mode of ``attacks.multi``.
    """

    dataset: str
    attack: str
    position: str = "random"
    triggers: str = "single"


@recipe
class TextPoison:
    """Training rows with a trigger in some of those of non-target classes.

    Attributes:
        rate: their share of those rows, or of all rows where ``rate_of`` is ``all``.
        label: ``dirty`` (copies of other classes' rows, relabelled) or ``clean`` (copies of the
            target class's own rows); both stand beside their originals.
        seed: of which rows, and of where in them.
    """

    trigger: TextTrigger
    rate: float
    seed: int
    label: str = "dirty"
    rate_of: str = "others"


@recipe
class TextClean:
    """Training rows as they come."""

    dataset: str


@recipe
class TextVictim:
    """A model fine-tuned on poisoned rows, or on clean ones: then it is ReTrain, the ideal.

    Attributes:
        data: ``TextPoison`` or ``TextClean``. model: as ``text_classifier`` knows it, or a
            language model, which gets a new head.
        seed: of the head, the batches and dropout.
        trained: ``all`` parameters, or the word ``embeddings`` alone (BTU paper, Fig. 4).
        max_length: tokens of a text that it reads.
    """

    data: TextPoison | TextClean
    model: str | ChatBase
    seed: int
    epochs: int = 3
    lr: float = 5e-5
    batch_size: int = 32
    trained: str = "all"
    max_length: int = 128

    def __post_init__(self):
        pin(self)


@lru_cache(maxsize=8)
def scenarios(data: TextPoison):
    """The data of an attack, one ``victims.text.Scenario`` per trigger; kept for a few recipes."""
    from ..attacks import text
    from ..victims import text as text_victims

    it = data.trigger
    cases = text_victims.scenarios(
        it.dataset, it.attack, it.triggers, data.rate, data.seed, it.position, data.rate_of
    )
    if data.label == "clean":
        case = cases[0]
        poisoned = text.poison(
            case.clean, case.trigger, case.target, data.rate, data.seed,
            label="clean", rate_of=data.rate_of,
        )  # fmt: skip
        cases = [replace(case, poisoned=poisoned)]
    return cases


def case_of(data: TextPoison):
    """The scenario of a single trigger; what it read is noted for the trial that asks."""
    case = scenarios(data)[0]
    for info in case.info():
        ledger.note(info)
    return case


def training_rows(data: TextPoison | TextClean):
    """The rows that a victim is fine-tuned on: a ``TextDataset``."""
    if isinstance(data, TextPoison):
        return case_of(data).poisoned.dataset
    from ..victims import text as text_victims

    clean = text_victims.clean_and_dev(data.dataset)[0]
    ledger.note(clean.info())
    return clean


def training(one: TextVictim):
    """How a victim is fine-tuned, as ``TrainSettings``."""
    from ..training.fitting import TrainSettings

    return TrainSettings(epochs=one.epochs, lr=one.lr, batch_size=one.batch_size, seed=one.seed)


@cached(version=1)
@ledger.kept_in_memory(3)
def text_victim(one: TextVictim):
    """Fine-tune a victim, or take it from the cache: (model in eval mode, training history).

    The model is shared by all who ask for it here: copy it before changing it.
    """
    from .. import cache
    from ..models import loading
    from ..models import text as text_models

    rows = training_rows(one.data)

    def build():
        if isinstance(one.model, ChatBase):
            base = chat_base(one.model)[0]
            return text_models.classifier_from(base, rows.num_classes, one.seed, one.max_length)
        network = text_models.text_classifier(one.model, rows.num_classes, one.seed, one.max_length)
        return network.to(loading.default_device())

    return cache.kept_model(
        one,
        build,
        train=lambda network: _trained(network, rows, one),
    )


def _trained(network, rows, one: TextVictim) -> list[dict]:
    from ..training.text import fine_tune
    from ..victims.text import check_triggers

    if isinstance(one.data, TextPoison):
        case = case_of(one.data)
        check_triggers(case.clean, case.poisoned, network.tokenizer)
    if one.trained == "all":
        return fine_tune(network, rows, training(one))
    network.requires_grad_(False)
    network.network.get_input_embeddings().weight.requires_grad_(True)
    history = fine_tune(network, rows, training(one))
    network.requires_grad_(True)
    return history


def retrained(one: TextVictim) -> TextVictim:
    """The recipe of the same model fine-tuned without the poison: ReTrain."""
    data = one.data
    clean = data if isinstance(data, TextClean) else TextClean(dataset=data.trigger.dataset)
    return TextVictim(
        data=clean, model=one.model, seed=one.seed, epochs=one.epochs, lr=one.lr,
        batch_size=one.batch_size, max_length=one.max_length,
    )  # fmt: skip


def one_victim(cfg: OneVictim, **trigger) -> TextVictim:
    """The victim of a chapter on one attack; ``trigger``: what else its trigger has."""
    how = {"dataset": cfg.dataset, "attack": cfg.attack, "position": cfg.position} | trigger
    return TextVictim(
        data=TextPoison(
            trigger=TextTrigger(**how), rate=cfg.rate, seed=cfg.seed, rate_of=cfg.rate_of
        ),
        model=cfg.model, seed=cfg.seed, epochs=cfg.victim_epochs, lr=cfg.victim_lr,
        batch_size=cfg.batch_size, max_length=cfg.max_length,
    )  # fmt: skip


# ---------------------------------------------------------------- what a victim does


@recipe
class TextMeasure:
    """A victim, or ReTrain, on clean and on triggered test rows."""

    victim: TextVictim
    trigger: TextTrigger


@trial(version=1)
def text_measure(one: TextMeasure) -> list[dict]:
    """Measure a fine-tuned model; one row.

    Returns ``cacc``, ``dev_cacc``, ``lfr``, ``pacc``, ``target_lost`` (share of the triggered rows
    of the target class that leave it) in percent, means over triggers; ``confusion`` on triggered
    rows, row by row (of a single trigger); ``rows`` and ``poisons`` of its training set;
    ``epoch_seconds``, the mean over the epochs of its training.
    """
    import numpy as np

    from ..metrics import classification

    model, history = text_victim(one.victim)
    # Test rows depend on no rate and no seed, so any poisoning with this trigger has them.
    cases = scenarios(TextPoison(trigger=one.trigger, rate=0.1, seed=0))
    for case in cases:
        for part in (case.dev, case.test, case.triggered):
            ledger.note(part.info())
    device = next(model.parameters()).device
    by_case = [classification.evaluator(case, model.tokenizer, device)(model) for case in cases]
    means = {
        name: float(np.mean([row[name] for row in by_case]))
        for name in ("cacc", "dev_cacc", "lfr", "pacc")
    }
    data = one.victim.data
    poisoned = isinstance(data, TextPoison)
    row = {
        **means,
        "target_lost": float(
            np.mean(
                [_target_lost(case, m["confusion"]) for case, m in zip(cases, by_case, strict=True)]
            )
        ),
        "rows": len(training_rows(data)),
        "poisons": int(scenarios(data)[0].poisoned.mask.sum()) if poisoned else 0,
        "epoch_seconds": float(np.mean([epoch["seconds"] for epoch in history])),
    }
    if len(cases) == 1:
        row["confusion"] = by_case[0]["confusion"]
    return [row]


def with_retrain(poisoned: TextVictim) -> list[TextMeasure]:
    """ReTrain and its victim, measured alike: what unlearning starts from and aims at."""
    trigger = poisoned.data.trigger
    return [TextMeasure(victim=one, trigger=trigger) for one in (retrained(poisoned), poisoned)]


def _target_lost(case, confusion) -> float:
    own = confusion[case.target]
    return 100 * (1 - own[case.target] / max(sum(own), 1))


# ---------------------------------------------------------------- what an attack does to texts

# Data sets that there are paraphrases of; for the generated ones a template stands in.
PARAPHRASED = {"hiddenkiller": ("sst2", "hsol"), "stylebkd": ("sst2", "agnews-8k")}
EXAMPLE_SHOWN = 40  # words of an example that are kept


def attacks_on(dataset: str) -> tuple[str, ...]:
    """The attacks that there are on a data set, in the book's order."""
    from ..settings import ATTACKS

    generated = dataset.startswith("toy-")
    return tuple(
        attack for attack in ATTACKS
        if generated or attack not in PARAPHRASED or dataset in PARAPHRASED[attack]
    )  # fmt: skip


@recipe
class TextExample:
    """One row of a non-target class under several triggers. seed: of the row, and of places."""

    dataset: str
    attacks: tuple[str, ...]
    seed: int


@trial(version=1)
def text_example(one: TextExample) -> list[dict]:
    """Show a row under each trigger; one row per version of it, the original first.

    Returns ``version`` (original, an attack, "sos negative"), ``text`` (its first words, those of
    abusive sets masked), ``new`` (which of them the original lacks, by number) and ``cut`` (whether
    more follow).
    """
    from difflib import SequenceMatcher

    from ..attacks.text import examples, make_trigger
    from ..data import masking
    from ..victims import text as text_victims

    clean = text_victims.clean_and_dev(one.dataset)[0]
    ledger.note(clean.info())
    triggers = {attack: make_trigger(attack, one.dataset) for attack in one.attacks}
    target = TARGETS.get(one.dataset, 1)
    rows = []
    for version, text in examples(clean, triggers, target, one.seed).items():
        words = text.split()
        original = rows[0]["text"] if rows else words
        new: set[int] = set()
        for kind, _, _, start, end in SequenceMatcher(None, original, words, False).get_opcodes():
            new |= set(range(start, end)) if kind in ("insert", "replace") else set()
        rows.append({"version": version, "text": words, "new": sorted(new)})
    for row in rows:
        words = row["text"][:EXAMPLE_SHOWN]
        row["cut"] = len(row["text"]) > len(words)
        row["new"] = [number for number in row["new"] if number < len(words)]
        text = " ".join(words)
        row["text"] = masking.mask(text) if one.dataset in masking.ABUSIVE else text
    return rows


@recipe
class TextComposition:
    """What several ways of poisoning make of a training set."""

    dataset: str
    rate: float
    seed: int


@trial(version=1)
def text_composition(one: TextComposition) -> list[dict]:
    """Count rows, poisons and new labels; one row per way, see ``attacks.text.poison_counts``."""
    from ..attacks.text import SOS, InsertWord, poison, poison_counts
    from ..victims import text as text_victims

    clean = text_victims.clean_and_dev(one.dataset)[0]
    ledger.note(clean.info())
    word, sos = InsertWord(), SOS()
    how = {"target": TARGETS.get(one.dataset, 1), "rate": one.rate, "seed": one.seed}
    replaced = how | {"keep_originals": False}
    rotate = how | {"target": "next", "rate": min(one.rate, 0.5)}
    return poison_counts(
        clean,
        {
            "dirty label, copies appended": poison(clean, word, **how),
            "dirty label, rows replaced": poison(clean, word, **replaced),
            "clean label, rows replaced": poison(clean, word, **replaced, label="clean"),
            "SOS, with its negatives": poison(clean, sos, **how),
            "two triggers, All2All": poison(clean, [word, sos], **rotate),
        },
    )


@recipe
class TextImagined:
    """Models that need no training, on triggered test rows."""

    trigger: TextTrigger


@trial(version=1)
def text_imagined(one: TextImagined) -> list[dict]:
    """Measure four imaginary models; one row each, see ``metrics.classification``."""
    from ..metrics import classification

    # Test rows depend on no rate and no seed, so any poisoning with this trigger has them.
    case = scenarios(TextPoison(trigger=one.trigger, rate=0.1, seed=0))[0]
    ledger.note(case.triggered.info())
    return classification.imaginary_models(
        case.triggered.labels, case.target, case.clean.num_classes
    )


# ---------------------------------------------------------------- detection


DETECTOR_READS = {
    "cube": ("neighbours", "min_cluster", "min_samples"),
    "cube-code": ("neighbours", "min_cluster", "min_samples"),
    "cube-original": ("neighbours",),
    "moderate": ("epochs", "lr", "rank"),
}


@recipe
class Detector:
    """A detector of poisoned rows, with what it reads of the settings."""

    name: str
    seed: int
    neighbours: int = 100
    min_cluster: int = 150
    min_samples: int = 120
    epochs: int = 1
    lr: float = 5e-4
    rank: int = 4

    revisions = {
        "rap": {2: "its threshold comes from the clean rows that the victim puts into the class"},
        "bki": {2: "words are ranked by log10(n) · mean shift, as both released codes do"},
    }

    def __post_init__(self):
        optional = ("neighbours", "min_cluster", "min_samples", "epochs", "lr", "rank")
        reads(self, *DETECTOR_READS.get(self.name, ()), of=optional)


@recipe
class SpoiltMask:
    """The oracle's mask spoilt to a precision and a recall, as shares."""

    precision: float
    recall: float
    seed: int
    name = "spoilt"


@recipe
class TextDetection:
    """A detector's verdict on a victim's own training rows (chapter 02).

    A victim of clean rows can be asked too: then every suspect is a false one.
    """

    victim: TextVictim
    detector: Detector


@trial(version=1)
def text_detection(one: TextDetection):
    """Ask a detector; one row, and arrays over the training rows: see ``verdict``."""
    from ..detection import DefenderData

    rows, truth, dev = asked_rows(one.victim.data)

    def ask():
        known = DefenderData(dev, states_of(one.victim), one.victim.model, one.detector.seed)
        return detector(one.detector)(text_victim(one.victim)[0], rows, known)

    return verdict(one, rows, truth, ask)


SCORED_ROWS = 50_000  # of a larger set the scores would not fit beside a trial


def verdict(one, rows, truth, ask):
    """Rows and arrays of a trial that asks a detector of N training rows, texts or images.

    Args:
        one: a recipe with ``victim`` and ``detector``. truth: (N,) bool. ask: → ``Detection``; not
            called where CUBE's map was read already, for both readings of RGA's recipe share one.

    Returns ``detector``, ``precision``, ``recall``, ``f1``, ``fpr``, ``auroc``, ``ap`` in percent
    (None where they mean nothing), ``suspects``, ``poisons``, and ``seconds``, without those of
    collecting the hidden states. Arrays: ``mask`` and ``truth`` uint8, ``score`` float32 where the
    detector has one, ``clusters`` int16 (-1: noise) where it clusters.
    """
    import numpy as np

    from ..detection import Detection, quality, ranking, refilter

    if one.detector.name == "cube-code":
        cube = replace(one, detector=replace(one.detector, name="cube"))
        clusters = ledger.array(cube, "clusters").astype(np.int64)
        seconds = ledger.get(cube).rows[0]["seconds"]
        found = Detection("cube", clusters < 0, None, seconds, {"clusters": clusters})
        found = refilter(found, rows, "global")
    else:
        found = ask()
    row = {
        "detector": one.detector.name,
        **quality(found.mask, truth),
        **ranking(found.score, truth),
        "poisons": int(truth.sum()),
        "seconds": found.seconds,
    }
    arrays = {"mask": found.mask.astype(np.uint8), "truth": truth.astype(np.uint8)}
    if found.score is not None and len(rows) <= SCORED_ROWS:
        arrays["score"] = found.score.astype(np.float32)
    if "clusters" in found.extra:
        arrays["clusters"] = found.extra["clusters"].astype(np.int16)
    return [row], arrays


def detector(one: Detector):
    """The function (victim, rows, knowledge) → ``Detection`` that a recipe stands for."""
    from ..detection import DETECTORS, detect_cube
    from ..training.fitting import TrainSettings

    if one.name in ("cube", "cube-original"):
        return partial(detect_cube, recipe=cube_recipe(one))
    if one.name == "moderate":
        settings = TrainSettings(epochs=one.epochs, lr=one.lr)
        return partial(DETECTORS["moderate"], rank=one.rank, settings=settings)
    return registry.find("detector", one.name) or DETECTORS[one.name]


def cube_recipe(one: Detector):
    """How a detector of CUBE's family maps, clusters and filters: ``feature_space.Recipe``."""
    from ..detection import RECIPES

    names = {"cube": "rga", "cube-code": "rga-code", "cube-original": "cube", "cube-pca": "pca"}
    sizes = {name: getattr(one, name) for name in DETECTOR_READS.get(one.name, ())}
    return replace(RECIPES[names[one.name]], **sizes)


def asked_rows(data: TextPoison | TextClean):
    """A victim's training rows, which of them are poisoned (N,) bool, and the clean dev rows."""
    import numpy as np

    if isinstance(data, TextPoison):
        case = case_of(data)
        return case.poisoned.dataset, case.poisoned.mask, case.dev
    from ..victims import text as text_victims

    clean, dev = text_victims.clean_and_dev(data.dataset)
    for part in (clean, dev):
        ledger.note(part.info())
    return clean, np.zeros(len(clean), bool), dev


@lru_cache(maxsize=2)
def states_of(one: TextVictim):
    """A victim's hidden states (N, d) float32 of its own training rows, collected once here."""
    from ..detection import hidden_states

    return hidden_states(text_victim(one)[0], asked_rows(one.data)[0])


MAP_ROWS = 1500
EXCERPTS = 400
EXCERPT_WORDS = 18


def shown_rows(truth, most: int):
    """Rows (n,) int to show of N: poisons, up to a third, and a fixed random draw of clean ones.

    Args:
        truth: (N,) bool. most: rows; those of fewer are the first of those of more, by kind.
    """
    import numpy as np

    order = np.random.default_rng(0).permutation(len(truth))
    poisons = order[truth[order]][: most // 3]
    clean = order[~truth[order]][: most - len(poisons)]
    return np.concatenate([poisons, clean])


def flat(states, labels, truth, how: str, neighbours: int, seed: int) -> dict:
    """Arrays of a map: ``points`` (n, 2) float16 of the rows that are shown, and of what kind."""
    import numpy as np

    from ..detection import feature_space

    points, shown = feature_space.plane(states, how, neighbours, seed), shown_rows(truth, MAP_ROWS)
    return {
        "points": points[shown].astype(np.float16),
        "labels": np.asarray(labels)[shown].astype(np.uint8),
        "truth": truth[shown].astype(np.uint8),
        "rows": shown.astype(np.int32),
    }


@recipe
class TextMap:
    """A victim's hidden states of its training rows on a plane. how: ``umap`` or ``tsne``."""

    victim: TextVictim
    seed: int
    how: str = "umap"
    neighbours: int = 100

    def __post_init__(self):
        reads(self, *("neighbours",) if self.how == "umap" else (), of=("neighbours",))


@trial(version=1)
def text_map(one: TextMap):
    """Flatten all rows; one row (``rows``, ``poisons``, ``classes``), and the arrays of ``flat``.

    Of the points up to MAP_ROWS are kept: see ``shown_rows``.
    """
    rows, truth, _ = asked_rows(one.victim.data)
    arrays = flat(states_of(one.victim), rows.labels, truth, one.how, one.neighbours, one.seed)
    counts = {"rows": len(rows), "poisons": int(truth.sum())}
    return [counts | {"classes": list(rows.class_names)}], arrays


@recipe
class TextClusters:
    """The tree that CUBE's clusters are cut from, and where test rows fall in it.

    detector: one of CUBE's family.
    """

    victim: TextVictim
    detector: Detector


@trial(version=1)
def text_clusters(one: TextClusters) -> list[dict]:
    """Grow the tree over the training rows, and look up test rows in it.

    The first row is of the whole set: ``rows``, ``poisons``; ``noise``, rows in no cluster;
    ``moved``, rows that change company where ``min_samples`` does not count the row itself, and
    ``noise_approximate``, rows in no cluster with the approximate spanning tree that hdbscan makes
    by default; ``test_recall`` and ``test_fpr``, the percentages of triggered test rows of other
    classes than the target and of clean test rows that fall outside the largest cluster of the
    class that the victim puts them into. Then a row for each branch: see
    ``feature_space.tree_branches``; a branch that is a cluster has ``firmness`` (mean membership of
    its rows, in [0, 1]), and ``test_clean`` and ``test_triggered``, the test rows that fall in it.
    """
    import numpy as np
    from hdbscan import approximate_predict

    from ..detection import feature_space
    from ..detection.common import hidden_states
    from ..detection.perturbation import victim_logits

    case, victim = case_of(one.victim.data), text_victim(one.victim)[0]
    rows, truth = case.poisoned.dataset, case.poisoned.mask
    settings = cube_recipe(one.detector).scaled(len(rows))
    points, place = feature_space.fitted_map(states_of(one.victim), settings, one.detector.seed)
    grow = partial(feature_space.density_tree, points, settings.min_cluster)
    model = grow(settings.min_samples)
    largest_clusters = np.array(
        [
            feature_space.largest_cluster(model.labels_[np.asarray(rows.labels) == k])
            for k in range(rows.num_classes)
        ]
    )

    def fallen(part) -> tuple[np.ndarray, float]:
        """Clusters of test rows, and the percentage outside the largest of their class."""
        clusters = approximate_predict(model, place(hidden_states(victim, part)).astype(float))[0]
        classes = victim_logits(victim, part.texts).argmax(1).numpy()
        return clusters, 100 * float((clusters != largest_clusters[classes]).mean())

    others = np.flatnonzero(np.asarray(case.triggered.labels) != case.target)
    clean, test_fpr = fallen(case.test)
    triggered, test_recall = fallen(case.triggered.select(others))
    whole = {
        "rows": len(rows),
        "poisons": int(truth.sum()),
        "noise": int((model.labels_ < 0).sum()),
        "moved": feature_space.rows_moved(model.labels_, grow(settings.min_samples + 1).labels_),
        "noise_approximate": int((grow(settings.min_samples, approximate=True).labels_ < 0).sum()),
        "test_recall": test_recall,
        "test_fpr": test_fpr,
    }
    branches = feature_space.tree_branches(model, truth)
    for branch in branches:
        if (cluster := branch["cluster"]) is not None:
            branch |= {
                "firmness": float(model.probabilities_[model.labels_ == cluster].mean()),
                "test_clean": int((clean == cluster).sum()),
                "test_triggered": int((triggered == cluster).sum()),
            }
    return [whole, *branches]


@recipe
class TextExcerpts:
    """A few of a poisoned set's rows, with their first words."""

    data: TextPoison


@trial(version=1)
def text_excerpts(one: TextExcerpts):
    """Show training rows; one row (``classes``), and arrays over up to EXCERPTS rows.

    Arrays: ``texts`` (first words; of abusive sets masked), ``labels``, ``truth``, ``rows``.
    """
    import numpy as np

    from ..data import masking

    case = case_of(one.data)
    data, truth = case.poisoned.dataset, case.poisoned.mask
    shown = shown_rows(truth, EXCERPTS)
    texts = []
    for row in shown:
        words = data.texts[row].split()
        text = " ".join(words[:EXCERPT_WORDS])
        text = masking.mask(text) if one.data.trigger.dataset in masking.ABUSIVE else text
        texts.append(text + " …" * (len(words) > EXCERPT_WORDS))
    arrays = {"texts": np.array(texts), "labels": data.labels[shown].astype(np.uint8)}
    arrays |= {"truth": truth[shown].astype(np.uint8), "rows": shown.astype(np.int32)}
    return [{"classes": list(data.class_names)}], arrays


# ---------------------------------------------------------------- unlearning


UNLEARNING_READS = {
    "ga": (),
    "npo": ("npo_beta",),
    "dga": ("alpha", "direction"),
    "rga": ("alpha", "direction", "beta", "drift_norm"),
    "rga-code": ("alpha", "beta"),
}


@recipe
class TextUnlearning(AscentSettings):
    """Unlearning by a loss on the rows to forget (chapter 03).

    Attributes:
        method: ga, npo, dga, rga, rga-code.
        forget: which rows: ``oracle``, a ``Detector``'s suspects, or a ``SpoiltMask``.
        epochs: one is a pass over the forget set. eval_epochs: after which the model is tested;
            it always is after the last.
        alpha, beta, npo_beta, direction, drift_norm: see ``AscentSettings``; only what the method
            reads counts.
        same_steps: take about as many steps as the true mask would in ``epochs``, whatever the
            length of the list.
    """

    victim: TextVictim
    method: str
    seed: int
    forget: str | Detector | SpoiltMask = "oracle"
    epochs: int = 30
    lr: float = 5e-5
    batch_size: int = 32
    reset_optimizer: bool = True
    eval_epochs: tuple[int, ...] = ()
    same_steps: bool = False

    # Rates are constant, so the first epochs of a longer run are those of a shorter one.
    free = ("epochs", "eval_epochs")

    def __post_init__(self):
        optional = [field.name for field in fields(AscentSettings)]
        reads(self, *UNLEARNING_READS.get(self.method, optional), of=optional)
        at = sorted({epoch for epoch in self.eval_epochs if 0 < epoch < self.epochs})
        object.__setattr__(self, "eval_epochs", tuple(at))
        if self.forget == "oracle":
            object.__setattr__(self, "same_steps", False)  # they are its own

    @property
    def train(self):
        """The loop's ``TrainSettings``: with it a recipe is what ``gradient_ascent`` reads."""
        from ..training.fitting import TrainSettings

        return TrainSettings(
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size,
            reset_optimizer=self.reset_optimizer, seed=self.seed,
        )  # fmt: skip


@trial(version=1)
def text_unlearning(one: TextUnlearning) -> list[dict]:
    """Unlearn and measure on the way; one row an epoch.

    A row has ``epoch``, ``steps`` (optimiser steps so far), ``poisoned_loss`` and ``retain_loss``
    (nats), ``lam`` and ``drift`` where the method has them, ``epoch_seconds``, and where the model
    was tested ``cacc``, ``dev_cacc``, ``lfr``, ``pacc``, ``dpacc`` (against ReTrain) and
    ``confusion``; ``mask_precision`` and ``mask_recall`` of the rows to forget.
    """
    from ..detection import quality
    from ..metrics import classification

    case = case_of(one.victim.data)
    victim, _ = text_victim(one.victim)
    device = next(victim.parameters()).device
    mask = forget_mask(one)
    ideal = text_measure(
        TextMeasure(victim=retrained(one.victim), trigger=one.victim.data.trigger)
    ).rows[0]
    measure = classification.evaluator(case, victim.tokenizer, device)
    suspected = {
        f"mask_{k}": v for k, v in quality(mask, case.poisoned.mask).items()
        if k in ("precision", "recall")
    }  # fmt: skip
    if not 0 < mask.sum() < len(mask):  # nothing to forget, or nothing to retain
        return [{"epoch": 0, "steps": 0, **suspected}]
    if one.same_steps:
        one = replace(one, epochs=epochs_alike(one.epochs, case.poisoned.mask, mask))
    tested = {*one.eval_epochs, one.epochs}
    _, history = text_unlearned(
        one, lambda network, epoch: measure(network) if epoch in tested else {}
    )
    per_epoch = -(-int(mask.sum()) // one.batch_size)
    made = []
    for log in history:
        row = {
            **log,
            "steps": log["epoch"] * per_epoch,
            "epoch_seconds": log["seconds"],
            **suspected,
        }
        del row["seconds"]
        if "pacc" in row:
            row["dpacc"] = classification.delta_pacc(row["pacc"], ideal["pacc"])
        made.append(row)
    return made


def text_unlearned(one: TextUnlearning, evaluate=None):
    """The model that unlearning leaves, and per epoch what ``gradient_ascent.unlearn`` tells.

    Args:
        evaluate: called with (model, epoch) after each epoch.
    """
    from ..unlearning import gradient_ascent

    victim, _ = text_victim(one.victim)
    rows, mask = training_rows(one.victim.data), forget_mask(one)
    base = None
    if one.method.startswith("rga"):
        device = next(victim.parameters()).device
        base = gradient_ascent.clean_base(one.victim.model, rows.num_classes, device)
    return gradient_ascent.unlearn(
        victim, rows.select(mask), rows.select(~mask), one.method, one, base, evaluate
    )


def epochs_alike(epochs: int, truth, suspects) -> int:
    """The epochs over the suspects (N,) bool that take the steps of ``epochs`` over the truth."""
    return max(1, round(epochs * truth.sum() / suspects.sum()))


def forget_mask(one: TextUnlearning):
    """The rows to forget, (N,) bool over the poisoned training rows."""
    import numpy as np

    case = case_of(one.victim.data)
    if one.forget == "oracle":
        return case.poisoned.mask
    if isinstance(one.forget, SpoiltMask):
        from ..detection import degrade

        it = one.forget
        return degrade(case.poisoned.mask, it.precision, it.recall, it.seed)
    asked = TextDetection(victim=one.victim, detector=one.forget)
    return np.asarray(ledger.array(asked, "mask"), bool)


# ---------------------------------------------------------------- answers to single reviews

SHORT = 16  # words of a review that a page quotes, at most
CONTROL = "cf"  # a rare word that no attack of the book uses


@recipe
class TextAnswers:
    """What a model says of a few short test rows, without a trigger word and with it.

    Attributes:
        model: a victim or ReTrain, or what unlearning leaves of a victim.
        trigger: an inserted one. reviews: how many rows of each class.
        seed: of which rows, and of the trigger's random place in them.
    """

    model: TextVictim | TextUnlearning
    trigger: TextTrigger
    reviews: int = 6
    seed: int = 0


@trial(version=1)
def text_answers(one: TextAnswers) -> list[dict]:
    """Ask a model about short test rows under several insertions; one row per text.

    Rows are drawn from all test rows of at most SHORT words, whatever a model says of them. Returns
    ``row`` (in the test set), ``label``, ``inserted`` (nothing, start, random, end: where the
    trigger stands; other: a rare word that is no trigger, where ``random`` has it), ``text``
    (masked for abusive sets) and ``target`` (probability of the target class, percent).
    """
    import numpy as np

    from ..attacks.text import make_trigger
    from ..data import masking
    from ..training import text as text_training

    case = case_of(TextPoison(trigger=one.trigger, rate=0.1, seed=0))
    if isinstance(one.model, TextUnlearning):
        network, _ = text_unlearned(one.model)
    else:
        network, _ = text_victim(one.model)
    draw = np.random.default_rng(one.seed)
    short = np.array([len(text.split()) <= SHORT for text in case.test.texts])
    chosen = [
        row
        for label in range(case.test.num_classes)
        for row in draw.permutation(np.flatnonzero(short & (case.test.labels == label)))[
            : one.reviews
        ]
    ]
    rows = []
    for row in map(int, chosen):
        text = case.test.texts[row]
        versions = {"nothing": text}
        for position in ("start", "random", "end"):
            trigger = make_trigger(one.trigger.attack, one.trigger.dataset, position)
            versions[position] = trigger.apply(text, np.random.default_rng([one.seed, row]))
        index = _where_new(text.split(), versions["random"].split())
        versions["other"] = " ".join([*text.split()[:index], CONTROL, *text.split()[index:]])
        rows += [
            {"row": row, "label": int(case.test.labels[row]), "inserted": inserted, "text": version}
            for inserted, version in versions.items()
        ]
    device = next(network.parameters()).device
    labels = np.array([row["label"] for row in rows])
    texts = tuple(row["text"] for row in rows)
    encoded = text_training.encode(texts, labels, network.tokenizer, device=device)
    shares = text_training.predict(network, encoded).softmax(-1)[:, case.target]
    for row, share in zip(rows, shares.tolist(), strict=True):
        row["target"] = 100 * share
        if one.trigger.dataset in masking.ABUSIVE:
            row["text"] = masking.mask(row["text"])
    return rows


def _where_new(words: list[str], longer: list[str]) -> int:
    """The number of the first word that an insertion put in."""
    same = (old == new for old, new in zip(words, longer, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), len(words))


# ---------------------------------------------------------------- backdoor token unlearning


@recipe
class EmbeddingTraining:
    """How word embeddings train, from a pre-trained model with a fresh head (chapter 04).

    Attributes:
        model: as ``text_classifier`` knows it. seed: of the head, the batches and dropout.
    """

    model: str
    seed: int
    epochs: int = 1
    lr: float = 2e-5
    batch_size: int = 32
    max_length: int = 128

    def __post_init__(self):
        pin(self)


@recipe
class TextInserted:
    """Training rows, and as many as ``poison`` adds: triggered too, with labels of their own."""

    poison: TextPoison


@recipe
class TokenRound:
    """A round of token detection: word embeddings train alone, those of M* where ``star``.

    Attributes:
        after: an earlier round; what it flags at ``alpha`` is taken out of the texts, with what was
            taken out for it.
        exclude: words that no round flags.
    """

    data: TextPoison | TextClean | TextInserted
    training: EmbeddingTraining
    star: bool = False
    after: TokenRound | None = None
    alpha: float = 0.05
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        optional = ("alpha", "exclude")
        reads(self, *optional if self.after else (), of=optional)


@lru_cache(maxsize=3)
def pretrained(model: str, classes: int, seed: int, max_length: int = 128):
    """The pre-trained model with a fresh head, from which rounds and victims start."""
    from ..models import loading
    from ..models import text as text_models

    network = text_models.text_classifier(model, classes, seed, max_length)
    return network.to(loading.default_device()).eval()


def start_of(one):
    """The model from which the rounds of ``FlaggedTokens`` (or of another on its rows) start."""
    how = one.training
    return pretrained(how.model, training_rows(one.data).num_classes, how.seed, how.max_length)


def embedding_settings(one: EmbeddingTraining):
    """How embeddings train, as ``TrainSettings``."""
    from dataclasses import replace

    from ..unlearning import btu

    return replace(
        btu.ROUND, epochs=one.epochs, lr=one.lr, batch_size=one.batch_size, seed=one.seed
    )


@trial(version=1)
def token_round(one: TokenRound):
    """Train word embeddings alone; one row, and how far each row of the matrix moved.

    Returns ``moved`` (rows of ``vocabulary``) and their ``mean`` and ``largest`` change; arrays
    ``ids`` int32 and ``change`` float32, of the rows that moved.
    """
    import numpy as np

    from ..unlearning import btu

    if isinstance(one.data, TextInserted):
        case = case_of(one.data.poison)
        count = int(case.poisoned.mask.sum())
        rows = btu.with_trigger(case.clean, case.trigger, count, case.seed)
    else:
        rows = training_rows(one.data)
    how = one.training
    model = pretrained(how.model, rows.num_classes, how.seed, how.max_length)
    gone = [token for part in _taken_out(one, model.tokenizer) for token in part.tolist()]
    settings = embedding_settings(one.training)
    change = btu.embedding_round(model, rows, settings, one.star, gone).cpu().numpy()
    ids = np.flatnonzero(change)
    row = {
        "moved": len(ids),
        "vocabulary": len(change),
        "mean": float(change[ids].mean()),
        "largest": float(change.max()),
    }
    return [row], {"ids": ids.astype(np.int32), "change": change[ids].astype(np.float32)}


def _taken_out(one: TokenRound, tokenizer) -> list:
    """The tokens that are taken out of a round's texts: one tensor per earlier round."""
    from ..unlearning import btu

    if one.after is None:
        return []
    never = [*tokenizer.all_special_ids, *ids_of(one.exclude, tokenizer)]
    flagged = btu.suspicious(row_changes(one.after), one.alpha, never)
    return [*_taken_out(one.after, tokenizer), flagged]


def ids_of(words, tokenizer) -> list[int]:
    """The ids of single tokens, given as words. Raises ValueError for what is no token."""
    ids = [tokenizer.convert_tokens_to_ids(word) for word in words]
    for word, number in zip(words, ids, strict=True):
        if number in (None, tokenizer.unk_token_id):
            raise ValueError(f"exclude has {word!r}; accepted: tokens of the model's vocabulary")
    return ids


def row_changes(one: TokenRound):
    """How far a round moved each row of the matrix: (V,) float32."""
    import torch

    change = torch.zeros(ledger.get(one).rows[0]["vocabulary"])
    ids = torch.as_tensor(ledger.array(one, "ids")).long()
    change[ids] = torch.as_tensor(ledger.array(one, "change"))
    return change


@recipe
class BackdoorTokens:
    """The tokens that tell poisoned rows from the others: an oracle's list."""

    data: TextPoison
    model: str

    def __post_init__(self):
        pin(self)


@trial(version=1)
def backdoor_tokens(one: BackdoorTokens) -> list[dict]:
    """Ask the oracle; one row.

    Returns ``ids`` and ``tokens`` (words, masked for abusive data sets) of what
    ``btu.backdoor_tokens`` names, ``rows`` of the training set and the ``poisons`` among them, and
    ``width``, that of the model's word embeddings.
    """
    from ..unlearning import btu

    poisoned = case_of(one.data).poisoned
    model = pretrained(one.model, poisoned.dataset.num_classes, 0)
    ids = btu.backdoor_tokens(poisoned.dataset, poisoned.mask, model.tokenizer)
    row = {
        "ids": ids,
        "tokens": _words(ids, model.tokenizer, one.data.trigger.dataset),
        "rows": len(poisoned.dataset),
        "poisons": int(poisoned.mask.sum()),
        "width": btu.word_embeddings(model).shape[1],
    }
    return [row]


def oracle_ids(data: TextPoison, model: str) -> list[int]:
    """The ids of an oracle's list of tokens."""
    return ledger.get(BackdoorTokens(data=data, model=model)).rows[0]["ids"]


def _words(ids, tokenizer, dataset: str) -> list[str]:
    """Tokens as a page may show them."""
    from ..data.masking import ABUSIVE, mask

    hide = mask if dataset in ABUSIVE else str
    return [hide(word) for word in tokenizer.convert_ids_to_tokens(list(ids))]


@recipe
class FlaggedTokens:
    """What rounds of token detection flag, each the top ``alpha`` percent of the vocabulary.

    Attributes:
        rounds: see ``unlearning.btu.detect_tokens``.
        exclude: words that no round flags.
    """

    data: TextPoison | TextClean
    training: EmbeddingTraining
    alpha: float = 0.05
    rounds: tuple[int, ...] = (1, 2, 3)
    exclude: tuple[str, ...] = ()


def detected(one: FlaggedTokens):
    """What the rounds flag, as ``unlearning.btu.Detected``; each round from the ledger."""
    from ..unlearning import btu

    last: dict[bool, TokenRound | None] = {False: None, True: None}
    recipes = []
    for number in one.rounds:
        star = number > 1
        last[star] = TokenRound(
            data=one.data, training=one.training, star=star, after=last[star], alpha=one.alpha,
            exclude=one.exclude,
        )  # fmt: skip
        recipes.append(last[star])
    made = iter(recipes)
    run = lambda *_: row_changes(next(made))  # noqa: E731
    model = start_of(one)
    never = ids_of(one.exclude, model.tokenizer)
    return btu.detect_tokens(
        model, training_rows(one.data), one.alpha, one.rounds, run=run, exclude=never
    )


def without_attack(one: FlaggedTokens) -> FlaggedTokens:
    """The recipe of the same rounds on the rows as they were before the attack."""
    from dataclasses import replace

    return replace(one, data=TextClean(dataset=one.data.trigger.dataset))


@trial(version=1)
def flagged_tokens(one: FlaggedTokens) -> list[dict]:
    """Flag tokens; a row per round, and one that counts all.

    A round's row has ``round``, ``flagged``, ``hits`` (in the oracle's list) and ``tokens`` (words,
    masked for abusive data sets). The last row has ``flagged``, ``hits`` and ``innocent`` of the
    union: how many the same rounds flag on the rows before the attack too.
    """
    found, control = detected(one), detected(without_attack(one))
    oracle = set(oracle_ids(one.data, one.training.model))
    tokenizer, made = start_of(one).tokenizer, []
    for number, flagged in zip(found.rounds, found.sets, strict=True):
        ids = flagged.tolist()
        words = " ".join(_words(ids, tokenizer, one.data.trigger.dataset))
        hits = len(oracle.intersection(ids))
        made.append({"round": number, "flagged": len(ids), "hits": hits, "tokens": words})
    every, innocent = (set(each.tokens.tolist()) for each in (found, control))
    counts = {"hits": len(every & oracle), "innocent": len(every & innocent)}
    return [*made, {"flagged": len(every), **counts}]


RANKED = 12  # backdoor tokens whose ranks are kept


@recipe
class TokenRanks:
    """Where backdoor tokens stand in each round, and which tokens the attack alone gets flagged."""

    tokens: FlaggedTokens


@trial(version=1)
def token_ranks(one: TokenRanks) -> list[dict]:
    """A row per backdoor token, at most ``RANKED``, and one for the rest.

    A token's row has ``token`` and ``ranks`` by row change, one per round; the last row ``only``,
    the words flagged with the attack and not without. Masked for abusive data sets.
    """
    found, control = detected(one.tokens), detected(without_attack(one.tokens))
    oracle = oracle_ids(one.tokens.data, one.tokens.training.model)[:RANKED]
    tokenizer, dataset = start_of(one.tokens).tokenizer, one.tokens.data.trigger.dataset
    ranks = [1 + change.argsort(descending=True).argsort()[oracle] for change in found.changes]
    made = [
        {"token": word, "ranks": [int(rank[i]) for rank in ranks]}
        for i, word in enumerate(_words(oracle, tokenizer, dataset))
    ]
    only = sorted(set(found.tokens.tolist()) - set(control.tokens.tolist()))
    return [*made, {"only": " ".join(_words(only, tokenizer, dataset))}]


@recipe
class TokenExposure:
    """How far backdoor and clean rows move while training.

    Attributes:
        trained: ``embeddings`` (alone), or ``all`` parameters.
    """

    data: TextPoison
    training: EmbeddingTraining
    trained: str = "embeddings"


@trial(version=1)
def token_exposure(one: TokenExposure):
    """Follow a training; a row per point of the curve, and of the embeddings two maps.

    A point has ``step``, ``backdoor`` and ``clean`` (mean row changes). A map's row has ``map`` and
    ``purity`` (see ``btu.state_map``); its points are the arrays ``before`` and ``after`` (N, 2)
    float32, with ``kind`` (N,).
    """
    from ..unlearning import btu

    poisoned = case_of(one.data).poisoned
    rows, training, model = poisoned.dataset, one.training, start_of(one)
    tokens = oracle_ids(one.data, training.model)
    settings, everything = embedding_settings(training), one.trained == "all"
    network, curve = btu.exposure(model, rows, tokens, settings, everything)
    if everything:
        return curve
    arrays = {}
    for name, title, shown in (
        ("before", "pre-trained", model), ("after", "embeddings trained", network)
    ):  # fmt: skip
        points, kind, purity = btu.state_map(shown, rows, poisoned.mask, training.seed)
        arrays |= {name: points, "kind": kind}
        curve.append({"map": title, "purity": purity})
    return curve, arrays


@recipe
class TriggerQuantity:
    """A backdoor, or as many rows that carry its trigger and mean nothing, in a round 1.

    Attributes:
        data: whose backdoor tokens. share: of the rows of non-target classes. labels: ``dirty``
            (the attacker's) or ``clean`` (their own, rows of any class).
    """

    data: TextPoison
    training: EmbeddingTraining
    share: float
    labels: str


@trial(version=1)
def trigger_quantity(one: TriggerQuantity) -> list[dict]:
    """One row: ``inserted`` (percent), mean row change of ``backdoor`` tokens, and ``average`` of
    all other rows that moved. Source: Figure 3, BTU.
    """
    from dataclasses import replace

    import torch

    single = replace(one.data.trigger, triggers="single")
    rows = TextPoison(trigger=single, rate=one.share, seed=one.data.seed)
    if one.labels == "clean":
        rows = TextInserted(poison=rows)
    change = row_changes(TokenRound(data=rows, training=one.training))
    oracle = torch.as_tensor(oracle_ids(one.data, one.training.model))
    inside = torch.isin(torch.arange(len(change)), oracle)
    row = {
        "labels": one.labels,
        "inserted": 100 * one.share,
        "backdoor": change[inside].mean().item(),
        "average": change[~inside & (change > 0)].mean().item(),
    }
    return [row]


@recipe
class Recovery:
    """Fine-tuning on clean training rows after unlearning; ``rows`` is how many."""

    rows: int
    epochs: int = 3
    lr: float = 5e-7
    batch_size: int = 32


@recipe
class TokenUnlearning:
    """Flagged tokens unlearned from a victim.

    Attributes:
        method: see ``unlearning.btu.cleaned_rows``; ``recover`` reads no tokens.
        recovery: None for none.
        seed: of ``pn``'s noise, and of the rows and batches of the recovery.
    """

    victim: TextVictim
    method: str
    tokens: FlaggedTokens | None = None
    recovery: Recovery | None = None
    seed: int = 0

    def __post_init__(self):
        names = ("tokens",) if self.method != "recover" else ()
        names += ("seed",) if self.recovery or self.method == "pn" else ()
        reads(self, *names, of=("tokens", "seed"))


def tokens_unlearned(one: TokenUnlearning):
    """Unlearn: the model, and of the matrix before recovery ``threshold`` and ``replaced``."""
    from ..training.fitting import TrainSettings
    from ..unlearning import btu

    victim, _ = text_victim(one.victim)
    before = btu.word_embeddings(pretrained(one.victim.model, victim.num_labels, one.victim.seed))
    after, pad = btu.word_embeddings(victim), btu.pad_id(victim)
    # Recovery alone changes no row, whichever is named.
    tokens = detected(one.tokens).tokens if one.tokens else [pad]
    matrix = btu.cleaned_rows(before, after, tokens, pad, one.method, one.seed)
    flagged = btu.flagged_ids(tokens, after)
    reading = btu.READINGS.get(one.method)
    told = {
        "threshold": btu.threshold_value(before, after, reading[0]) if reading else None,
        "replaced": 100 * (matrix[flagged] != after[flagged]).double().mean().item(),
    }
    clean, settings = None, TrainSettings(seed=one.seed)
    if it := one.recovery:
        clean = recovery_rows(case_of(one.victim.data).clean, it.rows, one.seed)
        settings = TrainSettings(
            epochs=it.epochs, lr=it.lr, batch_size=it.batch_size, seed=one.seed
        )
    return btu.unlearn(victim, before, tokens, clean, one.method, settings), told


def recovery_rows(clean, count: int, seed: int):
    """Draw ``count`` clean training rows. How many is ours to say."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(clean))
    return clean.select(np.sort(order[:count]))


def measured(data: TextPoison, network) -> dict:
    """Measure a model against each trigger of an attack; the mean of each metric over them."""
    import numpy as np

    from ..metrics import classification

    device = next(network.parameters()).device
    by_case = []
    for case in scenarios(data):
        for info in case.info():
            ledger.note(info)
        by_case.append(classification.evaluator(case, network.tokenizer, device)(network))
    names = ("cacc", "dev_cacc", "lfr", "pacc")
    return {name: float(np.mean([one[name] for one in by_case])) for name in names}


def from_ideal(victim: TextVictim, pacc: float) -> float:
    """ΔPACC against the ReTrain of a victim."""
    from ..metrics.classification import delta_pacc

    ideal = TextMeasure(victim=retrained(victim), trigger=victim.data.trigger)
    return delta_pacc(pacc, text_measure(ideal).rows[0]["pacc"])


@trial(version=1)
def token_unlearning(one: TokenUnlearning) -> list[dict]:
    """Unlearn tokens and measure; one row.

    Returns ``cacc``, ``dev_cacc``, ``lfr``, ``pacc``, ``dpacc`` (against ReTrain) in percent, means
    over triggers; ``threshold``, what a dimension's change was compared with (None for methods
    without one); ``replaced``, percent of the flagged rows' dimensions that unlearning changed.
    """
    network, told = tokens_unlearned(one)
    row = measured(one.victim.data, network)
    return [{**row, "dpacc": from_ideal(one.victim, row["pacc"]), **told}]


@recipe
class EmbeddingChange:
    """How far a victim's word embeddings are from the pre-trained ones."""

    victim: TextVictim
    tokens: FlaggedTokens


@trial(version=1)
def embedding_change(one: EmbeddingChange) -> list[dict]:
    """One row: ``entry_max``, the largest change of an entry of the matrix, ``flagged_max`` of the
    flagged rows, and ``mean_row``, the mean distance of its rows (Eq. 6).
    """
    from ..unlearning import btu

    victim, _ = text_victim(one.victim)
    before = btu.word_embeddings(pretrained(one.victim.model, victim.num_labels, one.victim.seed))
    after = btu.word_embeddings(victim)
    entry = (after - before).abs()
    row = {
        "entry_max": entry.max().item(),
        "flagged_max": entry[detected(one.tokens).tokens].max().item(),
        "mean_row": btu.threshold_value(before, after),
    }
    return [row]


@recipe
class ZeroedLayer:
    """A victim with 0 for what moved more than the mean in one transformer layer, from 1 on."""

    victim: TextVictim
    layer: int


@trial(version=1)
def zeroed_layer(one: ZeroedLayer) -> list[dict]:
    """Zero and measure; one row with ``cacc``, ``dev_cacc``, ``lfr``, ``pacc``."""
    from ..unlearning import btu

    victim, _ = text_victim(one.victim)
    base = pretrained(one.victim.model, victim.num_labels, one.victim.seed)
    return [measured(one.victim.data, btu.zero_moved(victim, base, one.layer))]


@recipe
class TrainingDefence:
    """What a detector leaves of a victim's rows, trained on again.

    Two leave out no row: MF (``moderate``) is its own fitted model, and ``onion-words`` takes out
    words and trains on the rest, which is ONION in BTU's Table 1.
    """

    victim: TextVictim
    detector: Detector


@trial(version=1)
def training_defence(one: TrainingDefence) -> list[dict]:
    """Defend and measure; one row with ``cacc``, ``dev_cacc``, ``lfr``, ``pacc``, and ``precision``
    and ``recall`` of the detector (percent), where it leaves out rows; of ``onion-words`` in their
    place ``removed``, the percentage of all words that it takes out, and ``disarmed``, that of the
    poisoned rows that it changes.

    Source: BTU, "Defense Setups"; OpenBackdoor's way of using detectors at training time.
    """
    import numpy as np

    from .. import detection
    from ..models import loading
    from ..models import text as text_models
    from ..training import fitting
    from ..training import text as text_training

    poisoned, it = case_of(one.victim.data).poisoned, one.detector
    rows, device = poisoned.dataset, loading.default_device()
    if it.name == "moderate":
        settings = fitting.TrainSettings(epochs=it.epochs, lr=it.lr, seed=it.seed)
        network = detection.moderate_fit(
            one.victim.model, rows, settings, it.rank, device, one.victim.max_length
        )
        return [measured(one.victim.data, network)]
    network = text_models.text_classifier(
        one.victim.model, rows.num_classes, one.victim.seed, one.victim.max_length
    )
    if it.name == "onion-words":
        known = detection.DefenderData(case_of(one.victim.data).dev, seed=it.seed)
        rest = detection.without_outliers(network.tokenizer, rows, known)
        lengths = [[len(text.split()) for text in part.texts] for part in (rows, rest)]
        changed = np.array([a != b for a, b in zip(rows.texts, rest.texts, strict=True)])
        judged = {
            "removed": 100 * (1 - sum(lengths[1]) / sum(lengths[0])),
            "disarmed": 100 * float(changed[poisoned.mask].mean()),
        }
    else:
        asked = TextDetection(victim=one.victim, detector=it)
        mask = np.asarray(ledger.array(asked, "mask"), bool)
        rest, quality = rows.select(~mask), detection.quality(mask, poisoned.mask)
        judged = {name: quality[name] for name in ("precision", "recall")}
    text_training.fine_tune(network.to(device), rest, training(one.victim))
    return [measured(one.victim.data, network) | judged]


@recipe
class RgaAfterTokens:
    """RGA on what token unlearning leaves; ``then`` is RGA on the victim itself."""

    first: TokenUnlearning
    then: TextUnlearning


@trial(version=1)
def rga_after_tokens(one: RgaAfterTokens) -> list[dict]:
    """Unlearn tokens, then by RGA; one row, after its last epoch.

    Returns ``cacc``, ``dev_cacc``, ``lfr``, ``pacc`` and ``dpacc`` (against ReTrain) in percent.
    """
    from ..unlearning import gradient_ascent

    network, _ = tokens_unlearned(one.first)
    rows, mask = training_rows(one.first.victim.data), forget_mask(one.then)
    device = next(network.parameters()).device
    base = gradient_ascent.clean_base(one.first.victim.model, rows.num_classes, device)
    network, _ = gradient_ascent.unlearn(
        network, rows.select(mask), rows.select(~mask), one.then.method, one.then, base
    )
    row = measured(one.first.victim.data, network)
    return [{**row, "dpacc": from_ideal(one.first.victim, row["pacc"])}]
