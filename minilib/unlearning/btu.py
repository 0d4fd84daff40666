"""BTU: backdoor tokens move most when only word embeddings train, and are unlearned there.

Shapes: word-embedding matrices are (V, H) float, one row per token of the vocabulary; token sets
are (n,) int64. ``before`` is the clean pre-trained matrix, ``after`` one that has been trained.

Source: "Backdoor Token Unlearning: Exposing and Defending Backdoors in Pretrained Language Models"
(BTU, AAAI 2025). The paper names learning rates, epochs and batch size, and no optimiser; here it
is AdamW as everywhere in this library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.text import Trigger
from ..checks import one_of
from ..data.text import TextDataset
from ..models.text import HiddenStates, TextClassifier
from ..settings import TOKEN_METHODS
from ..training import fitting
from ..training import text as text_training
from ..training.fitting import TrainSettings
from ..training.text import Batch, Batches, Encoded

# BTU paper, appendix: one epoch, batch 32, 2e-5 per round; three epochs at 5e-7 on clean rows.
# Without decay, a row that does not occur in the data does not move.
ROUND = TrainSettings(epochs=1, lr=2e-5, batch_size=32, weight_decay=0.0)
RECOVERY = TrainSettings(epochs=3, lr=5e-7, batch_size=32)
THRESHOLDS = ("mean_row", "frobenius", "mean_dim")
# Which threshold, and whose [PAD] row, a method replaces dimensions by.
READINGS = {
    "btu": ("mean_row", "trained"),
    "btu-code": ("frobenius", "pretrained"),
    "btu-dim": ("mean_dim", "trained"),
}
CURVE_POINTS = 24  # of the curves of change over steps
MAP_ROWS = 150  # of each kind in the map of hidden states
NEIGHBOURS = 10


# ------------------------------------------------------------------ training embeddings


class SomeRows(nn.Module):
    """A word-embedding matrix of which only the rows ``ids`` (U,) exist, as parameters.

    It takes the vocabulary's own ids. A matrix of the rows that occur in a data set trains exactly
    as the whole one would, for the others get no gradient, and costs V/U times less per step.
    """

    def __init__(self, embedding: nn.Embedding, ids: Tensor):
        super().__init__()
        self.weight = nn.Parameter(embedding.weight.detach()[ids].clone())  # (U, H)
        place = torch.full((embedding.num_embeddings,), -1, device=ids.device)
        place[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("ids", ids)
        self.register_buffer("place", place)  # (V,) row of each token, -1 where it has none
        pad = embedding.padding_idx
        # BERT's [PAD] row gets no gradient, and neither does it here.
        self.padding_row = None if pad is None or place[pad] < 0 else int(place[pad])

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(self.place[input_ids], self.weight, self.padding_row)


class BagOfTokens(nn.Module):
    """M*: embedding module → mean over the real positions → linear head.

    ``forward(input_ids, attention_mask)``: two (B, T) int64 tensors → logits (B, K). The released
    code takes the mean over padded positions too.
    """

    def __init__(self, embeddings: nn.Module, head: nn.Linear):
        super().__init__()
        self.embeddings = embeddings
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.embeddings(input_ids)  # (B, T, H)
        real = attention_mask[..., None].to(states.dtype)
        return self.head((states * real).sum(1) / real.sum(1).clamp(min=1))


def word_embeddings(model: TextClassifier) -> Tensor:
    """Return the word-embedding matrix (V, H) of a model, detached and not copied."""
    return model.backbone.get_input_embeddings().weight.detach()


def embedding_model(model: TextClassifier, ids: Tensor, star: bool = False) -> nn.Module:
    """Copy a model, freeze it, and make the rows ``ids`` of its word embeddings its parameters.

    ``star`` keeps embeddings and linear head only (M*). Returns a module called like the model; its
    ``rows`` is the ``SomeRows``.
    """
    network = copy.deepcopy(model).requires_grad_(False)
    rows = SomeRows(network.backbone.get_input_embeddings(), ids)
    network.backbone.set_input_embeddings(rows)
    if star:
        linear = [m for m in network.network.modules() if isinstance(m, nn.Linear)]
        head = [m for m in linear if m.out_features == model.num_labels][-1]
        # Position, type and norm belong to BERT's embedding module; causal models have none.
        network = BagOfTokens(getattr(network.backbone, "embeddings", rows), head)
    network.rows = rows
    return network


def without_tokens(data: Encoded, tokens: Sequence[int] | Tensor, pad: int) -> Encoded:
    """Take tokens out of encoded texts; what follows moves up. Source: D/T″ in BTU, round 3."""
    tokens = torch.as_tensor(tokens, device=data.ids.device, dtype=data.ids.dtype)
    if not len(tokens):
        return data
    lengths = torch.as_tensor(data.lengths, device=data.ids.device)
    real = torch.arange(data.ids.shape[1], device=data.ids.device) < lengths[:, None]  # (N, L)
    keep = real & ~torch.isin(data.ids, tokens)
    order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices  # kept ones first, in order
    ids = torch.where(keep, data.ids, pad).gather(1, order)
    return Encoded(ids, keep.sum(1).clamp(min=1).cpu().numpy(), data.labels)


def occurring(data: Encoded) -> Tensor:
    """Return the ids (U,) int64 of the tokens in encoded texts, padding included, ascending."""
    return torch.unique(data.ids).long()


def train_embeddings(
    model: TextClassifier,
    dataset: TextDataset,
    settings: TrainSettings = ROUND,
    star: bool = False,
    without: Sequence[int] | Tensor = (),
    loss: fitting.Loss = text_training.cross_entropy,
) -> nn.Module:
    """Train the word embeddings of a copy of ``model`` and nothing else.

    Args:
        star: train those of M* (embeddings → masked mean → linear head) instead.
        without: tokens taken out of the texts first.

    Returns:
        The trained ``embedding_model``. ``model`` is not changed.

    Raises:
        ValueError: no texts, or a tokenizer without a padding token.
    """
    device = next(model.parameters()).device
    data = text_training.encode(dataset.texts, dataset.labels, model.tokenizer, device=device)
    data = without_tokens(data, without, model.tokenizer.pad_token_id)
    network = embedding_model(model, occurring(data), star)
    fitting.fit(network, Batches(data, settings.batch_size), loss, settings)
    return network


def embedding_round(
    model: TextClassifier,
    dataset: TextDataset,
    settings: TrainSettings = ROUND,
    star: bool = False,
    without: Sequence[int] | Tensor = (),
) -> Tensor:
    """Train the word embeddings alone; return how far each row moved, (V,) float on the device.

    Arguments and errors as ``train_embeddings``. Source: Eq. (3), BTU; with ``star`` Eq. (4), with
    ``without`` too Eq. (5).
    """
    rows = train_embeddings(model, dataset, settings, star, without).rows
    before = word_embeddings(model)
    change = before.new_zeros(len(before))
    change[rows.ids] = row_change(before[rows.ids], rows.weight.detach())
    return change


def row_change(before: Tensor, after: Tensor) -> Tensor:
    """Euclidean distance of each row of two matrices (V, H) → (V,). Source: d in Eq. (3), BTU."""
    if before.shape != after.shape or before.ndim != 2:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise ValueError(f"matrices of shapes {shapes}; accepted: two equal (V, H)")
    return torch.linalg.vector_norm(after - before, dim=1)


# -------------------------------------------------------------------------- detection


def suspicious(change: Tensor, alpha_percent: float = 0.05, exclude: Iterable[int] = ()) -> Tensor:
    """Return the tokens that moved most: the top ``alpha_percent`` % of the vocabulary.

    Args:
        change: (V,) float. alpha_percent: in (0, 100], in *percent*: 0.05 flags 15 of 30,522.
        exclude: ids that are never flagged (special tokens).

    Returns:
        (n,) int64, most moved first, n = ⌊V · α / 100⌋; fewer if fewer have moved at all.

    Raises:
        ValueError: α out of range, or so small that no token is flagged.

    Source: Algorithm 1, BTU. The paper takes special tokens out of the flagged ones afterwards, and
    so flags up to five fewer.
    """
    if not 0 < alpha_percent <= 100:
        raise ValueError(f"alpha is {alpha_percent!r} percent; accepted: above 0, up to 100")
    count = int(len(change) * alpha_percent / 100 + 1e-9)
    if not count:
        raise ValueError(
            f"alpha is {alpha_percent!r} percent of {len(change)} tokens, less than one; "
            f"accepted: {100 / len(change):.4g} or more"
        )
    change = change.clone()
    change[torch.as_tensor(list(exclude), dtype=torch.int64, device=change.device)] = 0
    values, order = change.sort(descending=True, stable=True)
    return order[:count][values[:count] > 0]


@dataclass(frozen=True)
class Detected:
    """What the rounds of token detection flagged.

    Attributes:
        rounds: which rounds were run, in order.
        sets: per round, the tokens flagged, most moved first. changes: per round, (V,) row changes.
    """

    rounds: tuple[int, ...]
    sets: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]

    @property
    def tokens(self) -> Tensor:
        """The union of the rounds' sets, ascending."""
        return torch.unique(torch.cat(self.sets))


