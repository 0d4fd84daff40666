"""The papers' tables beside ours, cell by cell, as HTML and without NumPy or pandas.

`book/results.yml` says which table of which paper is shown, which of its columns are parameters of
a chapter and which name rows. A cell that no trial has filled names the command for it.
"""

import contextlib
import csv
import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from minilib import ledger
from minilib.book import claims, stats
from minilib.names import PART_OF, label, whole
from minilib.provenance import PACKAGE, read_yaml
from minilib.settings import SettingsError, split

FILE = Path("book", "results.yml")
PARTS = {whole: part for part, whole in PART_OF.items()}
NEAR, OFF = 2.0, 10.0  # points: within the first a cell agrees, beyond the second it does not


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a paper, and where our numbers for it are.

    Attributes:
        id, title, paper, table, chapter: what is shown; the paper's table by its number.
        keep: the paper's columns that must have these values (its model, usually).
        params: the paper's columns that are parameters of the chapter.
        row: entry of our rows → column of the paper; an empty cell there selects nothing.
        metrics: columns of the page.
        sweep: the file that runs all of it.
        given: parameters and entries that our rows have beside those.
        without: values of the paper's columns that this project has no code for.
        instead: data set → metric of the paper → entry of our rows, where it has another name.
        times: what the paper's numbers are multiplied by, where it gives shares.
    """

    id: str
    title: str
    paper: str
    table: str
    chapter: str
    keep: dict
    params: list
    row: dict
    metrics: list
    sweep: str
    given: dict = dataclasses.field(default_factory=dict)
    without: dict = dataclasses.field(default_factory=dict)
    instead: dict = dataclasses.field(default_factory=dict)
    times: float = 1.0


def read(root: Path) -> list[Table]:
    """The tables of the results page."""
    return [Table(**entry) for entry in read_yaml(root / FILE, list)]


def _rows(paper: str) -> list[dict[str, str]]:
    with (PACKAGE / "book" / "papers" / f"{paper}.csv").open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


def paper_values(paper: str, **where: str) -> list[dict]:
    """Rows of a paper's tables as published, from ``minilib/book/papers/<paper>.csv``.

    Args:
        where: columns to match, e.g. ``table="2", model="BERT", dataset="sst2"``; a part of a
            data set (``agnews-8k``) is looked up as the whole.
    """
    rows = _rows(paper)
    if "dataset" in where:
        where["dataset"] = whole(where["dataset"])
    for column in where:
        if column not in rows[0]:
            raise ValueError(f"{paper} has no column {column!r}; accepted: {', '.join(rows[0])}")
    rows = [row for row in rows if all(row[k] == str(v) for k, v in where.items())]
    numbers = ("mean", "std")
    return [
        {k: (float(v) if v else None) if k in numbers else v for k, v in row.items()}
        for row in rows
    ]


def published(table: Table) -> list[dict]:
    """The paper's cells: rows of `minilib/book/papers/<paper>.csv`."""
    conditions = {"table": table.table, **table.keep}
    return [
        row
        for row in _rows(table.paper)
        if all(row[name] == str(value) for name, value in conditions.items())
        and not any(row[name] in values for name, values in table.without.items())
    ]


def ours(table: Table, numbers: claims.Numbers, cell: dict) -> dict[int, float]:
    """seed → our number for a cell of the paper; empty if no trial has it."""
    conditions = {name: claims.typed(cell[name]) for name in table.params if cell[name]}
    conditions |= {
        name: claims.typed(cell[column]) for name, column in table.row.items() if cell[column]
    }
    metric = table.instead.get(cell["dataset"], {}).get(cell["metric"], cell["metric"])
    for dataset in (cell["dataset"], PARTS.get(cell["dataset"])):  # the whole before a part of it
        if dataset and "dataset" in conditions:
            conditions |= dict.fromkeys(conditions.keys() & {"dataset", "data"}, dataset)
        with contextlib.suppress(claims.Missing, SettingsError):  # not run, or we have it not
            if by_seed := numbers.at(metric, **table.given, **conditions):
                return by_seed
    return {}


def published_numbers(root: Path, chapter: str) -> claims.Numbers:
    """The numbers of a chapter at the largest preset that any published trial has a row of."""
    for preset, params in claims.scales(root, chapter).items():
        numbers = claims.Numbers(chapter, params, preset)
        if any(numbers.rows().values()):
            break
    return numbers


