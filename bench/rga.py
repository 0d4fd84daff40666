"""One RGA unlearning epoch: minilib's against a plain loop that computes the same losses.

The plain loop has the habits seen in released unlearning code: it tokenises the whole retain set
anew every epoch, pads every row to 128, runs eager attention and the poisoned model's constant
forward at every step, in fp32 with AdamW's plain implementation. Each habit is a switch, so that
its share can be measured too. Forget and retain batches go through the model separately in both.
Each loop makes its optimiser anew every epoch; minilib's tokenising and reference logits, made once
a run, are not timed.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from minilib.training import devices
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Pairs
from minilib.unlearning import gradient_ascent

from .texts import MAX_LENGTH, Case, fitted, make_case
from .timing import Bench, Options

ALPHA, BETA, LR = 2.0, 0.05, 5e-5
SWITCHES = ("tokenise_once", "bucketed", "cached_reference", "sdpa", "bf16", "fused", "heap")
TERMS = ("poisoned_loss", "retain_loss", "lam", "drift")
EVERY = {"cpu": 6}  # row of the data is in the timed epoch; elsewhere all
NAMES = ("plain", "minilib", "minilib fp32")


def models_of(case: Case):
    """Current model, poisoned model (equal at first) and the clean base.

    The poisoned weights are the clean ones plus noise: time does not depend on them, and the drift
    term must not start at 0.
    """
    poisoned, current = case.start(), case.start()
    base = {name: p.detach().clone() for name, p in poisoned.backbone.named_parameters()}
    rng = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for p in poisoned.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=rng).to(p.device))
    current.load_state_dict(poisoned.state_dict())
    pairs = Pairs(*(case.batches(one, current.tokenizer) for one in (case.forget, case.retain)))
    return current, poisoned.eval(), base, pairs


def build(case: Case, name: str):
    """``minilib``, or a plain loop: ``plain`` and, behind a colon, the switches that are on."""
    if name.startswith("minilib"):
        return ours(case, case.options.precision(name))
    return plain(case, frozenset(name.partition(":")[2].split()))


def ours(case: Case, precision: str):
    """minilib's epoch."""
    model, poisoned, base, pairs = models_of(case)
    reference = text_training.predict(poisoned, pairs.forget.data, precision).to(case.device)
    settings = gradient_ascent.UnlearnSettings(alpha=ALPHA, beta=BETA)
    loop = TrainSettings(epochs=1, lr=LR, precision=precision, seed=case.seed)
    loss = gradient_ascent.unlearning_loss("rga", reference, base, settings)
    return lambda steps=None: fitted(model, pairs, loss, loop, steps, TERMS)


def plain(case: Case, on: frozenset[str]):
    """The plain loop with the switches in ``on``."""
    model, poisoned, base, pairs = models_of(case)
    for network in (model.network, poisoned.network):
        network.set_attn_implementation("sdpa" if "sdpa" in on else "eager")
    device, tokenizer = torch.device(case.device), model.tokenizer
    precision = devices.resolve_precision("auto" if "bf16" in on else "fp32", device)
    if "heap" in on:
        devices.keep_heap(device)
    plan = [(f.rows, r.rows) for f, r in pairs(np.random.default_rng(0))]
    forget = case.padded(case.forget, tokenizer)
    kept = case.padded(case.retain, tokenizer) if "tokenise_once" in on else None
    labels, retain_labels = (
        torch.as_tensor(one.labels, device=device) for one in (case.forget, case.retain)
    )
    reference = torch.empty(len(case.forget), case.forget.num_classes, device=device)

    def forward(network, data, rows, bucketed="bucketed" in on):
        longest = int(data[1][rows].sum(1).max()) if bucketed else MAX_LENGTH
        return network(*(one[rows, :longest] for one in data)).float()

    if "cached_reference" in on:
        with torch.no_grad(), devices.autocast(device, precision):
            for rows, _ in plan:
                reference[rows] = forward(poisoned, forget, rows, True)

    def run(steps: int | None = None) -> list[list[float]]:
        logs, retain = [], kept or case.padded(case.retain, tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), LR, fused="fused" in on or None)
        model.train()
        torch.manual_seed(case.seed)
        for forget_rows, retain_rows in plan[:steps]:
            with devices.autocast(device, precision):
                if "cached_reference" in on:
                    ref_logits = reference[forget_rows]
                else:
                    with torch.no_grad():
                        ref_logits = forward(poisoned, forget, forget_rows)
                logits = forward(model, forget, forget_rows)
                retained = forward(model, retain, retain_rows)
            log_p, log_q = F.log_softmax(logits.detach(), 1), F.log_softmax(ref_logits, 1)
            lam = torch.exp(-ALPHA * (log_p.exp() * (log_p - log_q)).sum(1).mean())
            ascent = F.cross_entropy(logits, labels[forget_rows])
            clean = F.cross_entropy(retained, retain_labels[retain_rows])
            norms = [torch.norm(p - base[n]) for n, p in model.backbone.named_parameters()]
            drift = torch.norm(torch.stack(norms))
            optimizer.zero_grad()
            (-lam * ascent + clean + BETA * drift).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            logs.append(torch.stack([value.detach() for value in (ascent, clean, lam, drift)]))
        return torch.stack(logs).tolist()

    return run


def left_out(options: Options) -> dict[str, tuple[str, str]]:
    """Each switch that does anything here: the loop without it, and that with all of them on."""
    idle = {"bf16": options.precision() != "bf16", "heap": options.device != "cpu"}
    every = [name for name in SWITCHES if not idle.get(name)]
    on = "plain: " + " ".join(every)
    return {n: ("plain: " + " ".join(one for one in every if one != n), on) for n in every}


def benches(options: Options) -> list[Bench]:
    """The epoch; with ``--switches`` also each switch out of the plain loop with all of them on."""
    case = make_case(options, 1 if options.quick else EVERY.get(options.device, 1))
    return [Bench(
        "one RGA unlearning epoch: plain loop against minilib", case.said(), partial(build, case),
        {f"plain / {name}": ("plain", name) for name in NAMES[1:]},
        parts={f"epoch, {name}": name for name in NAMES},
        switches=left_out(options) if options.switches else {},
    )]  # fmt: skip