def detect_tokens(
    model: TextClassifier,
    dataset: TextDataset,
    alpha_percent: float = 0.05,
    rounds: Sequence[int] = (1, 2, 3),
    settings: TrainSettings = ROUND,
    run: Callable[..., Tensor] = embedding_round,
    exclude: Sequence[int] = (),
) -> Detected:
    """Run rounds of token detection on a poisoned training set.

    Args:
        model: pre-trained, with a fresh head; every round starts from it.
        rounds: 1 trains the embeddings of the whole model, 2 those of M*, 3 again those of M*
            without round 2's tokens. A repeated 1 runs without the tokens of the 1 before, which
            is how we read the paper's "1+1+2+3" (Table 6).
        run: what trains and measures, called as ``embedding_round``.
        exclude: ids that are never flagged, besides special tokens.

    Raises:
        ValueError: no rounds, an unknown one, a 3 without a 2 before it, a bad α, no texts.

    Source: Algorithm 1, stage 1, BTU.
    """
    rounds = tuple(rounds)
    if not rounds or not set(rounds) <= {1, 2, 3}:
        raise ValueError(f"rounds is {rounds!r}; accepted: one or more of 1, 2, 3")
    if 3 in rounds and 2 not in rounds[: rounds.index(3)]:
        raise ValueError(f"rounds is {rounds!r}; accepted: a round 3 only after a round 2")
    if not len(dataset):
        raise ValueError("the data set is empty; accepted: one row or more")
    never = [*model.tokenizer.all_special_ids, *exclude]
    flagged_by_star: dict[bool, list[Tensor]] = {False: [], True: []}
    sets, changes = [], []
    for number in rounds:
        star = number > 1
        removed_tokens = torch.cat(flagged_by_star[star]).tolist() if flagged_by_star[star] else []
        change = run(model, dataset, settings, star, removed_tokens)
        flagged = suspicious(change, alpha_percent, never)
        flagged_by_star[star].append(flagged)
        sets.append(flagged)
        changes.append(change)
    return Detected(rounds, tuple(sets), tuple(changes))


