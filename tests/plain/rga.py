"""An epoch of RGA as released code has it, with each of its habits as a switch; and minilib's.

It tokenises the retain set anew every epoch, pads every row to 128, runs eager attention and the
poisoned model's constant forward at every step, in fp32 with AdamW's plain implementation.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.training import devices
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Pairs
from minilib.unlearning import gradient_ascent

from .texts import MAX_LENGTH, Case, fitted, padded

SWITCHES = ("tokenise_once", "bucketed", "cached_reference", "sdpa", "bf16", "fused", "heap")


def forget_terms(logits: Tensor, ref_logits: Tensor, labels: Tensor, alpha: float):
    """Cross-entropy of forget rows and λ, without gradient. Source: Eq. (6) and (7), RGA."""
    log_p, log_q = F.log_softmax(logits.detach(), 1), F.log_softmax(ref_logits, 1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return F.cross_entropy(logits, labels), torch.exp(-alpha * divergence)


def drift(backbone, base: dict[str, Tensor]) -> Tensor:
    """Distance of all weights from the base's."""
    norms = [torch.norm(p - base[name]) for name, p in backbone.named_parameters()]
    return torch.norm(torch.stack(norms))


class Epoch:
    """An epoch over (forget rows, retain rows), with the switches in ``on``; call it with steps.

    Args:
        model, poisoned, base: current and poisoned model, and the clean backbone's weights.
        forget, retain: texts with labels. plan: the rows of each step.
    """

    def __init__(
        self, model, poisoned, base, forget, retain, plan, *, alpha, beta, lr, on=frozenset()
    ):
        self.model, self.poisoned, self.base, self.plan = model, poisoned, base, plan
        self.alpha, self.beta, self.lr, self.on, self.sets = alpha, beta, lr, on, (forget, retain)
        for network in (model.network, poisoned.network):
            network.set_attn_implementation("sdpa" if "sdpa" in on else "eager")
        self.device = next(model.parameters()).device
        self.precision = devices.resolve_precision("auto" if "bf16" in on else "fp32", self.device)
        if "heap" in on:
            devices.keep_heap(self.device)
        self.forget = self.tokens(forget)
        self.retain = self.tokens(retain) if "tokenise_once" in on else None
        self.labels = [torch.as_tensor(one.labels, device=self.device) for one in self.sets]
        self.reference = torch.empty(len(forget), forget.num_classes, device=self.device)
        if "cached_reference" in on:
            for rows, _ in plan:
                self.reference[rows] = self.ref_logits(rows)

    def tokens(self, rows):
        return padded(rows.texts, self.model.tokenizer, self.device)

    def forward(self, network, data, rows: np.ndarray) -> Tensor:
        """Logits (B, K)."""
        longest = int(data[1][rows].sum(1).max()) if "bucketed" in self.on else MAX_LENGTH
        with devices.autocast(self.device, self.precision):
            return network(*(one[rows, :longest] for one in data)).float()

    @torch.no_grad()
    def ref_logits(self, rows: np.ndarray) -> Tensor:
        """Of the poisoned model."""
        return self.forward(self.poisoned, self.forget, rows)

    def __call__(self, steps: int | None = None) -> list[list[float]]:
        """Per step: cross-entropy of forget and of retain rows, λ, drift."""
        logs, retain = [], self.retain or self.tokens(self.sets[1])
        weights, fused = list(self.model.parameters()), "fused" in self.on or None
        optimizer = torch.optim.AdamW(weights, self.lr, fused=fused)
        self.model.train()
        torch.manual_seed(0)
        for rows, retain_rows in self.plan[:steps]:
            cached = "cached_reference" in self.on
            ref_logits = self.reference[rows] if cached else self.ref_logits(rows)
            logits = self.forward(self.model, self.forget, rows)
            ascent, lam = forget_terms(logits, ref_logits, self.labels[0][rows], self.alpha)
            retained = self.forward(self.model, retain, retain_rows)
            clean = F.cross_entropy(retained, self.labels[1][retain_rows])
            distance = drift(self.model.backbone, self.base)
            optimizer.zero_grad()
            (-lam * ascent + clean + self.beta * distance).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            logs.append(torch.stack([value.detach() for value in (ascent, clean, lam, distance)]))
        return torch.stack(logs).tolist()


# ---------------------------------------------------------------------------------- both sides

ALPHA, BETA, LR = 2.0, 0.05, 5e-5
TERMS = ("poisoned_loss", "retain_loss", "lam", "drift")


def build(case: Case, name: str, precision: str):
    """``minilib``, or a plain loop: ``plain`` and, behind a colon, the switches that are on.

    Forget and retain batches go through the model separately in both. Each loop makes its optimiser
    anew; minilib's tokenising and reference logits, made once a run, are no part of an epoch.
    """
    poisoned, model = case.start(), case.start()
    base = {name: p.detach().clone() for name, p in poisoned.backbone.named_parameters()}
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the poisoned weights are the clean ones plus noise: a drift above 0
        for p in poisoned.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=rng).to(p.device))
    model.load_state_dict(poisoned.state_dict())
    poisoned.eval()
    pairs = Pairs(*(case.batches(one, model.tokenizer) for one in (case.forget, case.retain)))
    if name.startswith("plain"):
        plan = [(f.rows, r.rows) for f, r in pairs(np.random.default_rng(0))]
        on = frozenset(name.partition(":")[2].split())
        how = {"alpha": ALPHA, "beta": BETA, "lr": LR, "on": on}
        return Epoch(model, poisoned, base, case.forget, case.retain, plan, **how)
    reference = text_training.predict(poisoned, pairs.forget.data, precision).to(case.device)
    settings = gradient_ascent.UnlearnSettings(alpha=ALPHA, beta=BETA)
    loss = gradient_ascent.unlearning_loss("rga", reference, base, settings)
    how = TrainSettings(epochs=1, lr=LR, precision=precision)
    return lambda steps=None: fitted(model, pairs, loss, how, steps, TERMS)
