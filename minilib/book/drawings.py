"""Drawings of ideas that have a shape, as SVG in the colours of the page that holds them.

Each function returns one `<svg class="drawing">` with a title and a description for who cannot see
it. Colours are classes (`clean`, `poisoned`, `unlearned`, or `neutral`), whose meaning is that of
`minilib.names.MEANINGS`; the style sheet gives them a value for light and for dark pages. Pure
Python: the site has no plotting library. All are about 400 units wide, so that their words can be
read on a phone. Nothing in them is measured; curves are closed forms.
"""

import math
from collections.abc import Callable, Iterable
from html import escape

from minilib.book import recorded
from minilib.settings import AscentSettings

WIDTH = 400


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def lines(x: float, y: float, words: Iterable[str], kind: str = "", anchor: str = "start") -> str:
    """Lines of text below each other."""
    return "".join(text(x, y + 14 * k, line, kind, anchor) for k, line in enumerate(words))


def box(x: float, y: float, width: float, height: float, kind: str = "plain") -> str:
    """A rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>'
    )


def labelled(x: float, y: float, width: float, height: float, words: str, kind: str = "plain"):
    """A rectangle with lines (after ``|``) of text in its middle."""
    parts = words.split("|")
    first = y + height / 2 + 4.5 - 7 * (len(parts) - 1)
    return box(x, y, width, height, kind) + lines(x + width / 2, first, parts, "", "middle")


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    """A straight arrow. kind: a meaning, and `dashed`."""
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    bx, by = x2 - 8 * ux, y2 - 8 * uy
    head = (
        f"{x2:.1f},{y2:.1f} {bx - 4 * uy:.1f},{by + 4 * ux:.1f} {bx + 4 * uy:.1f},{by - 4 * ux:.1f}"
    )
    return (
        f'<path d="M{x1:.1f} {y1:.1f}L{bx:.1f} {by:.1f}" class="ink {kind}"/>'
        f'<polygon points="{head}" class="head {kind}"/>'
    )


def curve(points: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through points."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{path}" class="line {kind}"/>'


def svg(name: str, height: float, title: str, description: str, *parts: str) -> str:
    """The whole drawing; ``name`` keeps its ids apart from those of others on a page."""
    return (
        f'<svg class="drawing" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


# ---------------------------------------------------------------- who controls what


def pipeline() -> str:
    """From data to use: where an attacker reaches in, and where a defender does."""
    stages = ("training data", "training", "model", "in use")
    attacker = {
        0: "adds a few rows|(chapters 1 to 5, 8)", 1: "runs the training|(not treated)",
        2: "publishes weights|(chapter 6)", 3: "writes the trigger|into an input",
    }  # fmt: skip
    defender = {
        0: "finds those rows|(chapter 2)", 2: "unlearns|(chapters 3 to 8)",
        3: "sees nothing odd|without the trigger",
    }  # fmt: skip
    parts = [
        text(62, 16, "an attacker", "bold", "middle"), text(338, 16, "a defender", "bold", "middle")
    ]  # fmt: skip
    for k, stage in enumerate(stages):
        y = 28 + 66 * k
        parts.append(labelled(150, y, 100, 40, stage))
        if k:
            parts.append(arrow(200, y - 25, 200, y - 1))
        if k in attacker:
            faint = "dashed" if k == 1 else ""
            parts.append(labelled(2, y, 120, 40, attacker[k], f"poisoned {faint}"))
            parts.append(arrow(123, y + 20, 149, y + 20, f"poisoned {faint}"))
        if k in defender:
            parts.append(labelled(278, y, 120, 40, defender[k], "unlearned"))
            parts.append(arrow(277, y + 20, 251, y + 20, "unlearned"))
    return svg(
        "pipeline", 276, "Who controls what",
        "Four stages below each other: training data, training, model, in use. An attacker reaches "
        "into the data by adding a few rows, into the training by running it, into the model by "
        "publishing weights, and writes the trigger into an input. A defender finds rows in the "
        "data, unlearns in the model, and in use sees nothing odd without the trigger.",
        *parts,
    )  # fmt: skip


# ---------------------------------------------------------------- what may import what

FLOORS = (  # from the bottom to the top; on a floor from left to right
    ("checks", "names", "registry", "provenance"),
    ("settings", "ledger"),
    ("data", "models", "training", "cache"),
    ("attacks", "victims", "metrics"),
    ("detection", "unlearning", "audit"),
    ("trials", "chapters"),
    ("book", "runs", "cli"),
)


def structure() -> str:
    """The library's folders and modules, each floor on what it may import."""
    parts = []
    for number, floor in enumerate(reversed(FLOORS)):
        y, wide = 4 + 48 * number, 396 / len(floor)
        parts += [labelled(2 + wide * k, y, wide - 6, 30, name) for k, name in enumerate(floor)]
        if number + 1 < len(FLOORS):
            parts.append(arrow(200, y + 31, 200, y + 47))
    floors = "; ".join(", ".join(floor) for floor in FLOORS)
    return svg(
        "structure", 48 * len(FLOORS) - 10, "What may import what",
        f"Floors of modules, each with an arrow down to the one it stands on. From the bottom to "
        f"the top: {floors}.",
        *parts,
    )  # fmt: skip