# ------------------------------------------------------------------------- unlearning


def threshold_value(before: Tensor, after: Tensor, threshold: str | float = "mean_row") -> float:
    """How far a dimension of a flagged row must have moved to be replaced.

    Args:
        threshold: ``mean_row`` is the mean distance of the V rows (paper, Eq. 6); ``frobenius`` is
            ‖after - before‖_F / V (released code), up to √V times smaller; ``mean_dim`` is the
            mean absolute change of an entry (ours), at least √H times smaller than ``mean_row``;
            a number is taken as it is.
    """
    if threshold == "mean_row":
        return row_change(before, after).mean().item()
    if threshold == "frobenius":
        return torch.linalg.vector_norm(after - before).item() / len(before)
    if threshold == "mean_dim":
        return (after - before).abs().mean().item()
    if isinstance(threshold, str) or not threshold >= 0:
        names = ", ".join(THRESHOLDS)
        raise ValueError(f"threshold is {threshold!r}; accepted: {names}, or a number, 0 or more")
    return float(threshold)


def replace_dimensions(
    before: Tensor,
    after: Tensor,
    tokens: Sequence[int] | Tensor,
    pad_row: Tensor,
    threshold: str | float = "mean_row",
) -> Tensor:
    """Replace the dimensions of flagged rows that moved at least ``threshold`` by [PAD]'s.

    Args:
        tokens: (n,) ids of the flagged rows. pad_row: (H,) what to replace by.
        threshold: see ``threshold_value``; 0 replaces whole rows, infinity nothing.

    Returns:
        (V, H), equal to ``after`` but in flagged rows.

    Raises:
        ValueError: no tokens, an id out of range, an unknown threshold.

    Source: Eq. (7), BTU.
    """
    tokens = flagged_ids(tokens, after)
    cut = threshold_value(before, after, threshold)
    change = (after[tokens] - before[tokens]).abs()  # (n, H)
    result = after.clone()
    result[tokens] = torch.where(change < cut, after[tokens], pad_row)
    return result


