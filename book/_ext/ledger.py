"""Sphinx extension: verdicts on the papers' claims, and their tables beside ours, from trials.

`{claims}` is the whole ledger, a card for each claim; `{claims} 03_ga_rga`, with a name that begins
with ``tab-``, says how many hold of one chapter or paper, and has them in a numbered table that
folds: they are the cards' once more.
`{rounding}` says which of them another processor's rounding would overturn.
`{paper-tables}` is every table of `book/results.yml`, `{paper-tables} bibau-5` what has been run of
one of them. `{outcomes} 06_bi_bau` is what each defence leaves of each attack that the chapter's
published trials know, `{outcomes} 06_bi_bau ewc=0` the same at that parameter. `{trials} 06_bi_bau`
says how many trials the chapter rests on. All are made anew whenever the published trials or their
file change, and need neither PyTorch nor pandas. What cannot be read is a warning, and so an error
of a strict build.
"""

import functools
import html
import json
import re
import statistics
import sys
from pathlib import Path

from chapters import numbered_table, table_caption
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minilib import names  # noqa: E402
from minilib.book import claims, paper_tables, rounding  # noqa: E402

logger = logging.getLogger(__name__)


def ledger_files(root: Path) -> list[str]:
    """The files of the published trials."""
    return sorted(path.relative_to(root).as_posix() for path in root.glob("results/*.jsonl"))


