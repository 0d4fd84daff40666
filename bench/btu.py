"""BTU: a round's training, the ranking and the unlearning, minilib's against a plain loop's.

The plain loop has the habits seen in released unlearning code. In training it pads every row to
128, runs eager attention in fp32, lets gradients flow into the frozen body too, and steps the whole
matrix with AdamW's plain implementation. It ranks rows by a Python loop over the vocabulary, and
replaces dimensions by one over tokens and dimensions. Special tokens are left out by both.

What is compared, and how fairly:

* First, same rows, fp32, no dropout: the loss agrees at each step, the flagged tokens are equal and
  the unlearned matrices are equal bit by bit.
* Then the parts are timed in turns (plain, minilib, plain …) after a warm-up, all in one process:
  the plain loop has the benefit of minilib's setting of the C library's heap. Tokenising is not
  timed. ``train`` is seconds per step of round 1, ``train star`` of round 2 (M*).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench import limits
from bench.rga import Case, First, make_case, tokenised
from bench.timing import hardware, in_turns, ratios, turns, versions, wait, write
from minilib import btu, train
from minilib.data import TextDataset
from minilib.models import TextClassifier, text_classifier
from minilib.train import Batches

ALPHA = 0.05
TOLERANCE = 1e-4  # relative, of the loss at each step
STEPS, QUICK_STEPS = {"cpu": 2, "cuda": 50}, 3
PARTS = ("train", "train star", "rank", "unlearn")

Timed = Callable[[], tuple[float, object]]  # → seconds, result


def rows_of(case: Case) -> TextDataset:
    """The poisoned training set: what to forget behind what to retain."""
    return replace(
        case.retain,
        texts=case.retain.texts + case.forget.texts,
        labels=np.concatenate([case.retain.labels, case.forget.labels]),
    )


def start(case: Case) -> TextClassifier:
    model = text_classifier(case.model, case.retain.num_classes, seed=0).to(case.device)
    for module in model.modules() if not case.dropout else ():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def ours_train(case: Case, steps: int, star: bool, precision: str) -> Timed:
    model, rows = start(case), rows_of(case)
    data = train.encode(rows.texts, rows.labels, model.tokenizer, device=case.device)
    network = btu.embedding_model(model, btu.occurring(data), star)
    settings = replace(btu.ROUND, batch_size=case.batch_size, precision=precision)
    batches = First(Batches(data, case.batch_size), steps)

    def run() -> tuple[float, list[float]]:
        logs = []

        def loss(net, batch):
            value, log = train.cross_entropy(net, batch)
            logs.append(log["loss"])
            return value, log

        started = wait(case.device)
        train.fit(network, batches, loss, settings)
        seconds = wait(case.device) - started
        return seconds / steps, torch.stack(logs).tolist()

    return run


def plain_train(case: Case, steps: int, star: bool) -> Timed:
    model, rows = start(case), rows_of(case)
    model.network.set_attn_implementation("eager")
    sizes = train.encode(rows.texts, rows.labels, model.tokenizer)
    plan = Batches(sizes, case.batch_size).rows(np.random.default_rng(0))[:steps]
    data = tokenised(rows, model.tokenizer, case.device)
    weight = model.backbone.get_input_embeddings().weight

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not star:
            return model(ids, mask)
        states = model.backbone.embeddings(ids) * mask[..., None]
        return model.network.classifier(states.sum(1) / mask.sum(1, keepdim=True))

    def run() -> tuple[float, list[float]]:
        optimizer = torch.optim.AdamW([weight], lr=btu.ROUND.lr, weight_decay=0.0)
        torch.manual_seed(0)
        model.train()
        logs = []
        started = wait(case.device)
        for rows_at in plan:
            ids, mask, labels = (
                data[k][rows_at] for k in ("input_ids", "attention_mask", "labels")
            )
            loss = F.cross_entropy(forward(ids, mask), labels)
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight], btu.ROUND.clip)
            optimizer.step()
            logs.append(loss.detach())
        seconds = wait(case.device) - started
        return seconds / steps, torch.stack(logs).tolist()

    return run


def matrices(case: Case) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The pre-trained embeddings, the same moved as training moves them, and special tokens."""
    model = start(case)
    before = btu.word_embeddings(model).clone()
    draw = torch.Generator().manual_seed(case.seed)
    size = torch.rand(len(before), 1, generator=draw) ** 8
    step = 1e-3 * size * torch.randn(before.shape, generator=draw)
    return before, before + step.to(before.device), model.tokenizer.all_special_ids


def ranking(case: Case, plain: bool) -> Timed:
    before, after, special = matrices(case)
    wanted = int(len(before) * ALPHA / 100)

    def run() -> tuple[float, list[int]]:
        started = wait(case.device)
        if plain:
            found = [(torch.norm(after[i] - before[i]).item(), i) for i in range(len(before))]
            found.sort(key=lambda pair: -pair[0])
            tokens = [i for _, i in found if i not in special][:wanted]
        else:
            tokens = btu.suspicious(btu.row_change(before, after), ALPHA, special).tolist()
        return wait(case.device) - started, tokens

    return run