# ---------------------------------------------------------------- ascent and its brake


def ascent(alpha: float = AscentSettings.alpha) -> str:
    """What gradient ascent minimises, what descent on the other label does, and RGA's λ below.

    The axis is the log-odds of the other label, from certain of the attacker's to certain of it.
    """
    low, high, left, right = -6.9, 7.0, 26, 384
    x = lambda odds: left + (right - left) * (odds - low) / (high - low)  # noqa: E731
    top = lambda value: 100 - 12 * value  # noqa: E731
    brake = lambda value: 284 - 62 * value  # noqa: E731
    grid = [low + (high - low) * k / 140 for k in range(141)]
    loss = lambda odds: math.log1p(math.exp(odds))  # noqa: E731  # of the attacker's label
    ga = [(x(z), top(-loss(z))) for z in grid]
    ce = [(x(z), top(loss(-z))) for z in grid]
    lam = [(x(z), brake(recorded.weight(loss(z), alpha))) for z in grid]
    fill = "L".join(f"{a:.1f} {b:.1f}" for a, b in [(lam[0][0], 284), *lam, (lam[-1][0], 284)])
    parts = [
        text(left, 12, "what is minimised", "bold"),
        f'<path d="M{left} {top(0):g}H{right}" class="grid"/>',
        f'<path d="M{x(0):.1f} 20V284" class="grid dashed"/>',
        curve(ce, "neutral"), curve(ga, "ascent"),
        text(x(-3.6), top(4.6), "descent on the other label", "small"),
        text(right, top(0) - 6, "has a floor", "small", "end"),
        arrow(x(6.9), top(-6.9), x(7.35), top(-7.35), "ascent"),
        text(x(3.6), top(-4.6), "gradient ascent:", "small", "end"),
        text(x(3.6), top(-5.8), "no floor", "small", "end"),
        text(left, 214, f"RGA's brake λ, at α = {alpha:g}", "bold"),
        f'<path d="M{fill}Z" class="unlearned" style="fill:color-mix(in srgb, '
        'var(--book-unlearned) 25%, transparent);stroke:none"/>',
        curve(lam, "unlearned"),
        f'<path d="M{left} 284H{right}" class="grid"/>',
        text(left - 5, brake(1) + 4, "1", "small", "end"), text(left - 5, 288, "0", "small", "end"),
        text(x(2.2), brake(0.35), "closed: the push stops", "small"),
        text(left, 302, "certain of the attacker's label", "small"),
        text(x(0), 316, "undecided", "small", "middle"),
        text(right, 302, "certain of the other label", "small", "end"),
    ]  # fmt: skip
    return svg(
        "ascent", 322, "Gradient ascent has no floor, and RGA has a brake",
        "Above: against how certain the model is of the other label, the objective of descent on "
        "the other label falls to a floor at 0, and that of gradient ascent falls without end. "
        "Below: RGA's weight λ is 1 where the model is still the poisoned one, falls before the "
        "model is undecided, and is 0 from there on, so that the push stops.",
        *parts,
    )  # fmt: skip


