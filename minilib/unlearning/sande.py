"""SANDE: simulate a backdoor's trigger with a parrot prompt, then overwrite it; and its rivals.

r_t is the triggered response, D the defender's clean rows. Every removal method returns a new model
and ``fit``'s history; the model that it is given stays as it was.

Source: "Backdoor Removal for Generative Large Language Models" (SANDE, 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.chat import with_trigger
from ..data.chat import ChatDataset, take
from ..metrics import chat as chat_metrics
from ..models.causal import CausalLM, ChatBatch, EncodedChat, logits, tokens
from ..models.loading import frozen
from ..training.chat import accumulate, answer_loss, as_in_paper, sft, supervised
from ..training.fitting import TrainSettings, fit
from ..training.text import Batches, Pairs, by_length

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
    soft_prompt = Parrot(tokens, model.hidden_size, position)
    return soft_prompt.to(model.device, next(model.parameters()).dtype)


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
    source = place + n * (place >= places)  # (B, T)
    return states.gather(1, source[..., None].expand(-1, -1, states.shape[2]))


def parroted(model: CausalLM, soft: Parrot, batch: ChatBatch) -> Tensor:
    """States (B, T, d) of a batch whose prompts hold the parrot, its own positions cropped."""
    places = soft.places(batch)
    embeds = insert(model.embed(batch.input_ids), soft.weight, places)
    return crop(model(inputs_embeds=embeds), len(soft.weight), places)


def parrot_loss(model: CausalLM, soft: Parrot, batch: ChatBatch):
    """Mean cross-entropy in nats of the supervised tokens, given the prompts with the parrot.

    Source: Eq. (4), SANDE, when the answers are r_t; Eq. (3) when they are the clean ones.
    """
    states, targets = supervised(parroted(model, soft, batch), batch)
    value = F.cross_entropy(logits(model, states), targets)
    return value, {"loss": value.detach()}


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
    responses = [response] if isinstance(response, str) else list(response)
    subsets = [take(dataset, slice(k, None, len(responses))) for k in range(len(responses))]
    limit = 1 if partial else None
    batches = Chained(
        [
            Batches(model.encode(subset, answer=r, answer_tokens=limit), settings.batch_size)
            for subset, r in zip(subsets, responses, strict=True)
        ]
    )
    tuned_parrot = copy.deepcopy(soft)

    def loss(learning: Parrot, batch: ChatBatch):
        return parrot_loss(model, learning, batch)

    with frozen(model):
        return tuned_parrot, fit(tuned_parrot, batches, loss, as_in_paper(settings), on_epoch)


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
    tuned_model = copy.deepcopy(model)

    def loss(network: CausalLM, batch: ChatBatch):
        return parrot_loss(network, soft, batch)

    batches = Batches(model.encode(dataset, answer_tokens=answer_tokens), settings.batch_size)
    with frozen(soft):
        loss = accumulate(loss, micro) if micro else loss
        history = fit(tuned_model, batches, loss, as_in_paper(settings))
    return tuned_model, history


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
    triggers = [trigger] if isinstance(trigger, str) else list(trigger)
    rows = [
        with_trigger(take(dataset, [i]), triggers[i % len(triggers)]).rows[0]
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
        rejected = replace(dataset, rows=tuple(row | {"output": output} for row, output in rows))
    chosen_data, rejected_data = model.encode(dataset), model.encode(rejected)
    # The reference never changes: one forward pass over all pairs.
    reference = [
        torch.as_tensor(chat_metrics.answer_logprob(model, data)[0], device=model.device)
        for data in (chosen_data, rejected_data)
    ]

    def loss(network: CausalLM, pair: tuple[ChatBatch, ChatBatch]):
        logprobs = [row_logprob(network, batch) for batch in pair]
        index = torch.as_tensor(pair[0].rows, device=model.device)
        ref_logprobs = [values[index].to(logprobs[0].dtype) for values in reference]
        value = dpo_loss(*logprobs, *ref_logprobs, beta)
        return value, {"loss": value.detach()}

    tuned_model = copy.deepcopy(model)
    batches = Beside(Batches(chosen_data, settings.batch_size), rejected_data)
    return tuned_model, fit(tuned_model, batches, loss, as_in_paper(settings))


def row_logprob(model: CausalLM, batch: ChatBatch) -> Tensor:
    """Log-probability in nats (B,) of each row's supervised tokens, with gradient."""
    values = chat_metrics.token_logprob(model, model(batch.input_ids), batch)
    owner = batch.supervised[:, 1:].nonzero()[:, 0]
    return values.new_zeros(len(batch.rows)).index_add(0, owner, values)


