"""Chapter 04: what `btu` does to a scenario, watched, measured, and made at most once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor, nn

from . import cache, train, victims
from .attacks.text import Trigger, poison
from .btu import (
    READINGS,
    RECOVERY,
    ROUND,
    Detected,
    cleaned_rows,
    embedding_model,
    embedding_round,
    flagged_ids,
    occurring,
    pad_id,
    row_change,
    threshold_value,
    unlearn,
    word_embeddings,
)  # fmt: skip
from .data import TextDataset
from .models import TextClassifier, default_device, text_classifier
from .train import Batch, Batches, TrainSettings
from .victims import MEASURE, Scenario

CURVE_POINTS = 24  # of the curves of change over steps
MAP_ROWS = 150  # of each kind in the map of hidden states
NEIGHBOURS = 10

# ------------------------------------------------------------- what the attacker knows


def backdoor_tokens(
    dataset: TextDataset, mask: np.ndarray, tokenizer, share: float = 0.5
) -> list[int]:
    """Return the tokens that make poisoned rows different: an oracle, for figures only.

    Those whose share of poisoned rows exceeds their share of the other rows by at least ``share``
    of the largest such excess. The paper picks them by hand.
    """
    data = train.encode(dataset.texts, dataset.labels, tokenizer)
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


def watched(
    change: Callable[[], tuple[Tensor, Tensor]], tokens: Sequence[int], steps: int
) -> tuple[train.Loss, Callable[[], list[dict]]]:
    """Make a cross-entropy that writes down, now and then, how far tokens have moved.

    Args:
        change: returns ids (U,) of rows that train, and how far each has moved so far, (U,).
        tokens: the backdoor's; all others count as clean. steps: that training will take.

    Returns:
        The loss, and what to call after training: it returns one dict per point with ``step``,
        ``backdoor`` and ``clean``, the mean row change of either kind.
    """
    every, count, curve = max(1, steps // CURVE_POINTS), 0, []

    def point() -> list[dict]:
        ids, moved = change()
        inside = torch.isin(ids, torch.as_tensor(list(tokens), device=ids.device))
        means = {"backdoor": moved[inside].mean().item(), "clean": moved[~inside].mean().item()}
        curve.append({"step": count, **means})
        return curve

    def loss(network: nn.Module, batch: Batch):
        nonlocal count
        if count % every == 0:
            point()
        count += 1
        return train.cross_entropy(network, batch)

    return loss, point


class _Features(nn.Module):
    """A model whose output is its hidden state, so that ``predict`` can batch it."""

    def __init__(self, model: TextClassifier):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.features(input_ids, attention_mask)


def state_map(model: TextClassifier, dataset: TextDataset, mask: np.ndarray, seed: int) -> dict:
    """Draw hidden states of clean and poisoned rows in the plane, by t-SNE.

    Returns:
        Lists of equal length ``x``, ``y``, ``kind`` (class name or "poisoned") for at most MAP_ROWS
        random rows of each kind; and ``purity``, the percentage of the NEIGHBOURS nearest rows of a
        poisoned row, in the full space, that are poisoned too.

    Source: Figure 4, BTU.
    """
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    kinds = np.where(mask, "poisoned", np.array(dataset.class_names)[dataset.labels])
    groups = [np.flatnonzero(kinds == kind) for kind in ("poisoned", *dataset.class_names)]
    rows = np.concatenate([rng.permutation(group)[:MAP_ROWS] for group in groups])
    part, kinds = dataset.select(rows), kinds[rows]
    device = next(model.parameters()).device
    data = train.encode(part.texts, part.labels, model.tokenizer, device=device)
    states = train.predict(_Features(model), data).numpy()
    count = min(NEIGHBOURS, len(rows) - 1)
    near = NearestNeighbors(n_neighbors=count).fit(states).kneighbors(return_distance=False)
    poisoned = kinds == "poisoned"
    flat = TSNE(perplexity=min(30, (len(rows) - 1) / 3), random_state=seed).fit_transform(states)
    return {
        "x": flat[:, 0].round(3).tolist(),
        "y": flat[:, 1].round(3).tolist(),
        "kind": kinds.tolist(),
        "purity": 100 * float(poisoned[near][poisoned].mean()),
    }


# ------------------------------------------------------- the chapter's steps, each made once


def fresh(model: str, num_labels: int, seed: int) -> TextClassifier:
    """Return the pre-trained model with a fresh head, from which rounds and victims start."""
    return text_classifier(model, num_labels, seed).to(default_device())


def _conditions(*functions: str) -> dict:
    return cache.conditions(default_device(), ("btu", "btu_study", *MEASURE), *functions)


def _settled(settings: TrainSettings) -> TrainSettings:
    """Fix the precision, which is part of what a result was computed with."""
    return replace(
        settings, precision=train.resolve_precision(settings.precision, default_device())
    )


def cached_round(
    model: TextClassifier,
    dataset: TextDataset,
    settings: TrainSettings = ROUND,
    star: bool = False,
    without: Sequence[int] | Tensor = (),
) -> Tensor:
    """Do what ``embedding_round`` does, at most once."""
    settings, gone = _settled(settings), sorted(int(token) for token in without)

    def compute() -> dict:
        change = embedding_round(model, dataset, settings, star, gone).cpu()
        ids = change.nonzero()[:, 0]
        return {"ids": ids.tolist(), "change": change[ids].tolist()}

    key = {
        "model": cache.weights_digest(model),
        "data": dataset.sha256,
        "settings": asdict(settings),
        "star": star,
        "without": gone,
        **_conditions("embedding_round"),
    }
    result = cache.cached_json("embedding_round", key, compute)
    change = torch.zeros(len(word_embeddings(model)))
    change[result["ids"]] = torch.tensor(result["change"])
    return change


def exposure(
    case: Scenario,
    model: TextClassifier,
    tokens: Sequence[int],
    settings: TrainSettings = ROUND,
    everything: bool = False,
) -> dict:
    """Follow backdoor and clean rows while the embeddings, or ``everything``, train; cached.

    Args:
        model: pre-trained, with a fresh head. tokens: ids of the backdoor's.

    Returns:
        ``curve``, see ``watched``; and without ``everything`` two maps of hidden states, ``start``
        and ``end``, see ``state_map``. Source: Figures 1 and 4, BTU.
    """
    rows, settings = case.poisoned.dataset, _settled(settings)
    steps = settings.epochs * -(-len(rows) // settings.batch_size)
    before = word_embeddings(model).clone()

    def compute() -> dict:
        device = before.device
        data = train.encode(rows.texts, rows.labels, model.tokenizer, device=device)
        ids = occurring(data)
        network = copy.deepcopy(model) if everything else embedding_model(model, ids)

        def change() -> tuple[Tensor, Tensor]:
            now = word_embeddings(network)[ids] if everything else network.rows.weight.detach()
            return ids, row_change(before[ids], now)

        loss, finish = watched(change, tokens, steps)
        train.fit(network, Batches(data, settings.batch_size), loss, settings)
        result = {"curve": finish()}
        if not everything:
            for name, one in (("start", model), ("end", network)):
                result[name] = state_map(one, rows, case.poisoned.mask, settings.seed)
        return result

    key = {
        "model": cache.weights_digest(model),
        "data": rows.sha256,
        "mask": cache.digest({"mask": np.flatnonzero(case.poisoned.mask).tolist()}),
        "tokens": [int(token) for token in tokens],
        "settings": asdict(settings),
        "everything": everything,
        **_conditions("exposure"),
    }
    return cache.cached_json("exposure", key, compute)


def measured(cases: Sequence[Scenario], model: TextClassifier) -> dict:
    """Measure a model against each trigger of an attack; the mean of each metric over them."""
    found = [victims.measured(case, model) for case in cases]
    names = ("cacc", "dev_cacc", "lfr", "pacc")
    return {name: float(np.mean([one[name] for one in found])) for name in names}


def recovery_rows(clean: TextDataset, count: int, seed: int) -> TextDataset | None:
    """Draw ``count`` clean training rows for the recovery; None for 0. How many is ours to say."""
    if not count:
        return None
    order = np.random.default_rng(seed).permutation(len(clean))
    return clean.select(np.sort(order[:count]))


def unlearned(
    victim: TextClassifier,
    model: TextClassifier,
    tokens: Sequence[int] | Tensor,
    clean: TextDataset | None,
    method: str,
    recovery: TrainSettings = RECOVERY,
) -> TextClassifier:
    """Do what ``unlearn`` does, at most once; ``model`` is the pre-trained one."""
    network, _ = cache.cached_model(
        _key(victim, model, tokens, clean, method, recovery),
        build=lambda: copy.deepcopy(victim),
        train=lambda built: _put(
            built,
            unlearn(victim, word_embeddings(model), tokens, clean, method, _settled(recovery)),
        ),
    )
    return network


def _put(model: nn.Module, other: nn.Module) -> list[dict]:
    model.load_state_dict(other.state_dict())
    return []


def _key(victim, model, tokens, clean, method, recovery) -> dict:
    return {
        "victim": cache.weights_digest(victim),
        "model": cache.weights_digest(model),
        "tokens": sorted(int(token) for token in tokens),
        "clean": clean.sha256 if clean is not None else None,
        "method": method,
        "recovery": asdict(_settled(recovery)),
        **_conditions("unlearn"),
    }


def experiment(
    cases: Sequence[Scenario],
    victim: TextClassifier,
    model: TextClassifier,
    tokens: Sequence[int] | Tensor,
    clean: TextDataset | None,
    method: str,
    recovery: TrainSettings = RECOVERY,
) -> dict:
    """Unlearn tokens from a victim and measure what is left; cached by all that determines it.

    Args:
        cases: the attack, one scenario per trigger. model: the pre-trained model.

    Returns:
        The metrics of ``measured``; ``threshold``, the value that dimensions were compared with
        (None for methods without one); ``replaced``, the percentage of the flagged rows' dimensions
        that unlearning changed before recovery.
    """

    def compute() -> dict:
        before, after = word_embeddings(model), word_embeddings(victim)
        matrix = cleaned_rows(before, after, tokens, pad_id(victim), method, recovery.seed)
        flagged = flagged_ids(tokens, after)
        changed = (matrix[flagged] != after[flagged]).double().mean().item()
        reading = READINGS.get(method)
        network = unlearn(victim, before, tokens, clean, method, _settled(recovery))
        return {
            **measured(cases, network),
            "threshold": threshold_value(before, after, reading[0]) if reading else None,
            "replaced": 100 * changed,
        }

    tests = [part.sha256 for case in cases for part in (case.test, case.dev, case.triggered)]
    key = _key(victim, model, tokens, clean, method, recovery)
    key |= {"test": tests, "targets": [case.target for case in cases], **_conditions("experiment")}
    return cache.cached_json("tokens_unlearned", key, compute)


def quantities(
    case: Scenario,
    model: TextClassifier,
    tokens: Sequence[int],
    shares: Sequence[float],
    settings: TrainSettings = ROUND,
) -> list[dict]:
    """Compare a backdoor with the same trigger that means nothing, at several rates.

    ``dirty`` rows are triggered and relabelled as the scenario's; ``clean`` rows are as many rows
    of any class that carry the trigger and keep their label.

    Returns:
        Per rate and kind the mean row change of the trigger's ``tokens`` (``backdoor``) and of all
        other rows that moved (``average``) in a round 1. Source: Figure 3, BTU.
    """
    found = []
    for share in shares:
        dirty = poison(case.clean, case.trigger, case.target, share, case.seed)
        inserted = with_trigger(case.clean, case.trigger, int(dirty.mask.sum()), case.seed)
        for kind, rows in (("clean", inserted), ("dirty", dirty.dataset)):
            change = cached_round(model, rows, settings)
            inside = torch.isin(torch.arange(len(change)), torch.as_tensor(list(tokens)))
            others = change[~inside & (change > 0)]
            found.append(
                {
                    "labels": kind,
                    "inserted": 100 * share,
                    "backdoor": change[inside].mean().item(),
                    "average": others.mean().item(),
                }
            )
    return found


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
    return replace(dataset, texts=tuple(texts), labels=np.array(labels, np.int64))


def token_rows(
    detected: Detected, tokenizer, backdoor: Sequence[int], hide: Callable[[str], str] = str
) -> list[dict]:
    """Say in one row per round what it flagged, for the run record.

    Args:
        backdoor: ids of the tokens that an oracle names. hide: masks the words of abusive sets.
    """
    rows = []
    for number, flagged in zip(detected.rounds, detected.sets, strict=True):
        ids = flagged.tolist()
        words = tokenizer.convert_ids_to_tokens(ids)
        rows.append(
            {
                "round": number,
                "flagged": len(ids),
                "hits": len(set(ids) & set(backdoor)),
                "tokens": " ".join(hide(word) for word in words),
            }
        )
    return rows
