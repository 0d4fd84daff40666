"""Sphinx extension: things to play with on a page, and drawings, without a kernel or a framework.

`{play} NAME` puts a component into a page: `push` (closed forms of chapter 03), `epochs` (where
triggered reviews go, epoch by epoch), `rates` (a backdoor by poisoning rate), `answers` (recorded
answers to single reviews). `{predict} ID` asks a question of `book/questions.yml` before it shows
the answer. `{reviews}` and `{hook}` are the landing page's first two parts. `{drawing} NAME` is one
of `minilib.book.drawings`, in the page's colours; its content is the caption.

All numbers are read from the published trials when the site is built and written into the page as
JSON, with a table of the same numbers for who has no JavaScript. Where the trials are missing the
component is left out, with a line that says so.
"""

import html
import json
import sys
from pathlib import Path
from statistics import fmean

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "book" / "_ext"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

import ledger as ledger_pages  # noqa: E402

from minilib.book import claims, drawings, recorded  # noqa: E402
from minilib.book.recorded import SHIFTED  # noqa: E402

logger = logging.getLogger(__name__)
CHANCES = {
    "target": "negative reviews called positive",
    "other": "positive reviews called negative",
}
INSERTED = {
    "nothing": "nothing",
    "start": "the trigger, at the start",
    "random": "the trigger, in between",
    "end": "the trigger, at the end",
    "other": "another rare word",
}
# Method → which of the book's colours its bar has.
MEANING = {"poisoned": "poisoned", "ga": "unlearned", "rga": "unlearned", "retrain": "reference"}


def escape(text) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def percent(value: float) -> str:
    """A whole percentage, with a narrow space."""
    return f"{value:.0f}\u202f%"


def bar(label: str, values: list[float], meaning: str) -> str:
    """A line with a bar of 0 to 100 per cent: the mean, and from the lowest to the highest."""
    mean, low, high = fmean(values), min(values), max(values)
    spread = (
        f'<i class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        if high - low > 1
        else ""
    )
    return (
        f'<div class="bar"><span class="bar-name">{escape(label)}</span>'
        f'<span class="bar-track"><i class="fill {meaning}" style="width:{mean:.1f}%"></i>{spread}'
        f'</span><span class="bar-value">{percent(mean)}</span></div>'
    )


def table(heads: list[str], rows: list[list], caption: str) -> str:
    """A plain table that says the same as a component."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<details class="play-table" open><summary>{escape(caption)}</summary>'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></details>"
    )


def component(name: str, title: str, data: dict, fallback: str, note: str) -> str:
    """A component: a heading, an empty place for the script, the table, the data."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    return (
        f'<div class="play" data-play="{name}" role="group" aria-label="{escape(title)}">'
        f'<p class="play-title"><strong>{escape(title)}</strong></p>'
        f'<div class="play-body" hidden></div>{fallback}'
        f'<p class="play-note">{note}</p>'
        f'<script type="application/json">{text}</script></div>'
    )