def with_new_files(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """Pages to be read again because there are more or fewer such files than when they were."""
    now = ledger_files(Path(env.srcdir))
    return [page for page, about in env.metadata.items() if about.get("ledger", now) != now]


class FromLedger(SphinxDirective):
    """What these directives share: the repository they read, and what their page depends on."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The directive's table as HTML."""
        root = Path(self.env.srcdir)
        modules = [root / "minilib" / "settings.py"]
        for folder in ("book/*.py", "chapters/*.py", "trials/*.py", "book/papers/*.csv"):
            modules += root.glob(f"minilib/{folder}")
        for path in (claims.FILE, paper_tables.FILE, *modules, *ledger_files(root)):
            self.env.note_dependency(str(root / path))
        self.env.metadata[self.env.docname]["ledger"] = ledger_files(root)
        try:
            text = self.made(root)
        except (OSError, KeyError, ValueError) as error:
            logger.warning("%s", error, location=self.get_location(), type="ledger")
            return []
        return [nodes.raw("", text, format="html")]


OF_CHAPTER = "What the paper claims about this experiment, and what the published trials say of it."


class Claims(FromLedger):
    """The ledger, or the part of one chapter or paper."""

    option_spec = {"name": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Cards; of a part, how many hold, and a numbered table."""
        shown = super().run()
        if not shown or "name" not in self.options:
            return shown
        counts, _, table = shown[0].astext().partition("\n")
        box = numbered_table("", table_caption("", OF_CHAPTER), classes=["folded"])
        box += nodes.raw("", table, format="html")
        self.add_name(box)
        return [nodes.raw("", counts, format="html"), box]

    def made(self, root: Path) -> str:
        """Claims and verdicts, with the findings that failing claims owe."""
        wanted = self.arguments[0] if self.arguments else None
        found = claims.verdicts(root, wanted)
        if not found:
            raise ValueError(f"there is no claim of {wanted!r}")
        if wanted:
            return table_of_claims(found)
        return cards_of_claims(found, {one.id for one in paper_tables.read(root)}, root)


class Rounding(FromLedger):
    """How far another processor's rounding moves trials, and which conclusions that overturns."""

    def made(self, root: Path) -> str:
        """What moved, a line for each number of a chapter; then the claims."""
        lines = rounding.emulated()
        if not lines:
            raise ValueError("no trial was verified as on another processor")
        return table_of_moves(lines, rounding.asked(root, claims.verdicts(root)))


def table_of_moves(lines: list[dict], asked: dict[str, float]) -> str:
    """Moves as a table, and the claims that they overturn, as HTML.

    Args:
        lines: of trials that were computed again. asked: claim → share of the draws that agree.
    """
    processors = ", ".join(sorted({line["env"]["isa"] for line in lines}))
    trials = len({line["key"] for line in lines})
    body = [
        f"<tr><td>{chapter[:2]}</td><td>{html.escape(names.label(metric))}</td>"
        f"<td>{len(moves)}</td><td>{_move(statistics.median(moves))}</td>"
        f"<td>{_move(max(moves))}</td></tr>"
        for chapter, metrics in rounding.moves(lines).items()
        for metric, moves in sorted(metrics.items())
        if metric in rounding.SHOWN
    ]
    moved = {name: share for name, share in asked.items() if share < rounding.STEADY}
    said = ", ".join(
        f'<a href="#claim-{name}">{name}</a> ({100 * share:.0f}&nbsp;%)'
        for name, share in sorted(moved.items(), key=lambda item: item[1])
    )
    heads = "".join(
        f"<th>{head}</th>" for head in ("chapter", "number", "times", "median move", "largest")
    )
    return (
        f"<p>{trials} published trials were computed from nothing as on other processors "
        f"({html.escape(processors)}), {len(lines)} times in all.</p>"
        f'<div class="results"><table><thead><tr>{heads}</tr></thead><tbody>'
        f"{''.join(body)}</tbody></table></div>"
        f"<p>{len(asked)} decided claims ask only for numbers whose moves were measured in their "
        f"chapter. {len(asked) - len(moved)} of them are decided alike in at least "
        f"{100 * rounding.STEADY:.0f}&nbsp;% of {rounding.DRAWS} draws"
        f"{f'. These are not: {said}' if moved else ''}.</p>"
    )


def _move(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


class PaperTables(FromLedger):
    """All tables of the results page, or what has been run of one of them."""

    def made(self, root: Path) -> str:
        """The tables, each followed by the commands for what is missing."""
        every = {table.id: table for table in paper_tables.read(root)}
        if self.arguments:
            (wanted,) = self.arguments
            if wanted not in every:
                raise ValueError(f"there is no table {wanted!r}; accepted: {', '.join(every)}")
            return paper_tables.render(root, every[wanted], missing=False)
        tallies = {name: paper_tables.tally(root, table) for name, table in every.items()}
        parts = [coverage(every, tallies), LEGEND]
        for paper, title in PAPERS.items():
            parts.append(
                f'<p class="results-title paper" role="heading" aria-level="2">{title}</p>'
            )
            parts += [
                folded_table(root, table, *tallies[name])
                for name, table in every.items()
                if table.paper == paper
            ]
        return "\n".join(parts)


LEGEND = (
    '<p class="results"><span class="swatch gap-near">≈ near: within two points</span> '
    '<span class="swatch gap-off">~ off: within ten</span> '
    '<span class="swatch gap-far">≠ far: beyond ten</span> '
    '<span class="swatch missing">not run</span></p>'
)


def coverage(tables: dict[str, paper_tables.Table], tallies: dict[str, tuple[int, int]]) -> str:
    """How much of each table has been run: a bar per table, with a link to it."""
    cells, filled = (sum(one[k] for one in tallies.values()) for k in (0, 1))
    lines = [f"<p><strong>{filled} of {cells} cells have a trial.</strong> By table:</p>"]
    for paper, title in PAPERS.items():
        lines.append(f'<div class="bars"><p class="bars-title">{title.partition(":")[0]}</p>')
        for name, table in tables.items():
            if table.paper != paper:
                continue
            total, run = tallies[name]
            short = html.escape(re.sub(r"^[^,]*, |; ours.*$|:.*$", "", table.title))
            about = html.escape(re.sub(r"^[^:]*: |; ours.*$", "", table.title))
            lines.append(
                f'<div class="bar"><span class="bar-name"><a href="#table-{name}">{short}</a> '
                f'<small>{about}</small></span><span class="bar-track"><i class="fill clean" '
                f'style="width:{100 * run / max(total, 1):.1f}%"></i></span>'
                f'<span class="bar-value">{run}/{total}</span></div>'
            )
        lines.append("</div>")
    return "\n".join(lines)


def folded_table(root: Path, table: paper_tables.Table, cells: int, filled: int) -> str:
    """A table of the page: what has been run, and folded what has not, with its commands."""
    parts = [paper_tables.render(root, table, missing=False)] if filled else []
    if not filled:
        title = html.escape(table.title)
        parts.append(f'<p class="results-title" id="table-{table.id}">{title}</p>')
    parts.append(f"<p>{filled} of {cells} cells have a trial here.</p>")
    lines = paper_tables.missing(root, table)
    if lines:
        rest = paper_tables.render(root, table, run=False)
        said = html.escape("\n".join(lines))
        parts.append(
            "<details><summary>The lines that nobody has run, and the commands that run them "
            f"({len(lines)})</summary>{rest}<pre>{said}</pre></details>"
        )
    return "\n".join(parts)


class Outcomes(FromLedger):
    """What each defence leaves of each attack, over a chapter's trials or those at NAME=VALUE.

    Several settings stand beside each other, with ``|`` between their NAME=VALUE;
    attack=NAME keeps one attack's, methods=NAMES those defences. Lines are those that all have.
    """

    required_arguments, optional_arguments = 1, 29

    def made(self, root: Path) -> str:
        """The table of `minilib.book.paper_tables.outcomes`."""
        chapter, *given = self.arguments
        asked = [part.split() for part in " ".join(given).split("|")]
        asked = [dict(item.split("=", 1) for item in part) for part in asked]
        return paper_tables.render_outcomes(root, chapter, *asked)


class Trials(FromLedger):
    """How many published trials a chapter rests on."""

    required_arguments, optional_arguments = 1, 0

    def made(self, root: Path) -> str:
        """Their number, and when they were last made again."""
        (chapter,) = self.arguments
        rows = paper_tables.published_numbers(root, chapter).rows()
        return paper_tables.made_from(row["key"] for part in rows.values() for row in part)


class Overhead(FromLedger):
    """What a sweep costs beyond its runs, as `python -m bench sweep` measured it."""

    def made(self, root: Path) -> str:
        """A table of the measurement, or the command that makes it."""
        path = root / "bench" / "results" / "sweep.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            return "<p><em>Not measured yet:</em> <code>python -m bench sweep</code></p>"
        found = json.loads(path.read_text(encoding="utf-8"))
        single = [_part(PARTS[name], {"": found[name]}) for name in PARTS if name in found]
        both = {said: found[name] for name, said in ENGINES.items() if name in found}
        parts = [*single, *([_part("trials that do nothing", both)] if both else [])]
        return "\n".join(f'<div class="results"><table>{part}</table></div>' for part in parts)


PARTS = {
    "plan": "planning runs of one trial each",
    "notebook": "executing a chapter's notebook from the ledger, in a kernel of its own",
}
ENGINES = {"local": "local engine", "ray": "Ray, on one machine"}


def _part(title: str, columns: dict[str, dict]) -> str:
    """Measurements side by side, under what they are; each with its conditions."""
    first = next(iter(columns.values()))
    env = first["env"]
    under = f"{env['cpus']} cores of {env['cpu']}, Python {env['python']}"
    width = len(columns) + 1
    rows = [f'<tr><th class="block" colspan="{width}">{html.escape(title)}'
            f"<br><small>{html.escape(under)}</small></th></tr>"]  # fmt: skip
    if width > 2:
        rows.append(_row("", map(html.escape, columns), "th"))
    for label in first:
        if label != "env":
            rows.append(_row(label, (_said(found.get(label)) for found in columns.values())))
    return "".join(rows)


def _row(label: str, values, cell: str = "td") -> str:
    inner = "".join(f"<{cell}>{value}</{cell}>" for value in values)
    return f"<tr><{cell}>{html.escape(label)}</{cell}>{inner}</tr>"


def _said(value) -> str:
    if isinstance(value, list):
        return (" / " if len(value) == 3 else " to ").join(map(str, value))
    if isinstance(value, str):
        return html.escape(value)
    return "–" if value is None else f"{value:,}"


def _chance(holm: float | None) -> str:
    if holm is None:
        return "–"
    said = "&lt;&nbsp;0.001" if holm < 0.001 else f"{holm:.3f}"
    return f"<strong>{said}</strong>" if holm <= claims.LEVEL else said


# A verdict's sign, which says the same as its colour.
SYMBOLS = {"holds": "✓", "fails": "✗", "undecided": "?", "empty": "∅", "not run": "–"}
PAPERS = {
    "rga": "RGA: robust gradient ascent",
    "btu": "BTU: backdoor token unlearning",
    "sande": "SANDE: simulate and eliminate",
    "bibau": "BI-BAU: blind inversion",
}
IN_WORDS = {
    "holds": "holds",
    "fails": "fails",
    "undecided": "undecided",
    "empty": "empty: the method changed nothing",
    "not run": "not run",
}
MANY = {  # verdict → (of one claim, of several)
    "holds": ("holds", "hold"), "fails": ("fails", "fail"),
    "undecided": ("is undecided", "are undecided"), "empty": ("is empty", "are empty"),
    "not run": ("was not run", "were not run"),
}  # fmt: skip
SIDES = re.compile(r"(.+?) ([<>]) (.+)")
NUMBER = re.compile(r"-?\d+\.\d\d")


def counted(words: list[str], last: str = ", ") -> str:
    """How many claims have which verdict; ``words`` has one for each, ``last`` joins the last."""
    counts = {word: words.count(word) for word in claims.VERDICTS if word in words}
    parts = [f"{count} {MANY[word][count > 1]}" for word, count in counts.items()]
    return last.join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def rounded(text: str) -> str:
    """Numbers of a comparison with one decimal, where two would say more than three seeds can."""
    many = all(abs(float(number)) >= 1 or not float(number) for number in NUMBER.findall(text)[:1])
    if not many:
        return text
    return NUMBER.sub(lambda found: f"{float(found[0]):.1f}", text).replace("-", "−")


def asked(shown: str) -> list[str]:
    """Each comparison of a verdict as HTML: what we measured, and what was asked for."""
    lines = []
    for part in filter(None, shown.split("; ")):
        match = SIDES.fullmatch(part)
        if not match:
            lines.append(html.escape(part))
            continue
        ours, sign, other = (html.escape(rounded(side)) for side in match.groups())
        word = "less than" if match[2] == "<" else "more than"
        lines.append(f"ours <strong>{ours}</strong>, asked for: {word} {other}")
    return [line.replace(" ± ", "&nbsp;±&nbsp;") for line in lines]


@functools.cache
def named_in(root: Path, chapter: str, name: str) -> bool:
    """Whether a chapter has a figure or table of this name."""
    path = root / "notebooks" / f"{chapter}.ipynb"
    return path.is_file() and f'"{name}"' in path.read_text(encoding="utf-8")


def measured(shown: str) -> str:
    """What a verdict's comparisons measured, as words inside a sentence."""
    sides = []
    for part in filter(None, shown.split("; ")):
        match = SIDES.fullmatch(part)
        left, right = (match[1], match[3]) if match else (part, "0")
        if NUMBER.search(right):  # measured too; what was asked for has no decimals
            sides.append(f"{rounded(left)} against {rounded(right)}")
        else:
            few = (f" ({words})" for words in claims.FEW.values())
            few = next((words for words in few if right.endswith(words)), "")
            sides.append(rounded(left) + few)
    return " and ".join(sides)


BASIS = re.compile(r"(\w+), (.*?)(?:, )?(seeds? [\d, ]+), (\d+ trials?)")


def basis_of(scale: str) -> str:
    """What a verdict rests on, in words."""
    match = BASIS.fullmatch(scale)
    if not match:
        return scale
    models = ", ".join(map(names.label, filter(None, match[2].split(", "))))
    return "; ".join(filter(None, (f"preset {match[1]}", models, match[3], match[4])))


def links(claim: claims.Claim, tables: set[str], root: Path = ROOT) -> str:
    """Where a claim's figure, its trials and the paper's table beside ours are."""
    page = f"../notebooks/{claim.chapter}.html"
    found = [f'<a href="{page}">chapter</a>', f'<a href="{page}#trials">trials</a>']
    if claim.figure and named_in(root, claim.chapter, claim.figure):
        kind = "figure" if claim.figure.startswith("fig-") else "table"
        found.insert(0, f'<a href="{page}#{claim.figure}">{kind}</a>')
    for number in re.findall(r"Tables? (\d+)", claim.where):
        if f"{claim.paper}-{number}" in tables:
            found.append(f'<a href="results.html#table-{claim.paper}-{number}">Table {number}</a>')
    return " · ".join(found)


def card(claim: claims.Claim, verdict: claims.Verdict, tables: set[str], root: Path) -> str:
    """One claim: its verdict in words, what was measured against what was asked, and links."""
    kind = verdict.verdict.replace(" ", "-")
    text = [
        f'<article class="claim-card" id="claim-{claim.id}" data-paper="{claim.paper}" '
        f'data-verdict="{kind}"><p class="claim-head"><span class="verdict {kind}">'
        f'<span aria-hidden="true">{SYMBOLS[verdict.verdict]}</span> {IN_WORDS[verdict.verdict]}'
        f"</span> <small>{html.escape(claim.where)}</small></p>",
        f"<p>{html.escape(claim.claim)}</p>",
    ]
    lines = asked(verdict.shown)
    if lines:
        text.append(f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>")
    if verdict.verdict == "not run":
        text.append(f"<p><small>missing: {html.escape(verdict.missing)}</small></p>")
    if verdict.verdict == "fails":
        note = html.escape(claim.finding.replace("{shown}", measured(verdict.shown)))
        text.append(f'<p class="finding">{note}</p>')
    basis = [html.escape(basis_of(verdict.scale))] if verdict.scale else []
    if verdict.holm is not None:
        basis.append(f"p after Holm: {_chance(verdict.holm)}")
    foot = " · ".join([*basis, links(claim, tables, root)])
    return "\n".join([*text, f'<p class="claim-foot"><small>{foot}</small></p></article>'])


def cards_of_claims(
    found: list[tuple[claims.Claim, claims.Verdict]],
    tables: set[str] = frozenset(),
    root: Path = ROOT,
) -> str:
    """Claims as cards, paper by paper, with a filter that works where there is JavaScript.

    tables: ids of the tables on the page of results.
    """
    words = [verdict.verdict for _, verdict in found]
    data = {
        "papers": {paper: title.partition(":")[0] for paper, title in PAPERS.items()},
        "verdicts": {word.replace(" ", "-"): f"{SYMBOLS[word]} {word}" for word in claims.VERDICTS},
    }
    text = [
        f"<p>{len(found)} claims: {counted(words)}. {html.escape(claims.told(found))}.</p>",
        '<div class="play" data-play="filter" role="group" aria-label="Show some of the claims">'
        '<p class="play-title"><strong>Show</strong></p><div class="play-body" hidden></div>'
        f'<script type="application/json">{json.dumps(data, ensure_ascii=False)}</script></div>',
    ]
    for paper, title in PAPERS.items():
        pairs = [pair for pair in found if pair[0].paper == paper]
        mine = [verdict.verdict for _, verdict in pairs]
        text.append(
            f'<section class="claim-paper" aria-labelledby="paper-{paper}">'
            f'<p class="results-title" id="paper-{paper}" role="heading" aria-level="2">'
            f"{html.escape(title)} <small>{counted(mine)}</small></p>"
        )
        text += [card(claim, verdict, tables, root) for claim, verdict in pairs]
        text.append("</section>")
    keys = frozenset().union(*(verdict.trials for _, verdict in found))
    return "\n".join([*text, paper_tables.made_from(keys)])


def table_of_claims(found: list[tuple[claims.Claim, claims.Verdict]]) -> str:
    """Claims with their verdicts as HTML."""
    words = [verdict.verdict for _, verdict in found]
    text = [f"<p>{len(found)} claims: {counted(words)}. {html.escape(claims.told(found))}.</p>"]
    text.append('<div class="results"><table class="claims">')
    heads = ("claim", "where", "verdict", "p, after Holm", "on what")
    text.append(f"<thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>")
    text.append("<tbody>")
    for claim, verdict in found:
        basis = [
            html.escape(part)
            for part in (*verdict.shown.split("; "), basis_of(verdict.scale))
            if part
        ]
        basis = [part.replace(" ± ", "&nbsp;±&nbsp;") for part in basis]
        basis += (
            [f"missing: {html.escape(verdict.missing)}"] if verdict.verdict == "not run" else []
        )
        said = html.escape(claim.claim)
        if verdict.verdict == "fails":
            note = html.escape(claim.finding.replace("{shown}", measured(verdict.shown)))
            said += f'<p class="finding">{note}</p>'
        kind = verdict.verdict.replace(" ", "-")
        text.append(
            f'<tr id="claim-{claim.id}"><td>{said}</td><td>{html.escape(claim.where)}</td>'
            f'<td class="{kind}">{SYMBOLS[verdict.verdict]} {verdict.verdict}</td>'
            f"<td>{_chance(verdict.holm)}</td>"
            f"<td>{'<br>'.join(basis)}</td></tr>"
        )
    keys = frozenset().union(*(verdict.trials for _, verdict in found))
    return "\n".join([*text, "</tbody></table></div>", paper_tables.made_from(keys)])


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.add_directive("claims", Claims)
    app.add_directive("rounding", Rounding)
    app.add_directive("paper-tables", PaperTables)
    app.add_directive("outcomes", Outcomes)
    app.add_directive("trials", Trials)
    app.add_directive("sweep-overhead", Overhead)
    app.connect("env-get-outdated", with_new_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
