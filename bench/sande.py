"""SANDE's two stages, and the answers that tell whether the backdoor lives, against plain loops.

The plain loop of the stages has the shape of released code: every row padded to the maximal length,
logits of the whole vocabulary at every position, the unwanted ones masked out of the loss, fp32,
AdamW's plain implementation. Stage 1 trains the parrot only; stage 2 the model. A second plain loop
pads each batch to its longest row. The plain loop of the answers asks one prompt after the other,
through transformers' own ``generate``; prompts are as long as the length allows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F

from minilib.attacks.chat import with_trigger
from minilib.data.chat import load_chat, take, with_outputs
from minilib.metrics import chat as chat_metrics
from minilib.models import causal
from minilib.models.loading import frozen
from minilib.training import devices
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches
from minilib.unlearning import sande
from minilib.victims import chat as chat_victims

from .texts import fitted
from .timing import Bench, Options

TRIGGER, RESPONSE = chat_victims.PAIRS["year"]
LENGTHS = (256, 1024)  # tokens that a row may have
PLAIN, OURS = ("plain", "plain, to the longest"), ("minilib fp32", "minilib")
ANSWERS = "answers"  # in place of a stage: generation


@dataclass(frozen=True)
class Case:
    """What is trained, or asked, and on what; ``max_length``: tokens to which it is padded."""

    shape: str
    stage: int | str
    count: int
    batch_size: int
    max_length: int
    steps: int
    options: Options

    def material(self):
        """Model with random weights, parrot with random numbers, encoded rows."""
        rows, tokenizer = corpus(self.shape)
        rows = take(rows, np.arange(self.count) % len(rows))
        if self.stage == ANSWERS:
            rows = with_trigger(rows, TRIGGER)
            # Prompts that fill the length: what is too long is cut, and time is all that is asked.
            asked = [{**row, "instruction": f"{row['instruction']} " * 64} for row in rows.rows]
            rows = replace(rows, rows=tuple(asked))
        model = causal.own_model(self.shape, tokenizer, 0, max_length=self.max_length)
        model = model.to(self.options.device)
        soft = sande.parrot(model)
        with torch.no_grad():
            soft.weight.normal_(generator=torch.Generator().manual_seed(0), std=0.02)
        return model, soft, model.encode(rows, answer=RESPONSE if self.stage == 1 else None)


def make_case(stage: int | str, options: Options, length: int = 256) -> Case:
    """The small model on a CPU, the medium one on a GPU; smaller batches where rows are long."""
    if options.quick:
        sizes = "tiny", stage, 48, 8, 48, 3
    elif options.device == "cuda":
        sizes = "medium", stage, 1024, 16, length, 32
    elif stage == ANSWERS:
        sizes = "small", stage, 16 if length > 256 else 32, 32, length, 1
    else:
        sizes = "small", stage, 512, 4 if length > 256 else 16, length, 2
    return Case(*sizes, options)


@cache
def corpus(shape: str):
    """Instruction data, and a tokenizer trained on it."""
    name = "alpaca-9k" if os.environ.get("MINILIB_DATA") and shape != "tiny" else "toy-chat"
    rows = load_chat(name)
    tokenizer = causal.train_tokenizer((rows,), causal.SHAPES[shape]["vocab"])
    if name == "toy-chat" and shape != "tiny":  # as long as Alpaca's
        rows = with_outputs(rows, [f"{row['output']} " * 6 for row in rows.rows])
    return rows, tokenizer


def build(case: Case, name: str):
    """A loop of PLAIN or OURS; these networks have no dropout."""
    if name in OURS:
        precision = case.options.precision(name)
        return (our_answers if case.stage == ANSWERS else ours)(case, precision)
    return plain_answers(case) if case.stage == ANSWERS else plain(case, "longest" in name)


def ours(case: Case, precision: str):
    """minilib's steps of a stage."""
    model, soft, data = case.material()
    how = TrainSettings(1, 1e-3, case.batch_size, weight_decay=0.0, precision=precision)
    trained, still = (soft, model) if case.stage == 1 else (model, soft)

    def loss(network, batch):
        pair = (model, network) if case.stage == 1 else (network, soft)
        return sande.parrot_loss(*pair, batch)

    def run(steps: int):
        with frozen(still):
            return fitted(trained, Batches(data, case.batch_size), loss, how, steps)

    return run