def released_loop(before: Tensor, after: Tensor, tokens: Tensor, pad_row: Tensor) -> Tensor:
    """Replace dimensions of flagged rows as the released code's loop over them does.

    It takes the rows one by one, by id, and compares each with ‖now - before‖_F / V of the matrix
    as it is *now*: each row that is replaced moves the matrix on, and the threshold grows. And a
    dimension that did not move at all becomes 0. ``btu-code`` has the threshold of the start.

    Arguments and errors as ``replace_dimensions``.
    """
    result = after.clone()
    for token in flagged_ids(tokens, after).unique().tolist():
        cut = threshold_value(before, result, "frobenius")
        change = (after[token] - before[token]).abs()
        row = torch.where(change < cut, after[token], pad_row)
        result[token] = row.masked_fill(change == 0, 0)
    return result


def flagged_ids(tokens: Sequence[int] | Tensor, matrix: Tensor) -> Tensor:
    """Return token ids as (n,) int64 on the matrix's device; ValueError for none or an unknown."""
    tokens = torch.as_tensor(tokens, dtype=torch.int64, device=matrix.device)
    if not len(tokens):
        raise ValueError("the set of flagged tokens is empty; accepted: one token or more")
    if not 0 <= tokens.min() <= tokens.max() < len(matrix):
        wrong = tokens[(tokens < 0) | (tokens >= len(matrix))][0].item()
        raise ValueError(f"token id {wrong} is not in the vocabulary of {len(matrix)}")
    return tokens


def pad_id(model: TextClassifier) -> int:
    """Return the id of the padding token; raise ValueError where the tokenizer has none."""
    pad = model.tokenizer.pad_token_id
    if pad is None:
        raise ValueError(
            "the tokenizer has no padding token, whose row BTU replaces by; set tokenizer.pad_token"
        )
    return pad


def cleaned_rows(
    before: Tensor, after: Tensor, tokens: Tensor, pad: int, method: str = "btu", seed: int = 0
) -> Tensor:
    """Return the word-embedding matrix (V, H) with its flagged rows unlearned.

    Args:
        method: ``btu`` replaces dimensions by Eq. 6 and 7, ``btu-code`` and ``btu-dim`` the same by
            other thresholds (see ``READINGS``), ``btu-loop`` as ``released_loop`` does; ``pr-1``
            restores the pre-trained rows, ``pr-2`` puts the whole [PAD] row, ``pn`` adds Gaussian
            noise as wide as the matrix's own entries (the paper does not say how wide);
            ``recover`` changes nothing: a control that tells what the recovery does alone.
        pad: id of the padding token. seed: of ``pn``'s noise.

    Source: BTU, "Dimensional Fine-grained Unlearning" and Table 5.
    """
    tokens = flagged_ids(tokens, after)
    one_of("method", method, TOKEN_METHODS)
    if method == "recover":
        return after.clone()
    if method == "btu-loop":
        return released_loop(before, after, tokens, before[pad])
    if method in READINGS:
        threshold, source = READINGS[method]
        row = (after if source == "trained" else before)[pad]
        return replace_dimensions(before, after, tokens, row, threshold)
    result = after.clone()
    if method == "pr-1":
        result[tokens] = before[tokens]
    elif method == "pr-2":
        result[tokens] = after[pad]
    elif method == "pn":
        draw = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        noise = torch.randn(len(tokens), after.shape[1], generator=draw).to(after)
        result[tokens] += after.std() * noise
    else:
        raise AssertionError(f"{method} has no branch here")
    return result


