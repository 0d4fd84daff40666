"""How time and memory of minilib's loops grow: with rows, length, vocabulary and size of the model.

Two loops: ``fine-tuning`` of all weights, and ``BTU``, which trains the word embeddings of the
tokens that occur and nothing else. The encoder is a BERT with random weights; rows are random
tokens, all of one length. One thing is varied, the others stay at ``BASE``.

Each point is measured in a process of its own: one step to warm up, then the median of a few
epochs. Memory is the peak over what stood there before model and data were made. The exponent is
the slope of a straight line through the logarithms, by least squares; ``end`` is the slope between
the last two points, where overheads count least.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from minilib.models.text import TextClassifier
from minilib.training import devices, fitting
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches, Encoded
from minilib.unlearning import btu

from . import timing
from .timing import Options

LOOPS = ("fine-tuning", "BTU")
LAYERS, HEAD = 2, 64  # transformer layers; numbers of a head
BATCH = 32
AXES = {  # what is varied → its name on the page
    "rows": "rows, an epoch",
    "length": "tokens of a row, a step",
    "vocabulary": "tokens of the vocabulary, a step",
    "width": "weights beside the embeddings, a step",
}


@dataclass(frozen=True)
class Case:
    """One point: an encoder, its rows, where."""

    device: str
    threads: int
    rows: int = 3 * BATCH
    length: int = 32
    vocabulary: int = 8192
    width: int = 128
    repeats: int = 3


def points(case: Case, quick: bool) -> dict[str, list[Case]]:
    """What is measured, by what is varied; larger on a GPU, where small steps are all overhead."""
    much = 4 if case.device == "cuda" else 1
    values = {
        "rows": [256 * much * 2**k for k in range(4)],
        "length": [32 * 2**k for k in range(5)],
        "vocabulary": [8192 * 2**k for k in range(5)],
        "width": [64 * much * 2**k for k in range(4)],
    }
    if quick:
        values = {
            "rows": [32, 64],
            "length": [8, 16],
            "vocabulary": [512, 1024],
            "width": [64, 128],
        }
    return {
        axis: [replace(case, **{axis: value}) for value in several]
        for axis, several in values.items()
    }


def encoder(case: Case) -> TextClassifier:
    """A BERT with random weights, and no tokenizer."""
    config = BertConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        num_hidden_layers=LAYERS,
        num_attention_heads=max(1, case.width // HEAD),
        intermediate_size=4 * case.width,
        num_labels=2,
    )
    return TextClassifier(BertForSequenceClassification(config), None).to(case.device)


def rows_of(case: Case) -> Encoded:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, case.vocabulary, (case.rows, case.length), dtype=np.int32)
    labels = torch.as_tensor(rng.integers(0, 2, case.rows), device=case.device)
    return Encoded(
        torch.as_tensor(ids, device=case.device), np.full(case.rows, case.length), labels
    )


def point(case: Case, loop: str) -> tuple[float, float, int]:
    """Seconds of an epoch, peak memory in MiB, and the weights beside the word embeddings."""
    torch.set_num_threads(case.threads)
    timing.forget_peak(case.device)
    before = timing.peak(case.device)
    model, data = encoder(case), rows_of(case)
    inner = sum(p.numel() for p in model.parameters()) - case.vocabulary * case.width
    network = btu.embedding_model(model, btu.occurring(data)) if loop == "BTU" else model
    batches, settings = Batches(data, BATCH), TrainSettings(1, 1e-5, BATCH, weight_decay=0.0)
    loss = text_training.cross_entropy
    seconds = [
        value
        for _ in range(case.repeats)
        for value in timing.seconds_of(
            fitting.fit, network, batches, loss, settings, threads=case.threads
        )
    ]
    return float(np.median(seconds)), timing.peak(case.device) - before, inner


def slope(x: list[float], y: list[float]) -> float:
    """Exponent of the power law that fits best, by least squares on logarithms.

    Raises:
        ValueError: fewer than two points, or one that is not above 0.
    """
    if len(x) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"x is {x}, y is {y}; accepted: two points or more, above 0")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curve(axis: str, cases: list[Case], loop: str, isolated: bool) -> dict:
    """Measure one loop along one axis."""
    measured = []
    for case in cases:
        if isolated:
            with timing.process() as pool:
                measured.append(pool.submit(point, case, loop).result())
        else:
            measured.append(point(case, loop))
    x = [
        part[2] if axis == "width" else getattr(c, axis)
        for c, part in zip(cases, measured, strict=True)
    ]
    steps = 1 if axis == "rows" else cases[0].rows // BATCH
    series = {
        "seconds": [round(part[0] / steps, 6) for part in measured],
        "mib": [round(max(part[1], 0.1), 1) for part in measured],
    }
    fits = {
        name: {"exponent": round(slope(x, y), 3), "end": round(slope(x[-2:], y[-2:]), 3)}
        for name, y in series.items()
    }
    return {"x": x, **series, "fits": fits}


def main(folder, options: Options):
    """Measure and write ``growth-<device>.json``."""
    case = Case(options.device, options.threads, repeats=options.turns)
    axes = {
        AXES[axis]: {loop: curve(axis, cases, loop, not options.quick) for loop in LOOPS}
        for axis, cases in points(case, options.quick).items()
    }
    precision = devices.resolve_precision("auto", torch.device(options.device))
    told = {
        "model": f"BERT, {LAYERS} layers, random weights", "length": case.length,
        "vocabulary": case.vocabulary, "width": case.width, "batch": BATCH, "precision": precision,
    }  # fmt: skip
    what = "Growth of time and memory: minilib's loops"
    return timing.write(folder, "growth", options, timing.record(what, options, told, growth=axes))
