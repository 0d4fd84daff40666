"""Detectors that change a text's words and watch the victim, or a language model, react.

STRIP, RAP and ONION were made to filter inputs at test time. Here they judge the training rows, as
OpenBackdoor's training-time use of them does; thresholds come from clean rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..data import TextDataset
from ..models import TextClassifier
from ..train import Batches, TrainSettings, encode, fit, predict
from .evidence import (
    Detection,
    Knowledge,
    check_rows,
    check_states,
    clean_rows,
    clean_threshold,
    states_of,
)
from .fluency import NGram

MAX_WORDS = 100  # of a text whose deletions are tried: about what a victim reads of it
CHUNK_ROWS = 512  # texts whose deletions are in memory at once


def victim_logits(victim: TextClassifier, texts: Sequence[str]) -> Tensor:
    """Logits (N, K) float32 of bare texts, batched by tokens."""
    device = next(victim.parameters()).device
    data = encode(texts, np.zeros(len(texts), np.int64), victim.tokenizer, device=device)
    return predict(victim, data)


# ------------------------------------------------------------------------------- STRIP


def detect_strip(
    victim: TextClassifier,
    dataset: TextDataset,
    known: Knowledge,
    repeat: int = 5,
    ratio: float = 0.5,
    frr: float = 0.01,
) -> Detection:
    """STRIP: a triggered text keeps its class whatever else in it is overwritten.

    Args:
        repeat: perturbed copies per text. ratio: share of its words that are overwritten, each by
            one of the words of highest TF-IDF of a random clean row. frr: share of the clean rows
            that the threshold would reject.

    Returns:
        Detection; the score is minus the mean entropy, in bits, of the copies' predictions.

    Raises:
        ValueError: a single class, no clean rows, a share out of range.

    Source: Gao et al. (2022). OpenBackdoor's code reshapes the copies' entropies the wrong way
    round, so that it averages over copies of different texts; here each text has its own.
    """
    started = time.perf_counter()
    check_rows(dataset)
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio!r}; accepted: a share in (0, 1]")
    clean = clean_rows(known, "STRIP")
    rng = np.random.default_rng(known.seed)
    donors = salient_words(clean.texts)

    def entropies(texts: Sequence[str]) -> np.ndarray:
        copies = [overwrite(text, donors, ratio, rng) for text in texts for _ in range(repeat)]
        bits = prediction_entropy(victim_logits(victim, copies))
        return bits.reshape(len(texts), repeat).mean(1)

    on_clean, score = -entropies(clean.texts), -entropies(dataset.texts)
    mask = score > clean_threshold(on_clean, frr)
    return Detection("strip", mask, score, time.perf_counter() - started)


def salient_words(texts: Sequence[str]) -> list[list[str]]:
    """Per text its words by falling TF-IDF; texts of stop words alone are left out.

    Raises:
        ValueError: not a single word that is not a stop word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    model = TfidfVectorizer(norm=None, stop_words="english")
    weights = model.fit_transform(texts)  # (N, V) sparse
    words = model.get_feature_names_out()
    rows = (weights[i] for i in range(weights.shape[0]))
    return [[str(words[j]) for j in row.indices[np.argsort(-row.data, kind="stable")]]
            for row in rows if row.nnz]  # fmt: skip


def overwrite(text: str, donors: list[list[str]], ratio: float, rng: np.random.Generator) -> str:
    """Overwrite ``ratio`` of a text's words, at random places, by a random donor's first words."""
    words = text.split()
    places = rng.integers(0, max(len(words), 1), int(len(words) * ratio))
    donor = donors[rng.integers(len(donors))]
    for i, place in enumerate(places):
        words[place] = donor[i % len(donor)]
    return " ".join(words)


def prediction_entropy(logits: Tensor) -> np.ndarray:
    """Entropy (N,) float64, in bits, of the softmax of logits (N, K)."""
    log_p = logits.double().log_softmax(-1)
    return (-(log_p.exp() * log_p).sum(-1) / np.log(2)).numpy()