def unlearn(
    victim: TextClassifier,
    before: Tensor,
    tokens: Sequence[int] | Tensor,
    clean: TextDataset | None,
    method: str = "btu",
    recovery: TrainSettings = RECOVERY,
) -> TextClassifier:
    """Unlearn flagged tokens from a backdoored model; the model given is not changed.

    Args:
        victim: the model fine-tuned on the poisoned rows, all parameters (the paper's M^b).
        before: (V, H), word embeddings of the clean pre-trained model.
        clean: rows held to be clean, to recover on; no recovery if None. Never the test split,
            which is what the released code takes.
        method: see ``cleaned_rows``.

    Raises:
        ValueError: an unknown method, no tokens, no [PAD].

    Source: Algorithm 1, stage 2, BTU.
    """
    matrix = cleaned_rows(
        before, word_embeddings(victim), tokens, pad_id(victim), method, recovery.seed
    )
    model = copy.deepcopy(victim)
    word_embeddings(model).copy_(matrix)
    if clean is not None:
        text_training.fine_tune(model, clean, recovery)
    return model.eval()


def zero_moved(victim: TextClassifier, base: TextClassifier, layer: int) -> TextClassifier:
    """Set to 0 what moved more than the mean in one transformer layer, 1-based; returns a copy.

    Source: Table 10, BTU: the same idea as BTU's, away from the embeddings. ``base`` is the clean
    pre-trained model.
    """
    model = copy.deepcopy(victim)
    layers, base_layers = (_layers(network) for network in (model, base))
    if not 1 <= layer <= len(layers):
        raise ValueError(f"layer is {layer!r}; accepted: 1 … {len(layers)}")
    pairs = list(
        zip(layers[layer - 1].parameters(), base_layers[layer - 1].parameters(), strict=True)
    )
    with torch.no_grad():
        changes = [(new - was).abs() for new, was in pairs]
        mean = sum(change.sum() for change in changes) / sum(change.numel() for change in changes)
        for (new, _), change in zip(pairs, changes, strict=True):
            new[change > mean] = 0
    return model


def _layers(model: TextClassifier) -> nn.ModuleList:
    """The transformer layers of an encoder or decoder, under whichever name."""
    return next(m for m in model.backbone.modules() if isinstance(m, nn.ModuleList))


# ------------------------------------------------------- what an oracle sees, for figures alone


