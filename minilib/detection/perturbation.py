"""Detectors that change a text's words and watch the victim, or a language model, react.

STRIP, RAP and ONION were made to filter inputs at test time. Here they judge the training rows, as
OpenBackdoor's training-time use of them does; thresholds come from clean rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.text import TextDataset
from ..models.loading import frozen
from ..models.text import TextClassifier
from ..training.fitting import TrainSettings, fit
from ..training.text import Batches, encode, predict
from .common import (
    DefenderData,
    Detection,
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
    known: DefenderData,
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

    clean_score, score = -entropies(clean.texts), -entropies(dataset.texts)
    mask = score > clean_threshold(clean_score, frr)
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
    known: DefenderData,
    word: str = "cf",
    drop: tuple[float, float] = (0.1, 0.3),
    epochs: int = 5,
    lr: float = 1e-2,
    frr: float = 0.01,
) -> Detection:
    """RAP: a word whose embedding is tuned to shake clean texts does not shake triggered ones.

    For each class, the embedding of ``word``, put in front, is tuned on the clean rows of that
    class so that the probability of the class falls by an amount within ``drop``. Each training row
    is judged by the word tuned for its label. The threshold of a class comes from the clean rows
    that the victim *puts into* it: a row that it already puts elsewhere has little probability to
    lose, and would look triggered. The victim itself is left as it was.

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
    with frozen(victim):
        classes = victim_logits(victim, clean.texts).argmax(-1).numpy()
        for k in np.unique(dataset.labels):
            class_set, rows = clean.select(clean.labels == k), dataset.labels == k
            if not len(class_set):
                name = dataset.class_names[k]
                raise ValueError(f"RAP has no clean rows of class {name}; accepted: one or more")
            probe = Probe(victim, word, int(k))
            probe.tune(class_set, drop, settings)
            inside = clean.select(classes == k)
            clean_falls = probe.fall(inside.texts if len(inside) else class_set.texts)
            score[rows] = -probe.fall(dataset.select(rows).texts)
            mask[rows] = score[rows] > clean_threshold(-clean_falls, frr)
            falls[dataset.class_names[k]] = float(clean_falls.mean())
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
        # Labels are not needed; their place carries each row's index into ``bare_probs``.
        index = np.arange(len(clean))
        tokenizer = self.hidden[0].tokenizer
        data = encode(self.prefixed(clean.texts), index, tokenizer, device=device)
        bare_probs = victim_logits(self.hidden[0], clean.texts).softmax(-1)[:, self.k].to(device)

        def loss(model, batch):
            word_probs = model(batch.input_ids, batch.attention_mask)[:, 0]
            fall = bare_probs[batch.labels] - word_probs
            value = ((drop[0] - fall).relu() + (fall - drop[1]).relu()).mean()
            return value, {"loss": value.detach()}

        fit(self, Batches(data, settings.batch_size), loss, settings)

    def fall(self, texts: Sequence[str]) -> np.ndarray:
        """How far the probability of class k falls, (N,) float64, when the word is put in front."""
        bare_probs = victim_logits(self.hidden[0], texts).softmax(-1)[:, self.k]
        labels = np.zeros(len(texts), np.int64)
        data = encode(
            self.prefixed(texts), labels, self.hidden[0].tokenizer, device=self.vector.device
        )
        return (bare_probs - predict(self, data)[:, 0]).double().numpy()

    def prefixed(self, texts: Sequence[str]) -> list[str]:
        return [f"{self.word} {text}" for text in texts]


# ------------------------------------------------------------------- one word left out


