"""What is timed beside what: the loops of `tests/plain/` at sizes that mean something.

Each function makes the benchmark of one line of work; ``options`` are the command line's. A
rehearsal has the sizes of the tests.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from plain import bi_bau as plain_bi_bau
from plain import btu as plain_btu
from plain import rga as plain_rga
from plain import sande as plain_sande
from plain import texts, trainer

from minilib.detection import DETECTORS
from minilib.unlearning.btu import word_embeddings

from .timing import Bench, Options

STEPS = {"btu": {"cpu": 2, "cuda": 50}, "finetune": {"cpu": 6, "cuda": 200}}  # that are timed


def text_case(options: Options, every: int = 1) -> tuple[texts.Case, dict]:
    """SST-2 with 10 % of its negatives poisoned, or as many built-in texts; and what it is.

    Args:
        every: so many rows, evenly, are left out but one.
    """
    if options.quick:
        case, source = texts.toy_case(), "toy-reviews"
    else:
        real = bool(os.environ.get("MINILIB_DATA"))
        parts = texts.poisoned("sst2") if real else texts.poisoned("toy-reviews", 331, 6920)
        parts = [one.select(np.arange(0, len(one), every)) for one in parts]
        case = texts.Case("minilm", *parts, 32, options.device)
        source = f"SST-2 ({parts[0].source})" if real else "toy-reviews, repeated"
    said = {"model": case.model, "data": source, "rows": len(case.rows), "batch": case.batch_size}
    return case, said


def rga(options: Options) -> list[Bench]:
    """An epoch, on a CPU of a sixth of the rows; with ``--switches`` also the plain loop's habits.

    Each switch that does anything here is taken out of the plain loop with all of them on.
    """
    case, said = text_case(options, 6 if options.device == "cpu" else 1)
    build, names = partial(plain_rga.build, case), ("plain", "minilib", "minilib fp32")
    made = [Bench(
        "one RGA unlearning epoch: plain loop against minilib", said, build,
        {f"plain / {name}": ("plain", name) for name in names[1:]},
        {f"epoch, {name}": name for name in names},
    )]  # fmt: skip
    if options.switches:
        idle = {"bf16": options.precision() != "bf16", "heap": options.device != "cpu"}
        every = [name for name in plain_rga.SWITCHES if not idle.get(name)]
        slow = {f"without {out}": "plain: " + " ".join(one for one in every if one != out)
                for out in every}  # fmt: skip
        ratios = {label: (name, "plain: " + " ".join(every)) for label, name in slow.items()}
        made.append(Bench("one RGA unlearning epoch: the plain loop with all switches on, and "
                          "without one", said, build, ratios))  # fmt: skip
    return made


def btu(options: Options) -> list[Bench]:
    """A few steps of two rounds, ranking, unlearning; ``train star`` has next to no products."""
    case, said = text_case(options)
    steps = 3 if options.quick else STEPS["btu"][options.device]
    names = ("train, plain", "train, minilib", "rank, minilib", "unlearn, minilib")
    matrix = word_embeddings(case.start()).numel() * 4  # bytes
    return [Bench(
        f"BTU: plain loops against minilib; {steps} steps of training",
        said | {"steps timed": steps}, partial(plain_btu.build, case),
        {what: (f"{what}, plain", f"{what}, minilib") for what in plain_btu.PARTS},
        parts={name: name for name in names}, steps=steps,
        # Two matrices of embeddings are read; and one written.
        moved={"rank, minilib": 2 * matrix, "unlearn, minilib": 3 * matrix},
    )]  # fmt: skip


def sande(options: Options) -> list[Bench]:
    """Both stages and the answers at every length; a single prompt has no padding."""
    made, ours = [], plain_sande.OURS
    for length in (256,) if options.quick else (256, 1024):  # tokens that a row may have
        for stage in (1, 2, plain_sande.ANSWERS):
            case, asks = sande_case(stage, length, options), stage == plain_sande.ANSWERS
            title = stage if asks else f"stage {stage}"
            slow = plain_sande.PLAIN[:1] if asks else plain_sande.PLAIN
            made.append(Bench(
                f"SANDE, {title}, length {case.max_length}: plain loops against minilib",
                asdict(case), partial(plain_sande.build, case),
                {f"{a} / {b}": (a, b) for a in slow for b in ours},
                parts={name: name for name in (*slow, *ours)}, steps=case.steps, memory=True,
            ))  # fmt: skip
    return made


def sande_case(stage: int | str, length: int, options: Options) -> plain_sande.Case:
    """The small model on a CPU, the medium one on a GPU; smaller batches where rows are long."""
    if options.quick:
        return plain_sande.Case(stage)
    data, long = "alpaca-9k" if os.environ.get("MINILIB_DATA") else "toy-chat", length > 256
    if options.device == "cuda":
        sizes = "medium", data, 1024, 16, length, 32
    elif stage == plain_sande.ANSWERS:
        sizes = "small", data, 16 if long else 32, 32, length, 1
    else:
        sizes = "small", data, 512, 4 if long else 16, length, 2
    return plain_sande.Case(stage, *sizes, options.device)


def bi_bau(options: Options) -> list[Bench]:
    """PGD of many and of few steps, and the epoch; with ``--switches`` also compiled.

    A quarter-width ResNet-18 on a CPU, full width on a GPU.
    """
    case = plain_bi_bau.Case()
    if not options.quick:
        sizes = (1.0, 2500, 32, 256, 20) if options.device == "cuda" else (0.25, 64, 32, 64, 20)
        case = plain_bi_bau.Case("resnet18", *sizes, options.device)
    names, epochs = ("plain", "minilib", "minilib fp32"), plain_bi_bau.EPOCHS
    few = min(5, case.steps)
    many, little = ({one: f"pgd of {n} steps, {one}" for one in names} for n in (case.steps, few))
    ratios = {
        "pgd, minilib to plain": (many["plain"], many["minilib"]),
        f"pgd of {few} steps, minilib to plain": (little["plain"], little["minilib"]),
        "pgd, minilib fp32 to plain": (many["plain"], many["minilib fp32"]),
        "epoch, bi-bau to plain adversarial training": (epochs[0], epochs[1]),
        "epoch, bi-bau to minilib's adversarial training": (epochs[0], epochs[2]),
    }
    for name in names[1:] if options.switches else ():
        ratios[f"pgd, {name} to itself compiled"] = many[name], f"{many[name]}, compiled"
    return [Bench(
        "BI-BAU: PGD steps and an epoch, plain loops against minilib",
        asdict(case), partial(plain_bi_bau.build, case), ratios,
        {f"{case.steps} PGD steps, {name}": many[name] for name in names},
    )]  # fmt: skip


def detection(options: Options) -> list[Bench]:
    """States and CUBE by both; every detector of chapter 02 on a few rows, in passes.

    A pass is the time that collecting these rows' states takes. UMAP and HDBSCAN are the same for
    both sides, and have most of the time: that is why the collecting of the states stands by itself
    too. What is timed does not depend on what the victim has learnt: it has a fresh head.
    """
    case, said = text_case(options)
    rows, count = case.rows, len(case.rows)
    most, few = (min(count, n) for n in ((150, 25) if options.device == "cpu" else (count, 1000)))
    # From the first to the last row, for the poisons are the last.
    many, some = (rows.select(np.linspace(0, count - 1, n).astype(int)) for n in (most, few))
    both = {what: (f"{what}, plain", f"{what}, minilib") for what in ("states", "CUBE")}
    # "cube-code" is another reading of CUBE's map.
    alone = {f"{name}, in passes over {few} rows": (name, texts.ONE_PASS)
             for name in DETECTORS if name != "cube-code"}  # fmt: skip
    return [Bench(
        "Detection: a plain loop's time over minilib's; then each detector, in passes",
        said | {"rows": most}, partial(texts.build, case, many, some), both | alone,
        {name: name for name in both["states"]},
    )]  # fmt: skip


def finetune(options: Options) -> list[Bench]:
    """Chapter 03's victim; on a GPU also BERT-base's size, on rows that fill the length.

    What a loop does before its first step would count for much among few: the time of two is taken
    off.
    """
    steps = 3 if options.quick else STEPS["finetune"][options.device]
    cases = [text_case(options)]
    if options.device == "cuda":
        first, said = cases[0]
        long = [replace(one, texts=tuple(f"{text} " * 40 for text in one.texts))
                for one in (first.forget, first.retain)]  # fmt: skip
        large = replace(first, model=trainer.LARGE, forget=long[0], retain=long[1])
        cases.append((large, said | {"model": large.model}))
    names = [one for one in trainer.VARIANTS if options.device == "cpu" or "heap" not in one]

    def moved(case: texts.Case) -> int:  # weight, gradient, two moments; weight and moments again
        weights = trainer.start(case).parameters()
        return steps * 7 * sum(p.numel() * p.element_size() for p in weights)

    return [Bench(
        f"Fine-tuning {case.model}: transformers.Trainer against minilib",
        said | {"steps timed": steps}, partial(trainer.build, case),
        {f"{name} / minilib": (name, "minilib") for name in names[:-1]},
        parts={f"{steps} steps, {name}": name for name in names}
        | {f"{steps} times {trainer.OPTIMISER}": trainer.OPTIMISER},
        moved={trainer.OPTIMISER: moved(case)}, steps=steps, less=2,
    ) for case, said in cases]  # fmt: skip
