"""What a trigger changes inside a network: channels, likeness, the backdoor's existence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import ImageDataset
from ..models.images import pixels
from ..training.images import (
    EVAL_IMAGES,
)

# ------------------------------------------------------------------------- inside: TAC, CKA, BEC


def last_convolutions(model: nn.Module, count: int = 10) -> tuple[str, ...]:
    """Names of the last ``count`` convolutions in the order of definition (BI-BAU paper, D.4).

    Raises:
        ValueError: a model without convolutions; name its layers yourself.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise ValueError("the model has no convolution; give the names of its layers")
    return tuple(names[-count:])


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[str]):
    """Record the output of each layer, as (B, channels, places) float32, at every forward."""
    modules, maps = dict(model.named_modules()), {}
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(f"the model has no layer {', '.join(unknown)}")

    def hook(name: str):
        def record(module, inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            if value.ndim == 3:  # (B, tokens, d): the last axis holds the channels
                value = value.transpose(1, 2)
            maps[name] = value.detach().float().flatten(2) if value.ndim > 2 else value[..., None]

        return record

    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield maps
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


Inputs = Iterable[tuple]


def image_inputs(dataset: ImageDataset, device: torch.device | str = "cpu") -> list[tuple[Tensor]]:
    """Cut an image set into the batches of arguments that the functions below take."""
    return [(batch,) for batch in pixels(dataset.images, device).split(EVAL_IMAGES)]


def channel_changes(
    model: nn.Module, clean: Inputs, triggered: Inputs, layers: Sequence[str]
) -> dict[str, Tensor]:
    """TAC: how far the trigger moves each channel, the mean L2 norm of its map's change.

    Args:
        clean, triggered: batches of positional arguments of ``model``, row for row the same inputs
            without and with the trigger. layers: names from ``model.named_modules()``.

    Returns: layer → (channels,) float32 on the CPU. Source: Zheng et al. (2022a).
    """
    total, rows = {name: 0.0 for name in layers}, 0
    with _recorded(model, layers) as maps:
        for clean_batch, triggered_batch in zip(clean, triggered, strict=True):
            model(*clean_batch)
            clean_maps = dict(maps)
            model(*triggered_batch)
            for name in layers:
                change = (maps[name] - clean_maps[name]).norm(dim=2)  # (B, channels)
                total[name] = total[name] + change.sum(0)
            rows += len(change)
    return {name: (value / rows).cpu() for name, value in total.items()}


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of features, (N, p) and (N, q), of the same N rows; 0 … 1.

    Invariant to rotation and scale of either. Source: Kornblith et al. (2019), from the
    N × N Gram matrices, for there are more features than rows.

    Raises:
        ValueError: another shape, fewer than two rows, or features that do not vary.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"features {tuple(x.shape)} and {tuple(y.shape)}; accepted: (N, p) and (N, q), N ≥ 2"
        )
    grams = []
    for features in (x.double(), y.double()):
        features = features - features.mean(0)
        grams.append(features @ features.T)
    norms = [gram.norm() for gram in grams]
    if not all(norm > 0 for norm in norms):
        raise ValueError("features are the same in every row; CKA is undefined")
    return float((grams[0] * grams[1]).sum() / (norms[0] * norms[1]))


def _channel_features(
    model: nn.Module, inputs: Inputs, channels: dict[str, Tensor]
) -> dict[str, Tensor]:
    features = {name: [] for name in channels}
    with _recorded(model, tuple(channels)) as maps:
        for args in inputs:
            model(*args)
            for name, index in channels.items():
                features[name].append(maps[name][:, index.to(maps[name].device)].flatten(1))
    return {name: torch.cat(value) for name, value in features.items()}


def backdoor_existence(
    backdoored: nn.Module,
    clean_model: nn.Module,
    unlearned: nn.Module,
    clean: Inputs,
    triggered: Inputs,
    layers: Sequence[str] | None = None,
    top: float = 0.1,
    steepness: float = 5.0,
    centre: float = 0.5,
) -> dict:
    """BEC: how much of the backdoored model's inner response to the trigger an unlearned one keeps.

    Per layer: the ``top`` share of channels by TAC in the backdoored model; CKA of those channels'
    maps on triggered inputs, between the backdoored model and the unlearned, and the clean one. The
    coefficient is the mean over layers of ``(s_unlearned - s_clean) / (1 - s_clean)``: 1 for the
    backdoored model itself, 0 for the clean one.

    Args:
        clean, triggered: lists of batches of arguments, row for row the same inputs; the three
            models share their architecture.
        layers: default: the last 10 convolutions (section 5.4 and D.4 of the BI-BAU paper).
        steepness, centre: of the sigmoid that Eq. (53) puts over it. top and these two are ours:
            the paper's values are lost.

    Returns:
        ``bec`` (after the sigmoid, 0 … 1), ``raw`` and ``by_layer`` (before it).

    Raises:
        ValueError: no layer tells the clean model from the backdoored one.

    Source: Zhu et al. (2024); Eq. (51) to (53), BI-BAU.
    """
    layers = tuple(layers or last_convolutions(backdoored))
    clean, triggered = list(clean), list(triggered)
    changes = channel_changes(backdoored, clean, triggered, layers)
    channels = {
        name: change.topk(max(1, round(top * len(change)))).indices
        for name, change in changes.items()
    }
    features = [
        _channel_features(model, triggered, channels)
        for model in (backdoored, clean_model, unlearned)
    ]
    rates = {}
    for name in layers:
        victim_maps, clean_maps, unlearned_maps = (by_layer[name] for by_layer in features)
        clean_cka = linear_cka(clean_maps, victim_maps)
        if 1 - clean_cka > 1e-6:
            rates[name] = (linear_cka(unlearned_maps, victim_maps) - clean_cka) / (1 - clean_cka)
    if not rates:
        raise ValueError("the clean and the backdoored model agree in all layers: no BEC")
    raw = float(np.mean(list(rates.values())))
    bec = float(1 / (1 + np.exp(-steepness * (raw - centre))))
    return {"bec": bec, "raw": raw, "by_layer": rates}
