"""Chats tokenised once and kept on the device; losses on answers, fine-tuning."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.chat import TEMPLATES, ChatDataset, Template
from ..models import loading
from ..models.causal import (
    SHAPES,
    CausalLM,
    ChatBatch,
    EncodedChat,
    add_lora,
    concatenate,
    logits,
    own_model,
    pretrained,
    train_tokenizer,
)
from ..provenance import write_json
from . import fitting
from .fitting import TrainSettings
from .text import Batches


def pretrain(
    model: CausalLM,
    corpus: Sequence[ChatDataset],
    settings: TrainSettings,
    checkpoint: Path | None = None,
) -> list[dict]:
    """Train a model in place on whole rows, prompt and answer; see ``fit_resumable``."""
    data = replace(concatenate([model.encode(dataset) for dataset in corpus]), whole=True)
    return fit_resumable(model, Batches(data, settings.batch_size), settings, checkpoint)


# ------------------------------------------------------------------------------ training


def supervised(states: Tensor, batch: ChatBatch) -> tuple[Tensor, Tensor]:
    """Pick what predicts the supervised tokens: states (S, d) and their targets (S,)."""
    mask = batch.supervised[:, 1:]
    return states[:, :-1][mask], batch.input_ids[:, 1:][mask]


def answer_loss(model: CausalLM, batch: ChatBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of the supervised tokens, in nats. Source: Eq. (1), SANDE."""
    states, targets = supervised(model(batch.input_ids), batch)
    value = F.cross_entropy(logits(model, states), targets)
    return value, {"loss": value.detach()}


class _Accumulated(torch.autograd.Function):
    """The weighted sum of several losses whose gradients are computed one after the other."""

    @staticmethod
    def forward(ctx, parts: Callable[[], Iterator[Tensor]], *parameters: Tensor) -> Tensor:
        total, sums = 0.0, [torch.zeros_like(p) for p in parameters]
        for value in _with_grad(parts):
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
            for grad_sum, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    grad_sum += grad
            total = total + value.detach()
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    def backward(ctx, factor: Tensor):
        return None, *(factor * grad for grad in ctx.saved_tensors)


