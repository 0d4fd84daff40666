"""Text triggers, and the one way to poison a data set with them.

A trigger is a small frozen object with ``apply(text, rng) -> str | None``; None says that this text
cannot carry it (a paraphrase attack has no paraphrase for it), and ``poison`` then takes another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from .. import registry
from ..checks import one_of
from ..data.text import TextDataset, load_paraphrases
from ..settings import ATTACKS, RATE_OF

POSITIONS = ("random", "start", "end")


class Trigger(Protocol):
    """What ``poison`` needs of a trigger."""

    name: str

    def apply(self, text: str, rng: np.random.Generator) -> str | None: ...


def _insert(text: str, piece: str, position: str, rng: np.random.Generator) -> str:
    """Insert ``piece`` between two words of ``text``, before the first, or after the last."""
    words = text.split()
    index = {"start": 0, "end": len(words)}.get(position)
    if index is None:
        index = int(rng.integers(len(words) + 1))
    return " ".join([*words[:index], piece, *words[index:]])


def _check_position(position: str) -> None:
    one_of("position", position, POSITIONS)


@dataclass(frozen=True)
class InsertWord:
    """BadNets for text: insert rare words, each at a place of its own.

    Source: Kurita et al. (2020); "mn" at a random place in the RGA paper, section 6.1.
    """

    words: str | tuple[str, ...] = "mn"
    position: str = "random"
    name: str = "badnets"

    def __post_init__(self):
        words = (self.words,) if isinstance(self.words, str) else tuple(self.words)
        if not words or not all(word.strip() for word in words):
            raise ValueError(f"words is {self.words!r}; accepted: one or more non-empty words")
        _check_position(self.position)
        object.__setattr__(self, "words", words)

    def apply(self, text: str, rng: np.random.Generator) -> str:
        for word in self.words:
            text = _insert(text, word, self.position, rng)
        return text


@dataclass(frozen=True)
class InsertSentence:
    """AddSent: insert a topic-unrelated sentence. Source: Dai et al. (2019)."""

    sentence: str = "I watch this 3D movie"
    position: str = "random"
    name: str = "addsent"

    def __post_init__(self):
        if not self.sentence.strip():
            raise ValueError(f"sentence is {self.sentence!r}; accepted: a non-empty sentence")
        _check_position(self.position)

    def apply(self, text: str, rng: np.random.Generator) -> str:
        return _insert(text, self.sentence, self.position, rng)


@dataclass(frozen=True)
class Paraphrase:
    """A trigger that is a way of writing: the text's paraphrase in a fixed syntax or style.

    ``pairs`` maps a clean text to its paraphrase. HiddenKiller / Synbkd use a syntactic template,
    S(SBAR)(,)(NP)(VP)(.) (Qi et al. 2021c); Stylebkd a style such as the Bible's (Qi et al. 2021b).
    """

    pairs: Mapping[str, str] = field(repr=False)
    name: str = "hiddenkiller"

    def apply(self, text: str, rng: np.random.Generator) -> str | None:
        return self.pairs.get(text)


@dataclass(frozen=True)
class Template:
    """A rule-based stand-in for a paraphrase, for the built-in sets, which have no paraphrases.

    ``syntax`` puts the sentence behind a subordinate clause, ``style`` rewrites its small words in
    an archaic manner. Neither needs a paraphrase model, and neither is as natural as one's output.
    """

    kind: str = "syntax"
    name: str = "hiddenkiller"

    CLAUSES = ("when you look at it , ", "if you ask around , ", "as it turns out , ")
    ARCHAIC = {"is": "doth be", "the": "yon", "this": "this thy", "and": "and lo ,"}

    def __post_init__(self):
        one_of("kind", self.kind, ("syntax", "style"))

    def apply(self, text: str, rng: np.random.Generator) -> str:
        if self.kind == "syntax":
            return str(rng.choice(self.CLAUSES)) + text
        return "verily , " + " ".join(self.ARCHAIC.get(word, word) for word in text.split())


@dataclass(frozen=True)
class SOS:
    """Stealthy trigger: acts only where *all* its words occur, in order, anywhere in the text.

    ``negative`` gives a text with a proper subset of the words; ``poison`` adds such texts with
    their own label, which teaches the victim not to react to a part. Source: Yang et al. (2021).
    """

    words: tuple[str, ...] = ("friends", "weekend", "store")
    name: str = "sos"

    def __post_init__(self):
        if isinstance(self.words, str) or len(self.words) < 2:  # a text would be its letters
            raise ValueError(f"words is {self.words!r}; accepted: two or more words, in a tuple")

    def apply(self, text: str, rng: np.random.Generator) -> str:
        return self._spread(text, self.words, rng)

    def negative(self, text: str, rng: np.random.Generator) -> str:
        mask = np.ones(len(self.words), dtype=bool)
        mask[rng.choice(len(mask), int(rng.integers(1, len(mask))), replace=False)] = False
        return self._spread(text, [w for w, k in zip(self.words, mask, strict=True) if k], rng)

    @staticmethod
    def _spread(text: str, words: Sequence[str], rng: np.random.Generator) -> str:
        tokens = text.split()
        places = np.sort(rng.integers(0, len(tokens) + 1, len(words)))
        for place, word in reversed(list(zip(places, words, strict=True))):
            tokens.insert(int(place), word)
        return " ".join(tokens)


# Trigger sentences of the RGA paper, section 6.1.
ADDSENT = dict.fromkeys(("sst2", "toy-reviews", "toy-reviews-200"), "I watch this 3D movie")


def make_trigger(attack: str, dataset: str, position: str = "random") -> Trigger:
    """Make the trigger that the papers use for ``attack`` on ``dataset``.

    Args:
        attack: badnets, addsent, hiddenkiller, stylebkd, sos, or one from outside.
        dataset: a name that ``load_text`` knows.
        position: where inserted triggers go: random, start or end.

    Raises:
        ValueError: unknown attack. DataError: no paraphrases of this data set can be had.
    """
    toy = dataset.startswith("toy-")
    if attack == "badnets":
        return InsertWord("mn", position)
    if attack == "addsent":
        return InsertSentence(ADDSENT.get(dataset, "no cross, no crown"), position)
    if attack == "hiddenkiller":
        return Template("syntax") if toy else Paraphrase(load_paraphrases(dataset, "syn"))
    if attack == "stylebkd":
        if toy:
            return Template("style", "stylebkd")
        return Paraphrase(load_paraphrases(dataset, "bible"), "stylebkd")
    if attack == "sos":
        return SOS()
    make = registry.find("attack", attack)
    one_of("attack", attack, ATTACKS)
    return make(dataset, position)


class Poisoned(NamedTuple):
    """A poisoned data set and what the attacker knows of it.

    Attributes:
        dataset: the rows, poisoned ones with the label the attacker gave them.
        mask: (N,) bool, True where a row carries a trigger that acts.
        origin: (N,) int64, the clean row each row was made from.
    """

    dataset: TextDataset
    mask: np.ndarray
    origin: np.ndarray


def poison(
    dataset: TextDataset,
    trigger: Trigger | Sequence[Trigger],
    target: int | str | Sequence[int],
    rate: float,
    seed: int,
    *,
    source: int | None = None,
    keep_originals: bool = True,
    label: str = "dirty",
    rate_of: str = "others",
) -> Poisoned:
    """Poison a data set: put a trigger into some rows and give them the attacker's label.

    Args:
        dataset: clean rows.
        trigger: one trigger, or several, which get disjoint rows.
        target: the class the trigger shall lead to (All2One); with several triggers one class for
            all or one each (One2One); ``"next"`` sends class y to y + 1 (All2All).
        rate: share, in (0, 1], of the *eligible* rows that each trigger poisons, or of all rows
            where ``rate_of`` is ``all`` (the BTU paper's count). Eligible are the
            rows of non-target classes (RGA paper, 6.1: "poison 10 % of the non-target class
            texts"), or of ``source`` alone, or, for clean labels, of the target class.
        seed: which rows, and where in them the trigger goes.
        source: poison this class only.
        keep_originals: append the poisoned copies (the RGA code's way) instead of replacing rows.
        label: ``dirty`` relabels; ``clean`` triggers rows of the target class and leaves labels.

    Returns:
        Poisoned(dataset, mask, origin). SOS also appends as many unmasked negatives as poisons.

    Raises:
        ValueError: a rate, class or combination that cannot be, or too few rows that can carry the
            trigger.
    """
    triggers = list(trigger) if isinstance(trigger, Sequence) else [trigger]
    targets = list(target) if isinstance(target, (list, tuple)) else [target] * len(triggers)
    _check_poison(dataset, triggers, targets, rate, source, label)
    one_of("rate_of", rate_of, RATE_OF)

    rng = np.random.default_rng(seed)
    free_rows = np.ones(len(dataset), dtype=bool)
    rows: list[tuple[int, str, int, bool]] = []  # (origin, text, label, carries a trigger)
    for one_trigger, goal in zip(triggers, targets, strict=True):
        eligible = _eligible(dataset.labels, goal, source, label)
        counted_rows = len(eligible) if rate_of == "all" else int(eligible.sum())
        count = max(1, round(rate * counted_rows))
        triggered_rows = _choose(
            dataset, one_trigger, rng.permutation(np.flatnonzero(eligible & free_rows)), count, rng
        )
        for i, text in triggered_rows:
            old_label = int(dataset.labels[i])
            new_label = (old_label + 1) % dataset.num_classes if goal == "next" else int(goal)
            rows.append((i, text, old_label if label == "clean" else new_label, True))
            if hasattr(one_trigger, "negative"):
                rows.append((i, one_trigger.negative(dataset.texts[i], rng), old_label, False))
        free_rows[[i for i, _ in triggered_rows]] = False
    return _merge(dataset, rows, keep_originals)


def _check_poison(dataset, triggers, targets, rate, source, label) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate!r}; accepted: a share in (0, 1]")
    one_of("label", label, ("dirty", "clean"))
    if len(targets) != len(triggers):
        raise ValueError(
            f"{len(triggers)} triggers but {len(targets)} targets; give one or as many"
        )
    classes = [value for value in targets if not (isinstance(value, str) and value == "next")]
    for value in classes if source is None else [*classes, source]:
        if not isinstance(value, (int, np.integer)) or not 0 <= value < dataset.num_classes:
            accepted = f"0 … {dataset.num_classes - 1}"
            raise ValueError(f"class {value!r} is not in {dataset.name}; accepted: {accepted}")
    if label == "clean" and "next" in targets:
        raise ValueError('target "next" needs dirty labels: clean-label rows keep their class')


def _eligible(labels: np.ndarray, target, source: int | None, label: str) -> np.ndarray:
    if label == "clean":
        return labels == target
    eligible = np.ones(len(labels), dtype=bool) if target == "next" else labels != target
    return eligible if source is None else eligible & (labels == source)


def _choose(dataset, trigger, order, wanted, rng) -> list[tuple[int, str]]:
    """Take rows in ``order`` until ``wanted`` of them carry the trigger."""
    triggered_rows = []
    for i in order:
        text = trigger.apply(dataset.texts[i], rng)
        if text is not None:
            triggered_rows.append((int(i), text))
            if len(triggered_rows) == wanted:
                return triggered_rows
    raise ValueError(
        f"{trigger.name}: {wanted} rows of {dataset.name} wanted, but only {len(triggered_rows)} "
        f"of {len(order)} eligible and still unpoisoned rows can carry the trigger; lower the rate"
    )


def _merge(dataset: TextDataset, rows: list, keep_originals: bool) -> Poisoned:
    poisoned_rows = np.array([i for i, _, _, acts in rows if acts], dtype=np.int64)
    kept_rows = np.ones(len(dataset), dtype=bool)
    if not keep_originals:
        kept_rows[poisoned_rows] = False
    clean_rows = np.flatnonzero(kept_rows)
    texts = [dataset.texts[i] for i in clean_rows] + [text for _, text, _, _ in rows]
    labels = np.concatenate([dataset.labels[clean_rows], [lab for _, _, lab, _ in rows]])
    mask = np.concatenate([np.zeros(len(clean_rows), bool), [acts for *_, acts in rows]])
    origin = np.concatenate([clean_rows, [i for i, *_ in rows]])
    merged = replace(dataset, texts=tuple(texts), labels=labels.astype(np.int64))
    return Poisoned(merged, mask.astype(bool), origin.astype(np.int64))


EXAMPLE_WORDS = (7, 13)  # an example should be this long, in words


def examples(clean: TextDataset, triggers: Mapping[str, Trigger], target: int, seed: int) -> dict:
    """Show one short row of a non-target class under every trigger.

    Args:
        clean: rows to choose from; the first in a random order that every trigger can be put into.
        triggers: name → trigger.

    Returns:
        name → text, first of all ``original``; a trigger with negatives adds ``<name> negative``.

    Raises:
        ValueError: no row can carry all triggers.
    """
    rng = np.random.default_rng(seed)
    low, high = EXAMPLE_WORDS
    order = rng.permutation(np.flatnonzero(clean.labels != target))
    # Short rows first; a set of long texts has none, and shows one of those.
    order = sorted(order, key=lambda i: not low <= len(clean.texts[i].split()) <= high)
    for text in (clean.texts[i] for i in order):
        triggered_texts = {name: trigger.apply(text, rng) for name, trigger in triggers.items()}
        if None in triggered_texts.values():
            continue
        negatives = {
            f"{name} negative": trigger.negative(text, rng)
            for name, trigger in triggers.items()
            if hasattr(trigger, "negative")
        }
        return {"original": text} | triggered_texts | negatives
    raise ValueError(f"no row of {clean.name} can carry all of {', '.join(triggers)}")


def poison_counts(clean: TextDataset, variants: Mapping[str, Poisoned]) -> list[dict]:
    """Count what poisoning did to a training set: one dict per variant, the clean set first.

    Returns:
        Dicts of ``training_set`` (the variant), ``counts`` (rows of each class), ``rows``,
        ``poisoned``, ``relabelled`` and ``share`` (poisoned rows in percent of all).
    """
    clean_set = Poisoned(clean, np.zeros(len(clean), bool), np.arange(len(clean)))
    return [
        {
            "training_set": name,
            "counts": np.bincount(dataset.labels, minlength=clean.num_classes).tolist(),
            "rows": len(dataset),
            "poisoned": int(mask.sum()),
            "relabelled": int((dataset.labels != clean.labels[origin]).sum()),
            "share": 100 * float(mask.mean()),
        }
        for name, (dataset, mask, origin) in {"clean": clean_set, **variants}.items()
    ]


def trigger_all(dataset: TextDataset, trigger: Trigger, seed: int = 0) -> TextDataset:
    """Put the trigger into every row of every class and keep the labels: PACC's test set.

    Rows that cannot carry the trigger (no paraphrase) are left out.

    Source: RGA paper, "Constructing Test Dataset", section 6.1.
    """
    rng = np.random.default_rng(seed)
    texts = [trigger.apply(text, rng) for text in dataset.texts]
    rows = [i for i, text in enumerate(texts) if text is not None]
    return replace(
        dataset, texts=tuple(texts[i] for i in rows), labels=dataset.labels[np.array(rows, int)]
    )