def unlearning(case: Case, plain: bool) -> Timed:
    before, after, special = matrices(case)
    tokens = btu.suspicious(btu.row_change(before, after), 3 * ALPHA, special).tolist()
    cut = btu.threshold_value(before, after, "frobenius")

    def run() -> tuple[float, torch.Tensor]:
        started = wait(case.device)
        if plain:
            result = copy.deepcopy(after)
            for token in tokens:
                for i in range(result.shape[1]):
                    if abs(after[token][i] - before[token][i]) >= cut:
                        result[token][i] = after[0][i]
        else:
            result = btu.replace_dimensions(before, after, tokens, after[0], cut)
        return wait(case.device) - started, result

    return run


def pair(case: Case, part: str, steps: int, precision: str) -> dict[str, Timed]:
    """The two loops of a part."""
    if part == "rank":
        return {"plain": ranking(case, True), "minilib": ranking(case, False)}
    if part == "unlearn":
        return {"plain": unlearning(case, True), "minilib": unlearning(case, False)}
    star = part == "train star"
    return {
        "plain": plain_train(case, steps, star),
        "minilib": ours_train(case, steps, star, precision),
    }


def check(case: Case, steps: int, flops: dict | None = None) -> dict:
    """Run both loops of every part on the same, and refuse to go on unless they agree.

    Args:
        flops: filled with (part, loop) → FLOPs of the run, if given.
    """
    still, found = replace(case, dropout=False), {}
    flops = {} if flops is None else flops
    for part in PARTS:
        results = {}
        for name, loop in pair(still, part, steps, "fp32").items():
            (_, results[name]), flops[part, name] = limits.count(loop)
        theirs, ours = results.values()
        if part.startswith("train"):
            apart = [abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True)]
            found[part] = max(apart)
            agree = len(apart) == steps and max(apart) < TOLERANCE
        else:
            agree = torch.equal(torch.as_tensor(theirs), torch.as_tensor(ours))
            found[part] = "equal" if agree else "different"
        if not agree:
            raise RuntimeError(
                f"{part}: the loops differ ({found[part]}); accepted: {TOLERANCE:.0e}"
            )
    return found


def measure(case: Case, repeats: int, steps: int) -> dict:
    """Check, then time every part in turns; return the record."""
    flops: dict = {}
    equal = check(case, steps, flops)
    print(f"the loops agree: {equal}")
    precision = limits.precision_of("minilib", case.device)
    seconds = {}
    for part in PARTS:
        loops = pair(case, part, steps, precision)
        timed = in_turns(loops, repeats)
        seconds[part] = {name: {"values": values} for name, values in timed.items()}
    rates = limits.machine(case.device, quick=case.model == "tiny")
    return {
        "what": "BTU: plain loops against minilib; training in seconds per step",
        "case": {
            "model": case.model,
            "data": case.source,
            "rows": len(case.forget) + len(case.retain),
            "batch": case.batch_size,
            "steps timed": steps,
            "device": case.device,
            "precision": precision,
        },
        "hardware": hardware(case),
        "versions": versions(),
        "agreement": equal,
        "seconds": {
            part: {
                name: {
                    "n": len(one["values"]),
                    "median": round(float(np.median(one["values"])), 6),
                    "values": [round(value, 6) for value in one["values"]],
                }
                for name, one in both.items()
            }
            for part, both in seconds.items()
        },
        "ratios": {part: ratios(both["plain"], both["minilib"]) for part, both in seconds.items()},
        "limits": {
            "machine": rates,
            "parts": beside(case, rates, seconds, flops, steps),
        },
    }


def beside(case: Case, rates: dict, seconds: dict, flops: dict, steps: int) -> dict:
    """Each part of minilib's, and the plain training, beside what bounds it."""
    matrix = btu.word_embeddings(start(case)).numel() * 4  # bytes
    moved = {"rank": 2 * matrix, "unlearn": 3 * matrix}  # two read; and one written
    found = {}
    for (part, name), value in flops.items():
        work = {"moved": moved.get(part, 0)}
        if part not in moved:
            exact = limits.precision_of(name, case.device)
            work = {"flops": value / steps, "precision": exact}
        # The mean of an embedding's rows and a head of two classes: next to no products.
        if part != "train star" and not (part in moved and name == "plain"):
            median = float(np.median(seconds[part][name]["values"]))
            found[f"{part}, {name}"] = limits.part(rates, median, **work)
    return found


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure and write ``btu-<device>.json``; ``switches`` is there for rga and not used."""
    torch.set_num_threads(threads)
    case = make_case(device, threads, quick)
    record = measure(case, turns(repeats, quick, device), QUICK_STEPS if quick else STEPS[device])
    for part, ratio in record["ratios"].items():
        print(f"{part:12} plain / minilib = {ratio['median']:.1f}")
    return write(folder, f"btu-{device}{'-quick' if quick else ''}", record)