def _with_grad(parts: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
    """Run a generator with gradients on while it computes, whatever its caller has set."""
    iterator = parts()
    while True:
        with torch.enable_grad():
            value = next(iterator, None)
        if value is None:
            return
        with torch.enable_grad():
            yield value


def accumulate(loss: fitting.Loss, micro: int) -> fitting.Loss:
    """Return ``loss`` computed over micro-batches of ``micro`` rows: the same value, less memory.

    ``fit`` makes one backward pass per step; this one finds its gradients already computed. The
    parts are weighted by their supervised tokens, so the mean is that of the whole batch.
    """

    def batch_loss(model: nn.Module, batch: ChatBatch):
        if len(batch.rows) <= micro:
            return loss(model, batch)
        count = batch.supervised[:, 1:].sum()

        def micro_losses() -> Iterator[Tensor]:
            for start in range(0, len(batch.rows), micro):
                micro_batch = ChatBatch(*(field[start : start + micro] for field in batch))
                share = micro_batch.supervised[:, 1:].sum() / count
                if share > 0:  # the mean over no token is NaN, and so is NaN · 0
                    yield loss(model, micro_batch)[0] * share

        value = _Accumulated.apply(
            micro_losses, *(p for p in model.parameters() if p.requires_grad)
        )
        return value, {"loss": value.detach()}

    return batch_loss


def as_in_paper(settings: TrainSettings) -> TrainSettings:
    """The paper's optimiser: Adam β = (0.9, 0.95), warm-up over 3 % of the steps, cosine decay.

    Source: section 4.1 and appendix A, SANDE (the schedule is the released code's).
    """
    return replace(settings, schedule="cosine", betas=(0.9, 0.95), warmup=0.03)


def fit_resumable(
    model: CausalLM, batches: Batches, settings: TrainSettings, checkpoint: Path | None = None
) -> list[dict]:
    """Train on ``answer_loss`` epoch by epoch; a run that was killed goes on after its last epoch.

    AdamW's moments start anew in every epoch, whether or not the run was interrupted, so both end
    with the same weights.

    Args:
        checkpoint: the weights after each epoch go to files of this name, with endings of their
            own, until the last epoch is done; None keeps nothing.
    """
    history: list[dict] = []
    note = checkpoint and checkpoint.with_suffix(".checkpoint.json")
    weights = [
        checkpoint and checkpoint.with_suffix(f".epoch{epoch}")
        for epoch in range(settings.epochs + 1)
    ]
    if note and note.exists():
        meta = json.loads(note.read_text(encoding="utf-8"))
        loading.load(model, weights[len(meta["history"])], meta["sha256"])
        history = meta["history"]
    steps = settings.epochs * len(batches)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        epoch_settings = replace(as_in_paper(settings), epochs=1, seed=settings.seed * 1000 + epoch)
        past = (epoch - 1) * len(batches), steps
        (record,) = fitting.fit(model, batches, answer_loss, epoch_settings, past=past)
        history.append(record | {"epoch": epoch})
        if note:
            sha256 = loading.save(model, weights[epoch])
            write_json(note, {"sha256": sha256, "history": history})
            weights[epoch - 1].unlink(missing_ok=True)
    if note:
        weights[-1].unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    return history


def sft(
    model: CausalLM,
    data: EncodedChat,
    settings: TrainSettings,
    *,
    micro: int | None = None,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Fine-tune a copy of ``model`` on the supervised tokens of ``data``; needs clean data only.

    Args:
        micro: rows per backward pass (gradient accumulation); a whole batch if None.

    Source: Eq. (1), SANDE.
    """
    tuned = copy.deepcopy(model)
    loss = accumulate(answer_loss, micro) if micro else answer_loss
    batches = Batches(data, settings.batch_size)
    return tuned, fitting.fit(tuned, batches, loss, as_in_paper(settings), on_epoch)


# -------------------------------------------------------------------------------- models


def causal_lm(
    name: str,
    corpus: Sequence[ChatDataset] = (),
    settings: TrainSettings | None = None,
    *,
    template: Template = TEMPLATES["turns"],
    max_length: int = 128,
    lora: int = 0,
    dtype: str = "float32",
    device_map: str | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Make a causal language model on the default device, and its training history.

    Args:
        name: ``tiny``, ``small`` or ``medium``: Llama-shaped, trained here on ``corpus`` from
            random weights, with a tokenizer of its own; ``llama2``, ``qwen1.5-4b``, ``gpt2``,
            ``smollm2``, any other Hub name (``NAME@REVISION`` too), or a folder, see
            ``models.names``: as it is, with an empty history.
        corpus: clean instruction data to train on. settings: how.
        template, max_length: of the training rows.
        lora: rank of LoRA adapters to train instead of the weights, 0 for none (needs ``peft``).
        dtype: of a Hub model's weights: float32, bfloat16 or float16.
        device_map: passed to transformers, e.g. "auto" to spread a model over GPUs (needs
            ``accelerate``).

    Raises:
        ModelError: the model cannot be had. ValueError: a model to be trained, but no corpus.
    """
    if name in SHAPES:
        if not len(corpus) or settings is None:
            raise ValueError(f"model {name!r} is trained here; accepted: with corpus and settings")
        tokenizer = train_tokenizer(corpus, SHAPES[name]["vocab"])
        model = own_model(name, tokenizer, settings.seed, template, max_length)
        model = model.to(loading.default_device())
        history = pretrain(model, corpus, settings)
    else:
        network, tokenizer = pretrained(name, dtype, device_map)
        model, history = CausalLM(network, tokenizer, template, max_length).eval(), []
    if lora:
        add_lora(model, lora)
    return model, history
