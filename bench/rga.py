"""One RGA unlearning epoch: minilib's against a plain loop that computes the same losses.

The plain loop has the habits seen in released unlearning code: it tokenises the whole retain set
anew every epoch, pads every row to 128, runs eager attention and the poisoned model's constant
forward at every step, in fp32 with AdamW's plain implementation. Each habit is a switch, so that
its share can be measured too. Forget and retain batches go through the model separately in both.

What is compared, and how fairly:

* First, same weights and rows, no dropout, fp32: the four terms of the loss agree at each step.
* Then epochs are timed in turns (plain, minilib, plain, minilib …) after a warm-up. Each loop has a
  process of its own, because minilib's setting of the C library's heap cannot be taken back. One
  that waits does not compute.
* Each loop makes its optimiser anew every epoch, as the released code does. minilib's tokenising
  and reference logits, made once per run, stand in ``setup_seconds``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minilib import rga, train
from minilib.attacks.text import InsertWord, poison
from minilib.data import TextDataset, load_text
from minilib.models import TextClassifier, text_classifier
from minilib.train import Batches, TrainSettings

from . import limits, workers
from .timing import hardware, ratios, turns, versions, wait, write

ALPHA, BETA, LR, MAX_LENGTH = 2.0, 0.05, 5e-5, 128
SWITCHES = ("tokenise_once", "bucketed", "cached_reference", "sdpa", "bf16", "fused", "heap")
PLAIN = frozenset()  # no switch on
TERMS = ("poisoned_loss", "retain_loss", "lam", "drift")
TOLERANCE = 1e-4  # relative, of each term at each step
WARM_STEPS = 1
CHECKED = 3  # steps whose losses are compared on a CPU, where the plain loop takes long
EVERY = {"cpu": 6}  # row of the data is in the timed epoch; elsewhere all
RUN_EPOCHS = 30  # over how many epochs the set-up is spread: the paper's number


@dataclass(frozen=True)
class Case:
    """What is unlearned, and on what."""

    model: str
    source: str
    forget: TextDataset
    retain: TextDataset
    batch_size: int
    device: str
    threads: int
    dropout: bool = True
    seed: int = 0


Epoch = Callable[[int | None], tuple[float, list[dict]]]  # steps → seconds, terms of each step


def make_case(device: str, threads: int, quick: bool) -> Case:
    """SST-2 with 10 % of its negatives poisoned, or built-in texts repeated to the same counts."""
    real = bool(os.environ.get("MINILIB_DATA")) and not quick
    clean = load_text("sst2" if real else "toy-reviews", "train")
    rows, mask, _ = poison(clean, InsertWord("mn"), 1, 0.1, seed=0)
    forget, retain = rows.select(mask), rows.select(~mask)
    if not real:
        sizes = (20, 60) if quick else (331, 6920)
        forget, retain = (
            part.select(np.arange(size) % len(part))
            for part, size in zip((forget, retain), sizes, strict=True)
        )
    source = f"SST-2 ({clean.source})" if real else "toy-reviews, repeated"
    model, batch_size = ("tiny", 8) if quick else ("minilm", 32)
    return Case(model, source, forget, retain, batch_size, device, threads)


def thinned(rows: TextDataset, device: str) -> TextDataset:
    """Take every so many rows, evenly: EVERY says how many on a device."""
    return rows.select(np.arange(0, len(rows), EVERY.get(device, 1)))


def models_of(case: Case) -> tuple[TextClassifier, TextClassifier, dict[str, torch.Tensor]]:
    """Current model, poisoned model (equal at first) and the clean base.

    The poisoned weights are the clean ones plus noise: time does not depend on them, and the drift
    term must not start at 0.
    """
    poisoned = text_classifier(case.model, case.forget.num_classes, seed=0).to(case.device)
    base = {name: p.detach().clone() for name, p in poisoned.backbone.named_parameters()}
    rng = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for p in poisoned.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=rng).to(p.device))
    current = text_classifier(case.model, case.forget.num_classes, seed=0).to(case.device)
    current.load_state_dict(poisoned.state_dict())
    if not case.dropout:
        for module in current.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return current, poisoned.eval(), base


def pairs_of(case: Case, tokenizer) -> rga.Pairs:
    return rga.Pairs(
        *(
            Batches(
                train.encode(part.texts, part.labels, tokenizer, MAX_LENGTH, case.device),
                case.batch_size,
            )
            for part in (case.forget, case.retain)
        )
    )


# --------------------------------------------------------------------------- minilib's


@dataclass(frozen=True)
class First:
    """The first ``steps`` batches of an epoch, or pairs of batches."""

    batches: rga.Pairs | Batches
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __call__(self, rng):
        return islice(self.batches(rng), self.steps)


def ours(case: Case, precision: str) -> tuple[Epoch, float]:
    """Return a function that runs one epoch with minilib, and the seconds its set-up took."""
    model, poisoned, base = models_of(case)
    started = wait(case.device)
    pairs = pairs_of(case, model.tokenizer)
    reference = train.predict(poisoned, pairs.forget.data, precision).to(case.device)
    setup = wait(case.device) - started
    settings = rga.UnlearnSettings(alpha=ALPHA, beta=BETA)
    loop = TrainSettings(epochs=1, lr=LR, precision=precision, seed=case.seed)
    inner = rga.unlearning_loss("rga", reference, base, settings)

    def epoch(steps: int | None = None) -> tuple[float, list[dict]]:
        logs = []

        def loss(network, batch):
            value, log = inner(network, batch)
            logs.append(log)
            return value, log

        started = wait(case.device)
        train.fit(model, First(pairs, steps or len(pairs)), loss, loop)
        seconds = wait(case.device) - started
        return seconds, [{term: log[term].item() for term in TERMS} for log in logs]

    return epoch, setup


# --------------------------------------------------------------------- the plain loop


def tokenised(dataset: TextDataset, tokenizer, device: str) -> dict[str, torch.Tensor]:
    tokens = tokenizer(
        list(dataset.texts),
        padding="max_length",
        truncation=True,
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )
    tensors = {key: tokens[key].to(device) for key in ("input_ids", "attention_mask")}
    return tensors | {"labels": torch.as_tensor(dataset.labels, device=device)}


def cut(data: dict, rows: np.ndarray, bucketed: bool) -> tuple[torch.Tensor, ...]:
    """Take rows; ``bucketed`` cuts them to the longest of them, which are of similar length."""
    ids, mask, labels = (data[key][rows] for key in ("input_ids", "attention_mask", "labels"))
    longest = int(mask.sum(1).max()) if bucketed else MAX_LENGTH
    return ids[:, :longest], mask[:, :longest], labels


def plain(case: Case, on: frozenset[str]) -> tuple[Epoch, float]:
    """Return a function that runs one epoch of the plain loop with the switches in ``on``."""
    model, poisoned, base = models_of(case)
    for network in (model.network, poisoned.network):
        network.set_attn_implementation("sdpa" if "sdpa" in on else "eager")
    device, tokenizer = torch.device(case.device), model.tokenizer
    precision = train.resolve_precision("auto", device) if "bf16" in on else "fp32"
    if "heap" in on:
        train.keep_heap(device)
    pairs = pairs_of(case, tokenizer)
    plan = [(f.rows, r.rows) for f, r in pairs(np.random.default_rng(case.seed))]
    started = wait(case.device)
    forget = tokenised(case.forget, tokenizer, case.device)
    kept = tokenised(case.retain, tokenizer, case.device) if "tokenise_once" in on else None
    reference = torch.empty(len(case.forget), case.forget.num_classes, device=device)
    if "cached_reference" in on:
        with torch.no_grad(), train.autocast(device, precision):
            for rows, _ in plan:
                ids, mask, _ = cut(forget, rows, True)
                reference[rows] = poisoned(ids, mask).float()
    setup = wait(case.device) - started

    def epoch(steps: int | None = None) -> tuple[float, list[dict]]:
        logs = []
        started = wait(case.device)
        retain = kept or tokenised(case.retain, tokenizer, case.device)
        optimizer = torch.optim.AdamW(model.parameters(), LR, fused="fused" in on or None)
        model.train()
        torch.manual_seed(case.seed)
        for forget_rows, retain_rows in plan[:steps]:
            ids, mask, labels = cut(forget, forget_rows, "bucketed" in on)
            retain_ids, retain_mask, retain_labels = cut(retain, retain_rows, "bucketed" in on)
            with train.autocast(device, precision):
                if "cached_reference" in on:
                    ref_logits = reference[forget_rows]
                else:
                    with torch.no_grad():
                        ref_logits = poisoned(ids, mask).float()
                logits = model(ids, mask).float()
                retained = model(retain_ids, retain_mask).float()
            log_p, log_q = F.log_softmax(logits.detach(), 1), F.log_softmax(ref_logits, 1)
            lam = torch.exp(-ALPHA * (log_p.exp() * (log_p - log_q)).sum(1).mean())
            ascent, clean = (
                F.cross_entropy(logits, labels),
                F.cross_entropy(retained, retain_labels),
            )
            norms = [torch.norm(p - base[n]) for n, p in model.backbone.named_parameters()]
            drift = torch.norm(torch.stack(norms))
            optimizer.zero_grad()
            (-lam * ascent + clean + BETA * drift).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            logs.append([value.detach() for value in (ascent, clean, lam, drift)])
        seconds = wait(case.device) - started
        return seconds, [dict(zip(TERMS, torch.stack(log).tolist(), strict=True)) for log in logs]

    return epoch, setup


def make(case: Case, variant: str | frozenset) -> tuple[Epoch, float]:
    """``minilib`` (as it runs by default), ``minilib fp32``, or the plain loop's switches."""
    if variant == "minilib":
        return ours(case, train.resolve_precision("auto", torch.device(case.device)))
    return ours(case, "fp32") if variant == "minilib fp32" else plain(case, variant)