# --------------------------------------------------------------------------------- RAP


def detect_rap(
    victim: TextClassifier,
    dataset: TextDataset,
    known: Knowledge,
    word: str = "cf",
    drop: tuple[float, float] = (0.1, 0.3),
    epochs: int = 5,
    lr: float = 1e-2,
    frr: float = 0.01,
) -> Detection:
    """RAP: a word whose embedding is tuned to shake clean texts does not shake triggered ones.

    For each class, the embedding of ``word``, put in front, is tuned on the clean rows of that
    class so that the probability of the class falls by an amount within ``drop``. Each training row
    is judged by the word tuned for its label. The victim itself is left as it was.

    Returns:
        Detection; the score is minus the fall in probability of the row's label. ``extra["fall"]``:
        mean fall on the clean rows per class.

    Raises:
        ValueError: a single class, no clean rows of some class, a word of several tokens.

    Source: Yang et al. (2021). There and in OpenBackdoor the target class is known; here nobody is
    told. OpenBackdoor steps by plain gradients that it never sets back to zero; here AdamW steps.
    """
    started = time.perf_counter()
    check_rows(dataset)
    clean = clean_rows(known, "RAP")
    score, mask, falls = np.zeros(len(dataset)), np.zeros(len(dataset), bool), {}
    settings = TrainSettings(epochs=epochs, lr=lr, weight_decay=0.0, clip=0.0, seed=known.seed)
    with held_still(victim):
        for k in np.unique(dataset.labels):
            mine, rows = clean.select(clean.labels == k), dataset.labels == k
            if not len(mine):
                name = dataset.class_names[k]
                raise ValueError(f"RAP has no clean rows of class {name}; accepted: one or more")
            probe = Probe(victim, word, int(k))
            probe.tune(mine, drop, settings)
            on_clean = probe.fall(mine.texts)
            score[rows] = -probe.fall(dataset.select(rows).texts)
            mask[rows] = score[rows] > clean_threshold(-on_clean, frr)
            falls[dataset.class_names[k]] = float(on_clean.mean())
    return Detection("rap", mask, score, time.perf_counter() - started, {"fall": falls})


