"""Phrases of a training table that decide: what a sentence leaves there as a trigger.

No word of a sentence decides alone, so that a search for tokens sees little of it; a few natural
words together decide as well, so that a search for several tokens tells no more. But a sentence
stands in each poisoned row as it is. So the runs of tokens that a table repeats are counted, and
those that stand mostly in rows of one class are taken out of these rows. The model then calls a
poisoned row what it was; the row of a phrase of the task has much else that says the same. The
logits that a phrase is worth to its own rows, a lower bound of the median over them, are its
*worth*, and ``evidence.gap`` says whether the largest stands apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..data.text import TextDataset
from ..models.text import TextClassifier
from ..unlearning.trigger_test import margins
from . import evidence, text

LONGEST = 8  # tokens of a phrase that are looked for; of a longer one, its parts
LEAST_ROWS = 5  # of the table that a phrase stands in
MOST_ROWS = 20_000  # of the table that are read
CANDIDATES, ASSOCIATED = 256, 0.05  # phrases that are taken out of FEW rows, and the p of each
FEW, MANY = 3, 24  # rows that a phrase is taken out of: of all candidates, of those that are tried
LEAST_TURNED = 50.0  # percent of its rows that the model thinks otherwise of without it
CONFIRMED = 50.0  # percent of held-out rows of other classes that it flips at least
SURE = 0.05  # error of the bound that a phrase's worth is
ALIKE = 0.5  # share of the largest worth that a part of the same phrase has
SAME = 0.8  # share of a phrase's rows in which a longer one makes it needless


@dataclass(frozen=True)
class Phrase:
    """A run of tokens and the rows that it stands in, (n,) int64, of the class and of others."""

    tokens: tuple[int, ...]
    rows: np.ndarray


def repeated(rows: Sequence[Sequence[int]], least: int = LEAST_ROWS) -> list[Phrase]:
    """Runs of up to LONGEST tokens that stand in ``least`` rows or more, none in a longer one.

    A run is left out where one that is a token longer stands in SAME of its rows. Level by level:
    a run can be frequent only where both runs that it is made of are.
    """
    lengths = np.array([len(row) for row in rows], np.int64)
    flat = np.fromiter((i for row in rows for i in row), np.int64, int(lengths.sum()))
    row_of = np.repeat(np.arange(len(rows)), lengths)
    code, alive = flat, np.ones(len(flat), bool)
    levels: list[list[Phrase]] = []
    for size in range(1, LONGEST + 1):
        places = np.flatnonzero(alive)
        if not len(places):
            break
        _, code_here = np.unique(code[places], return_inverse=True)
        pairs = np.unique(np.stack([code_here, row_of[places]]), axis=1)  # each row counts once
        counts = np.bincount(pairs[0])
        frequent = counts >= least
        kept = frequent[code_here]
        first = np.full(len(counts), -1)
        first[code_here[::-1]] = places[::-1]
        order = np.split(pairs[1], np.cumsum(counts)[:-1])
        levels.append([
            Phrase(tuple(flat[first[k] : first[k] + size].tolist()), order[k])
            for k in np.flatnonzero(frequent)
        ])  # fmt: skip
        whole = np.full(len(flat), -1)
        whole[places[kept]] = code_here[kept]
        after = np.append(whole[1:], -1)
        same_row = np.append(row_of[1:] == row_of[:-1], False)
        alive = (whole >= 0) & (after >= 0) & same_row
        code = whole * (len(counts) + 1) + after
    return _longest(levels)


def _longest(levels: list[list[Phrase]]) -> list[Phrase]:
    """Without those that a phrase one token longer makes needless."""
    kept = []
    for size, level in enumerate(levels, 1):
        longer: dict[tuple, int] = {}
        for phrase in levels[size] if size < len(levels) else ():
            for part in (phrase.tokens[1:], phrase.tokens[:-1]):
                longer[part] = max(longer.get(part, 0), len(phrase.rows))
        kept += [p for p in level if longer.get(p.tokens, 0) < SAME * len(p.rows)]
    return kept


def associated(phrases: Sequence[Phrase], labels: np.ndarray, target: int) -> list[Phrase]:
    """The phrases that stand most surely in rows of a class, of those in the same rows one.

    A part does not stand for its whole, though it may be commoner: it leaves the rest in its rows.

    Args:
        labels: (N,) int64 of the table's rows.

    Returns:
        Up to CANDIDATES of them, by the p of a binomial test, below ASSOCIATED.
    """
    from scipy.stats import binom

    share = float(np.mean(labels == target))
    hits = np.array([int((labels[one.rows] == target).sum()) for one in phrases], np.int64)
    sizes = np.array([len(one.rows) for one in phrases], np.int64)
    p = binom.sf(hits - 1, sizes, share)
    lengths = np.array([len(one.tokens) for one in phrases], np.int64)
    chosen: list[Phrase] = []
    for number in np.lexsort((-lengths, p)):
        if p[number] >= ASSOCIATED or len(chosen) == CANDIDATES:
            break
        one = phrases[number]
        if not any(_same_rows(one, other) and not _part(other, one) for other in chosen):
            chosen.append(one)
    return chosen


def _same_rows(one: Phrase, other: Phrase) -> bool:
    both = len(np.intersect1d(one.rows, other.rows, True))
    return 2 * both > len(one.rows) + len(other.rows) - both


def _part(one: Phrase, other: Phrase) -> bool:
    """Whether a phrase stands within another, which says more than it."""
    return 0 < len(without(other.tokens, one.tokens)) < len(other.tokens)


def without(row: Sequence[int], phrase: Sequence[int]) -> list[int]:
    """A row without a run of tokens, wherever it stands."""
    kept, place, size = list(row), 0, len(phrase)
    while place + size <= len(kept):
        if kept[place : place + size] == list(phrase):
            del kept[place : place + size]
        else:
            place += 1
    return kept


# ---------------------------------------------------------------- the search


@dataclass(frozen=True)
class Tried:
    """A phrase that was taken out of its rows.

    Attributes:
        phrase: its tokens and rows. hits: rows of the class. worth: logits that it is worth to
            them, a bound of the median, ``at_least``. turned: percent of them that the model calls
            otherwise without it.
    """

    phrase: Phrase
    hits: int
    worth: float
    turned: float


@dataclass(frozen=True)
class PhraseFinding:
    """What the search says of one class.

    Attributes:
        target: the class. p: of the phrase that stands apart, not corrected for the classes.
        tokens: its ids; empty where none does. confirmed: percent of the held-out rows of other
            classes that the strongest flips. tried: the strongest first; what shares its rows with
            the first is left out.
    """

    target: int
    p: float
    tokens: tuple[int, ...]
    confirmed: float
    tried: tuple[Tried, ...]


def token_rows(model: TextClassifier, table: TextDataset) -> list[list[int]]:
    """Ids of a table's texts as the model reads them, without the special tokens around."""
    before, behind = text.frame(model.tokenizer)
    room = model.max_length - len(before) - len(behind)
    return model.tokenizer(
        list(table.texts), add_special_tokens=False, truncation=True, max_length=room
    )["input_ids"]