# -------------------------------------------------------------------------- measuring


def check_losses(case: Case) -> dict:
    """Same weights and rows, no dropout, fp32: compare every term of every step.

    Says also how far minilib's default precision is from fp32, for which no bound is set.

    Raises:
        RuntimeError: the loops do not compute the same, so their times must not be compared.
    """
    still = replace(case, dropout=False)
    default = train.resolve_precision("auto", torch.device(case.device))
    few = CHECKED if case.device == "cpu" else None
    (_, slow), flops = limits.count(make(still, PLAIN)[0], few)
    (_, exact), own = limits.count(make(still, "minilib fp32")[0], None)
    rounded = make(still, "minilib")[0](few)[1]
    worst = difference(slow, exact[: len(slow)])
    if not worst <= TOLERANCE:
        raise RuntimeError(f"losses differ by {worst:.1e} (relative); accepted: {TOLERANCE:.0e}")
    # All rows of the plain loop are padded to the same length, so its work is told by their number.
    plan = [(len(f.rows), len(r.rows)) for f, r in pairs_of(still, models_of(still)[0].tokenizer)(
        np.random.default_rng(case.seed))]  # fmt: skip
    share = plain_work(plan) / plain_work(plan[: len(slow)])
    return {
        "steps": len(slow),
        "epoch_steps": len(exact),
        "flops": {"plain": round(flops * share), "minilib": own, "minilib fp32": own},
        "largest_relative_difference": worst,
        "tolerance": TOLERANCE,
        f"largest_relative_difference_in_{default}": difference(slow, rounded),
    }