def backdoor_tokens(
    dataset: TextDataset, mask: np.ndarray, tokenizer, share: float = 0.5
) -> list[int]:
    """Return the tokens that make poisoned rows different: an oracle, for figures only.

    Those whose share of poisoned rows exceeds their share of the other rows by at least ``share``
    of the largest such excess. The paper picks them by hand.
    """
    data = text_training.encode(dataset.texts, dataset.labels, tokenizer)
    size = len(tokenizer)
    group = torch.as_tensor(mask).long()[:, None]  # (N, 1): 1 where poisoned
    row = torch.arange(len(data))[:, None]
    # Each token counts once a row; padding is a special token and drops out below.
    pairs = torch.unique((row * 2 + group) * size + data.ids.long())
    counts = torch.bincount(pairs % size + size * (pairs // size % 2), minlength=2 * size)
    counts = counts.view(2, size).double()
    poisons = int(mask.sum())
    excess = counts[1] / max(poisons, 1) - counts[0] / max(len(data) - poisons, 1)
    excess[tokenizer.all_special_ids] = 0
    chosen = torch.nonzero(excess >= share * excess.max())[:, 0]
    return chosen[excess[chosen].sort(descending=True, stable=True).indices].tolist()


def exposure(
    model: TextClassifier,
    dataset: TextDataset,
    tokens: Sequence[int],
    settings: TrainSettings = ROUND,
    everything: bool = False,
) -> tuple[nn.Module, list[dict]]:
    """Follow backdoor and clean rows while the embeddings, or ``everything``, train.

    Args:
        model: pre-trained, with a fresh head; it is not changed. tokens: ids of the backdoor's.

    Returns:
        The trained copy, and one dict per point with ``step``, ``backdoor`` and ``clean``: see
        ``watched``. Source: Figure 1, BTU.
    """
    before = word_embeddings(model).clone()
    data = text_training.encode(
        dataset.texts, dataset.labels, model.tokenizer, device=before.device
    )
    ids = occurring(data)
    network = copy.deepcopy(model) if everything else embedding_model(model, ids)

    def change() -> tuple[Tensor, Tensor]:
        now = word_embeddings(network)[ids] if everything else network.rows.weight.detach()
        return ids, row_change(before[ids], now)

    steps = settings.epochs * -(-len(dataset) // settings.batch_size)
    loss, finish = watched(change, tokens, steps)
    fitting.fit(network, Batches(data, settings.batch_size), loss, settings)
    return network, finish()


def watched(
    change: Callable[[], tuple[Tensor, Tensor]], tokens: Sequence[int], steps: int
) -> tuple[fitting.Loss, Callable[[], list[dict]]]:
    """Make a cross-entropy that writes down, now and then, how far tokens have moved.

    Args:
        change: returns ids (U,) of rows that train, and how far each has moved so far, (U,).
        tokens: the backdoor's; all others count as clean. steps: that training will take.

    Returns:
        The loss, and what to call after training: it returns one dict per point with ``step``,
        ``backdoor`` and ``clean``, the mean row change of either kind.
    """
    interval, count, curve = max(1, steps // CURVE_POINTS), 0, []

    def point() -> list[dict]:
        ids, distances = change()
        inside = torch.isin(ids, torch.as_tensor(list(tokens), device=ids.device))
        means = {
            "backdoor": distances[inside].mean().item(),
            "clean": distances[~inside].mean().item(),
        }
        curve.append({"step": count, **means})
        return curve

    def loss(network: nn.Module, batch: Batch):
        nonlocal count
        if count % interval == 0:
            point()
        count += 1
        return text_training.cross_entropy(network, batch)

    return loss, point


def state_map(
    model: TextClassifier, dataset: TextDataset, mask: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw hidden states of clean and poisoned rows in the plane, by t-SNE.

    Returns:
        Points (N, 2) float32 and their kinds (N,) (class name or "poisoned") for at most MAP_ROWS
        random rows of each kind; and the purity: the percentage of the NEIGHBOURS nearest rows of a
        poisoned row, in the full space, that are poisoned too.

    Source: Figure 4, BTU.
    """
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    kinds = np.where(mask, "poisoned", np.array(dataset.class_names)[dataset.labels])
    groups = [np.flatnonzero(kinds == kind) for kind in ("poisoned", *dataset.class_names)]
    rows = np.concatenate([rng.permutation(group)[:MAP_ROWS] for group in groups])
    subset, kinds = dataset.select(rows), kinds[rows]
    device = next(model.parameters()).device
    data = text_training.encode(subset.texts, subset.labels, model.tokenizer, device=device)
    states = text_training.predict(HiddenStates(model), data).numpy()
    count = min(NEIGHBOURS, len(rows) - 1)
    neighbours = NearestNeighbors(n_neighbors=count).fit(states).kneighbors(return_distance=False)
    poisoned = kinds == "poisoned"
    points = TSNE(perplexity=min(30, (len(rows) - 1) / 3), random_state=seed).fit_transform(states)
    return points.round(3), kinds, 100 * float(poisoned[neighbours][poisoned].mean())


def with_trigger(dataset: TextDataset, trigger: Trigger, count: int, seed: int) -> TextDataset:
    """Append triggered copies of ``count`` random rows that can carry the trigger, labels kept."""
    rng = np.random.default_rng(seed)
    texts, labels = list(dataset.texts), dataset.labels.tolist()
    for i in rng.permutation(len(dataset)):
        if len(texts) == len(dataset) + count:
            break
        if (text := trigger.apply(dataset.texts[i], rng)) is not None:
            texts.append(text)
            labels.append(int(dataset.labels[i]))
    if len(texts) < len(dataset) + count:
        able = len(texts) - len(dataset)
        raise ValueError(f"count is {count}; accepted: up to {able}, rows that carry the trigger")
    return replace(dataset, texts=tuple(texts), labels=np.array(labels, np.int64))