def lines(root: Path, table: Table, numbers: claims.Numbers | None = None) -> list[dict]:
    """One entry per line of the page: its key, and per metric the paper's cell and our numbers.

    ``numbers`` tells afterwards which trials were read.
    """
    numbers = numbers or published_numbers(root, table.chapter)
    names = [*table.params, *(column for column in table.row.values() if column != "epochs")]
    by_key: dict[tuple, dict] = {}
    for cell in published(table):
        if cell["metric"] in table.metrics:
            key = tuple(cell[name] for name in names)
            line = by_key.setdefault(key, {"key": dict(zip(names, key, strict=True)), "cells": {}})
            line["cells"][cell["metric"]] = cell, ours(table, numbers, cell)
    return list(by_key.values())


def command(table: Table, key: dict) -> str:
    """What runs the cells of a line."""
    values = key | {"dataset": PARTS.get(key.get("dataset"), key.get("dataset"))}
    only = "".join(f" --only {name}={values[name]}" for name in table.params if key[name])
    return f"minilib sweep {table.sweep}{only}"


def made_from(keys: Iterable[str]) -> str:
    """How many trials something is made from, and when they were last made again, as HTML."""
    keys = set(keys)
    trials = f"{len(keys)} published trial{'s' * (len(keys) != 1)}"
    lines = [one for key, one in verified().items() if key in keys]
    text = "none of them verified yet"
    if lines:
        count = "all" if len(lines) == len(keys) else len(lines)
        deviation = max((_moved(one) for one in lines), key=lambda pair: pair[0])
        note = (
            f"the largest deviation is {deviation[0]:.2g} ({deviation[1]})"
            if deviation[0]
            else "all equal"
        )
        text = f"{count} of them verified, last on {max(one['when'] for one in lines)[:10]}: {note}"
    return f'<p class="made-from"><small>Made from {trials}, {html.escape(text)}.</small></p>'


def _moved(one: dict) -> tuple[float, str]:
    """The largest deviation of a trial and the label of its number; what is incomparable is inf."""
    every = one["deviations"].items()
    deviations = [(math.inf if by is None else by, label(name)) for name, by in every]
    return max(deviations, default=(0.0, ""))


def verifications() -> list[dict]:
    """The lines of `verified.jsonl` beside the published trials."""
    folder = ledger.published_folder()
    path = folder / "verified.jsonl" if folder else None
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verified() -> dict[str, dict]:
    """Key → the newest line of `verified.jsonl` about that trial: ``when``, ``deviations``.

    What was computed as on another processor is left out: ``rounding`` reads that.
    """
    own = [one for one in verifications() if not one.get("env", {}).get("isa")]
    return {one["key"]: one for one in sorted(own, key=lambda one: one["when"])}


def shade(paper: float, mean: float) -> str:
    """Class of a cell of ours: near, off or far from the paper's."""
    gap = abs(paper - mean)
    # Bare words would meet other style sheets: `far` is a font of icons.
    return "gap-near" if gap <= NEAR else "gap-off" if gap <= OFF else "gap-far"


# The same as its colour says, in a sign: near, off, far.
SIGNS = {"gap-near": "≈", "gap-off": "~", "gap-far": "≠"}


def render(root: Path, table: Table, missing: bool = True, run: bool = True) -> str:
    """The table as HTML: a block of lines for each setting, a line for each kind of row.

    ``missing=False`` leaves out the lines that no trial has filled a cell of, ``run=False`` the
    others, and the table's title with them.
    """
    numbers = published_numbers(root, table.chapter)
    kinds = list(dict.fromkeys(name for name in table.row.values() if name != "epochs"))
    head = "".join(f'<th rowspan="2">{_label(name)}</th>' for name in kinds)
    head += "".join(f'<th colspan="2">{_label(name)}</th>' for name in table.metrics)
    subhead = "<th>paper</th><th>ours</th>" * len(table.metrics)
    title = html.escape(table.title)
    head_line = f'<p class="results-title" id="table-{table.id}">{title}</p>' if run else ""
    text = [head_line, '<div class="results">']
    text.append(f'<table aria-label="{title}"><thead><tr>{head}</tr><tr>{subhead}</tr></thead>')
    text.append("<tbody>")
    width, blocks = len(kinds) + 2 * len(table.metrics), {}
    for line in lines(root, table, numbers):
        filled = any(sample for _, sample in line["cells"].values())
        if not (run if filled else missing):
            continue
        setting = [_setting(name, line["key"][name]) for name in table.params if line["key"][name]]
        row = "".join(f"<th>{_label(line['key'][name])}</th>" for name in kinds)
        row += "".join(_cells(table, line, metric) for metric in table.metrics)
        blocks.setdefault(", ".join(setting), []).append(f"<tr>{row}</tr>")
    for setting, rows in blocks.items():
        head = f'<tr><th class="block" colspan="{width}">{setting}</th></tr>'
        text += [head, *rows] if setting else rows
    foot = made_from(numbers.used) if run else ""
    return "\n".join([*text, "</tbody></table></div>", foot])


