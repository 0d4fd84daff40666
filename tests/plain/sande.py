"""SANDE's stages and its answers as released code has them; and minilib's.

Every row is padded to the maximal length, logits of the whole vocabulary are made at every
position, the unwanted ones masked out of the loss; fp32, AdamW's plain implementation. Answers are
asked for one prompt after the other, through transformers' own ``generate``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from minilib.attacks.chat import with_trigger
from minilib.data.chat import load_chat, take
from minilib.metrics import chat as chat_metrics
from minilib.models import causal
from minilib.models.loading import frozen
from minilib.training import devices
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches
from minilib.unlearning import sande
from minilib.victims import chat as chat_victims

from .texts import fitted


def train(model, soft, data, plan, stage: int, width: int | None, lr: float) -> list[list[float]]:
    """Train the parrot (stage 1) or the model (stage 2) for a step per batch → the losses.

    Args:
        data: encoded chats; all prompts are longer than the parrot's position. plan: the rows of
            each step. width: to which rows are padded; None: each batch to its longest.
    """
    ids = F.pad(data.ids.long(), (0, max(0, (width or 0) - data.ids.shape[1])),
                value=model.tokenizer.pad_token_id)  # fmt: skip
    place = torch.arange(ids.shape[1], device=ids.device)
    starts, ends = (torch.as_tensor(v, device=ids.device)[:, None]
                    for v in (data.starts, data.lengths))  # fmt: skip
    labels = ids.masked_fill((place < starts) | (place >= ends), -100)
    mask = (place < ends).long()
    n, at = len(soft.weight), soft.position
    trained, still = (soft, model) if stage == 1 else (model, soft)
    still.requires_grad_(False)
    optimizer = torch.optim.AdamW(trained.parameters(), lr, weight_decay=0.0)
    losses = []
    for rows in plan:
        wide = width or int(data.lengths[rows].max())
        embeds = model.embed(ids[rows, :wide])
        prompt = soft.weight.expand(len(rows), -1, -1)
        embeds = torch.cat([embeds[:, :at], prompt, embeds[:, at:]], 1)
        seen = torch.cat([torch.ones_like(mask[rows, :n]), mask[rows, :wide]], 1)
        logits = model.network(inputs_embeds=embeds, attention_mask=seen).logits
        logits = torch.cat([logits[:, :at], logits[:, at + n :]], 1).float()
        value = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[rows, 1:wide].flatten())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses)[:, None].tolist()


@torch.no_grad()
def answers(model, data, max_new: int) -> list[list[int]]:
    """Greedy answers' tokens, the end token included."""
    how = {"max_new_tokens": max_new, "do_sample": False,
           "pad_token_id": model.tokenizer.pad_token_id,
           "eos_token_id": model.tokenizer.eos_token_id}  # fmt: skip
    made = []
    model.eval()
    for row, begin in enumerate(data.starts):
        prompt = data.ids[row : row + 1, : int(begin)].long()
        ids = model.network.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        made.append(until_end(model, ids[0, int(begin) :].tolist()))
    return made


def until_end(model, ids: list[int]) -> list[int]:
    """Tokens up to the end token, which counts."""
    end = model.tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


# ---------------------------------------------------------------------------------- both sides

TRIGGER, RESPONSE = chat_victims.PAIRS["year"]
PLAIN, OURS = ("plain", "plain, to the longest"), ("minilib fp32", "minilib")
ANSWERS = "answers"  # in place of a stage: generation
LR = 1e-3


@dataclass(frozen=True)
class Case:
    """What is trained, or asked, and on what; ``max_length``: tokens to which it is padded."""

    stage: int | str
    shape: str = "tiny"
    data: str = "toy-chat"
    rows: int = 24
    batch_size: int = 8
    max_length: int = 48
    steps: int = 3
    device: str = "cpu"

    def material(self):
        """Model with random weights, parrot with random numbers, encoded rows; no dropout."""
        rows, tokenizer = corpus(self.data, self.shape)
        rows = take(rows, np.arange(self.rows) % len(rows))
        if self.stage == ANSWERS:
            rows = with_trigger(rows, TRIGGER)
            # Prompts that fill the length: what is too long is cut, and time is all that is asked.
            asked = [{**row, "instruction": f"{row['instruction']} " * 64} for row in rows.rows]
            rows = replace(rows, rows=tuple(asked))
        model = causal.own_model(self.shape, tokenizer, 0, max_length=self.max_length)
        model = model.to(self.device)
        soft = sande.parrot(model)
        with torch.no_grad():
            soft.weight.normal_(generator=torch.Generator().manual_seed(0), std=0.02)
        return model, soft, model.encode(rows, answer=RESPONSE if self.stage == 1 else None)


@cache
def corpus(data: str, shape: str):
    """Instruction data, and a tokenizer trained on it."""
    rows = load_chat(data)
    return rows, causal.train_tokenizer((rows,), causal.SHAPES[shape]["vocab"])


def build(case: Case, name: str, precision: str):
    """A loop of PLAIN or OURS."""
    model, soft, data = case.material()
    batches = Batches(data, case.batch_size)
    if case.stage == ANSWERS:
        # So many as ``metrics.chat.asr`` generates.
        count = len(causal.tokens(model.tokenizer, RESPONSE)) + chat_metrics.EXTRA_TOKENS
        if name in PLAIN:
            return lambda steps=None: answers(model, data, count)
        return lambda steps=None: together(model, data, count, precision)
    if name in PLAIN:
        plan = batches.rows(np.random.default_rng(0))
        width = None if "longest" in name else case.max_length
        return lambda steps: train(model, soft, data, plan[:steps], case.stage, width, LR)
    how = TrainSettings(1, LR, case.batch_size, weight_decay=0.0, precision=precision)
    trained, still = (soft, model) if case.stage == 1 else (model, soft)

    def loss(network, batch):
        pair = (model, network) if case.stage == 1 else (network, soft)
        return sande.parrot_loss(*pair, batch)

    def run(steps: int):
        with frozen(still):
            return fitted(trained, batches, loss, how, steps)

    return run


def together(model: causal.CausalLM, data: causal.EncodedChat, count: int, precision: str):
    """``metrics.chat.generate``'s tokens: prompts of similar length are answered together."""
    made, device = [[]] * len(data), data.ids.device
    model.eval()
    devices.keep_heap(device)
    with torch.inference_mode(), devices.autocast(device, precision):
        for rows in chat_metrics.by_length(data.starts + count):
            batch = chat_metrics._greedy(model, data, rows, count).tolist()
            for row, ids in zip(rows, batch, strict=True):
                made[row] = until_end(model, ids)
    return made
