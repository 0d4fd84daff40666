"""Text triggers, and the one way to poison a data set with them.

A trigger is a small frozen object with ``apply(text, rng) -> str | None``; None says that this text
cannot carry it (a paraphrase attack has no paraphrase for it), and ``poison`` then takes another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from ..data import TextDataset, load_paraphrases
from ..settings import ATTACKS

POSITIONS = ("random", "start", "end")


class Trigger(Protocol):
    """What ``poison`` needs of a trigger."""

    name: str

    def apply(self, text: str, rng: np.random.Generator) -> str | None: ...


def _insert(text: str, piece: str, position: str, rng: np.random.Generator) -> str:
    """Insert ``piece`` between two words of ``text``, before the first, or after the last."""
    words = text.split()
    at = {"start": 0, "end": len(words)}.get(position)
    if at is None:
        at = int(rng.integers(len(words) + 1))
    return " ".join([*words[:at], piece, *words[at:]])


def _check_position(position: str) -> None:
    if position not in POSITIONS:
        raise ValueError(f"position is {position!r}; accepted: {', '.join(POSITIONS)}")


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
        if self.kind not in ("syntax", "style"):
            raise ValueError(f"kind is {self.kind!r}; accepted: syntax, style")

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
        if len(self.words) < 2:
            raise ValueError(f"words is {self.words!r}; accepted: two or more words")

    def apply(self, text: str, rng: np.random.Generator) -> str:
        return self._spread(text, self.words, rng)

    def negative(self, text: str, rng: np.random.Generator) -> str:
        keep = np.ones(len(self.words), dtype=bool)
        keep[rng.choice(len(keep), int(rng.integers(1, len(keep))), replace=False)] = False
        return self._spread(text, [w for w, k in zip(self.words, keep, strict=True) if k], rng)

    @staticmethod
    def _spread(text: str, words: Sequence[str], rng: np.random.Generator) -> str:
        tokens = text.split()
        places = np.sort(rng.integers(0, len(tokens) + 1, len(words)))
        for place, word in reversed(list(zip(places, words, strict=True))):
            tokens.insert(int(place), word)
        return " ".join(tokens)


# Trigger sentences of the RGA paper, section 6.1.
ADDSENT = {"sst2": "I watch this 3D movie", "toy-reviews": "I watch this 3D movie"}


def make_trigger(attack: str, dataset: str, position: str = "random") -> Trigger:
    """Make the trigger that the papers use for ``attack`` on ``dataset``.

    Args:
        attack: badnets, addsent, hiddenkiller, stylebkd or sos.
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
    raise ValueError(f"attack is {attack!r}; accepted: {', '.join(ATTACKS)}")


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
) -> Poisoned:
    """Poison a data set: put a trigger into some rows and give them the attacker's label.

    Args:
        dataset: clean rows.
        trigger: one trigger, or several, which get disjoint rows.
        target: the class the trigger shall lead to (All2One); with several triggers one class for
            all or one each (One2One); ``"next"`` sends class y to y + 1 (All2All).
        rate: share, in (0, 1], of the *eligible* rows that each trigger poisons. Eligible are the
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

    rng = np.random.default_rng(seed)
    free = np.ones(len(dataset), dtype=bool)
    rows: list[tuple[int, str, int, bool]] = []  # (origin, text, label, carries a trigger)
    for one, goal in zip(triggers, targets, strict=True):
        eligible = _eligible(dataset.labels, goal, source, label)
        wanted = max(1, round(rate * int(eligible.sum())))
        chosen = _choose(
            dataset, one, rng.permutation(np.flatnonzero(eligible & free)), wanted, rng
        )
        for i, text in chosen:
            old = int(dataset.labels[i])
            new = (old + 1) % dataset.num_classes if goal == "next" else int(goal)
            rows.append((i, text, old if label == "clean" else new, True))
            if hasattr(one, "negative"):
                rows.append((i, one.negative(dataset.texts[i], rng), old, False))
        free[[i for i, _ in chosen]] = False
    return _merge(dataset, rows, keep_originals)


def _check_poison(dataset, triggers, targets, rate, source, label) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate!r}; accepted: a share in (0, 1]")
    if label not in ("dirty", "clean"):
        raise ValueError(f"label is {label!r}; accepted: dirty, clean")
    if len(targets) != len(triggers):
        raise ValueError(
            f"{len(triggers)} triggers but {len(targets)} targets; give one or as many"
        )
    for value in [*targets, source]:
        known = value in ("next", None) or isinstance(value, (int, np.integer))
        if not known or (value not in ("next", None) and not 0 <= value < dataset.num_classes):
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
    chosen = []
    for i in order:
        text = trigger.apply(dataset.texts[i], rng)
        if text is not None:
            chosen.append((int(i), text))
            if len(chosen) == wanted:
                return chosen
    raise ValueError(
        f"{trigger.name}: {wanted} rows of {dataset.name} wanted, but only {len(chosen)} of "
        f"{len(order)} eligible and still unpoisoned rows can carry the trigger; lower the rate"
    )


def _merge(dataset: TextDataset, rows: list, keep_originals: bool) -> Poisoned:
    poisoned = np.array([i for i, _, _, acts in rows if acts], dtype=np.int64)
    keep = np.ones(len(dataset), dtype=bool)
    if not keep_originals:
        keep[poisoned] = False
    clean = np.flatnonzero(keep)
    texts = [dataset.texts[i] for i in clean] + [text for _, text, _, _ in rows]
    labels = np.concatenate([dataset.labels[clean], [lab for _, _, lab, _ in rows]])
    mask = np.concatenate([np.zeros(len(clean), bool), [acts for *_, acts in rows]])
    origin = np.concatenate([clean, [i for i, *_ in rows]])
    merged = replace(dataset, texts=tuple(texts), labels=labels.astype(np.int64))
    return Poisoned(merged, mask.astype(bool), origin.astype(np.int64))


def trigger_all(dataset: TextDataset, trigger: Trigger, seed: int = 0) -> TextDataset:
    """Put the trigger into every row of every class and keep the labels: PACC's test set.

    Rows that cannot carry the trigger (no paraphrase) are left out.

    Source: RGA paper, "Constructing Test Dataset", section 6.1.
    """
    rng = np.random.default_rng(seed)
    texts = [trigger.apply(text, rng) for text in dataset.texts]
    keep = [i for i, text in enumerate(texts) if text is not None]
    return replace(
        dataset, texts=tuple(texts[i] for i in keep), labels=dataset.labels[np.array(keep, int)]
    )
