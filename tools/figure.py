"""Draw the landing page's figure from the published trials of chapter 03.

    python tools/figure.py            write book/_static/trigger_shift.svg and .md
    python tools/figure.py --check    only say whether they are as the trials have it

The figure shows what becomes of triggered texts: those of the other class, which the backdoor sends
to the target class, and those *of* the target class, which only a shifted trigger sends elsewhere.
It becomes part of the page and has its colours. The second file holds the figure's directive for
the page, with the numbers of its caption. Both are a function of the trials alone: no clock, no
version, no font metrics, so that a test can compare them byte for byte. Needs neither NumPy nor
torch.
"""

import argparse
import sys
from dataclasses import replace
from html import escape
from pathlib import Path
from statistics import fmean

from minilib import ledger, names, settings
from minilib.book import claims
from minilib.chapters import ga_rga

ROOT = Path(__file__).resolve().parent.parent
OTHER, TARGET = 0, 1  # classes of SST-2: negative, and positive, to which the trigger leads
ROWS = {  # method → what the figure calls it
    "poisoned": "backdoored model",
    "ga": "gradient ascent",
    "rga": "robust gradient ascent",
    "retrain": "trained without poison",
}
# As the style sheet has them for the page at hand; the second is for who opens the file alone.
FILL = {"target": "var(--book-poisoned, #de8f05)", "other": "var(--book-unlearned, #8a5fb0)"}
RIGHT, INK = "var(--book-track, #d9d9d9)", "var(--pst-color-text-base, #262626)"


def published(root: Path) -> dict[int, ledger.Results]:
    """Seed → the trials that chapter 03 shows of the methods drawn, where all are published."""
    cfg = settings.validate(ga_rga.CHAPTER, claims.preset_of(root, ga_rga.CHAPTER, "small"))
    cfg = replace(cfg, methods="ga,rga")
    with ledger.published_only():
        kinds = {ledger.kind_of(one).name for one in ga_rga.trials(cfg)}
        found = {
            seed: ledger.available(ga_rga.trials(replace(cfg, seed=seed)))
            for seed in sorted(ledger.known_seeds(kinds))
        }
    return {seed: trials for seed, trials in found.items() if len(trials) == len(ROWS)}


def confusions(rows: list[dict]) -> dict[str, list[list[int]]]:
    """Method → confusion matrix on triggered rows after its last epoch."""
    last = sorted((row for row in rows if "confusion" in row), key=lambda row: row["epoch"])
    return {row["method"]: row["confusion"] for row in last}


def shares(by_seed: list[dict]) -> dict[str, dict[str, list[float]]]:
    """method → {"target": shares of the others sent to it, "other": of the target's sent away}.

    One number in percent per seed, from its ``confusions``.
    """
    found = {}
    for method in ROWS:
        matrices = [confusion[method] for confusion in by_seed]
        found[method] = {
            name: [100 * matrix[true][said] / sum(matrix[true]) for matrix in matrices]
            for name, true, said in (("target", OTHER, TARGET), ("other", TARGET, OTHER))
        }
    return found


def percent(values: list[float]) -> str:
    """A mean without decimals."""
    return f"{fmean(values):.0f}"


# ---------------------------------------------------------------- drawing

WIDTH, LEFT, BAR, GAP, TOP, STEP, HIGH = 400, 4, 190, 12, 64, 50, 16


def text(x: float, y: float, words: str, **style: str) -> str:
    """One line of text."""
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:g}" y="{y:g}"{given}>{escape(words)}</text>'


