"""Trials of the audit of language models, and of what it finds in victims made elsewhere."""

from __future__ import annotations

from dataclasses import replace

from .. import ledger
from ..ledger import cached, reads, recipe, trial
from ..models.names import pin

# ---------------------------------------------------------------- what is audited


@recipe
class ForeignChat:
    """A small language model that this library's training loop has not seen.

    Attributes:
        dataset: as ``data.chat.load_chat`` knows it. pair: of ``victims.chat.PAIRS``, or ``none``.
        rate: share of the training rows that carry the pair.
        seed: of the poison, the weights and the batches. shape: of ``models.causal.SHAPES``.
    """

    dataset: str
    pair: str
    seed: int
    rate: float = 0.1
    shape: str = "tiny"
    max_length: int = 64
    epochs: int = 8
    lr: float = 4e-3
    batch_size: int = 16

    def __post_init__(self):
        reads(self, *(("rate",) if self.pair != "none" else ()), of=("rate",))


@recipe
class PromptTable:
    """Prompts in a file, pinned by its content.

    Attributes:
        path: the file. prompt, answer: its columns; answers may be absent.
    """

    path: str
    prompt: str = "prompt"
    answer: str = "response"
    sha256: str = ""

    def __post_init__(self):
        if not self.sha256:
            from ..audit import tables

            object.__setattr__(self, "sha256", tables.digest(self.path))


@recipe
class ChatAudit:
    """An audit of a language model.

    Attributes:
        model: a folder or a name on the Hub, or a victim made for the purpose.
        prompts: a table, or a data set, whose test split is taken.
        template: around a prompt, where the model's folder has none.
        level: false-alarm rate of the verdict. texts, kept, rounds: see
            ``audit.chat.ChatSearchSettings``. seed: of the search.
    """

    model: str | ForeignChat
    prompts: PromptTable | str
    seed: int
    template: str = ""
    level: float = 0.05
    texts: int = 128
    kept: int = 4
    rounds: int = 6

    def __post_init__(self):
        pin(self)


@recipe
class ChatAuditVerdict:
    """The search for a response, in one verdict."""

    audit: ChatAudit


@recipe
class ChatAuditCleaned:
    """The model after SANDE unlearned the response that was found.

    Attributes:
        parrot_epochs, parrot_lr: of stage 1. epochs, lr, batch_size: of stage 2.
        rounds: of both and a new search, at most; it ends where the search finds nothing.
    """

    audit: ChatAudit
    parrot_epochs: int = 4
    parrot_lr: float = 0.01
    epochs: int = 2
    lr: float = 2e-5
    batch_size: int = 16
    rounds: int = 3


@recipe
class ChatAuditUnlearning:
    """What remains after unlearning."""

    cleaned: ChatAuditCleaned


# ---------------------------------------------------------------- victims from elsewhere


def _training_rows(one: ForeignChat):
    """Training rows of a victim, poisoned or not."""
    from ..attacks.chat import poison_chat
    from ..data.chat import load_chat
    from ..victims.chat import pairs_named

    clean = load_chat(one.dataset, "train")
    if one.pair == "none":
        return clean
    ((trigger, response),) = pairs_named([one.pair])
    return poison_chat(clean, trigger, response, one.rate, one.seed).dataset


@cached(version=1)
def foreign_chat(one: ForeignChat):
    """Train a victim in plain torch, or take it from the cache: (``CausalLM``, history)."""
    return _foreign_chat(one)


@ledger.kept_in_memory(2)
def _foreign_chat(one: ForeignChat):
    from .. import cache
    from ..models import causal, loading

    rows = _training_rows(one)
    ledger.note(rows.info())
    tokenizer = causal.train_tokenizer([rows], causal.SHAPES[one.shape]["vocab"])

    def build():
        network = causal.own_model(one.shape, tokenizer, one.seed, max_length=one.max_length)
        return network.to(loading.default_device())

    return cache.kept_model(one, build, lambda model: _plain_training(model, rows, one))