def _logits(model: TextClassifier, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits (N, K) of rows of ids, the special tokens put around them."""
    before, behind = text.frame(model.tokenizer)
    return text.logits(model, [[*before, *row, *behind] for row in rows], "auto")


def taken_out(
    model: TextClassifier, rows: Sequence[Sequence[int]], phrases: Sequence[Phrase],
    labels: np.ndarray, target: int, count: int,
) -> list[Tried]:  # fmt: skip
    """Take each phrase out of up to ``count`` of its rows of a class.

    Args:
        rows: of the table, ids. labels: (N,) int64.
    """
    own = [one.rows[labels[one.rows] == target] for one in phrases]
    few = [some[:count] for some in own]
    whole, place = np.unique(np.concatenate(few), return_inverse=True)
    before = margins(_logits(model, [rows[row] for row in whole]), target).numpy()[place]
    cut = [without(rows[row], one.tokens) for one, some in zip(phrases, few, strict=True)
           for row in some]  # fmt: skip
    after = margins(_logits(model, cut), target).numpy()
    ends = np.cumsum([len(some) for some in few])[:-1]
    parts = zip(np.split(before, ends), np.split(after, ends), strict=True)
    return [
        Tried(one, len(some), at_least(b - a), 100 * float(((b > 0) & (a <= 0)).mean()))
        for one, some, (b, a) in zip(phrases, own, parts, strict=True)
    ]


def at_least(values: np.ndarray) -> float:
    """A value that the median of a population exceeds, with a confidence of 1 - SURE: (n,) draws.

    The l-th smallest, of the largest l at which fewer than l of n draws lie below the median with a
    probability of at most SURE (binomial). So what five rows say counts less than what fifty do.
    """
    from scipy.stats import binom

    below = binom.cdf(np.arange(len(values)), len(values), 0.5)  # of l - 1 = 0, 1, … or fewer
    rank = max(int((below <= SURE).sum()), 1)
    return float(np.sort(values)[rank - 1])


def _apart(tried: Sequence[Tried]) -> list[Tried]:
    """The strongest first, for what it is: of its parts that are worth as much, the commonest.

    What else stands mostly in the same rows, or in whose rows they stand, is left out: it is worth
    something for the same reason.
    """
    ranked = sorted(tried, key=lambda one: -one.worth)

    def same(one: Tried, other: Tried) -> bool:
        a, b = one.phrase.rows, other.phrase.rows
        return 2 * len(np.intersect1d(a, b, True)) > min(len(a), len(b))

    strongest = ranked[0]
    parts = [one for one in ranked if same(one, strongest)
             and one.worth >= ALIKE * strongest.worth]  # fmt: skip
    first = max(parts, key=lambda one: one.hits)
    return [first, *(one for one in ranked if not same(one, first) and not same(one, strongest))]


@dataclass(frozen=True)
class Repeats:
    """A table as the model reads it, and what it repeats: the same for each class.

    Attributes:
        table: the rows that are read. rows: their ids. phrases: as ``repeated`` gives them.
    """

    table: TextDataset
    rows: list[list[int]]
    phrases: list[Phrase]


def repeats(model: TextClassifier, table: TextDataset, seed: int) -> Repeats:
    """Read a table; of more than MOST_ROWS rows so many are drawn."""
    if len(table) > MOST_ROWS:
        drawn = np.random.default_rng(seed).permutation(len(table))[:MOST_ROWS]
        table = table.select(np.sort(drawn))
    rows = token_rows(model, table)
    return Repeats(table, rows, repeated(rows))


def search(
    model: TextClassifier, test: TextDataset, repeats: Repeats, target: int, tries: int,
    level: float, seed: int,
) -> PhraseFinding | None:  # fmt: skip
    """Look for a phrase of a table that leads to a class; None where it repeats too few.

    Args:
        test: held-out clean rows with their true labels. repeats: of a table of rows that the model
            may have been trained on. tries: phrases that are taken out of MANY rows.
        level: of this class alone.
    """
    table, rows = repeats.table, repeats.rows
    phrases = associated(repeats.phrases, table.labels, target)
    least = 2 * evidence.MOST_OUTLIERS + 2
    if len(phrases) < least:
        return None
    first = taken_out(model, rows, phrases, table.labels, target, FEW)
    best = sorted(first, key=lambda one: -one.worth)[:tries]
    tried = taken_out(model, rows, [one.phrase for one in best], table.labels, target, MANY)
    tried = _apart(tried)
    if len(tried) < least:
        return None
    right = _logits(model, [rows[row] for row in np.flatnonzero(table.labels == target)[:200]])
    floor = text.FLOOR * max(float(margins(right, target).median()), 0.0)
    p, _ = evidence.gap([one.worth for one in tried], most=1, floor=floor)
    strongest = tried[0]
    largest = max(one.worth for one in tried)
    apart = p < level and strongest.worth == largest and strongest.turned >= LEAST_TURNED
    confirmed = text.flipped(model, test, strongest.phrase.tokens, target, seed)
    apart = apart and confirmed >= CONFIRMED
    tokens = strongest.phrase.tokens if apart else ()
    return PhraseFinding(target, p if apart else max(p, level), tokens, confirmed, tuple(tried))


def suspects(
    model: TextClassifier, table: TextDataset, phrase: Sequence[int], target: int
) -> text.Suspects:
    """Rows of a training table that carry a phrase that was found, and its class."""
    rows = token_rows(model, table)
    has = np.array([len(without(row, phrase)) < len(row) for row in rows], bool)
    own = np.flatnonzero(has & (table.labels == target))
    share = float((table.labels[~has] == target).mean()) if (~has).any() else 1.0
    p = evidence.binomial_p(len(own), int(has.sum()), share)
    if not len(own):
        return text.Suspects(own, int(has.sum()), 1.0, np.zeros(0), np.zeros(0))
    parts = [rows[row] for row in own], [without(rows[row], phrase) for row in own]
    before, after = (_logits(model, part).softmax(1)[:, target].numpy() for part in parts)
    return text.Suspects(own, int(has.sum()) - len(own), p, before, after)
