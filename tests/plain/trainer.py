"""Fine-tuning by ``transformers.Trainer``, and by minilib.

The Trainer trains in two settings. ``best``: the batches of minilib's own plan, bf16 where minilib
has it, fused AdamW, no logging, saving, evaluation or search for NaN, and on a GPU two workers that
fill pinned memory. ``default``: as it comes, but for minilib's rate and size of batch, and no
checkpoints. ``heap`` is ``best`` in a process whose C library was told to keep its heap, as minilib
tells it on a CPU. Decay is 0 everywhere: Trainer would spare biases and norms, minilib decays all.
"""

from __future__ import annotations

import os
import tempfile

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

from .texts import MAX_LENGTH, Case, fitted

LR = 5e-5
VARIANTS = ("trainer default", "trainer best", "trainer best, heap", "minilib fp32", "minilib")
OPTIMISER = "a step of the optimiser, minilib"
LARGE = "bert-base-sized"  # random weights


class Planned(Trainer):
    """A Trainer that is given the rows of each batch; without them it draws its own."""

    plan: list[list[int]] | None

    def get_train_dataloader(self) -> DataLoader:
        if self.plan is None:
            return super().get_train_dataloader()
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
        seed=0, report_to="none", disable_tqdm=True, save_strategy="no",
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


def trainer(case: Case, model: TextClassifier, plan, precision: str):
    """The Trainer's loop; without dropout it keeps the loss of each step, to be compared."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # loading on a GPU forks after tokenising
    tokens = model.tokenizer(list(case.rows.texts), truncation=True, max_length=MAX_LENGTH)
    columns = tokens["input_ids"], tokens["attention_mask"], case.rows.labels.tolist()
    names = ("input_ids", "attention_mask", "labels")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    losses: list[torch.Tensor] = []
    if case.still:
        model.network.register_forward_hook(lambda _, __, out: losses.append(out.loss.detach()))

    def run(steps: int):
        with tempfile.TemporaryDirectory() as folder:
            how = arguments(case, folder, steps, plan is not None, precision)
            # New each time, for one that has trained keeps its optimiser.
            made = Planned(model.network, how, DataCollatorWithPadding(model.tokenizer), rows)
            made.plan = plan and [one.tolist() for one in plan[:steps]]
            made.remove_callback(PrinterCallback)
            made.train()
        return [[value.item()] for value in losses]

    return run


# ---------------------------------------------------------------------------------- both sides


def start(case: Case) -> TextClassifier:
    """The encoder with a fresh head, the same for every loop."""
    if case.model != LARGE:
        return case.start()
    tokenizer = text_classifier("tiny", 2, 0).tokenizer  # BERT's vocabulary
    torch.manual_seed(0)
    network = BertForSequenceClassification(BertConfig(num_labels=2))
    return TextClassifier(network, tokenizer).to(case.device)


def build(case: Case, name: str, precision: str):
    """A loop by its name in VARIANTS, or a step of fused AdamW alone, many times."""
    model = start(case)
    if name == OPTIMISER:
        optimizer = torch.optim.AdamW(model.parameters(), LR, fused=True)
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e-6)
        return lambda steps: [optimizer.step() for _ in range(steps)]
    batches = case.batches(case.rows, model.tokenizer)
    if name.startswith("minilib"):
        how = TrainSettings(1, LR, case.batch_size, weight_decay=0.0, precision=precision)
        return lambda steps: fitted(model, batches, text_training.cross_entropy, how, steps)
    if "heap" in name:
        devices.keep_heap(torch.device("cpu"))
    plan = batches.rows(np.random.default_rng(0)) if "best" in name else None
    return trainer(case, model, plan, precision)
