"""Fine-tuning itself: minilib's loop against ``transformers.Trainer``.

Chapter 03's victim is the case: a pre-trained encoder on the poisoned rows of SST-2. The Trainer is
timed in two settings:

* ``best``: the batches of minilib's own plan (rows of similar length together, which Trainer's
  ``group_by_length`` draws in its own random order), bf16 where minilib has it, fused AdamW, no
  logging, saving, evaluation or search for NaN, and on a GPU two workers that fill pinned memory.
* ``default``: as it comes, but for minilib's rate and size of batch, and no checkpoints: random
  batches, fp32.

What is compared, and how fairly:

* First, same weights, same batches, fp32, no dropout: the loss of ``best`` agrees at each step.
* Then the loops are timed in turns, each in a process of its own, from the first batch that is
  asked for to the end of the last step. What either does before (a Trainer takes a quarter of a
  second) would count for much among few steps, and for nothing in a run. ``heap`` is ``best`` in a
  process whose C library was told to keep its heap, as minilib tells it on a CPU.
* Decay is 0 in all loops: Trainer would spare biases and norms, minilib decays all.

torch.compile is in none of them: with rows of many lengths it compiles for minutes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from minilib import train
from minilib.models import TextClassifier, text_classifier
from minilib.train import Batches, TrainSettings

from . import limits, workers
from .btu import rows_of
from .rga import First, make_case
from .timing import hardware, in_turns, ratios, spread, turns, versions, wait, write
from .workers import Run

LR, MAX_LENGTH = 5e-5, 128
TOLERANCE = 1e-4  # relative, of the loss at each step
WARM_STEPS = 2
VARIANTS = ("trainer default", "trainer best", "trainer best, heap", "minilib fp32", "minilib")
LARGE = "bert-base-sized"  # random weights; rows that fill MAX_LENGTH


@dataclass(frozen=True)
class Case:
    """What is fine-tuned, and on what."""

    model: str
    source: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    batch_size: int
    steps: int
    device: str
    threads: int
    dropout: bool = True
    seed: int = 0


def cases(device: str, threads: int, quick: bool) -> list[Case]:
    """Chapter 03's victim; on a GPU also an encoder of BERT-base's size."""
    taken = make_case(device, threads, quick)
    rows = rows_of(taken)
    steps = 3 if quick else (200 if device == "cuda" else 6)
    labels = tuple(int(label) for label in rows.labels)
    where = (taken.batch_size, steps, device, threads)
    first = Case(taken.model, taken.source, tuple(rows.texts), labels, *where)
    if device != "cuda":
        return [first]
    full = tuple(f"{text} " * 40 for text in rows.texts)
    return [first, replace(first, model=LARGE, texts=full)]


def start(case: Case) -> TextClassifier:
    """The encoder with a fresh head, the same for every loop."""
    if case.model == LARGE:
        tokenizer = text_classifier("tiny", 2, 0).tokenizer  # BERT's vocabulary
        torch.manual_seed(case.seed)
        network = BertForSequenceClassification(BertConfig(num_labels=2))
        model = TextClassifier(network, tokenizer)
    else:
        model = text_classifier(case.model, len(set(case.labels)), case.seed)
    for module in model.modules() if not case.dropout else ():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(case.device)


def encoded(case: Case, tokenizer, device: str) -> train.Encoded:
    return train.encode(case.texts, case.labels, tokenizer, MAX_LENGTH, device)


@dataclass(frozen=True)
class Started(First):
    """Keeps the time at which the first batches of an epoch were asked for."""

    clock: list[float] = field(default_factory=list)

    def __call__(self, rng):
        self.clock.append(wait("cuda" if self.batches.data.ids.is_cuda else "cpu"))
        return super().__call__(rng)


def ours(case: Case, precision: str) -> Run:
    """minilib's loop."""
    model = start(case)
    data = encoded(case, model.tokenizer, case.device)
    settings = TrainSettings(
        1, LR, case.batch_size, weight_decay=0.0, precision=precision, seed=case.seed
    )

    def run(steps: int) -> tuple[float, list[float]]:
        logs, batches = [], Started(Batches(data, case.batch_size), steps)

        def loss(network, batch):
            value, log = train.cross_entropy(network, batch)
            logs.append(log["loss"])
            return value, log

        train.fit(model, batches, loss, settings)
        return wait(case.device) - batches.clock[0], torch.stack(logs).tolist()

    return run