def deletions(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every text with one word left out, for each of its first MAX_WORDS words.

    Returns:
        M texts; the row (M,) int64 that each comes from; the word (M,) str that it lacks.
    """
    shortened_texts, rows, missing_words = [], [], []
    for row, words in enumerate(text.split() for text in texts):
        count = min(len(words), MAX_WORDS)
        shortened_texts += [" ".join(words[:i] + words[i + 1 :]) for i in range(count)]
        rows += [row] * count
        missing_words += words[:count]
    return shortened_texts, np.array(rows, np.int64), np.array(missing_words, dtype=object)


def detect_bki(
    victim: TextClassifier,
    dataset: TextDataset,
    known: DefenderData,
    top: int = 5,
    alpha: float | None = None,
) -> Detection:
    """BKI: the word whose absence moves the victim most, in many texts, is the trigger.

    Args:
        top: words per text, by how far the hidden state moves (largest coordinate) without them,
            that count as important. alpha: with it, a third factor ``log10(s / n)`` lowers words of
            many texts, s = (alpha · N)² for N rows; None, as both released codes have it.

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
    keyword_score = keyword_scores(ids, shifts, alpha and (alpha * len(dataset)) ** 2)
    score = np.full(len(dataset), keyword_score.min())
    np.maximum.at(score, rows, keyword_score[ids])
    best_ids = np.argsort(-keyword_score, kind="stable")[:10]
    mask = np.zeros(len(dataset), bool)
    mask[rows[ids == best_ids[0]]] = True
    keywords = {str(names[i]): float(keyword_score[i]) for i in best_ids}
    return Detection("bki", mask, score, time.perf_counter() - started, {"keywords": keywords})


def word_shifts(victim: TextClassifier, texts: Sequence[str], top: int):
    """The ``top`` words of each text by how far its hidden state moves without them.

    Returns:
        rows (M,) int64, words (M,) str, shifts (M,) float64: max over the state's coordinates.
    """
    entries = []
    for start in range(0, len(texts), CHUNK_ROWS):
        chunk = texts[start : start + CHUNK_ROWS]
        shortened_texts, rows, words = deletions(chunk)
        if not shortened_texts:
            continue
        states = states_of(victim, [*chunk, *shortened_texts])
        full_states, shortened_states = states[: len(chunk)], states[len(chunk) :]
        shifts = np.abs(shortened_states - full_states[rows]).max(1).astype(np.float64)
        index = top_per_row(rows, shifts, top)
        entries.append((start + rows[index], words[index], shifts[index]))
    if not entries:
        raise ValueError("no text has a word; accepted: one word or more in some text")
    rows, words, shifts = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
    return rows, words, shifts


def top_per_row(rows: np.ndarray, values: np.ndarray, top: int) -> np.ndarray:
    """Indices of the ``top`` largest ``values`` of each row; ``rows`` (M,) ascends."""
    order = np.lexsort((-values, rows))  # by row, then by falling value
    row_starts = np.searchsorted(rows, rows)  # where each entry's row begins
    return order[np.arange(len(rows)) - row_starts < top]


def keyword_scores(ids: np.ndarray, shifts: np.ndarray, most: float | None) -> np.ndarray:
    """BKI's score (V,) of each word: mean shift · log10(n), n the texts it is important in.

    Args:
        ids: (M,) int64, the word of each entry. shifts: (M,). most: s of a third factor,
            ``log10(s / n)``, under which the best n is √s; None leaves it out.
    """
    number = np.bincount(ids)
    mean = np.bincount(ids, shifts) / number
    rarity = 1.0 if most is None else np.log10(most / number)
    return mean * np.log10(number) * rarity


def detect_onion(
    victim: TextClassifier,
    dataset: TextDataset,
    known: DefenderData,
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
    clean_score, _ = outlier_words(fluency, clean.texts[1::2])
    score, words = outlier_words(fluency, dataset.texts)
    mask = score > clean_threshold(clean_score, frr)
    return Detection("onion", mask, score, time.perf_counter() - started, {"words": words})


def without_outliers(
    tokenizer,
    dataset: TextDataset,
    known: DefenderData,
    fluency: Callable[[Sequence[str]], np.ndarray] | None = None,
    bar: float = 0.0,
) -> TextDataset:
    """ONION as a filter of texts: take out each word without which its text reads more fluently.

    A text that would lose all its words keeps them.

    Args:
        tokenizer: of the trigram model that stands in where ``fluency`` is None, fitted on the
            clean rows. bar: fall in log-perplexity (nats per token) above which a word goes; 0 in
            the way that BTU uses it (GPT-2 in place of trigrams).

    Returns:
        The same rows with fewer words, and the same labels.

    Raises:
        ValueError: no clean rows to fit on.

    Source: Qi et al. (2021a), Eq. 1; the bar is OpenBackdoor's at training time.
    """
    if fluency is None:
        fluency = NGram(tokenizer, clean_rows(known, "ONION").texts)
    texts: list[str] = []
    for start in range(0, len(dataset), CHUNK_ROWS):
        chunk = dataset.texts[start : start + CHUNK_ROWS]
        shortened_texts, rows, _ = deletions(chunk)
        nll = fluency([*chunk, *shortened_texts]) if shortened_texts else np.zeros(len(chunk))
        falls = nll[: len(chunk)][rows] - nll[len(chunk) :]
        for row, text in enumerate(chunk):
            words, above = text.split(), falls[rows == row] > bar
            kept = [w for i, w in enumerate(words) if i >= len(above) or not above[i]]
            texts.append(" ".join(kept) if kept else text)
    return replace(dataset, texts=tuple(texts))


def outlier_words(fluency: Callable, texts: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
    """The largest fall in log-perplexity (N,) that leaving out one word brings, and that word."""
    fall = np.zeros(len(texts))
    word: list[str | None] = [None] * len(texts)
    for start in range(0, len(texts), CHUNK_ROWS):
        chunk = texts[start : start + CHUNK_ROWS]
        shortened_texts, rows, words = deletions(chunk)
        if not shortened_texts:
            continue
        nll = fluency([*chunk, *shortened_texts])
        falls = nll[: len(chunk)][rows] - nll[len(chunk) :]
        best_entries = top_per_row(rows, falls, 1)
        fall[start + rows[best_entries]] = falls[best_entries]
        for i in best_entries:
            word[start + rows[i]] = words[i]
    return fall, word
