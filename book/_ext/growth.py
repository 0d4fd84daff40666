"""Draws how time and memory grow, from the record of `python -m bench growth`: an SVG, as text.

Pure Python, so that the site needs no plotting library. One row per thing that is varied, time on
the left and memory on the right, both axes logarithmic: a power law is a straight line there, and
its slope the exponent, which stands beside it. Colours are seaborn's colour-blind ones, on white
like every figure of the book, so that they are the same in both modes.
"""

import math
from html import escape

COLOURS = ("#0173b2", "#b25d00")  # of lines and of the words beside them: 4.5 to 1 on white
INK, GRID = "#262626", "#d9d9d9"
WIDTH, LEFT, PANEL, GAP, TOP, HIGH, STEP = 404, 44, 146, 60, 62, 96, 158
KINDS = {"seconds": ("time", "s"), "mib": ("memory", "MiB")}


def ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers on a logarithmic axis: powers of ten, or 1, 2, 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for parts in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**k for k in range(first, last + 1) for m in parts]
        inside = [value for value in found if low <= value <= high * 1.0001]
        if len(inside) >= 2:
            return inside[:: math.ceil(len(inside) / 4)]
    return [low, high]


def short(value: float) -> str:
    """A number on an axis, to two places or whole: 4,096 is 4.1k, and 131,072 is 131k."""
    for unit, size in (("M", 1e6), ("k", 1e3), ("", 1)):
        if value >= size:
            part = value / size
            return f"{part:.0f}{unit}" if part >= 100 else f"{part:.2g}{unit}"
    return f"{value:.2g}"


def scale(low: float, high: float, start: float, size: float):
    """Map a logarithmic range onto pixels; a single value stands in the middle."""
    span = math.log(high / low) or 1.0

    def to(value: float) -> float:
        return start + size * (math.log(value / low) / span if high > low else 0.5)

    return to


def text(x: float, y: float, words: str, **style: str) -> str:
    """One line of text."""
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{given}>{escape(words)}</text>'


def panel(x: float, y: float, loops: dict[str, dict], kind: str) -> list[str]:
    """One pair of axes: a line with marks per loop, and its exponent."""
    every = [value for found in loops.values() for value in found[kind]]
    sizes = [value for found in loops.values() for value in found["x"]]
    low, high = min(every) / 1.3, max(every) * 1.3
    across = scale(min(sizes), max(sizes), x + 6, PANEL - 12)
    up = scale(low, high, y + HIGH, -HIGH)
    parts = []
    for value in ticks(low, high):
        at = up(value)
        parts.append(f'<path d="M{x:g} {at:.1f}h{PANEL}" stroke="{GRID}"/>')
        parts.append(text(x - 4, at + 4, short(value), text_anchor="end"))
    first = next(iter(loops.values()))["x"]
    for value, at, anchor in ((first[0], x, "start"), (first[-1], x + PANEL, "end")):
        parts.append(text(at, y + HIGH + 15, short(value), text_anchor=anchor))
    parts.append(f'<path d="M{x:g} {y:g}v{HIGH}h{PANEL}" fill="none" stroke="{INK}"/>')
    for number, (found, colour) in enumerate(zip(loops.values(), COLOURS, strict=False)):
        where = [(across(a), up(b)) for a, b in zip(found["x"], found[kind], strict=True)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in where)
        dash = "" if number == 0 else ' stroke-dasharray="5 3"'
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" '
                     f'stroke-width="1.8"{dash}/>')  # fmt: skip
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>' for a, b in where]
        exponent = f"{found['fits'][kind]['exponent']:.2f}"
        parts.append(text(x + 4 + 36 * number, y - 4, exponent, fill=colour, font_weight="bold"))
    return parts


def svg(axes: dict[str, dict]) -> str:
    """The figure; see `bench/growth.py` for what the record holds."""
    names = list(dict.fromkeys(loop for loops in axes.values() for loop in loops))
    height = TOP + STEP * len(axes) - 16
    right = LEFT + PANEL + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(said(axes), quote=True)}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">'
    )
    parts = [head, f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x = LEFT + 120 * number
        dash = "" if number == 0 else ' stroke-dasharray="5 3"'
        parts.append(f'<path d="M{x} 14h22" stroke="{colour}" stroke-width="1.8"{dash}/>')
        parts.append(text(x + 28, 18, name, fill=colour, font_weight="bold"))
    for row, (title, loops) in enumerate(axes.items()):
        y = TOP + STEP * row
        parts.append(text(LEFT, y - 20, title, font_weight="bold"))
        for x, (kind, (name, unit)) in zip((LEFT, right), KINDS.items(), strict=True):
            parts += panel(x, y, loops, kind)
            words = f"{name} ({unit})"
            parts.append(text(x + PANEL, y - 4, words, text_anchor="end", font_size="11"))
    return "\n".join([*parts, "</svg>"])


def said(axes: dict[str, dict]) -> str:
    """What the figure shows, for those who do not see it: every exponent."""
    parts = []
    for title, loops in axes.items():
        for loop, found in loops.items():
            time, memory = (found["fits"][kind]["exponent"] for kind in KINDS)
            parts.append(f"{title}, {loop}: time {time:.2f}, memory {memory:.2f}")
    return "Eight panels on logarithmic axes. Exponents: " + "; ".join(parts) + "."


def caption(record: dict, conditions: str) -> str:
    """What the figure shows, and on what it was measured."""
    return (
        "Growth of time (left) and peak memory (right), both axes logarithmic. The numbers are the "
        "exponents of the power laws that fit best: 1 is proportional, 2 quadratic, near 0 the "
        f"same whatever the size. {conditions}"
    )