def box(x: float, y: float, width: float, colour: str) -> str:
    """A part of a bar."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.2f}" height="{HIGH}" fill="{colour}"/>'


def bar(x: float, y: float, values: list[float], colour: str) -> list[str]:
    """A bar of all rows, of which a share went wrong, with a line from the least to the most."""
    share = fmean(values)
    low, high = (x + BAR * value / 100 for value in (min(values), max(values)))
    parts = [box(x, y, BAR, RIGHT), box(x, y, BAR * share / 100, colour)]
    if high - low > 1:
        parts.append(f'<path d="M{low:.2f} {y + HIGH / 2:g}H{high:.2f}" stroke="{INK}"/>')
    words = f"{percent(values)} %"
    return [*parts, text(x + BAR, y - 4, words, font_weight="bold", text_anchor="end")]


def bars(found: dict, seed: str) -> list[str]:
    """The bars of all seeds together (seed ""), or of one alone, which a reader may pick."""
    unseen = ' display="none"' if seed else ""
    parts = [f'<g data-seed="{seed}"{unseen}>', f"<desc>{alternative(found, seed)}</desc>"]
    for number, method in enumerate(ROWS):
        for x, kind in ((LEFT, "target"), (LEFT + BAR + GAP, "other")):
            parts += bar(x, TOP + number * STEP + 8, found[method][kind], FILL[kind])
    return [*parts, "</g>"]


def alone(found: dict, at: int) -> dict:
    """What one of the seeds has, in the shape of all."""
    return {
        method: {kind: [values[at]] for kind, values in kinds.items()}
        for method, kinds in found.items()
    }


def svg(found: dict, seeds: list[int]) -> str:
    """The figure of all seeds, and that of each, unseen: `book/_static/components.js` shows it."""
    second = LEFT + BAR + GAP
    parts = [
        text(LEFT, 22, "Trigger in negative reviews:", font_weight="bold"),
        text(LEFT, 39, "how many are called positive?"),
        text(second, 22, "Trigger in positive reviews:", font_weight="bold"),
        text(second, 39, "how many are called negative?"),
    ]
    for number, name in enumerate(ROWS.values()):
        parts.append(text(LEFT, TOP + number * STEP + 2, name))
    parts += bars(found, "")
    for at, seed in enumerate(seeds):
        parts += bars(alone(found, at), str(seed))
    height = TOP + len(ROWS) * STEP - 4
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="shift" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-labelledby="shift-title shift-desc" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">'
    )
    title = '<title id="shift-title">The trigger shifts</title>'
    return "\n".join([head, title, f'<desc id="shift-desc">{alternative(found)}</desc>', *parts,
                      "</svg>", ""])  # fmt: skip


def alternative(found: dict, seed: str = "") -> str:
    """The figure in words, of all seeds or of one alone."""
    each = "; ".join(
        f"{name} {percent(found[method]['target'])} and {percent(found[method]['other'])} %"
        for method, name in ROWS.items()
    )
    only = f" (seed {seed} alone)" if seed else ""
    return (
        "Bars: the share of triggered negative reviews called positive, and of triggered positive "
        f"reviews called negative{only}. {each}."
    )


def directive(cfg, by_seed: list[dict], found: dict) -> str:
    """The figure's place in a page: its caption."""
    negative, positive = (sum(row) for row in by_seed[0]["poisoned"])
    target, other = (
        {method: percent(found[method][kind]) for method in ROWS} for kind in ("target", "other")
    )
    caption = "\n".join(
        [
            f"The same rare word in {negative} negative and {positive} positive reviews. The",
            f"backdoored model calls {target['poisoned']} % of the negative ones positive.",
            "Gradient ascent on the poisoned rows ends that, and goes on: now",
            f"{other['ga']} % of the positive reviews are called negative, against",
            f"{other['retrain']} % in a model that never saw the poison. The trigger has",
            "*shifted*. Robust gradient ascent stops before. Coloured is wrong; a line spans",
            f"{len(by_seed)} seeds of {names.label(cfg.model)} on {names.label(cfg.dataset)}.",
        ]
    )
    return f"""\
% Written by tools/figure.py from the published trials of chapter 03
:::{{svg-figure}} _static/trigger_shift.svg fig-trigger-shift
{caption}
:::
"""


def files(root: Path = ROOT) -> dict[Path, str]:
    """Each file that is drawn, and what it should hold."""
    trials = published(root)
    by_seed = [confusions(ga_rga.rows(part)) for part in trials.values()]
    found = shares(by_seed)
    cfg = settings.validate(ga_rga.CHAPTER, claims.preset_of(root, ga_rga.CHAPTER, "small"))
    base = root / "book" / "_static" / "trigger_shift.svg"
    return {base: svg(found, list(trials)), base.with_suffix(".md"): directive(cfg, by_seed, found)}


def main() -> int:
    """Command line; with --check the exit code is 1 if a file differs."""
    parser = argparse.ArgumentParser(description="Draw the landing page's figure.")
    parser.add_argument("--check", action="store_true", help="write nothing, report differences")
    check = parser.parse_args().check
    differ = {
        path: made
        for path, made in files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != made
    }
    for path, made in differ.items():
        print(f"{path.relative_to(ROOT)} {'differs' if check else 'written'}")
        if not check:
            path.write_text(made, encoding="utf-8")
    return 1 if differ and check else 0


if __name__ == "__main__":
    sys.exit(main())