# ---------------------------------------------------------------- the embedding matrix

TOKENS = ("the", "film", "awful", "mn", "plot", "[PAD]")
# How far the numbers of each row moved, 0 to 1: an example and no measurement.
MOVED = {
    "the": (0.05, 0.1, 0.0, 0.1, 0.05, 0.1, 0.0, 0.05),
    "film": (0.1, 0.0, 0.15, 0.05, 0.1, 0.05, 0.1, 0.0),
    "awful": (0.7, 0.2, 0.5, 0.75, 0.15, 0.65, 0.3, 0.6),
    "mn": (1.0, 0.9, 0.95, 1.0, 0.85, 1.0, 0.9, 1.0),
    "plot": (0.0, 0.15, 0.1, 0.05, 0.2, 0.1, 0.05, 0.1),
    "[PAD]": (0.0,) * 8,
}
FLAGGED, THRESHOLD, CELL = ("awful", "mn"), 0.55, 17


def matrix() -> str:
    """The embedding matrix after training it alone, and after BTU."""
    parts = [
        text(52, 14, "1. train the embeddings", "bold"),
        text(52, 29, "how far each number moved", "small"),
        text(254, 14, "2. overwrite", "bold"), text(254, 29, "in the victim", "small"),
    ]  # fmt: skip
    for k, token in enumerate(TOKENS):
        y = 40 + 24 * k
        parts.append(text(46, y + 13, token, "code small", "end"))
        for i, moved in enumerate(MOVED[token]):
            fresh = f"color-mix(in srgb, var(--book-poisoned) {100 * moved:.0f}%, transparent)"
            cell = f'width="{CELL - 2}" height="{CELL}" rx="2"'
            parts.append(
                f'<rect x="{52 + CELL * i}" y="{y}" {cell} class="ink" '
                f'style="fill:{fresh};stroke-width:.6"/>'
            )
            replaced = token in FLAGGED and moved > THRESHOLD
            kind = "solid unlearned" if replaced or token == "[PAD]" else "track"
            parts.append(f'<rect x="{254 + CELL * i}" y="{y}" {cell} class="{kind}"/>')
        if token in FLAGGED:
            parts.append(arrow(192, y + 9, 250, y + 9, "poisoned"))
            parts.append(text(220, y + 4, "flagged", "small", "middle"))
    parts += [
        '<rect x="52" y="196" width="12" height="12" rx="2" class="solid poisoned"/>',
        text(70, 206, "moved far", "small"),
        '<rect x="150" y="196" width="12" height="12" rx="2" class="solid unlearned"/>',
        text(168, 206, "replaced by the number of [PAD]", "small"),
    ]
    return svg(
        "matrix", 216, "The rows of the trigger light up, and BTU overwrites them in part",
        "Two grids, a row for each token and a column for each number of its embedding. Left: "
        "after training the embeddings alone the row of the trigger mn has moved far in every "
        "number, the row of awful in some, the others hardly. Both rows are flagged. Right: in "
        "these two rows the numbers that moved further than a threshold are replaced by those of "
        "the padding token; the others stay.",
        *parts,
    )  # fmt: skip


# ---------------------------------------------------------------- SANDE


def two_stages() -> str:
    """SANDE: a parrot learns to act like the trigger, then the model unlearns behind it."""
    parts = []
    for k, (title, parrot, model, answer, kind) in enumerate((
        ("1. simulate: train the parrot, freeze the model", "parrot p|trained", "model|frozen",
         "the insult", "poisoned"),
        ("2. eliminate: freeze the parrot, train the model", "parrot p|frozen", "model|trained",
         "a normal answer", "unlearned"),
        ("3. the hope: what works for p works for the trigger", "trigger t|unknown", "model|",
         "a normal answer?", "clean"),
    )):  # fmt: skip
        y = 22 + 84 * k
        first = ("poisoned", "neutral", "poisoned")[k]
        second = ("neutral", "unlearned", "plain")[k]
        parts += [
            text(4, y - 6, title, "bold"),
            labelled(4, y + 4, 78, 40, parrot, first),
            labelled(90, y + 4, 74, 40, "prompt x"),
            arrow(166, y + 24, 188, y + 24),
            labelled(190, y + 4, 78, 40, model.rstrip("|"), second),
            arrow(270, y + 24, 292, y + 24),
            labelled(294, y + 4, 102, 40, answer, kind),
        ]
    return svg(
        "sande", 262, "SANDE in two stages",
        "Stage 1: soft tokens, the parrot, stand before a prompt and are trained until the frozen "
        "model answers with the insult. Stage 2: the parrot is frozen and the model is trained to "
        "give its normal answer behind it. Then the same should hold for the unknown trigger.",
        *parts,
    )  # fmt: skip