def plain_work(plan: list[tuple[int, int]]) -> int:
    """Work of steps of (forget, retain) rows, in forward passes of a row: a backward pass is two.

    Forget rows go through the poisoned model too.
    """
    return sum(4 * forget + 3 * retain for forget, retain in plan)


def difference(logs: list[dict], others: list[dict]) -> float:
    """Largest relative difference of any term at any step."""
    return max(
        abs(a[term] - b[term]) / max(abs(a[term]), abs(b[term]))
        for a, b in zip(logs, others, strict=True)
        for term in TERMS
    )


def alternate(case: Case, variants: dict, repeats: int, warm_steps: int, isolated=True) -> dict:
    """Time epochs of all variants in turns, each in a process of its own."""
    builds = {name: partial(make, case, variant) for name, variant in variants.items()}
    return workers.alternate(builds, case.device, case.threads, repeats, None, warm_steps, isolated)


def measure(case: Case, repeats: int, switches: tuple[str, ...], isolated: bool = True) -> dict:
    """Run all of it and return the record."""
    losses = check_losses(case)
    worst = losses["largest_relative_difference"]
    print(f"losses equal over {losses['steps']} steps: all terms within {worst:.1e} (relative)")
    seconds = alternate(
        case,
        {"plain": PLAIN, "minilib": "minilib", "minilib fp32": "minilib fp32"},
        repeats,
        WARM_STEPS,
        isolated,
    )
    slow, mine = seconds["plain"], seconds["minilib"]
    rates = limits.machine(case.device, quick=not isolated)
    run, my_run = (RUN_EPOCHS * x["median"] + x["setup_seconds"] for x in (slow, mine))
    return {
        "what": "one RGA unlearning epoch: plain loop against minilib",
        "case": {
            "model": case.model,
            "data": case.source,
            "forget_rows": len(case.forget),
            "retain_rows": len(case.retain),
            "batch": f"{case.batch_size} + {case.batch_size}",
            "steps": losses["epoch_steps"],
            "device": case.device,
            "precision": limits.precision_of("minilib", case.device),
        },
        "hardware": hardware(case),
        "versions": versions(),
        "equal_losses": losses,
        "seconds": seconds,
        "ratios": {
            "plain / minilib": ratios(slow, mine),
            "plain / minilib fp32": ratios(slow, seconds["minilib fp32"]),
            f"plain / minilib, {RUN_EPOCHS} epochs with set-up": round(run / my_run, 3),
        },
        "limits": {
            "machine": rates,
            "parts": limits.loops(rates, case.device, seconds, losses["flops"], "epoch, {}"),
        },
        "switches": one_by_one(case, repeats, switches, isolated),
    }