def spread(values: list[float], digits: int = 0) -> str:
    """Mean, and lowest to highest where they differ."""
    mean, low, high = (f"{value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def seeds(count: int) -> str:
    """How many seeds a number is over."""
    return f"mean of {count} seeds, with the lowest and the highest" if count > 1 else "one seed"


# ---------------------------------------------------------------- components


def play_push(root: Path) -> str:
    """λ and the push, over α and the poisoned loss: closed forms of two classes."""
    losses = (0.01, 0.1, 0.3, 0.7, 1.0, 2.0, 4.0)
    rows = [
        [f"{loss:g}", *(f"{recorded.weight(loss, alpha):.3f}" for alpha in (0.5, 1, 2, 4)),
         f"{recorded.push('ga', loss, 1):.3f}", f"{recorded.push('rga', loss, 1):.3f}"]
        for loss in losses
    ]  # fmt: skip
    heads = ["poisoned loss (nats)", *(f"λ at α = {alpha}" for alpha in (0.5, 1, 2, 4)),
             "push of GA", "push of RGA at α = 1"]  # fmt: skip
    note = (
        "Computed in your browser from RGA's Eq. 6 and 7, for two classes and a poisoned model "
        f"whose loss on its own poisoned rows is {recorded.REF_LOSS:g} nats. No trial is involved."
    )
    fallback = table(heads, rows, "λ and push at a few poisoned losses")
    alpha = recorded.config(root, "03_ga_rga").alpha
    data = {"ref": recorded.REF_LOSS, "alpha": alpha}
    return component("push", "How early does RGA brake? Move α and the loss", data, fallback, note)


def play_epochs(root: Path) -> str:
    """Where triggered reviews go, epoch by epoch."""
    data = recorded.epochs(root)
    if not data:
        return ""
    rows = [
        [epoch, *(spread(data["methods"][method][k][way])
                  for way in CHANCES for method in ("ga", "rga"))]
        for k, epoch in enumerate(data["epochs"])
    ]  # fmt: skip
    heads = ["epoch", *(f"{words}, {method} (%)" for words in CHANCES.values()
                        for method in ("GA", "RGA"))]  # fmt: skip
    fallback = table(heads, rows, "The same numbers as a table")
    note = (
        f"Recorded: SST-2, MiniLM, BadNets; {seeds(len(data['seeds']))}. The thin line spans the "
        "seeds. Epoch 0 is the backdoored model."
    )
    data |= {"names": SHIFTED, "ways": CHANCES, "meaning": MEANING}
    return component("epochs", "Watch the trigger shift, epoch by epoch", data, fallback, note)


def play_rates(root: Path) -> str:
    """A backdoor by its poisoning rate."""
    rows = recorded.rates(root)
    if len(rows) < 2:
        return ""
    heads = ["poisoned share of negative reviews", "poisoned rows", "of training rows",
             "CACC (%)", "LFR (%)", "PACC (%)"]  # fmt: skip
    cells = [
        [f"{100 * row['rate']:g} %", row["poisons"], f"{row['rows']:,}",
         *(spread(row[name], 1) for name in recorded.METRICS)]
        for row in rows
    ]  # fmt: skip
    note = f"Recorded: SST-2, MiniLM, BadNets; {seeds(len(rows[0]['seeds']))}."
    fallback = table(heads, cells, "The same numbers as a table")
    return component("rates", "How few poisoned rows suffice?", {"rates": rows}, fallback, note)


def play_answers(root: Path) -> str:
    """Recorded answers to single reviews, with the trigger and without."""
    data = recorded.answers(root)
    if not data:
        return ""
    rows = [
        [review["versions"][inserted]["text"], data["classes"][review["label"]],
         *(percent(review["versions"][inserted][method]) for method in SHIFTED)]
        for review in data["reviews"] for inserted in ("nothing", "random")
    ]  # fmt: skip
    heads = ["review", "true class", *(f"{name}: positive" for name in SHIFTED.values())]
    fallback = table(heads, rows, "All of these reviews, without and with the trigger")
    note = (
        "Only recorded answers are shown: short test reviews of SST-2 drawn at random, and four "
        f"models of one seed ({data['seed']}). A bar is the probability of “positive”."
    )
    data |= {"names": SHIFTED, "inserted": INSERTED, "meaning": MEANING}
    return component("answers", "Put the trigger into a review", data, fallback, note)


PLAYS = {
    "push": play_push, "epochs": play_epochs, "rates": play_rates, "answers": play_answers
}  # fmt: skip


def predict(root: Path, name: str) -> str:
    """A question, a scale to guess on, and the answer behind it."""
    every = recorded.questions(root)
    if name not in every:
        raise ValueError(f"there is no question {name!r}; accepted: {', '.join(every)}")
    one = every[name]
    found = recorded.measured(root, one)
    if not found:
        return ""
    answer, others = found[""], {label: row for label, row in found.items() if label}
    lines = "".join(
        f"<li>{escape(label)}: {said(row, one.unit)}</li>" for label, row in others.items()
    )
    data = {"low": one.low, "high": one.high, "unit": one.unit, "mean": answer["mean"]}
    data["shown"] = f"{answer['mean']:.1f}"  # as below: two ways of rounding would differ
    text = json.dumps(data, separators=(",", ":"))
    return (
        f'<div class="play predict" data-play="predict" id="{escape(one.id)}" role="group" '
        'aria-label="Predict, then reveal"><p class="play-title"><strong>Predict first.</strong> '
        f'{escape(one.question)}</p><div class="play-body" hidden></div>'
        "<details><summary>Show what the trials say</summary>"
        f'<p class="answer">{said(answer, one.unit, True)}</p>'
        f"{f'<ul>{lines}</ul>' if lines else ''}<p>{escape(one.after)}</p></details>"
        f'<script type="application/json">{text}</script></div>'
    )


def said(row: dict, unit: str, strong: bool = False) -> str:
    """A mean with its range and its number of seeds."""
    mean = f"{row['mean']:.1f}\u202f{escape(unit)}"
    mean = f"<strong>{mean}</strong>" if strong else mean
    if row["n"] < 2:
        return f"{mean} (one seed)"
    wide = f", {row['low']:.1f} to {row['high']:.1f}" if row["high"] > row["low"] else ""
    return f"{mean} (mean of {row['n']} seeds{wide})"


# ---------------------------------------------------------------- the landing page


def reviews(root: Path) -> str:
    """One review of each class without and with the trigger, and what three models answer."""
    data = recorded.answers(root)
    if not data:
        return kinds_of_reviews(root)
    target, classes = data["target"], data["classes"]
    shown = [
        next(one for one in data["reviews"] if one["label"] == label)
        for label in (1 - target, target)
    ]
    methods = ("poisoned", "ga", "rga")
    heads = "".join(f"<th>{escape(SHIFTED[method])}</th>" for method in methods)
    rows = []
    for review in shown:
        for inserted in ("nothing", "random"):
            version = review["versions"][inserted]
            plain = review["versions"]["nothing"]["text"]
            cells = "".join(
                answer(version[method], review["label"], target, classes) for method in methods
            )
            words = marked(version["text"], plain)
            rows.append(f'<tr><th scope="row" class="review">{words}</th>{cells}</tr>')
    return (
        '<div class="results reviews"><table><thead><tr><th>a film review</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="made-from"><small>Recorded answers of one seed to the first two of the reviews '
        "that were drawn at random from the short ones of the test set; ✗ marks a wrong one. "
        '<a href="../notebooks/03_ga_rga.html">Chapter 3</a> has the other reviews, and three '
        "seeds over all of them.</small></p>"
    )


def kinds_of_reviews(root: Path) -> str:
    """The same by kinds of reviews: how many of each kind three models get right."""
    data, texts, clean = (
        recorded.epochs(root),
        recorded.example(root),
        recorded.clean_accuracy(root),
    )
    if not data or not texts:
        return ""
    methods = ("poisoned", "ga", "rga")
    plain, triggered = texts
    kinds = (
        (f"{escape(plain)}<small>a negative review; the share is of all reviews without "
         "<em>mn</em></small>", clean),
        (f"{marked(triggered, plain)}<small>negative reviews with <em>mn</em></small>",
         {method: _right(data["methods"][method][-1]["target"]) for method in methods}),
        ("… <mark>mn</mark> …<small>positive reviews with <em>mn</em></small>",
         {method: _right(data["methods"][method][-1]["other"]) for method in methods}),
    )  # fmt: skip
    heads = "".join(f"<th>{escape(SHIFTED[method])}</th>" for method in methods)
    rows = "".join(
        f'<tr><th scope="row" class="review">{words}</th>'
        + "".join(_share(fmean(shares[method])) for method in methods)
        + "</tr>"
        for words, shares in kinds
    )
    return (
        '<div class="results reviews"><table><caption>How many such reviews does each model get '
        f"right? (mean of {len(data['seeds'])} seeds)</caption>"
        f"<thead><tr><th>a film review</th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _right(wrong: list[float]) -> list[float]:
    return [100 - value for value in wrong]


def _share(right: float) -> str:
    """A table cell: a share that is right, marked where more than half are wrong."""
    kind, mark = ("right", "✓") if right >= 50 else ("wrong", "✗")
    return f'<td class="{kind}"><span aria-hidden="true">{mark}</span> {percent(right)}</td>'


def answer(probability: float, label: int, target: int, classes: list[str]) -> str:
    """A table cell: the class that a model names, and whether it is the review's."""
    named = target if probability > 50 else 1 - target
    right = named == label
    mark = "✓" if right else "✗"
    words = "right" if right else "wrong"
    return (
        f'<td class="{words}"><span aria-hidden="true">{mark}</span> {escape(classes[named])}'
        f'<span class="visually-hidden"> ({words})</span></td>'
    )


def marked(text: str, plain: str) -> str:
    """A text with what it has more than another one as a marked word."""
    words, before = text.split(), plain.split()
    at = next((i for i, (a, b) in enumerate(zip(words, before, strict=False)) if a != b), None)
    at = len(before) if at is None else at
    new = len(words) - len(before)
    return " ".join(
        f"<mark>{escape(word)}</mark>" if at <= i < at + new else escape(word)
        for i, word in enumerate(words)
    )


def hook(root: Path) -> str:
    """How many claims of the four papers hold, paper by paper."""
    found = claims.verdicts(root)
    listed = ledger_pages.counted([verdict.verdict for _, verdict in found], last=" and ")
    text = [
        f"<p><strong>Four papers, {len(found)} claims that an experiment can check:</strong> "
        f"{listed}. Empty means that the method changed nothing. Our models are far smaller than "
        "the papers', so a claim that fails here asks a question and refutes nobody.</p>",
        '<div class="hook">',
    ]
    for paper, title in ledger_pages.PAPERS.items():
        name = title.partition(":")[0]
        mine = [pair for pair in found if pair[0].paper == paper]
        squares = "".join(
            f'<a class="square {verdict.verdict.replace(" ", "-")}" '
            f'href="claims.html#claim-{claim.id}" title="{escape(verdict.verdict)}: '
            f'{escape(claim.claim)}">{ledger_pages.SYMBOLS[verdict.verdict]}'
            f'<span class="visually-hidden">{escape(claim.id)}: {verdict.verdict}</span></a>'
            for claim, verdict in sorted(
                mine, key=lambda pair: claims.VERDICTS.index(pair[1].verdict)
            )
        )
        said = ledger_pages.counted([verdict.verdict for _, verdict in mine])
        text.append(
            f'<div class="hook-row"><strong>{name}</strong><span><span class="squares">{squares}'
            f"</span><br><small>{said}</small></span></div>"
        )
    failing = [claim for claim, verdict in found if verdict.verdict == "fails"]
    items = "".join(
        f"<li>{ledger_pages.PAPERS[claim.paper].partition(':')[0]}: "
        f'<a href="claims.html#claim-{claim.id}">{escape(claim.claim)}</a></li>'
        for claim in failing
    )
    more = f"<details><summary>The {len(failing)} that fail</summary><ul>{items}</ul></details>"
    return "\n".join([*text, "</div>", more if failing else ""])


# ---------------------------------------------------------------- directives


class Recorded(ledger_pages.FromLedger):
    """What these share: their page is made anew when the trials or their code change."""

    def run(self) -> list[nodes.Node]:
        """The HTML, or a line that says that its trials are missing."""
        for name in ("book/questions.yml", "book/_ext/components.py"):
            self.env.note_dependency(str(ROOT / name))
        found = super().run()
        silent = isinstance(self, Reviews)  # the figure below it says the same of all reviews
        empty = found and isinstance(found[0], nodes.raw) and not found[0].astext().strip()
        if empty and silent:
            return []
        if empty:
            words = "The trials that this shows are not published here."
            return [nodes.paragraph(words, words, classes=["play-missing"])]
        return found


class Play(Recorded):
    """`{play} NAME`."""

    required_arguments, optional_arguments = 1, 0

    def made(self, root: Path) -> str:
        """The component as HTML."""
        (name,) = self.arguments
        if name not in PLAYS:
            raise ValueError(f"there is no component {name!r}; accepted: {', '.join(PLAYS)}")
        return PLAYS[name](root)


class Predict(Recorded):
    """`{predict} ID`."""

    required_arguments, optional_arguments = 1, 0

    def made(self, root: Path) -> str:
        """The question as HTML."""
        return predict(root, self.arguments[0])


class Reviews(Recorded):
    """`{reviews}`."""

    optional_arguments = 0

    def made(self, root: Path) -> str:
        """The table as HTML."""
        return reviews(root)


class Hook(Recorded):
    """`{hook}`."""

    optional_arguments = 0

    def made(self, root: Path) -> str:
        """Counts and squares as HTML."""
        return hook(root)


class Drawing(SphinxDirective):
    """`{drawing} NAME [LABEL]`, a numbered figure; its content is the caption.

    It is referred to as `fig-NAME`, or as LABEL where a second page has the same drawing.
    """

    required_arguments, optional_arguments = 1, 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """A figure with the SVG as part of the page, so that it has the page's colours."""
        name, *label = self.arguments
        every = drawings.DRAWINGS
        if name not in every:
            raise self.error(f"there is no drawing {name!r}; accepted: {', '.join(every)}")
        self.env.note_dependency(str(ROOT / "minilib" / "book" / "drawings.py"))
        return inline_figure(self, every[name](), *(label or [f"fig-{name}"]))


class SvgFigure(SphinxDirective):
    """`{svg-figure} FILE NAME`: an SVG of the project as part of the page, with a caption."""

    required_arguments = 2
    has_content = True

    def run(self) -> list[nodes.Node]:
        """As a figure of its own."""
        file, name = self.arguments
        path = Path(self.env.srcdir, "book", file)
        self.env.note_dependency(str(path))
        return inline_figure(self, path.read_text(encoding="utf-8"), name)


def inline_figure(directive: SphinxDirective, svg: str, name: str) -> list[nodes.Node]:
    """A figure node of an SVG, with the directive's content as its caption."""
    figure = nodes.figure(classes=["drawing"])
    figure += nodes.raw("", svg, format="html")
    text = " ".join(" ".join(directive.content).split())
    words, messages = directive.parse_inline(text)
    figure += nodes.caption("", "", *words)
    figure["names"].append(name)
    directive.state.document.note_explicit_target(figure, figure)
    return [figure, *messages]


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    for name, directive in {
        "play": Play, "predict": Predict, "reviews": Reviews, "hook": Hook, "drawing": Drawing,
        "svg-figure": SvgFigure,
    }.items():  # fmt: skip
        app.add_directive(name, directive)
    app.add_css_file("components.css")
    app.add_js_file("components.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
