"""Fine-tuning itself: minilib's loop against ``transformers.Trainer``.

Chapter 03's victim is the case: a pre-trained encoder on the poisoned rows of SST-2. The Trainer is
timed in two settings. ``best``: the batches of minilib's own plan, bf16 where minilib has it, fused
AdamW, no logging, saving, evaluation or search for NaN, and on a GPU two workers that fill pinned
memory. ``default``: as it comes, but for minilib's rate and size of batch, and no checkpoints.
``heap`` is ``best`` in a process whose C library was told to keep its heap, as minilib tells it on
a CPU. What either does before its first step would count for much among few steps: the time of two
is taken off. Decay is 0 in all loops: Trainer would spare biases and norms, minilib decays all.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from minilib.models.text import TextClassifier, text_classifier
from minilib.training import devices
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings

from .texts import MAX_LENGTH, Case, fitted, make_case, still
from .timing import Bench, Options

LR, LESS = 5e-5, 2
VARIANTS = ("trainer default", "trainer best", "trainer best, heap", "minilib fp32", "minilib")
OPTIMISER = "a step of the optimiser, minilib"
LARGE = "bert-base-sized"  # random weights; rows that fill MAX_LENGTH


def steps_of(options: Options) -> int:
    """Steps that are timed, beyond the first LESS."""
    return 3 if options.quick else (200 if options.device == "cuda" else 6)


def start(case: Case) -> TextClassifier:
    """The encoder with a fresh head, the same for every loop."""
    if case.model != LARGE:
        return case.start()
    tokenizer = text_classifier("tiny", 2, 0).tokenizer  # BERT's vocabulary
    torch.manual_seed(case.seed)
    network = BertForSequenceClassification(BertConfig(num_labels=2))
    model = TextClassifier(network, tokenizer).to(case.device)
    return still(model) if case.options.exact else model


def build(case: Case, name: str):
    """A loop by its name in VARIANTS, or a step of fused AdamW alone."""
    if name == OPTIMISER:
        return optimiser_step(case)
    precision = case.options.precision(name)
    if name.startswith("minilib"):
        return ours(case, precision)
    if "heap" in name:
        devices.keep_heap(torch.device("cpu"))
    return trainer(case, "best" in name, precision)


def ours(case: Case, precision: str):
    """minilib's steps."""
    model = start(case)
    batches = case.batches(case.rows, model.tokenizer)
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
        eval_strategy="no", logging_nan_inf_filter=False, remove_unused_columns=False,
        dataloader_num_workers=2 if cuda else 0, dataloader_pin_memory=cuda,
    )  # fmt: skip


def trainer(case: Case, best: bool, precision: str):
    """The Trainer's loop; exactly, it keeps the loss of each step."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # loading on a GPU forks after tokenising
    model, told = start(case), case.rows
    tokens = model.tokenizer(list(told.texts), truncation=True, max_length=MAX_LENGTH)
    columns = tokens["input_ids"], tokens["attention_mask"], told.labels.tolist()
    names = ("input_ids", "attention_mask", "labels")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    plan = case.batches(told, model.tokenizer, "cpu").rows(np.random.default_rng(case.seed))
    losses: list[torch.Tensor] = []
    if case.options.exact:
        model.network.register_forward_hook(lambda _, __, out: losses.append(out.loss.detach()))

    def run(steps: int):
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


def optimiser_step(case: Case):
    """One fused AdamW step, as many times as steps are timed beyond the first."""
    model = start(case)
    optimizer = torch.optim.AdamW(model.parameters(), LR, fused=True)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-6)
    return lambda steps: [optimizer.step() for _ in range(steps)]


def benches(options: Options) -> list[Bench]:
    """Chapter 03's victim; on a GPU also an encoder of BERT-base's size."""
    steps, first = steps_of(options), make_case(options)
    cases = [first]
    if options.device == "cuda":
        long = [replace(one, texts=tuple(f"{text} " * 40 for text in one.texts))
                for one in (first.forget, first.retain)]  # fmt: skip
        cases.append(replace(first, model=LARGE, forget=long[0], retain=long[1]))
    names = [name for name in VARIANTS if options.device == "cpu" or "heap" not in name]

    def moved(case: Case) -> int:  # weight, gradient and two moments; weight and moments again
        return steps * 7 * sum(p.numel() * p.element_size() for p in start(case).parameters())

    return [Bench(
        f"Fine-tuning {case.model}: transformers.Trainer against minilib",
        case.said() | {"steps timed": steps}, partial(build, case),
        {f"{name} / minilib": (name, "minilib") for name in names[:-1]},
        parts={f"{steps} steps, {name}": name for name in names}
        | {f"{steps} times {OPTIMISER}": OPTIMISER},
        moved={OPTIMISER: moved(case)}, steps=steps, less=LESS,
    ) for case in cases]  # fmt: skip
