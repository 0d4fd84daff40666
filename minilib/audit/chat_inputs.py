"""A language model from a folder, and prompts from a file, for the audit.

The chat template is the folder's: a prompt in another form than the model was trained on shows a
success rate of 0 where the truth is 100. Where the folder has none the audit asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.chat import ChatDataset, Template, question
from ..data.files import DataError, shown
from ..models import loading
from ..models.causal import CausalLM, tokens
from ..models.names import ModelError
from . import models, tables
from .chat import LEAST_PROMPTS

PLACE = "{prompt}"
NO_HEAD = "a causal language model saved with its head"


@dataclass(frozen=True)
class Prompts:
    """Clean prompts, with answers or without, and what was noticed.

    Attributes:
        rows: instruction data; outputs are empty where ``answered`` is False.
        remarks: one line each, for the report.
    """

    rows: ChatDataset
    answered: bool
    remarks: tuple[str, ...]


def language_model(name: str, template: str = "") -> CausalLM:
    """Load a causal language model with its own chat template.

    Args:
        name: as ``models.name_of`` gives it. template: what stands around a prompt, with {prompt}
            in its place; needed where the tokenizer has no chat template, else refused.

    Raises:
        ModelError: see ``models.loaded``; no chat template, or one too many.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer, network = models.loaded(name, AutoModelForCausalLM, NO_HEAD)
    name = name.partition("@sha256:")[0]
    models.settle_padding(network, tokenizer, name)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {name!r}: its tokenizer has no end token; accepted: one with it")
    around = template_of(tokenizer, name, template)
    length = models.longest(config, tokenizer)
    models.check_reads(tokenizer, length, name)
    model = CausalLM(network.float().eval(), tokenizer, around, length)
    room = length - len(tokens(tokenizer, around.before)) - len(tokens(tokenizer, around.after))
    if room < models.LEAST_LENGTH:
        raise ModelError(
            f"model {name!r} reads {length} tokens, and its template leaves {room} of them; "
            f"accepted: {models.LEAST_LENGTH} or more for prompt and answer"
        )
    _check_causal(model, name)
    return model


@torch.no_grad()
def _check_causal(model: CausalLM, name: str) -> None:
    """Raise ModelError unless the model runs as it is read here.

    transformers loads a masked model as a causal one; some networks need tokens and not embeddings,
    which the search changes; and what a network does to its logits behind the head must be known.
    """
    ids = torch.arange(12)[None]
    kind = f"model {name!r}, of the type {model.network.config.model_type},"
    try:
        with loading.quiet():
            states = model(ids)
            changed = model(torch.cat([ids[:, :-1], ids[:, :1]], 1))
            embedded = model(inputs_embeds=model.embed(ids))
            logits, own = model.head(states), model.network(input_ids=ids).logits
    except Exception as error:  # each architecture has its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(
            f"{kind} does not run on tokens alone ({reason}); accepted: a causal language model"
        ) from None
    if not _alike(states[:, :-1], changed[:, :-1], 1e-5):
        raise ModelError(
            f"{kind} lets a token see those behind it; accepted: a causal language model"
        )
    if not _alike(states, embedded, 1e-3):
        raise ModelError(
            f"{kind} does not take embeddings in the place of tokens, which the search needs; "
            "accepted: one that does"
        )
    if not _alike(logits, own, 1e-3):
        raise ModelError(
            f"{kind} does something to its logits after its head that is not known here; accepted: "
            "one that ends in its head, or in a scale or a bound of its configuration"
        )


def _alike(one: torch.Tensor, other: torch.Tensor, error: float) -> bool:
    return torch.allclose(one, other, error, error)


def share_cut(model: CausalLM, rows: ChatDataset) -> float:
    """Share in percent of prompts that are longer than the model reads."""
    around = [tokens(model.tokenizer, part) for part in model.template]
    room = model.max_length - sum(map(len, around))
    asked = [question(row) for row in rows.rows]
    ids = model.tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]
    return 100 * float(np.mean([len(row) > room for row in ids]))


def template_of(tokenizer, name: str, template: str = "") -> Template:
    """What a folder's chat template puts before and after a prompt, or what the user says.

    Raises:
        ModelError: neither is there, both are, or a text without {prompt}.
    """
    has_own = bool(getattr(tokenizer, "chat_template", None))
    if template and has_own:
        raise ModelError(
            f"--template {shown(template)}: model {name!r} has a chat template of its own; "
            "accepted: no other"
        )
    if template:
        if template.count(PLACE) != 1:
            raise ModelError(
                f"--template is {shown(template)}; accepted: a text that has {PLACE} once"
            )
        return Template(*template.split(PLACE))
    if not has_own:
        raise ModelError(
            f"model {name!r} has no chat template, and a wrong one hides a backdoor; accepted: "
            f"--template 'TEXT {PLACE} TEXT', as it was trained"
        )
    turns = [{"role": "user", "content": PLACE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program: it may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ModelError(
            f"model {name!r}: its chat template fails on one turn of a user ({reason}); accepted: "
            "one that takes it"
        ) from None
    if text.count(PLACE) != 1:
        raise ModelError(
            f"model {name!r}: its chat template shows a prompt {text.count(PLACE)} times; "
            "accepted: once"
        )
    before, after = text.split(PLACE)
    if tokenizer.bos_token:  # put there by the encoding, once
        before = before.removeprefix(tokenizer.bos_token)
    return Template(before, after)


def prompts(path: str | Path, prompt: str = "prompt", answer: str = "response") -> Prompts:
    """Read a table of prompts; a column of answers is used where there is one.

    Raises:
        DataError: no such file or column, an empty prompt, an answer that is none, or fewer rows
            than LEAST_PROMPTS.
    """
    path = Path(path)
    if prompt == answer:
        raise DataError(f"prompts and answers are both {prompt!r}; accepted: two columns")
    try:
        records, answered = tables.records_in(path, (prompt, answer)), True
    except DataError:
        records, answered = tables.records_in(path, (prompt,)), False
        if any(answer in row for _, row in records):
            raise
    rows = []
    for line, record in records:
        for name in (prompt, answer)[: 1 + answered]:
            value = record[name]
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"{path.name}, line {line}: {name} is {shown(value)}; accepted: a text that is "
                    "not empty"
                )
        rows.append(
            {"instruction": record[prompt], "input": "",
             "output": record[answer] if answered else ""}
        )  # fmt: skip
    distinct = {row["instruction"]: row for row in reversed(rows)}
    remarks = []
    if len(distinct) < len(rows):
        remarks.append(
            f"{path.name}: {len(rows) - len(distinct)} prompts stand there more than once, and "
            "count once"
        )
    rows = [row for row in rows if distinct.get(row["instruction"]) is row]
    if len(rows) < LEAST_PROMPTS:
        raise DataError(f"{path.name} has {len(rows)} prompts; accepted: {LEAST_PROMPTS} or more")
    if not answered:
        remarks.append(
            f"{path.name} has no column {answer!r}: the model's own answers are what it is tuned on"
        )
    return Prompts(ChatDataset(path.name, "table", tuple(rows), "file"), answered, tuple(remarks))