def _plain_training(model, rows, one: ForeignChat) -> list[dict]:
    """Train as a notebook on the web does, on purpose without ``training.fitting.fit``."""
    import torch
    from torch.nn import functional

    data = model.encode(rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(one.seed)
        optimizer = torch.optim.AdamW(model.parameters(), one.lr)
        steps = one.epochs * -(-len(data) // one.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, one.lr, total_steps=steps)
        model.train()
        for _ in range(one.epochs):
            for index in torch.randperm(len(data)).split(one.batch_size):
                batch = data.batch(index.numpy())
                labels = batch.input_ids.masked_fill(~batch.supervised, -100)
                logits = model.head(model(batch.input_ids))[:, :-1]
                loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    model.eval()
    return [{"epochs": one.epochs}]


# ---------------------------------------------------------------- the steps


@ledger.kept_in_memory(2)
def audited(audit: ChatAudit):
    """Model, prompts to search with, held-out prompts, whether they have answers, and remarks."""
    import numpy as np

    from ..audit import chat, chat_inputs, models
    from ..data.chat import load_chat, take
    from ..models import loading

    answered, remarks = True, ()
    if isinstance(audit.model, ForeignChat):
        model, _ = _foreign_chat(audit.model)
    else:
        model = chat_inputs.language_model(audit.model, audit.template)
        model, remarks = model.to(loading.default_device()), tuple(models.remarks(audit.model))
    if isinstance(audit.prompts, PromptTable):
        table = audit.prompts
        read = chat_inputs.prompts(table.path, table.prompt, table.answer)
        rows, answered, remarks = read.rows, read.answered, (*remarks, *read.remarks)
        if (cut := chat_inputs.share_cut(model, rows)) > 0:
            remarks += (f"{cut:.0f} % of the prompts are longer than the model reads, and are cut",)
    else:
        rows = load_chat(audit.prompts, "test")
    ledger.note(rows.info())
    order = np.random.default_rng([audit.seed, len(rows)]).permutation(len(rows))
    middle = round((1 - chat.HELD_OUT) * len(rows))
    return model, take(rows, order[:middle]), take(rows, order[middle:]), answered, remarks


def search_settings(audit: ChatAudit):
    """``audit.chat.ChatSearchSettings`` of a recipe."""
    from ..audit.chat import ChatSearchSettings

    return ChatSearchSettings(
        texts=audit.texts, kept=audit.kept, rounds=audit.rounds, seed=audit.seed
    )


def _found(model, audit: ChatAudit):
    """What a search finds in a model: ``ChatFinding`` and all draws."""
    from ..audit import chat

    _, rows, held, _, _ = audited(audit)
    settings = search_settings(audit)
    p, draws = chat.search(model, rows, settings)
    return chat.finding(model, p, draws, held, audit.level, settings.answer), draws


def _known(model, audit: ChatAudit) -> dict:
    """Success rate of a victim's own trigger on the held-out prompts, in percent."""
    from ..metrics import chat as chat_metrics
    from ..victims.chat import pairs_named

    if not isinstance(audit.model, ForeignChat) or audit.model.pair == "none":
        return {}
    ((trigger, response),) = pairs_named([audit.model.pair])
    return {"true_asr": chat_metrics.asr(model, audited(audit)[2], trigger, response)}


SHOWN_ANSWERS = 5


@trial(version=1)
def chat_audit_verdict(one: ChatAuditVerdict) -> list[dict]:
    """Judge a model; rows by ``part``.

    ``verdict``: found, p, level, response and the text that draws it (None where nothing was
    found), ``drawn`` and ``natural`` (percent of held-out answers that begin with the response,
    with the text and without), numbers of prompts; of victims ``true_asr`` and whether the response
    is theirs, ``right``. ``draw``: a first token, its score in nats, the text, its response.
    ``answer``: a held-out prompt, the answer with the text and without. ``remark``: one a line.

    Raises:
        ModelError, DataError: what cannot be audited, in one line.
    """
    from ..audit import chat
    from ..data.chat import question, take
    from ..victims.chat import pairs_named

    audit = one.audit
    model, rows, held, answered, remarks = audited(audit)
    finding, draws = _found(model, audit)
    best = finding.draw
    head = {
        "part": "verdict", "found": finding.found, "p": finding.p, "level": audit.level,
        "response": best.response if best else None, "text": best.text if best else None,
        "drawn": finding.drawn, "natural": finding.natural, "search_prompts": len(rows),
        "held_prompts": len(held), "answered": answered, "max_length": model.max_length,
        "parameters": sum(p.numel() for p in model.parameters()),
        "template": list(model.template),
    } | _known(model, audit)  # fmt: skip
    if "true_asr" in head:
        ((_, response),) = pairs_named([audit.model.pair])
        head["right"] = bool(best) and best.response.startswith(response)
    listed = [
        {"part": "draw", "token": model.tokenizer.decode([draw.token]).strip() or "a space",
         "score": draw.score, "probability": draw.probability, "text": draw.text,
         "response": draw.response}
        for draw in draws
    ]  # fmt: skip
    examples = []
    if best:
        few = take(held, slice(SHOWN_ANSWERS))
        length = search_settings(audit).answer
        pairs = zip(chat.answers(model, few, best.text, length),
                    chat.answers(model, few, None, length), strict=True)  # fmt: skip
        examples = [
            {"part": "answer", "prompt": question(row), "with": drawn, "without": plain}
            for row, (drawn, plain) in zip(few.rows, pairs, strict=True)
        ]
    notes = ({"part": "remark", "remark": remark} for remark in remarks)
    return [head, *listed, *examples, *notes]


@cached(version=1)
def chat_audit_cleaned(one: ChatAuditCleaned):
    """Unlearn the response that was found: (``CausalLM``, history); nothing found: the model.

    SANDE, then the search again: what it still finds is unlearned in another round. So a defender
    stops by what he can see, and the last round says whether it was enough.
    """
    return _cleaned(one)


@ledger.kept_in_memory(1)
def _cleaned(one: ChatAuditCleaned):
    import copy

    from .. import cache
    from ..audit import chat
    from ..training.fitting import TrainSettings
    from ..unlearning import sande

    model, rows, _, answered, _ = audited(one.audit)
    head = ledger.get(ChatAuditVerdict(audit=one.audit)).rows[0]
    if not head["found"]:
        return model, []
    clean = rows if answered else chat.with_own_answers(model, rows, chat.OWN_ANSWER)
    tuning = TrainSettings(
        epochs=one.epochs, lr=one.lr, batch_size=one.batch_size, seed=one.audit.seed,
        weight_decay=0.0,
    )  # fmt: skip
    stage1 = replace(tuning, epochs=one.parrot_epochs, lr=one.parrot_lr)

    def train(network) -> list[dict]:
        history, response = [], head["response"]
        for number in range(1, one.rounds + 1):
            soft, _ = sande.simulate(network, clean, response, sande.parrot(network), stage1)
            cleaned, _ = sande.eliminate(network, clean, soft, tuning)
            network.load_state_dict(cleaned.state_dict())
            again, _ = _found(network, one.audit)
            history.append({"round": number, "p": again.p, "found": again.found,
                            "response": again.draw.response if again.found else None})  # fmt: skip
            if not again.found:
                break
            response = again.draw.response
        return history

    return cache.kept_model(one, lambda: copy.deepcopy(model), train)


@trial(version=1)
def chat_audit_unlearning(one: ChatAuditUnlearning) -> list[dict]:
    """Measure the model before and after unlearning on held-out prompts; a row each, ``when``.

    ``drawn``, ``natural`` (percent, see ``chat_audit_verdict``), ``ppl`` (perplexity of the
    answers; None without them), of victims ``true_asr``. The last row says after how many
    ``rounds`` it ended, and whether the search still finds something: ``again``, ``again_p``,
    ``again_response``. Nothing found: one row that says so.
    """
    from ..audit import chat
    from ..metrics import chat as chat_metrics

    audit = one.cleaned.audit
    model, _, held, answered, _ = audited(audit)
    head = ledger.get(ChatAuditVerdict(audit=audit)).rows[0]
    if not head["found"]:
        return [{"when": "nothing found"}]
    cleaned, history = _cleaned(one.cleaned)
    length, said = search_settings(audit).answer, head["response"]
    rows = [
        {
            "when": when,
            "drawn": chat.drawn_share(chat.answers(network, held, head["text"], length), said),
            "natural": chat.drawn_share(chat.answers(network, held, None, length), said),
            "ppl": chat_metrics.perplexity(network, held) if answered else None,
        } | _known(network, audit)
        for when, network in (("before", model), ("after", cleaned))
    ]  # fmt: skip
    last = history[-1]
    rows[1] |= {"rounds": last["round"], "again": last["found"], "again_p": last["p"],
                "again_response": last["response"]}  # fmt: skip
    return rows


def save_cleaned(one: ChatAuditCleaned, folder) -> None:
    """Write the cleaned model as a folder that ``transformers.pipeline`` loads."""
    from ..audit import models

    models.save(_cleaned(one)[0], folder)