class Planned(Trainer):
    """A Trainer that is given the rows of each batch."""

    plan: list[list[int]]

    def get_train_dataloader(self) -> DataLoader:
        how = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=Plan(self.plan),
            collate_fn=self.data_collator,
            num_workers=how.dataloader_num_workers,
            pin_memory=how.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)


class Plan(torch.utils.data.Sampler):
    """Rows of each batch, as given."""

    def __init__(self, batches: list[list[int]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class Clock(TrainerCallback):
    """Seconds from the first batch that is asked for to the end of the last step."""

    def __init__(self, device: str):
        self.device, self.seconds = device, 0.0

    def on_epoch_begin(self, *_, **__):
        self.seconds = self.seconds or -wait(self.device)

    def on_train_end(self, *_, **__):
        self.seconds += wait(self.device)


def arguments(case: Case, folder: str, steps: int, best: bool, precision: str) -> TrainingArguments:
    """How the Trainer trains."""
    common = dict(
        output_dir=folder, max_steps=steps, learning_rate=LR, weight_decay=0.0,
        per_device_train_batch_size=case.batch_size, use_cpu=case.device == "cpu",
        seed=case.seed, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    if not best:
        return TrainingArguments(**common)
    cuda = case.device == "cuda"
    return TrainingArguments(
        **common, lr_scheduler_type="constant", optim="adamw_torch_fused", max_grad_norm=1.0,
        bf16=precision == "bf16", fp16=precision == "fp16", logging_strategy="no",
        eval_strategy="no", logging_nan_inf_filter=False,
        dataloader_num_workers=2 if cuda else 0, dataloader_pin_memory=cuda,
        remove_unused_columns=False,
    )  # fmt: skip


def trainer(case: Case, best: bool, precision: str, keep: bool = False) -> Run:
    """The Trainer's loop; ``keep`` has it return the loss of each step."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # loading on a GPU forks after tokenising
    model = start(case)
    tokens = model.tokenizer(list(case.texts), truncation=True, max_length=MAX_LENGTH)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(
            tokens["input_ids"], tokens["attention_mask"], case.labels, strict=True
        )
    ]
    plan = Batches(encoded(case, model.tokenizer, "cpu"), case.batch_size).rows(
        np.random.default_rng(case.seed)
    )
    kind, kept = (Planned if best else Trainer), []
    if keep:
        model.network.register_forward_hook(lambda _, __, out: kept.append(out.loss.detach()))

    def run(steps: int) -> tuple[float, list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            # New each time, for one that has trained keeps its optimiser.
            made = kind(
                model.network,
                arguments(case, folder, steps, best, precision),
                DataCollatorWithPadding(model.tokenizer),
                rows,
            )
            made.plan = [part.tolist() for part in plan[:steps]]
            made.remove_callback(PrinterCallback)
            clock = Clock(case.device)
            made.add_callback(clock)
            made.train()
            return clock.seconds, [value.item() for value in kept]

    return run


def make(case: Case, variant: str) -> tuple[Run, float]:
    """A loop by its name in VARIANTS, and no seconds of set-up."""
    precision = limits.precision_of(variant, case.device)
    if "heap" in variant:
        train.keep_heap(torch.device(case.device))
    if variant.startswith("trainer"):
        return trainer(case, "best" in variant, precision), 0.0
    return ours(case, precision), 0.0


def check(case: Case) -> tuple[float, dict[str, int]]:
    """Compare the losses of all steps in fp32; return the largest difference, and FLOPs.

    Raises:
        RuntimeError: the loops do not compute the same, so their times must not be compared.
    """
    still = replace(case, dropout=False)
    loops = {
        "trainer default": trainer(still, False, "fp32", keep=True),
        "trainer best": trainer(still, True, "fp32", keep=True),
        "minilib": ours(still, "fp32"),
    }
    logs, flops = {}, {}
    for name, loop in loops.items():
        (_, logs[name]), flops[name] = limits.count(loop, case.steps)
    pairs = list(zip(logs["trainer best"], logs["minilib"], strict=True))
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"losses differ by {worst:.1e} (relative); accepted: {TOLERANCE:.0e}")
    return worst, flops


def optimiser_step(case: Case, repeats: int) -> tuple[float, int]:
    """Median seconds of one fused AdamW step, and the bytes that it reads and writes."""
    model = start(case)
    optimizer = torch.optim.AdamW(model.parameters(), LR, fused=True)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-6)

    def step() -> tuple[float, None]:
        started = wait(case.device)
        optimizer.step()
        return wait(case.device) - started, None

    seconds = spread(in_turns({"step": step}, 5 * repeats)["step"], 6)["median"]
    # Reads weight, gradient and two moments; writes weight and moments.
    return seconds, 7 * sum(p.numel() * p.element_size() for p in model.parameters())


def measure(case: Case, repeats: int, isolated: bool = True) -> dict:
    """Check, then time; return the record."""
    worst, flops = check(case)
    print(f"fine-tuning {case.model}: losses of {case.steps} steps within {worst:.1e} (relative)")
    names = [name for name in VARIANTS if case.device == "cpu" or "heap" not in name]
    builds = {name: partial(make, case, name) for name in names}
    found = workers.alternate(
        builds, case.device, case.threads, repeats, case.steps, WARM_STEPS, isolated
    )
    rates = limits.machine(case.device, quick=not isolated)
    counted = {name: flops.get(name.removesuffix(", heap"), flops["minilib"]) for name in names}
    parts = limits.loops(rates, case.device, found, counted, f"{case.steps} steps, {{}}")
    seconds, moved = optimiser_step(case, repeats)
    parts["a step of the optimiser, minilib"] = limits.part(rates, seconds, moved=moved)
    return {
        "what": f"Fine-tuning {case.model}: transformers.Trainer against minilib",
        "case": {
            "model": case.model, "data": case.source, "rows": len(case.texts),
            "batch": case.batch_size, "steps timed": case.steps, "device": case.device,
            "precision": limits.precision_of("minilib", case.device),
        },
        "hardware": hardware(case),
        "versions": versions(),
        "equal_losses": {"largest_relative_difference": worst, "tolerance": TOLERANCE},
        "seconds": found,
        "ratios": {
            f"{name} / minilib": ratios(found[name], found["minilib"])
            for name in names
            if name != "minilib"
        },
        "limits": {"machine": rates, "parts": parts},
    }  # fmt: skip


def each_case(
    name: str, cases: Callable, measure: Callable, folder: Path, device: str, threads: int,
    repeats: int | None, quick: bool,
) -> Path:  # fmt: skip
    """Measure every case, print its ratios and write ``name-<device>.json``."""
    torch.set_num_threads(threads)
    repeats = turns(repeats, quick, device)
    records = [measure(case, repeats, isolated=not quick) for case in cases(device, threads, quick)]
    for record in records:
        for label, ratio in record["ratios"].items():
            print(f"{record['case']['model']:16} {label:40} {ratio['median']:.2f}")
    return write(folder, f"{name}-{device}{'-quick' if quick else ''}", records)


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure and write ``finetune-<device>.json``; ``switches`` is there for rga and not used."""
    return each_case("finetune", cases, measure, folder, device, threads, repeats, quick)