def _label(name: str) -> str:
    return html.escape(label(name))


def _setting(name: str, value: str) -> str:
    """A parameter's value, which mostly speaks for itself; a number does not."""
    return _label(value) if isinstance(claims.typed(value), str) else f"{_label(name)} = {value}"


def _cells(table: Table, line: dict, metric: str) -> str:
    if metric not in line["cells"]:
        return "<td>–</td><td>–</td>"
    cell, sample = line["cells"][metric]
    mean = table.times * float(cell["mean"])
    paper = f"<td>{mean:.2f}"
    if cell["std"]:
        paper += f"<br><small>± {table.times * float(cell['std']):.2f}</small>"
    paper += "</td>"
    if not sample:
        hint = html.escape(command(table, line["key"]))
        return f'{paper}<td class="missing" title="{hint}">not run</td>'
    summary = stats.summary(sample.values(), level=None)
    ours, _, spread = stats.text(summary).partition(" ")
    kind = shade(mean, summary["mean"])
    return f'{paper}<td class="{kind}">{SIGNS[kind]} {ours}<br><small>{spread}</small></td>'


def missing(root: Path, table: Table) -> list[str]:
    """The commands that fill what is missing, each once."""
    return list(dict.fromkeys(
        command(table, line["key"])
        for line in lines(root, table)
        if not all(sample for _, sample in line["cells"].values())
    ))  # fmt: skip


def tally(root: Path, table: Table) -> tuple[int, int]:
    """How many cells there are, and how many of them a trial of ours fills."""
    samples = [sample for line in lines(root, table) for _, sample in line["cells"].values()]
    return len(samples), sum(map(bool, samples))


# ------------------------------------------------- what defences leave, over all attacks that ran

JUDGED = ("main", "sets")  # parts of the rows: defences, and adversarial training by its terms
SAFE, KEPT = 20.0, 0.8  # percent; share of the victim's clean accuracy that a defence must leave
# From the best to the worst; a cell has the worst of its seeds'.
OUTCOMES = {
    "holds": f"gone: ASR and R-ASR below {SAFE:.0f} %, with every seed",
    "undecided": f"silent: the ASR is below {SAFE:.0f} %, the R-ASR is not",
    "fails": "neither, or more than a fifth of the clean accuracy is lost",
}


def outcomes(
    root: Path,
    chapter: str,
    *,
    attack: str | None = None,
    methods: str | None = None,
    numbers: claims.Numbers | None = None,
    **params,
) -> dict[str, dict[str, dict]]:
    """Method → attack → ``acc``, ``asr``, ``r_asr`` over seeds, from published trials.

    ``params`` are those in which they differ from the chapter as its preset has it; a ``seed``
    among them is the only one. ``attack``: this one alone. ``methods``: these defences alone,
    beside the undefended victim and adversarial training by its terms. ``numbers`` tells
    afterwards which trials were read.

    Methods and attacks stand as the chapter names them; each metric is a `stats.summary`, in per
    cent. ``n`` is the number of seeds. ``outcome`` is the worst of its seeds' in ``OUTCOMES``,
    ``gone`` the number of seeds with the best; neither stands where there was nothing to remove:
    for the undefended victim (method ``none``), and where its ASR is below ``SAFE``.

    Raises:
        ValueError: no published trial says what a defence leaves.
    """
    numbers = numbers or published_numbers(root, chapter)
    every = [row for rows in numbers.rows(**params).values() for row in rows]
    rows = [row for row in every if row.get("part") in JUDGED]
    if methods is not None:
        names = {"none", *split(methods)}
        rows = [row for row in rows if row["part"] != "main" or row["method"] in names]
    by_method: dict[str, dict[str, dict]] = {row["method"]: {} for row in rows}
    for part, method, attack_name in dict.fromkeys(
        (row["part"], row["method"], row["attack"]) for row in rows
    ):
        if attack not in (None, attack_name):
            continue
        samples = {}
        for metric in ("acc", "asr", "r_asr"):
            try:
                samples[metric] = numbers.at(
                    metric, part=part, method=method, attack=attack_name, **params
                )
            except claims.Missing:  # retuning an undefended victim
                continue
        if not samples:
            continue
        cell = {m: stats.summary(seeds.values(), level=None) for m, seeds in samples.items()}
        if "r_asr" in samples:
            victim = {"part": "main", "method": "none", "attack": attack_name, **params}
            try:
                victim_acc, victim_asr = numbers.at("acc", **victim), numbers.at("asr", **victim)
            except claims.Missing:  # what there was to remove was not measured
                victim_acc = victim_asr = {}
            words = [
                _outcome(
                    {metric: seeds[seed] for metric, seeds in samples.items()}, victim_acc[seed]
                )
                for seed in samples["r_asr"]
                if victim_asr.get(seed, 0) >= SAFE  # else there was no backdoor to remove
            ]
            if words:
                worst = max(words, key=list(OUTCOMES).index)
                cell |= {"outcome": worst, "gone": words.count("holds")}
        by_method[method][attack_name] = cell | {"n": len(samples["acc"])}
    if not any(by_method.values()):
        asked = params if attack is None else {"attack": attack, **params}
        raise ValueError(f"no published trial of {chapter!r} has {asked}")
    return {method: cells for method, cells in by_method.items() if cells}