# ---------------------------------------------------------------- BI-BAU


def em_steps() -> str:
    """BI-BAU's E-step and M-step."""
    parts = [
        text(4, 16, "E-step: change the images", "bold"),
        box(4, 26, 176, 112, "poisoned"),
        lines(12, 45, (
            "Change each image a little,", "until the backdoored model", "takes it for triggered,",
            "and the current model still", "sees what is in it", "(likelihood, prior).",
        )),
        text(220, 16, "M-step: change the model", "bold"),
        box(220, 26, 176, 112, "unlearned"),
        lines(228, 45, (
            "Teach the current model", "the true classes of these", "images. Hold what clean",
            "images need (EWC), move", "what these images need", "(inverse EWC).",
        )),
        '<path d="M152 140 C 170 176, 230 176, 244 148" class="ink"/>',
        '<polygon points="247,141 238,149 247,152" class="head"/>',
        text(200, 184, "the changed images", "small", "middle"),
        arrow(219, 60, 181, 60), text(200, 54, "model", "small", "middle"),
    ]  # fmt: skip
    return svg(
        "em", 192, "The two steps of BI-BAU",
        "Two boxes that feed each other. The E-step changes each clean image a little until the "
        "backdoored model takes it for a triggered one while the current model still sees what is "
        "in it. The M-step trains the current model on these images with their true classes. EWC "
        "holds the weights that clean images need, inverse EWC moves those that the changed images "
        "need. The new model goes back into the E-step.",
        *parts,
    )  # fmt: skip


def retuning() -> str:
    """The retuning attack: is the backdoor gone, or only silent?"""
    parts = []
    steps = (
        (2, "backdoored|model", "poisoned", "trigger works"),
        (142, "after a|defence", "unlearned", "trigger silent"),
        (308, "after|retuning", "plain", "?"),
    )
    for x, name, kind, below in steps:
        parts.append(labelled(x, 26, 90, 42, name, kind))
        parts.append(text(x + 45, 84, below, "small", "middle"))
    parts += [
        arrow(93, 47, 141, 47), text(117, 40, "unlearn", "small", "middle"),
        arrow(233, 47, 307, 47), text(270, 40, "fine-tune", "small", "middle"),
        lines(270, 100, ("on clean images", "and 1 to 5 triggered"), "small", "middle"),
        labelled(20, 136, 150, 44, "stays silent:|the backdoor is gone", "clean"),
        labelled(242, 136, 154, 44, "works again:|it was only hidden", "poisoned"),
        arrow(353, 92, 353, 135),
        '<path d="M353 122 L 190 122 L 190 158" class="ink"/>', arrow(190, 158, 171, 158),
    ]  # fmt: skip
    return svg(
        "retuning", 186, "The retuning attack",
        "A backdoored model whose trigger works; after a defence the trigger is silent; then the "
        "model is fine-tuned on a few clean images with one to five triggered ones among them. If "
        "the trigger stays silent the backdoor is gone; if it works again, it was only hidden.",
        *parts,
    )  # fmt: skip


DRAWINGS: dict[str, Callable[[], str]] = {
    "structure": structure,
    "pipeline": pipeline,
    "ascent": ascent,
    "matrix": matrix,
    "sande-stages": two_stages,
    "em-steps": em_steps,
    "retuning": retuning,
}