def one_by_one(case: Case, repeats: int, switches: tuple[str, ...], isolated: bool) -> dict:
    """Leave each switch out of the plain loop with all of them on, and time it against that."""
    every = frozenset(name for name in SWITCHES if switchable(name, case.device))
    found = {}
    for name in switches:
        if name in every:
            pair = {"all on": every, "left out": every - {name}}
            both = alternate(case, pair, repeats, WARM_STEPS, isolated)
            found[name] = both | {"slowdown": ratios(both["left out"], both["all on"])}
    return found


def switchable(name: str, device: str) -> bool:
    """Tell whether a switch does anything on this device."""
    if name == "bf16":
        return train.resolve_precision("auto", torch.device(device)) == "bf16"
    return name != "heap" or device == "cpu"


def table(record: dict) -> str:
    case, machine, versions = record["case"], record["hardware"], record["versions"]
    lines = [
        f"One RGA epoch: {case['model']}, {case['data']}, {case['forget_rows']} forget and "
        f"{case['retain_rows']} retain rows, {case['steps']} steps of {case['batch']}",
        f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch "
        f"{versions['torch']}; median (min – max) of n = {record['seconds']['plain']['n']}",
        "",
    ]
    for name, value in record["seconds"].items():
        lines.append(f"  {name:<28}{value['median']:>8.2f} s  ({value['min']:.2f} – "
                     f"{value['max']:.2f}), set-up {value['setup_seconds']:.2f} s")  # fmt: skip
    for name, value in record["ratios"].items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{ratio:.2f}" for ratio in value["values"])
            lines.append(f"  {name:<28}{value['median']:>8.2f} ×  (pair by pair: {pairs})")
        else:
            lines.append(f"  {name}: {value:.2f} ×")
    if record["switches"]:
        lines += ["", "The plain loop with all switches on, against the same with one left out"]
    for name, value in record["switches"].items():
        on, off = value["all on"]["median"], value["left out"]["median"]
        lines.append(f"  {name:<28}{value['slowdown']['median']:>8.2f} ×  ({on:.2f} → {off:.2f} s)")
    return "\n".join(lines)


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool
) -> Path:
    """Measure, print a table, write ``rga-<device>.json`` and return its path."""
    case = make_case(device, threads, quick)
    if not quick:
        case = replace(
            case, forget=thinned(case.forget, device), retain=thinned(case.retain, device)
        )
    names = SWITCHES if switches else ()
    record = measure(case, turns(repeats, quick, device), names, isolated=not quick)
    print(table(record))
    return write(folder, f"rga-{device}{'-quick' if quick else ''}", record)