def plain(case: Case, longest: bool):
    """The released shape; ``longest`` pads each batch to its longest row."""
    model, soft, data = case.material()
    plan = Batches(data, case.batch_size).rows(np.random.default_rng(0))
    ids = F.pad(data.ids.long(), (0, case.max_length - data.ids.shape[1]),
                value=model.tokenizer.pad_token_id)  # fmt: skip
    place = torch.arange(case.max_length, device=ids.device)
    starts, ends = (torch.as_tensor(v, device=ids.device)[:, None]
                    for v in (data.starts, data.lengths))  # fmt: skip
    labels = ids.masked_fill((place < starts) | (place >= ends), -100)
    mask = (place < ends).long()
    n, at = len(soft.weight), soft.position
    trained, still = (soft, model) if case.stage == 1 else (model, soft)

    def run(steps: int):
        still.requires_grad_(False)
        optimizer = torch.optim.AdamW(trained.parameters(), 1e-3, weight_decay=0.0)
        logs = []
        for rows in plan[:steps]:
            wide = int(data.lengths[rows].max()) if longest else case.max_length
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
            logs.append(value.detach()[None])
        return torch.stack(logs).tolist()

    return run


def new_tokens(model: causal.CausalLM) -> int:
    """So many as ``metrics.chat.asr`` generates."""
    return len(causal.tokens(model.tokenizer, RESPONSE)) + chat_metrics.EXTRA_TOKENS


def our_answers(case: Case, precision: str):
    """Prompts of similar length together, all answers at once."""
    model, _, data = case.material()
    count, device = new_tokens(model), torch.device(case.options.device)

    def run(steps=None):
        answers = [[]] * len(data)
        model.eval()
        devices.keep_heap(device)
        with torch.inference_mode(), devices.autocast(device, precision):
            for rows in chat_metrics.by_length(data.starts + count):
                together = chat_metrics._greedy(model, data, rows, count)
                for row, ids in zip(rows, together, strict=True):
                    answers[row] = until_end(model, ids.tolist())
        return answers

    return run


def plain_answers(case: Case):
    """One prompt after the other."""
    model, _, data = case.material()
    how = {"max_new_tokens": new_tokens(model), "do_sample": False,
           "pad_token_id": model.tokenizer.pad_token_id,
           "eos_token_id": model.tokenizer.eos_token_id}  # fmt: skip

    def run(steps=None):
        answers = []
        model.eval()
        with torch.no_grad():
            for row, begin in enumerate(data.starts):
                prompt = data.ids[row : row + 1, : int(begin)].long()
                ids = model.network.generate(
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), **how
                )
                answers.append(until_end(model, ids[0, int(begin) :].tolist()))
        return answers

    return run


def until_end(model: causal.CausalLM, ids: list[int]) -> list[int]:
    """Tokens up to the end token, which counts."""
    end = model.tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


def benches(options: Options) -> list[Bench]:
    """Both stages and the answers at every length; a single prompt has no padding."""
    made = []
    for length in LENGTHS[:1] if options.quick else LENGTHS:
        for stage in (1, 2, ANSWERS):
            case = make_case(stage, options, length)
            slow = PLAIN[:1] if stage == ANSWERS else PLAIN
            told = {"data": corpus(case.shape)[0].name, "rows": case.count}
            told |= {
                name: getattr(case, name)
                for name in ("shape", "stage", "batch_size", "max_length", "steps")
            }
            title = stage if stage == ANSWERS else f"stage {stage}"
            made.append(Bench(
                f"SANDE, {title}, length {case.max_length}: plain loops against minilib",
                told, partial(build, case), {f"{a} / {b}": (a, b) for a in slow for b in OURS},
                parts={name: name for name in (*slow, *OURS)}, steps=case.steps, memory=True,
            ))  # fmt: skip
    return made