def _outcome(cell: dict, before: float) -> str:
    if cell["asr"] >= SAFE or cell["acc"] < KEPT * before:
        return "fails"
    return "holds" if cell["r_asr"] < SAFE else "undecided"


def render_outcomes(root: Path, chapter: str, *asked: Mapping[str, str]) -> str:
    """``outcomes`` as HTML: a line per defence, a column per attack, and a key to the colours.

    ``asked`` are keyword arguments of ``outcomes``. Several stand beside each other, with the
    defences that all of them have; a column's head then says in what they differ.
    """
    asked = asked or ({},)
    numbers = published_numbers(root, chapter)
    results = [outcomes(root, chapter, numbers=numbers, **given) for given in asked]
    captions = [_said(given) for given in asked]
    columns = [
        (attack, caption, result)
        for result, caption in zip(results, captions, strict=True)
        for attack in dict.fromkeys(attack for cells in result.values() for attack in cells)
    ]
    template = "<br><small>{}</small>" if asked[1:] else ""
    head = "".join(
        f"<th>{_label(attack)}{template.format(html.escape(caption))}</th>"
        for attack, caption, _ in columns
    )
    settings = "; ".join(filter(None, captions))
    label = "What each defence leaves of each attack" + (settings and f", {settings}")
    text = [f'<div class="results"><table aria-label="{html.escape(label)}">']
    text.append(f"<thead><tr><th>defence</th>{head}</tr></thead><tbody>")
    lines = {
        method: [result[method].get(attack) for attack, _, result in columns]
        for method in results[0]
        if all(method in result for result in results)
    }
    for method, cells in lines.items():
        row = "".join(map(_outcome_cell, cells))
        text.append(f"<tr><th>{_label(method)}</th>{row}</tr>")
    key = "".join(f'<li><span class="{word}">{what}</span></li>' for word, what in OUTCOMES.items())
    every = [cell for cells in lines.values() for cell in cells if cell]
    if any("r_asr" in cell and "outcome" not in cell for cell in every):
        key += (
            f"<li>no colour: without a defence, the attack's ASR is below {SAFE:.0f} %, or was not "
            "measured</li>"
        )
    return "\n".join([*text, f"</tbody></table><ul>{key}</ul></div>", made_from(numbers.used)])


ONLY = ("attack", "methods")  # what an outcome is asked for that is no setting


def _said(given: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in given.items() if name not in ONLY)


def _outcome_cell(cell: dict | None) -> str:
    if cell is None:
        return "<td>–</td>"
    texts = {
        metric: stats.text(cell[metric], 1, count=False)
        for metric in ("acc", "asr", "r_asr")
        if metric in cell
    }
    seeds = f"n = {cell['n']}"
    if 0 < cell.get("gone", 0) < cell["n"]:
        seeds = f"gone with {cell['gone']} of {cell['n']} seeds"
    detail = f"<br><small>CA {texts['acc']}<br>{seeds}</small>"
    if "outcome" not in cell:
        return f"<td>{texts['asr']}{detail}</td>"
    return f'<td class="{cell["outcome"]}">{texts["asr"]}<br>→ {texts["r_asr"]}{detail}</td>'
