"""Fine-tuning itself: minilib's loop against ``transformers.Trainer``.

Chapter 03's victim is the case: a pre-trained encoder on the poisoned rows of SST-2. The Trainer is
timed in two settings:

* ``best``: the batches of minilib's own plan (rows of similar length together, which Trainer's
  ``group_by_length`` draws in its own random order), bf16 where minilib has it, fused AdamW, no
  logging, saving, evaluation or search for NaN, and on a GPU two workers that fill pinned memory.
* ``default``: as it comes, but for minilib's rate and size of batch, and no checkpoints: random
  batches, fp32.

What either does before its first step (a Trainer takes a quarter of a second) would count for much
among few steps, and for nothing in a run: the time of two steps is taken off. ``heap`` is ``best``
in a process whose C library was told to keep its heap, as minilib tells it on a CPU. Decay is 0 in
all loops: Trainer would spare biases and norms, minilib decays all.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)  # fmt: skip
from transformers.trainer_callback import PrinterCallback

from minilib.models.text import TextClassifier, text_classifier
from minilib.training import devices
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches

from . import texts, timing
from .texts import MAX_LENGTH, Case, fitted, make_case, still
from .timing import Options

LR, LESS = 5e-5, 2
VARIANTS = ("trainer default", "trainer best", "trainer best, heap", "minilib fp32", "minilib")
SAME = ("trainer best", "minilib fp32", "minilib")  # the batches; the others draw their own
LARGE = "bert-base-sized"  # random weights; rows that fill MAX_LENGTH


def cases(options: Options) -> list[Case]:
    """Chapter 03's victim; on a GPU also an encoder of BERT-base's size."""
    first = make_case(options)
    if options.device != "cuda":
        return [first]
    long = [replace(one, texts=tuple(f"{text} " * 40 for text in one.texts))
            for one in (first.forget, first.retain)]  # fmt: skip
    return [first, replace(first, model=LARGE, forget=long[0], retain=long[1])]


def steps_of(options: Options) -> int:
    """Steps that are timed, beyond the first LESS."""
    return 3 if options.quick else (200 if options.device == "cuda" else 6)


def start(case: Case, exact: bool) -> TextClassifier:
    """The encoder with a fresh head, the same for every loop."""
    if case.model != LARGE:
        return texts.start(case, exact)
    tokenizer = text_classifier("tiny", 2, 0).tokenizer  # BERT's vocabulary
    torch.manual_seed(case.seed)
    network = BertForSequenceClassification(BertConfig(num_labels=2))
    model = TextClassifier(network, tokenizer).to(case.device)
    return still(model) if exact else model


def batches_of(case: Case, tokenizer, device: str) -> Batches:
    rows = case.rows
    data = text_training.encode(rows.texts, rows.labels, tokenizer, MAX_LENGTH, device)
    return Batches(data, case.batch_size)


def build(case: Case, name: str, exact: bool):
    """A loop by its name in VARIANTS."""
    precision = timing.precision_of(name, case.device, exact)
    if "heap" in name:
        devices.keep_heap(torch.device(case.device))
    if name.startswith("trainer"):
        return trainer(case, "best" in name, precision, exact)
    return ours(case, precision, exact)


def ours(case: Case, precision: str, exact: bool):
    model = start(case, exact)
    batches = batches_of(case, model.tokenizer, case.device)
    how = TrainSettings(
        1, LR, case.batch_size, weight_decay=0.0, precision=precision, seed=case.seed
    )
    return lambda steps: fitted(model, batches, text_training.cross_entropy, how, steps)


class Planned(Trainer):
    """A Trainer that is given the rows of each batch."""

    plan: list[list[int]]

    def get_train_dataloader(self) -> DataLoader:
        how = self.args
        loader = DataLoader(
            self.train_dataset, batch_sampler=self.plan, collate_fn=self.data_collator,
            num_workers=how.dataloader_num_workers, pin_memory=how.dataloader_pin_memory,
        )  # fmt: skip
        return self.accelerator.prepare(loader)


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


def trainer(case: Case, best: bool, precision: str, exact: bool):
    """The Trainer's loop; ``exact`` keeps the loss of each step."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # loading on a GPU forks after tokenising
    model, told = start(case, exact), case.rows
    tokens = model.tokenizer(list(told.texts), truncation=True, max_length=MAX_LENGTH)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
        for ids, mask, label in zip(
            tokens["input_ids"], tokens["attention_mask"], told.labels, strict=True
        )
    ]
    plan = batches_of(case, model.tokenizer, "cpu").rows(np.random.default_rng(case.seed))
    losses: list[torch.Tensor] = []
    if exact:
        model.network.register_forward_hook(lambda _, __, out: losses.append(out.loss.detach()))

    def run(steps: int) -> list[list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            # New each time, for one that has trained keeps its optimiser.
            made = (Planned if best else Trainer)(
                model.network, arguments(case, folder, steps, best, precision),
                DataCollatorWithPadding(model.tokenizer), rows,
            )  # fmt: skip
            made.plan = [one.tolist() for one in plan[:steps]]
            made.remove_callback(PrinterCallback)
            made.train()
        return [[value.item()] for value in losses]

    return run


def optimiser_step(case: Case, options: Options) -> tuple[float, int]:
    """Median seconds of one fused AdamW step, and the bytes that it reads and writes."""
    model = start(case, True)
    optimizer = torch.optim.AdamW(model.parameters(), LR, fused=True)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-6)
    seconds = timing.spread(
        timing.seconds_of(optimizer.step, threads=options.threads, least=0.1), 6
    )["median"]
    # Reads weight, gradient and two moments; writes weight and moments.
    return seconds, 7 * sum(p.numel() * p.element_size() for p in model.parameters())


def measure(case: Case, options: Options) -> dict:
    """Check, then time; return the record."""
    steps, rates = steps_of(options), timing.machine(options)
    names = [name for name in VARIANTS if options.device == "cpu" or "heap" not in name]
    equal, flops = timing.compared(build, case, SAME, steps)
    _, others = timing.compared(build, case, ["trainer default"], steps)
    flops |= others | {"trainer best, heap": flops["trainer best"]}
    seconds = timing.timed(build, case, names, options, steps + LESS, LESS)
    counted = {name: flops[name] for name in names}
    parts = timing.beside(rates, case.device, seconds, counted, f"{steps} steps, {{}}")
    step, moved = optimiser_step(case, options)
    parts["a step of the optimiser, minilib"] = timing.part(rates, step, moved=moved)
    return timing.record(
        f"Fine-tuning {case.model}: transformers.Trainer against minilib",
        options,
        case.said()
        | {"steps timed": steps, "precision": timing.precision_of("minilib", case.device)},
        equal_losses=equal,
        seconds=seconds,
        ratios={
            f"{name} / minilib": timing.ratios(seconds[name], seconds["minilib"])
            for name in names
            if name != "minilib"
        },
        limits={"machine": rates, "parts": parts},
    )


def main(folder, options: Options):
    """Measure every case and write ``finetune-<device>.json``."""
    return timing.write(
        folder, "finetune", options, [measure(one, options) for one in cases(options)]
    )