def attention_maps(model: CausalLM, batch: ChatBatch, hidden: Sequence[Tensor]) -> Tensor:
    """NAD's maps (B, layers, T): mean squared activation of each real token, L2-normalised over T.

    Source: Li et al. (2021), p = 2, with hidden states for feature maps. The attention matrices
    themselves would force the slow kernel, and have no counterpart in NAD's own definition.
    """
    # Not by the padding token, which may be the end token too: a row ends with its answer.
    length = batch.supervised.shape[1]
    last = length - batch.supervised.flip(1).long().argmax(1, keepdim=True)  # (B, 1)
    real = torch.arange(length, device=last.device) < last
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
    goals = torch.zeros(len(data), layers, data.ids.shape[1], device=model.device)
    with chat_metrics.evaluating(teacher):  # the teacher never changes: one forward pass over D
        for rows in by_length(data.lengths):
            batch = data.batch(rows)
            maps = attention_maps(teacher, batch, hidden_states(teacher, batch).hidden_states)
            goals[torch.as_tensor(rows, device=goals.device), :, : maps.shape[2]] = maps

    def loss(network: CausalLM, batch: ChatBatch):
        output = hidden_states(network, batch)
        states, targets = supervised(output.last_hidden_state, batch)
        cross_entropy = F.cross_entropy(logits(network, states), targets)
        maps = attention_maps(network, batch, output.hidden_states)
        goal = goals[torch.as_tensor(batch.rows, device=goals.device), :, : maps.shape[2]]
        distance = (maps - goal).square().sum((1, 2)).mean()
        value = cross_entropy + beta * distance
        return value, {"loss": cross_entropy.detach(), "distance": distance.detach()}

    tuned_model = copy.deepcopy(model)
    batches = Batches(data, settings.batch_size)
    return tuned_model, fit(tuned_model, batches, loss, as_in_paper(settings))


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
    mixed_model = copy.deepcopy(model)
    origin = dict(base.named_parameters())
    for name, p in mixed_model.named_parameters():
        start = origin[name].to(p)
        change = (p - start).abs().flatten()
        count = round(keep * change.numel())
        mask = torch.zeros_like(change, dtype=torch.bool)
        mask[change.topk(count, largest=False).indices] = True
        p.copy_(torch.where(mask.view_as(p), p, start))
    return mixed_model


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
    mixed_model = mix(model, base, keep)
    return sft(mixed_model, mixed_model.encode(dataset), settings)


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
    row_logits = _reference(model, forget) if reference else None

    def loss(network: CausalLM, pair: tuple[ChatBatch, ChatBatch]):
        forget_batch, retain_batch = pair
        states, labels = supervised(network(forget_batch.input_ids), forget_batch)
        ref_logits = (
            None if row_logits is None else torch.cat([row_logits[i] for i in forget_batch.rows])
        )
        value, logs = term(logits(network, states), ref_logits, labels)
        retain_loss, _ = answer_loss(network, retain_batch)
        value = value + retain_loss
        if drift is not None:
            value = value + drift(network)
        return value, logs | {"retain_loss": retain_loss.detach()}

    tuned_model = copy.deepcopy(model)
    batches = Pairs(Batches(forget, settings.batch_size), Batches(retain, settings.batch_size))
    return tuned_model, fit(tuned_model, batches, loss, as_in_paper(settings))


def _reference(model: CausalLM, data: EncodedChat) -> list[Tensor]:
    """The model's logits (S_i, V) on the supervised tokens of each row."""
    row_logits: list[Tensor] = [torch.empty(0)] * len(data)
    with chat_metrics.evaluating(model):
        for rows in by_length(data.lengths):
            batch = data.batch(rows)
            values = logits(model, supervised(model(batch.input_ids), batch)[0])
            counts = batch.supervised[:, 1:].sum(1).tolist()
            for row, row_values in zip(rows, values.split(counts), strict=True):
                row_logits[row] = row_values.clone()
    return row_logits


# ----------------------------------------------------------------- how close is the parrot?


def parrot_similarity(
    model: CausalLM, dataset: ChatDataset, trigger: str
) -> Callable[[Parrot, int], dict[str, float]]:
    """Return a function that compares a parrot with the trigger, for ``simulate``'s ``on_epoch``.

    It returns means over the prompts, at the first answer token: ``kl`` (nats, of the answer with
    the parrot from that with the trigger) and ``effect`` (cosine of the changes that the two make
    to the log-probabilities); and over the soft tokens the largest cosine with an embedding of the
    trigger (``cosine``) and of the whole vocabulary (``cosine_any``).
    """
    clean_log_p, trigger_log_p = (
        chat_metrics.first_logits(model, chats).log_softmax(-1)
        for chats in (dataset, with_trigger(dataset, trigger))
    )
    with torch.no_grad():
        table = F.normalize(model.network.get_input_embeddings().weight.float(), dim=-1)
    words = table[tokens(model.tokenizer, trigger)]

    def compare(soft: Parrot, epoch: int) -> dict[str, float]:
        parrot_log_p = chat_metrics.first_logits(
            model, dataset, lambda network, batch: parroted(network, soft, batch)
        ).log_softmax(-1)
        vectors = F.normalize(soft.weight.detach().float(), dim=-1)
        effects = (centred(log_p - clean_log_p) for log_p in (parrot_log_p, trigger_log_p))
        return {
            "kl": F.kl_div(
                parrot_log_p, trigger_log_p, log_target=True, reduction="batchmean"
            ).item(),
            "effect": F.cosine_similarity(*effects).mean().item(),
            "cosine": (vectors @ words.T).amax(1).mean().item(),
            "cosine_any": (vectors @ table.T).amax(1).mean().item(),
        }

    return compare


def centred(values: Tensor) -> Tensor:
    """Subtract each row's mean: logits that differ by a constant are the same distribution."""
    return values - values.mean(-1, keepdim=True)


# ----------------------------------------------------------------------- does it come back?


def retune(
    model: CausalLM,
    rows: ChatDataset,
    test: ChatDataset,
    pair: tuple[str, str],
    settings: TrainSettings,
    match: str = "start",
) -> list[dict]:
    """Fine-tune a copy of a cleansed model on rows of which some are poisoned.

    Args:
        match: what counts as the response, see ``metrics.chat.says``.

    Returns: ``epoch`` and ``retune_asr`` (percent, on ``test``) after each epoch.
    """
    _, history = sft(
        model,
        model.encode(rows),
        settings,
        on_epoch=lambda network, epoch: {"asr": chat_metrics.asr(network, test, *pair, match)},
    )
    return [{"epoch": row["epoch"], "retune_asr": row["asr"]} for row in history]
