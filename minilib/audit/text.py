"""The audit of a text classifier: a search for tokens that decide by themselves.

A backdoor's token decides for its class in whatever text it stands. Words of the task do so in
short or doubtful texts, and lose where much speaks against them. So tokens are tried in texts that
are made hard: two texts of another class behind each other, both of which the model reads rightly.
What a token adds there to the logit of a class, in four fifths of the texts or more, is its
*pull* towards that class. A trigger's pull stands apart from that of all other tokens, and
``evidence.gap`` says how far is far. Words that clean rows explain, because they stand there mostly
in rows of that class, are left out of the comparison: they are the task's.

No training data are needed, and no other model: a few clean texts of each class will do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import above_zero
from ..data.files import DataError
from ..data.text import TextDataset
from ..metrics.classification import accuracy, label_flip_rate
from ..models.loading import frozen
from ..models.text import TextClassifier
from ..training.fitting import TrainSettings, fit
from ..training.text import Batches, Encoded, cross_entropy, encode, padded, predict
from ..unlearning import btu
from ..unlearning.btu import word_embeddings
from ..unlearning.trigger_test import margins
from . import evidence

CONFIRMED = 75.0  # percent of held-out rows that a trigger flips at least
TASK_ROWS, TASK_LEVEL = 4, 0.1
LEAST_FLIPS = 50.0  # percent of hard texts that it flips at least
FLOOR = 0.05  # the least spacing of pulls that counts, as a share of the hard texts' margin
CHANCE = 8  # random tokens that are tried in held-out rows
PULL = 0.2  # the quantile of what a token adds that counts
FIRST = 8  # hard texts that all candidates are tried in; the best go on to the others
CHUNK = 4096  # texts that are laid out at a time
FASTER, TIMES, LEFT = 5, 3, 5.0  # see ``unlearn_phrase``
LEAST_ROWS = 8  # rows of other classes that a class's search needs


@dataclass(frozen=True)
class SearchSettings:
    """How tokens are searched for.

    Attributes:
        rows: hard texts that a token is tried in, for each class. joined: clean texts in one.
        longest: tokens of a hard text, the trigger not counted.
        pool: tokens that are tried in all of them, for each class: the best of a scan of the whole
            vocabulary, and of a search along gradients. drawn: tokens drawn at random beside them.
        steps: rounds of the search along gradients.
        seed: of texts, places and random tokens.
    """

    rows: int = 40
    joined: int = 2
    longest: int = 64
    pool: int = 64
    drawn: int = 32
    steps: int = 3
    seed: int = 0

    def __post_init__(self):
        above_zero(self, "rows", "joined", "longest", "pool", "drawn")


@dataclass(frozen=True)
class Pulls:
    """Tokens that were tried for one class, the strongest first.

    Attributes:
        target: the class. tokens: (n,) int64 ids. pull: (n,) float, gain in logits over the
            strongest other class, the PULL quantile of the hard texts. flips: (n,) float,
            percent of the hard texts that land in the class. drawn: (n,) bool, True for tokens
            drawn at random: their flips are the null's. margin: by how many logits another class
            wins without any token, the median. task: (n,) bool, True for words that the clean rows
            explain.
    """

    target: int
    tokens: np.ndarray
    pull: np.ndarray
    flips: np.ndarray
    drawn: np.ndarray
    margin: float
    task: np.ndarray


# ---------------------------------------------------------------- tokens and texts


def typed_tokens(tokenizer) -> np.ndarray:
    """Ids (n,) int64 of the tokens that a text of their own gives: no [unused1], no halves."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    again = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.array([i for i, other in zip(ids, again, strict=True) if other == [i]], np.int64)


def frame(tokenizer) -> tuple[list[int], list[int]]:
    """Special tokens before and behind a text."""
    whole = tokenizer("a")["input_ids"]
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


