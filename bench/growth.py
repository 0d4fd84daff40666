"""How time and memory of minilib's loops grow: with rows, length, vocabulary and size of the model.

Two loops: ``fine-tuning`` of all weights, and ``BTU``, which trains the word embeddings of the
tokens that occur and nothing else. The encoder is a BERT with random weights; rows are random
tokens, all of one length. One thing is varied, the others stay. Each point has its own process;
memory is the peak over what stood there before model and data were made. The exponent is the slope
of a straight line through the logarithms; ``end`` is that of the last two points, where overheads
count least.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from minilib.models.text import TextClassifier
from minilib.training import fitting
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches, Encoded
from minilib.unlearning import btu

from . import timing
from .timing import Options

LOOPS = ("fine-tuning", "BTU")
LAYERS, HEAD = 2, 64  # transformer layers; numbers of a head
BATCH = 32
AXES = {  # what is varied → its name on the page, the least value, how often it is doubled
    "rows": ("rows, an epoch", 256, 4),
    "length": ("tokens of a row, a step", 32, 5),
    "vocabulary": ("tokens of the vocabulary, a step", 8192, 5),
    "width": ("weights beside the embeddings, a step", 64, 4),
}


@dataclass(frozen=True)
class Case:
    """One point: an encoder and its rows."""

    options: Options
    rows: int = 3 * BATCH
    length: int = 32
    vocabulary: int = 8192
    width: int = 128


def points(axis: str, options: Options) -> list[Case]:
    """What is measured; larger on a GPU, where small steps are all overhead."""
    _, least, count = AXES[axis]
    if options.device == "cuda" and axis in ("rows", "width"):
        least *= 4
    if options.quick:
        least, count = max(least // 16, 8) if axis != "width" else least, 2
    return [replace(Case(options), **{axis: least * 2**k}) for k in range(count)]


def encoder(case: Case) -> TextClassifier:
    """A BERT with random weights, and no tokenizer."""
    config = BertConfig(
        vocab_size=case.vocabulary, hidden_size=case.width, num_hidden_layers=LAYERS,
        num_attention_heads=max(1, case.width // HEAD), intermediate_size=4 * case.width,
        num_labels=2,
    )  # fmt: skip
    network = TextClassifier(BertForSequenceClassification(config), None)
    return network.to(case.options.device)


def rows_of(case: Case) -> Encoded:
    """Random tokens and labels."""
    rng, device = np.random.default_rng(0), case.options.device
    ids = rng.integers(0, case.vocabulary, (case.rows, case.length), dtype=np.int32)
    labels = torch.as_tensor(rng.integers(0, 2, case.rows), device=device)
    lengths = np.full(case.rows, case.length)
    return Encoded(torch.as_tensor(ids, device=device), lengths, labels)


def point(case: Case, loop: str) -> tuple[float, float, int]:
    """Seconds of an epoch, peak memory in MiB, and the weights beside the word embeddings."""
    options = case.options
    torch.set_num_threads(options.threads)
    timing.forget_peak(options.device)
    before = timing.peak(options.device)
    model, data = encoder(case), rows_of(case)
    inner = sum(p.numel() for p in model.parameters()) - case.vocabulary * case.width
    network = btu.embedding_model(model, btu.occurring(data)) if loop == "BTU" else model
    batches, settings = Batches(data, BATCH), TrainSettings(1, 1e-5, BATCH, weight_decay=0.0)
    epoch = (fitting.fit, network, batches, text_training.cross_entropy, settings)
    seconds = [timing.seconds_of(*epoch, threads=options.threads) for _ in range(options.turns)]
    return statistics.median(sum(seconds, [])), timing.peak(options.device) - before, inner


def slope(x: list[float], y: list[float]) -> float:
    """Exponent of the power law that fits best, by least squares on logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curve(axis: str, loop: str, options: Options) -> dict:
    """Measure one loop along one axis."""
    cases, measured = points(axis, options), []
    for case in cases:
        if options.quick:
            measured.append(point(case, loop))
            continue
        with timing.process() as pool:
            measured.append(pool.submit(point, case, loop).result())
    seconds, mib, inner = zip(*measured, strict=True)
    x = list(inner) if axis == "width" else [getattr(case, axis) for case in cases]
    steps = 1 if axis == "rows" else cases[0].rows // BATCH
    series = {
        "seconds": [round(value / steps, 6) for value in seconds],
        "mib": [round(max(value, 0.1), 1) for value in mib],
    }
    fits = {
        name: {"exponent": round(slope(x, y), 3), "end": round(slope(x[-2:], y[-2:]), 3)}
        for name, y in series.items()
    }
    return {"x": x, **series, "fits": fits}


def records(options: Options) -> list[dict]:
    """Both loops along every axis."""
    axes = {
        title: {loop: curve(axis, loop, options) for loop in LOOPS}
        for axis, (title, *_) in AXES.items()
    }
    base = Case(options)
    told = {
        "model": f"BERT, {LAYERS} layers, random weights", "length": base.length,
        "vocabulary": base.vocabulary, "width": base.width, "batch": BATCH,
        "precision": options.precision(),
    }  # fmt: skip
    what = "Growth of time and memory: minilib's loops"
    return [timing.record(what, options, told, growth=axes)]