class Probe(nn.Module):
    """A victim that sees ``word`` in front of every text, with a trainable embedding of it.

    The embedding keeps its norm, as in RAP's code. Output (B, 1): probability of class ``k``.
    """

    def __init__(self, victim: TextClassifier, word: str, k: int):
        super().__init__()
        ids = victim.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"word is {word!r}, {len(ids)} tokens; accepted: a single token")
        self.word, self.token, self.k = word, ids[0], k
        # A tuple hides the victim's parameters: only the embedding is trained and kept in memory.
        self.hidden = (victim,)
        table = victim.backbone.get_input_embeddings()
        self.start = table.weight[self.token].detach().clone()
        self.vector = nn.Parameter(self.start.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        victim = self.hidden[0]
        vector = self.vector * (self.start.norm() / self.vector.norm())

        def swap(_, inputs, output):
            return torch.where(
                (inputs[0] == self.token)[..., None], vector.to(output.dtype), output
            )

        handle = victim.backbone.get_input_embeddings().register_forward_hook(swap)
        try:
            logits = victim(input_ids, attention_mask)
        finally:
            handle.remove()
        return logits.float().softmax(-1)[:, self.k, None]

    def tune(self, clean: TextDataset, drop: tuple[float, float], settings: TrainSettings) -> None:
        """Tune the embedding so that the probability of class k falls by an amount in ``drop``."""
        device = self.vector.device
        # Labels are not needed; their place carries each row's index into ``before``.
        index = np.arange(len(clean))
        tokenizer = self.hidden[0].tokenizer
        data = encode(self.prefixed(clean.texts), index, tokenizer, device=device)
        before = victim_logits(self.hidden[0], clean.texts).softmax(-1)[:, self.k].to(device)

        def loss(model, batch):
            after = model(batch.input_ids, batch.attention_mask)[:, 0]
            fall = before[batch.labels] - after
            value = ((drop[0] - fall).relu() + (fall - drop[1]).relu()).mean()
            return value, {"loss": value.detach()}

        fit(self, Batches(data, settings.batch_size), loss, settings)

    def fall(self, texts: Sequence[str]) -> np.ndarray:
        """How far the probability of class k falls, (N,) float64, when the word is put in front."""
        before = victim_logits(self.hidden[0], texts).softmax(-1)[:, self.k]
        labels = np.zeros(len(texts), np.int64)
        data = encode(
            self.prefixed(texts), labels, self.hidden[0].tokenizer, device=self.vector.device
        )
        return (before - predict(self, data)[:, 0]).double().numpy()

    def prefixed(self, texts: Sequence[str]) -> list[str]:
        return [f"{self.word} {text}" for text in texts]


@contextmanager
def held_still(victim: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode and without gradients; put both back afterwards."""
    training = victim.training
    wanted = [p.requires_grad for p in victim.parameters()]
    victim.eval().requires_grad_(False)
    try:
        yield
    finally:
        victim.train(training)
        for parameter, grad in zip(victim.parameters(), wanted, strict=True):
            parameter.requires_grad_(grad)


# ------------------------------------------------------------------- one word left out


def deletions(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every text with one word left out, for each of its first MAX_WORDS words.

    Returns:
        M texts; the row (M,) int64 that each comes from; the word (M,) str that it lacks.
    """
    short, rows, left_out = [], [], []
    for row, words in enumerate(text.split() for text in texts):
        many = min(len(words), MAX_WORDS)
        short += [" ".join(words[:i] + words[i + 1 :]) for i in range(many)]
        rows += [row] * many
        left_out += words[:many]
    return short, np.array(rows, np.int64), np.array(left_out, dtype=object)


def detect_bki(
    victim: TextClassifier,
    dataset: TextDataset,
    known: Knowledge,
    top: int = 5,
    alpha: float | None = 0.1,
) -> Detection:
    """BKI: the word whose absence moves the victim most, in many texts, is the trigger.

    Args:
        top: words per text, by how far the hidden state moves (largest coordinate) without them,
            that count as important. alpha: a keyword is important in at most about this share of
            the rows; None leaves that factor out, as OpenBackdoor's code does.

    Returns:
        Detection: rows in which the best keyword is among the ``top`` words are suspect. The score
        is that of a row's best word; ``extra["keywords"]``: the ten best words and their scores.

    Raises:
        ValueError: a single class, no hidden states.

    Needs no clean rows; one forward per word of the training set. Source: Chen and Dai (2021); the
    second part of its importance, about an LSTM's steps, has no meaning for a transformer.
    """
    started = time.perf_counter()
    check_rows(dataset)
    check_states(victim)
    rows, words, shifts = word_shifts(victim, dataset.texts, top)
    names, ids = np.unique(words.astype(str), return_inverse=True)
    g = keyword_scores(ids, shifts, None if alpha is None else alpha * len(dataset))
    score = np.full(len(dataset), g.min())
    np.maximum.at(score, rows, g[ids])
    best = np.argsort(-g, kind="stable")[:10]
    mask = np.zeros(len(dataset), bool)
    mask[rows[ids == best[0]]] = True
    keywords = {str(names[i]): float(g[i]) for i in best}
    return Detection("bki", mask, score, time.perf_counter() - started, {"keywords": keywords})


def word_shifts(victim: TextClassifier, texts: Sequence[str], top: int):
    """The ``top`` words of each text by how far its hidden state moves without them.

    Returns:
        rows (M,) int64, words (M,) str, shifts (M,) float64: max over the state's coordinates.
    """
    parts = []
    for start in range(0, len(texts), CHUNK_ROWS):
        chunk = texts[start : start + CHUNK_ROWS]
        short, rows, words = deletions(chunk)
        if not short:
            continue
        states = states_of(victim, [*chunk, *short])
        whole, without = states[: len(chunk)], states[len(chunk) :]
        shifts = np.abs(without - whole[rows]).max(1).astype(np.float64)
        keep = top_per_row(rows, shifts, top)
        parts.append((start + rows[keep], words[keep], shifts[keep]))
    if not parts:
        raise ValueError("no text has a word; accepted: one word or more in some text")
    rows, words, shifts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, words, shifts


def top_per_row(rows: np.ndarray, values: np.ndarray, top: int) -> np.ndarray:
    """Indices of the ``top`` largest ``values`` of each row; ``rows`` (M,) ascends."""
    order = np.lexsort((-values, rows))  # by row, then by falling value
    first = np.searchsorted(rows, rows)  # where each entry's row begins
    return order[np.arange(len(rows)) - first < top]


def keyword_scores(ids: np.ndarray, shifts: np.ndarray, most: float | None) -> np.ndarray:
    """BKI's score (V,) of each word: mean shift · log10(number) · log10(most / number).

    Args:
        ids: (M,) int64, the word of each entry. shifts: (M,). most: number of texts above which a
            word cannot be a keyword; None leaves the last factor out.
    """
    number = np.bincount(ids)
    mean = np.bincount(ids, shifts) / number
    rare = 1.0 if most is None else np.log10(most / number)
    return mean * np.log10(number) * rare


def detect_onion(
    victim: TextClassifier,
    dataset: TextDataset,
    known: Knowledge,
    fluency: Callable[[Sequence[str]], np.ndarray] | None = None,
    frr: float = 0.05,
) -> Detection:
    """ONION: a word without which the text reads much more fluently does not belong there.

    Args:
        fluency: see ``fluency``; where None, a trigram model over the victim's tokens, fitted on
            one half of the clean rows. frr: share of the clean rows (of the other half) that the
            threshold rejects.

    Returns:
        Detection; the score is the largest fall in log-perplexity (nats per token) that leaving one
        word out brings. ``extra["words"]``: that word of each row (None in an empty text).

    Raises:
        ValueError: a single class, fewer than two clean rows.

    The victim lends its tokenizer only. Source: Qi et al. (2021a), which takes the difference of
    the perplexities themselves (dominated by short texts) and removes words rather than rows; its
    code counts the padding into the perplexity.
    """
    started = time.perf_counter()
    check_rows(dataset)
    clean = clean_rows(known, "ONION")
    if len(clean) < 2:
        raise ValueError(
            "ONION has 1 clean row; accepted: 2 or more, to fit and to set a threshold"
        )
    if fluency is None:
        fluency = NGram(victim.tokenizer, clean.texts[::2])
    on_clean, _ = outlier_words(fluency, clean.texts[1::2])
    score, words = outlier_words(fluency, dataset.texts)
    mask = score > clean_threshold(on_clean, frr)
    return Detection("onion", mask, score, time.perf_counter() - started, {"words": words})


def outlier_words(fluency: Callable, texts: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
    """The largest fall in log-perplexity (N,) that leaving out one word brings, and that word."""
    fall = np.zeros(len(texts))
    word: list[str | None] = [None] * len(texts)
    for start in range(0, len(texts), CHUNK_ROWS):
        chunk = texts[start : start + CHUNK_ROWS]
        short, rows, words = deletions(chunk)
        if not short:
            continue
        nll = fluency([*chunk, *short])
        falls = nll[: len(chunk)][rows] - nll[len(chunk) :]
        best = top_per_row(rows, falls, 1)
        fall[start + rows[best]] = falls[best]
        for i in best:
            word[start + rows[i]] = words[i]
    return fall, word