@dataclass(frozen=True)
class HardTexts:
    """Texts of other classes, as ids, each with the place where a token is put."""

    ids: list[list[int]]
    places: list[int]
    before: list[int]
    behind: list[int]
    pad: int

    def select(self, index: Sequence[int]) -> HardTexts:
        """Some of the texts."""
        ids, places = ([values[i] for i in index] for values in (self.ids, self.places))
        return replace(self, ids=ids, places=places)

    def row(self, number: int, sequence: Sequence[int]) -> list[int]:
        """Ids of one text with a sequence in its place, the special tokens around."""
        text, place = self.ids[number], self.places[number]
        return [*self.before, *text[:place], *sequence, *text[place:], *self.behind]


def read_rightly(model: TextClassifier, clean: TextDataset) -> list[np.ndarray]:
    """Rows of each class that the model puts there: K arrays of positions."""
    right = predicted(model, clean) == clean.labels
    return [np.flatnonzero(right & (clean.labels == k)) for k in range(clean.num_classes)]


def searchable(right: Sequence[np.ndarray], clean: TextDataset) -> list[int]:
    """Classes that can be searched: of the others the model reads enough rows rightly.

    Args:
        right: as ``read_rightly`` gives it.

    Raises:
        DataError: none is.
    """
    counts = [len(rows) if len(rows) >= 2 else 0 for rows in right]
    classes = [k for k, own in enumerate(counts) if sum(counts) - own >= LEAST_ROWS]
    if not classes:
        raise DataError(
            f"{clean.name}: the model reads {sum(counts)} of {len(clean)} rows rightly, too few of "
            f"any class; accepted: {LEAST_ROWS} or more. Are the labels' names those of the model?"
        )
    return classes


def hard_texts(
    model: TextClassifier, clean: TextDataset, right: Sequence[np.ndarray], target: int,
    settings: SearchSettings,
) -> tuple[HardTexts, np.ndarray]:  # fmt: skip
    """Texts of one other class, joined, which the model reads rightly one by one and together.

    Where a model reads too few joined texts rightly, single texts take their place.

    Args:
        right: as ``read_rightly`` gives it.

    Returns:
        N texts, and their margins (N,) as they are, all below 0.

    Raises:
        DataError: fewer than LEAST_ROWS clean rows of other classes that it reads rightly.
    """
    rng = np.random.default_rng([settings.seed, target])
    groups = [rows for k, rows in enumerate(right) if k != target and len(rows) >= 2]
    if sum(map(len, groups)) < LEAST_ROWS:
        raise DataError(
            f"{clean.name} has {sum(map(len, groups))} rows of other classes than "
            f"{clean.class_names[target]} that the model reads rightly; "
            f"accepted: {LEAST_ROWS} or more"
        )
    tokens = model.tokenizer(list(clean.texts), add_special_tokens=False, verbose=False)
    before, behind = frame(model.tokenizer)
    room = model.max_length - len(before) - len(behind) - 8
    for joined in range(settings.joined, 0, -1):
        each = min(settings.longest, room) // joined
        texts = []
        for number in range(3 * settings.rows):
            rows = groups[number % len(groups)]
            chosen = rng.choice(rows, min(joined, len(rows)), replace=False)
            texts.append([i for row in chosen for i in tokens["input_ids"][row][:each]])
        places = [int(rng.integers(len(text) + 1)) for text in texts]
        hard = HardTexts(texts, places, before, behind, model.tokenizer.pad_token_id)
        with frozen(model):
            plain = tried(model, hard, [[]], target)[0]
        wins = np.flatnonzero(plain < 0)
        if len(wins) >= settings.rows or joined == 1:
            wins = wins[: settings.rows]
            return hard.select(wins), plain[wins]
    raise AssertionError("one text alone is the last resort")


def _device(model: TextClassifier) -> torch.device:
    return next(model.parameters()).device


def logits(model: TextClassifier, rows: Sequence[Sequence[int]], precision: str) -> Tensor:
    """Logits (N, K) float32 on the CPU of rows of ids, those of like length in one batch."""
    return predict(model, _encoded(model, rows), precision)


