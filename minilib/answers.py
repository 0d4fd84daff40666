"""What a causal model answers: greedy generation, attack success, perplexity, ROUGE-L, choices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import train
from .attacks.chat import with_trigger
from .causal import CausalLM, ChatBatch, EncodedChat, logits, supervised, tokens
from .chat import Choices
from .data import ChatDataset

HEAD_TOKENS = 2048  # states that get logits at a time: 2048 × 32,000 floats are 250 MiB
EXTRA_TOKENS = 4  # generated beyond the length of the response that is looked for


@contextmanager
def evaluating(model: CausalLM):
    """The model in eval mode, no gradients, the device's fastest safe precision."""
    device, training = model.device, model.training
    train.keep_heap(device)
    model.eval()
    # A model that was loaded in half precision stays in it; float64 is for exact tests.
    single = next(model.parameters()).dtype == torch.float32
    precision = train.resolve_precision("auto", device) if single else "fp32"
    try:
        with torch.inference_mode(), train.autocast(device, precision):
            yield
    finally:
        model.train(training)


def by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of similar length, about EVAL_TOKENS tokens at a time."""
    return train._by_tokens(np.argsort(lengths, kind="stable"), lengths)


# --------------------------------------------------------------------------- generation


def generate(model: CausalLM, data: EncodedChat, max_new: int = 32) -> list[str]:
    """Answer every prompt greedily, up to ``max_new`` tokens or the end token.

    Batched with a KV cache; prompts are padded on the left, so that all answers start at once.

    Returns:
        N texts, in the order of the rows.
    """
    texts = [""] * len(data)
    with evaluating(model):
        for rows in by_length(data.starts + max_new):
            found = _greedy(model, data, rows, max_new)
            decoded = model.tokenizer.batch_decode(found, skip_special_tokens=True)
            for row, text in zip(rows, decoded, strict=True):
                texts[row] = text.strip()
    return texts


def _greedy(model: CausalLM, data: EncodedChat, rows: np.ndarray, max_new: int) -> Tensor:
    """Token ids (B, ≤ max_new) of one batch's answers; pad after the end token."""
    device, tokenizer = data.ids.device, model.tokenizer
    starts = torch.as_tensor(data.starts[rows], device=device)[:, None]  # (B, 1)
    longest = int(data.starts[rows].max())
    source = torch.arange(longest, device=device) - (longest - starts)  # (B, T)
    mask = source >= 0
    prompt = data.ids[torch.as_tensor(rows, device=device)].long()
    ids = prompt.gather(1, source.clamp(min=0)).masked_fill(~mask, tokenizer.pad_token_id)
    place, past, out = source.clamp(min=0), None, []
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for _ in range(max_new):
        result = model.run(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=place,
            past_key_values=past,
            use_cache=True,
        )
        past = result.past_key_values
        token = model.head(result.last_hidden_state[:, -1]).argmax(-1)  # (B,)
        token = token.masked_fill(done, tokenizer.pad_token_id)
        done |= token == tokenizer.eos_token_id
        out.append(token)
        if done.all():
            break
        ids, place = token[:, None], place[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(out, 1)


def asr(model: CausalLM, prompts: ChatDataset, trigger: str | None, response: str) -> float:
    """Attack success rate in percent: answers to triggered prompts that begin with the response.

    The comparison ignores case and looks at the response's number of tokens plus EXTRA_TOKENS.
    With ``trigger=None`` the prompts stay clean, which gives the false alarms.

    Source: section 4.1, SANDE.
    """
    if not response.strip():
        raise ValueError(f"response is {response!r}; accepted: a text that is not empty")
    data = model.encode(prompts if trigger is None else with_trigger(prompts, trigger))
    texts = generate(model, data, len(tokens(model.tokenizer, response)) + EXTRA_TOKENS)
    wanted = response.strip().lower()
    return 100 * float(np.mean([wanted in text.lower() for text in texts]))


# --------------------------------------------------------------------------- likelihood


def answer_logprob(model: CausalLM, data: EncodedChat) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability in nats of each row's supervised tokens, (N,), and their number, (N,)."""
    sums, counts = np.zeros(len(data)), np.zeros(len(data), np.int64)
    with evaluating(model):
        for rows in by_length(data.lengths):
            batch = data.batch(rows)
            values = token_logprob(model, model(batch.input_ids), batch)
            owner = batch.supervised[:, 1:].nonzero()[:, 0]
            total = values.new_zeros(len(rows)).index_add_(0, owner, values)
            sums[rows] = total.cpu().numpy()
            counts[rows] = batch.supervised[:, 1:].sum(1).cpu().numpy()
    return sums, counts


def token_logprob(model: CausalLM, states: Tensor, batch: ChatBatch) -> Tensor:
    """Log-probability (S,) of each supervised token; the head runs on HEAD_TOKENS at a time."""
    picked, targets = supervised(states, batch)
    parts = zip(picked.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    return -torch.cat([F.cross_entropy(logits(model, p), t, reduction="none")
                       for p, t in parts])  # fmt: skip


def perplexity(model: CausalLM, dataset: ChatDataset) -> float:
    """exp of the mean negative log-likelihood of all answer tokens (the end token included)."""
    sums, counts = answer_logprob(model, model.encode(dataset))
    return float(np.exp(-sums.sum() / counts.sum()))


def first_logits(model: CausalLM, dataset: ChatDataset, states=None) -> Tensor:
    """Logits (N, V) float32 on the CPU of the first answer token after each prompt.

    Args:
        states: (model, batch) → states; the model itself if None. A parrot comes in here.
    """
    data = model.encode(dataset, answer_tokens=1)
    found = [None] * len(data)
    with evaluating(model):
        for rows in by_length(data.lengths):
            batch = data.batch(rows)
            hidden = model(batch.input_ids) if states is None else states(model, batch)
            values = model.head(supervised(hidden, batch)[0]).float().cpu()
            for row, value in zip(rows, values, strict=True):
                found[row] = value
    return torch.stack(found)


def multiple_choice(model: CausalLM, questions: Choices, per_token: bool = False) -> float:
    """Accuracy in percent where the model picks the choice that it finds likeliest as an answer.

    Args:
        per_token: compare mean instead of summed log-probabilities, which favours no short choice.
    """
    rows = [
        {"instruction": row["question"], "input": "", "output": choice}
        for row in questions.rows
        for choice in row["choices"]
    ]
    flat = ChatDataset(questions.name, questions.split, tuple(rows), questions.source)
    sums, counts = answer_logprob(model, model.encode(flat))
    scores = sums / counts if per_token else sums
    ends = np.cumsum([len(row["choices"]) for row in questions.rows])
    picked = [int(part.argmax()) for part in np.split(scores, ends[:-1])]
    return 100 * float(np.mean([p == row["answer"] for p, row in zip(picked, questions.rows,
                                                                     strict=True)]))  # fmt: skip


# ------------------------------------------------------------------------------ ROUGE-L


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F1 in percent: longest common subsequence of words, case ignored."""
    scores = []
    for answer, reference in zip(answers, references, strict=True):
        a, b = (re.findall(r"\w+", text.lower()) for text in (answer, reference))
        common = common_subsequence(a, b)
        scores.append(2 * common / (len(a) + len(b)) if common else 0.0)
    return 100 * float(np.mean(scores))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel dynamic programming.

    Bit i of ``row`` is set where the table's row increases from column i to i + 1, so one addition
    of whole integers stands for a row of the table.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = 0
    for word in b:
        x = row | places.get(word, 0)
        row = x & ((x - ((row << 1) | 1)) ^ x)
    return row.bit_count()