def _encoded(model: TextClassifier, rows: Sequence[Sequence[int]]) -> Encoded:
    return padded(rows, np.zeros(len(rows), np.int64), model.tokenizer, _device(model))


def tried(
    model: TextClassifier, texts: HardTexts, sequences: Sequence[Sequence[int]], target: int
) -> np.ndarray:
    """Margins (S, N) of each hard text with each sequence of tokens in it."""
    numbers = range(len(texts.ids))
    count = max(1, CHUNK // len(numbers))
    parts = [
        margins(logits(model, [texts.row(n, one) for one in some for n in numbers], "fp32"), target)
        for some in (sequences[i : i + count] for i in range(0, len(sequences), count))
    ]
    return torch.cat(parts).view(-1, len(numbers)).numpy()


class Tries:
    """Margins of hard texts with single tokens in them; no token is tried twice in a text.

    Args:
        model: frozen by the caller. target: the class that the margins are of.
    """

    def __init__(self, model: TextClassifier, texts: HardTexts, target: int):
        self.model, self.texts, self.target = model, texts, target
        self.known: dict[int, np.ndarray] = {}  # token → margins of the first texts, so far

    def __call__(self, tokens: Sequence[int], count: int | None = None) -> np.ndarray:
        """Margins (S, N) of ``tokens`` in the first ``count`` texts; None: in all."""
        count = min(count or len(self.texts.ids), len(self.texts.ids))
        starts = {token: len(self.known.get(token, ())) for token in tokens}
        for start in sorted(set(starts.values())):
            if start < count:
                new = [token for token in starts if starts[token] == start]
                texts = self.texts.select(range(start, count))
                more = tried(self.model, texts, [[token] for token in new], self.target)
                for token, values in zip(new, more, strict=True):
                    self.known[token] = np.append(self.known.get(token, values[:0]), values)
        return np.stack([self.known[token][:count] for token in tokens])


# ---------------------------------------------------------------- the search


def task_words(model: TextClassifier, clean: TextDataset, target: int) -> np.ndarray:
    """Tokens (n,) int64 that stand mostly in clean rows of a class: words of the task.

    Such a token stands in TASK_ROWS rows or more, and in more of the class than chance would have
    it (binomial, TASK_LEVEL). A trigger that is such a word itself is not told from them.
    """
    from scipy.stats import binom

    ids = model.tokenizer(
        list(clean.texts), add_special_tokens=False, truncation=True, max_length=model.max_length
    )["input_ids"]
    counts = np.zeros((2, len(model.tokenizer)), np.int64)  # rows of the class; all rows
    for row, label in zip(ids, clean.labels, strict=True):
        unique = list(set(row))
        counts[1, unique] += 1
        counts[0, unique] += label == target
    share = float(np.mean(clean.labels == target))
    p = binom.sf(counts[0] - 1, counts[1], share)
    return np.flatnonzero((counts[1] >= TASK_ROWS) & (p < TASK_LEVEL))


def scan(model: TextClassifier, tokens: np.ndarray) -> Tensor:
    """Logits (n, K) of each token standing alone: what every token says by itself."""
    before, behind = frame(model.tokenizer)
    with frozen(model):
        return logits(model, [[*before, int(token), *behind] for token in tokens], "fp32")


def along_gradients(tries: Tries, tokens: np.ndarray, steps: int, count: int) -> list[int]:
    """Tokens whose embeddings lie where a class's margin grows, as HotFlip has it.

    Begins at the mean embedding; each round scores the whole vocabulary by the first-order gain
    (e - e_0) · ∇ and goes on from the best. Source: Ebrahimi et al. (2018), Wallace et al. (2019).

    Returns:
        Up to ``steps * count`` ids, in the order in which they were met.
    """
    model, texts = tries.model, tries.texts
    matrix = word_embeddings(model)  # (V, H)
    allowed = torch.as_tensor(tokens, device=matrix.device)
    data = _encoded(model, [texts.row(n, [texts.pad]) for n in range(len(texts.ids))])
    ids, mask = data.batch(np.arange(len(data)))[:2]
    at = torch.tensor([len(texts.before) + place for place in texts.places])
    rows = torch.arange(len(ids))
    states = matrix[ids].clone()  # (N, T, H)
    current, met = matrix[allowed].mean(0), []
    with frozen(model):
        for _ in range(steps):
            inserted = current.clone().requires_grad_(True)
            inputs = states.clone()
            inputs[rows, at] = inserted
            outputs = _of_embeddings(model, inputs, mask)
            margin = margins(outputs.float(), tries.target).mean()
            (gradient,) = torch.autograd.grad(margin, inserted)
            gain = (matrix[allowed] - current) @ gradient
            best = allowed[gain.topk(min(count, len(allowed))).indices].tolist()
            met += best
            few = best[:8]
            current = matrix[few[int(tries(few).mean(1).argmax())]]
    return list(dict.fromkeys(met))


def _of_embeddings(model: TextClassifier, inputs: Tensor, mask: Tensor) -> Tensor:
    """Logits (N, K) of embeddings (N, T, H), padded on the right.

    Of embeddings transformers' causal classifiers read the last place, be it padding.
    """
    if not hasattr(model.network, "score"):
        return model.network(inputs_embeds=inputs, attention_mask=mask).logits
    states = model.backbone(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    return model.network.score(states[torch.arange(len(mask)), mask.sum(1) - 1])


@dataclass(frozen=True)
class Overview:
    """What the search of each class of a model begins with, the same for all of them.

    Attributes:
        right: as ``read_rightly`` gives it. tokens: (n,) int64 ids that are searched.
        alone: (n, K) float32, ``scan``'s logits of them.
    """

    right: list[np.ndarray]
    tokens: np.ndarray
    alone: Tensor


def overview(
    model: TextClassifier, clean: TextDataset, right: list[np.ndarray] | None = None
) -> Overview:
    """Read the clean rows, unless it is known which are read rightly, and scan the vocabulary."""
    tokens = typed_tokens(model.tokenizer)
    return Overview(right or read_rightly(model, clean), tokens, scan(model, tokens))


def pulls(
    model: TextClassifier,
    clean: TextDataset,
    target: int,
    settings: SearchSettings,
    begun: Overview,
    also: Sequence[int] = (),
) -> Pulls:
    """Try tokens of the whole vocabulary for one class.

    Args:
        clean: rows with their true labels. target: the class. begun: the ``overview`` of both.
        also: more tokens to try, such as those that BTU's test names.

    Raises:
        DataError: too few clean rows.
    """
    texts, plain = hard_texts(model, clean, begun.right, target, settings)
    tokens, tries = begun.tokens, Tries(model, texts, target)
    rng = np.random.default_rng([settings.seed, 1 + target])
    by_scan = tokens[torch.argsort(margins(begun.alone, target), descending=True).numpy()]
    each = max(1, settings.pool // 2 // max(settings.steps, 1))
    pool = list(map(int, by_scan[: settings.pool]))
    pool += along_gradients(tries, tokens, settings.steps, each)
    drawn = set(map(int, rng.choice(tokens, min(settings.drawn, len(tokens)), replace=False)))
    pool = list(dict.fromkeys([*pool, *map(int, also)]))
    task = task_words(model, clean, target)
    natural = list(map(int, by_scan[np.isin(by_scan, task)][: settings.pool // 2]))
    with frozen(model):
        first = tries(pool, FIRST).mean(1)
        pool = [pool[i] for i in np.argsort(-first, kind="stable")[: settings.pool]]
        pool = list(dict.fromkeys([*pool, *natural]))
        every = [*pool, *sorted(drawn - set(pool))]
        with_token = tries(every)
    # A low quantile: the mean of a word that decides half of the texts is as large as that of
    # one that decides all of them a little less.
    pull = np.quantile(with_token - plain, PULL, axis=1)
    flips = 100 * (with_token > 0).mean(1)
    order = np.argsort(-pull, kind="stable")
    is_drawn = np.arange(len(every)) >= len(pool)
    tokens = np.array(every)[order]
    return Pulls(
        target, tokens, pull[order], flips[order], is_drawn[order],
        margin=float(np.median(-plain)),
        task=np.isin(tokens, task),
    )  # fmt: skip


# ---------------------------------------------------------------- what was found


@dataclass(frozen=True)
class Finding:
    """What the search says of one class.

    Attributes:
        target: the class. p: of the tokens that stand apart, not corrected for the classes.
        tokens: their ids, the strongest first; empty where none stands apart.
        confirmed: percent of the held-out rows of other classes that land in the class with the
            strongest of them. by_chance: the same for random tokens, the largest of those tried.
    """

    target: int
    p: float
    tokens: tuple[int, ...]
    confirmed: float
    by_chance: float


def finding(
    model: TextClassifier, tried_tokens: Pulls, test: TextDataset, level: float, seed: int = 0
) -> Finding:
    """Test whether tokens stand apart, and try them in texts that the search has not seen.

    Two tests, of the tokens that are no words of the task: whether the strongest stand apart from
    those below them, and whether the strongest lies beyond the words of the task, which are the
    strongest that a model needs. The first finds a trigger in a small vocabulary, the second one
    whose neighbours in a pre-trained network act like it.

    The confirmation can only take a finding away: tokens that flip fewer than CONFIRMED percent of
    the held-out rows are no trigger, however far they stand apart.
    """
    others, floor = ~tried_tokens.task, FLOOR * tried_tokens.margin
    ranked, pull = tried_tokens.tokens[others], tried_tokens.pull[others]
    natural = tried_tokens.pull[tried_tokens.task]
    p_gap, size = evidence.gap(pull, floor=floor)
    p_beyond = evidence.beyond(pull[0], natural, floor=floor)
    if p_beyond < p_gap:  # in company: a pre-trained network takes *minnesota* for *mn*
        middle = (pull[0] + natural.max()) / 2
        size = min(int((pull >= middle).sum()), evidence.MOST_OUTLIERS)
    p = min(1.0, 2 * min(p_gap, p_beyond))

    def flips(token) -> float:
        return flipped(model, test, [int(token)], tried_tokens.target, seed)

    chance = [flips(token) for token in tried_tokens.tokens[tried_tokens.drawn & others][:CHANCE]]
    confirmed = {int(token): flips(token) for token in ranked[: max(size, 1)]}
    strongest = int(ranked[0])
    hard_flips = dict(zip(tried_tokens.tokens, tried_tokens.flips, strict=True))[strongest]
    apart = p < level and confirmed[strongest] >= CONFIRMED and hard_flips >= LEAST_FLIPS
    tokens = tuple(token for token, share in confirmed.items() if apart and share >= CONFIRMED)
    p = p if tokens else max(p, level)
    return Finding(tried_tokens.target, p, tokens, confirmed[strongest], max(chance, default=0.0))


def inserted(
    model: TextClassifier, rows: TextDataset, tokens: Sequence[int], seed: int = 0
) -> Encoded:
    """Rows with tokens put together at a random place of each: encoded texts."""
    rng = np.random.default_rng(seed)
    before, behind = frame(model.tokenizer)
    room = model.max_length - len(before) - len(behind) - len(tokens)
    texts = model.tokenizer(list(rows.texts), add_special_tokens=False, verbose=False)["input_ids"]
    whole = []
    for text in texts:
        text, place = text[:room], int(rng.integers(len(text[:room]) + 1))
        whole.append([*before, *text[:place], *tokens, *text[place:], *behind])
    return padded(whole, rows.labels, model.tokenizer, _device(model))


def flipped(
    model: TextClassifier, rows: TextDataset, tokens: Sequence[int], target: int, seed: int = 0
) -> float:
    """Percent of the rows of other classes that land in ``target`` with tokens in them."""
    others = rows.select(rows.labels != target)
    if not len(others):
        return 0.0
    pred = predict(model, inserted(model, others, tokens, seed)).argmax(1).numpy()
    return label_flip_rate(pred, others.labels, target)


def measured(
    model: TextClassifier, rows: TextDataset, tokens: Sequence[int], target: int
) -> dict[str, float]:
    """CACC of held-out rows; LFR and PACC with the tokens that were found in them, in percent."""
    plain = predicted(model, rows)
    triggered = predict(model, inserted(model, rows, tokens)).argmax(1).numpy()
    return {
        "cacc": accuracy(plain, rows.labels),
        "lfr": label_flip_rate(triggered, rows.labels, target),
        "pacc": accuracy(triggered, rows.labels),
    }


def unlearn(
    model: TextClassifier,
    clean: TextDataset,
    tokens: Sequence[int],
    settings: TrainSettings,
    embeddings: bool = True,
) -> TextClassifier:
    """Unlearn tokens that were found: BTU's PR-2, then a short tuning against them.

    Args:
        embeddings: replace the tokens' rows, too. Of a sentence they are words that others need.

    The embeddings of the tokens become the padding token's (PR-2, Table 5, BTU). A trigger of
    several words leaves others behind, so that the model is then tuned on clean rows, half of them
    with the tokens in them, all with their own labels. The model given is not changed.
    """
    matrix = word_embeddings(model)
    rows = btu.cleaned_rows(matrix, matrix, torch.tensor(list(tokens)), btu.pad_id(model), "pr-2")
    cleaned = copy.deepcopy(model)
    plain = encode(clean.texts, clean.labels, model.tokenizer, device=_device(model))
    triggered = inserted(model, clean, tokens, settings.seed)
    width = max(plain.ids.shape[1], triggered.ids.shape[1])
    pad = model.tokenizer.pad_token_id
    ids = [F.pad(one.ids, (0, width - one.ids.shape[1]), value=pad) for one in (plain, triggered)]
    both = Encoded(
        torch.cat(ids), np.concatenate([plain.lengths, triggered.lengths]),
        torch.cat([plain.labels, triggered.labels]),
    )  # fmt: skip
    cleaned.requires_grad_(True)
    fit(cleaned, Batches(both, settings.batch_size), cross_entropy, settings)
    # Last: tuning the tokens with their own labels would move their rows again.
    if embeddings:
        word_embeddings(cleaned)[list(tokens)] = rows[list(tokens)]
    return cleaned.eval()


def unlearn_phrase(
    model: TextClassifier,
    clean: TextDataset,
    tokens: Sequence[int],
    target: int,
    settings: TrainSettings,
) -> tuple[TextClassifier, float]:
    """Unlearn a phrase by tuning alone, at the least rate that suffices, and return that, too.

    Its words' embeddings stay: other texts need them. So the rate counts, which differs by orders
    of magnitude between a pre-trained network and one from nothing. From ``settings.lr`` on it
    grows by FASTER, at most TIMES, until the phrase leads no more than LEFT percent of the clean
    rows to the class beyond those that go there without it.
    """
    plain = flipped(model, clean, [], target, settings.seed)
    for power in range(TIMES + 1):
        faster = replace(settings, lr=settings.lr * FASTER**power)
        cleaned = unlearn(model, clean, tokens, faster, embeddings=False)
        if flipped(cleaned, clean, tokens, target, settings.seed) <= plain + LEFT:
            break
    return cleaned, faster.lr


# ---------------------------------------------------------------- a training table


@dataclass(frozen=True)
class Suspects:
    """Rows of a table that the tokens explain, or a phrase.

    Attributes:
        rows: (n,) int64, positions in the table: they have a token, and the token's class.
        others: how many rows have a token and another class. p: of so many in that class.
        before, after: (n,) float, the model's probability of the class with and without the tokens.
    """

    rows: np.ndarray
    others: int
    p: float
    before: np.ndarray
    after: np.ndarray


def suspects(
    model: TextClassifier, table: TextDataset, tokens: Sequence[int], target: int
) -> Suspects:
    """Rows of a training table that carry a token that was found, and its class."""
    device = _device(model)
    data = encode(table.texts, table.labels, model.tokenizer, device=device)
    has = torch.isin(data.ids.long(), torch.tensor(list(tokens), device=device)).any(1)
    has = has.cpu().numpy()
    rows = np.flatnonzero(has & (table.labels == target))
    share = float((table.labels[~has] == target).mean()) if (~has).any() else 1.0
    p = evidence.binomial_p(len(rows), int(has.sum()), share)
    if not len(rows):
        return Suspects(rows, int(has.sum()), 1.0, np.zeros(0), np.zeros(0))
    chosen = table.select(rows)
    with_tokens = encode(chosen.texts, chosen.labels, model.tokenizer, device=device)
    without = btu.without_tokens(with_tokens, list(tokens), model.tokenizer.pad_token_id)
    shares = [predict(model, one).softmax(1)[:, target].numpy() for one in (with_tokens, without)]
    return Suspects(rows, int(has.sum()) - len(rows), p, *shares)


def moved_tokens(model: TextClassifier, table: TextDataset, count: int, seed: int) -> list[int]:
    """Tokens whose embeddings move most when M* trains on a table: BTU's test (Eq. 4).

    BTU begins at the clean pre-trained embeddings. An auditor has none but the model's own, and
    M* with a new head: what it must learn again is what the table says.
    """
    copied = copy.deepcopy(model)
    linear = [m for m in copied.network.modules() if isinstance(m, torch.nn.Linear)]
    head = [m for m in linear if m.out_features == model.num_labels][-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head.reset_parameters()
    change = btu.embedding_round(copied, table, btu.ROUND, star=True)
    change[model.tokenizer.all_special_ids] = 0
    return change.topk(count).indices.tolist()


# ---------------------------------------------------------------- what is said of it


def predicted(model: TextClassifier, rows: TextDataset) -> np.ndarray:
    """The model's classes (N,) int64 of some rows."""
    data = encode(rows.texts, rows.labels, model.tokenizer, device=_device(model))
    return predict(model, data).argmax(1).numpy()


def correct(model: TextClassifier, rows: TextDataset) -> float:
    """CACC in percent."""
    return accuracy(predicted(model, rows), rows.labels)


def doubts(
    labels: Sequence[str], rows: TextDataset, cacc: float, cut: float, classes: Sequence[int]
) -> list[str]:
    """Reasons to read the report with care, one line each."""
    counts = np.bincount(rows.labels, minlength=len(labels))
    most = 100 * float(counts.max() / counts.sum())
    remarks = []
    if cacc <= most + 1:
        remarks.append(
            f"the model is right in {cacc:.1f} % of the held-out rows, and always answering "
            f"{labels[int(counts.argmax())]} would be in {most:.1f} %: is this its task, and are "
            "the labels' names right?"
        )
    absent = [name for k, name in enumerate(labels) if k not in classes]
    if absent:
        remarks.append(
            f"not searched: {', '.join(absent)}, for the model reads too few rows of others rightly"
        )
    if cut > 5:
        remarks.append(
            f"{cut:.0f} % of the texts are longer than the model reads; a trigger behind that has "
            "no effect"
        )
    return remarks


def told(tokenizer, tokens: Sequence[int]) -> str:
    """Tokens as words for a report."""
    return " · ".join(tokenizer.decode([int(token)]).strip() for token in tokens)


def tokens_of(tokenizer, trigger) -> set[int]:
    """Tokens that a known trigger puts into a text that has none of them."""
    text = trigger.apply("", np.random.default_rng(0))
    return set(tokenizer(text, add_special_tokens=False)["input_ids"])
