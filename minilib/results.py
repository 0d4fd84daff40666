"""The papers' tables beside ours, cell by cell, as HTML and without NumPy or pandas.

`book/results.yml` says which table of which paper is shown, which of its columns are parameters of
a chapter and which name rows of a run. A cell that no run has filled names the command for it.
"""

import csv
import dataclasses
import html
from collections.abc import Mapping
from pathlib import Path

from minilib import claims, stats
from minilib.fingerprint import PACKAGE

FILE = Path("book", "results.yml")
NEAR, OFF = 2.0, 10.0  # points: within the first a cell agrees, beyond the second it does not
LABELS = {
    "cacc": "CACC", "lfr": "LFR", "pacc": "PACC", "dpacc": "ΔPACC", "asr": "ASR", "r_asr": "R-ASR",
    "q_asr": "Q-ASR", "bec": "BEC", "ga": "GA", "rga": "RGA", "dga": "DGA", "npo": "NPO",
    "retrain": "ReTrain", "sst2": "SST-2", "hsol": "HSOL", "agnews": "AG News",
    "badnets": "BadNets", "addsent": "AddSent", "hiddenkiller": "HiddenKiller",
    "alpha": "α", "btu": "BTU", "pr-1": "PR-1", "pr-2": "PR-2", "pn": "PN", "onion": "ONION",
    "strip": "STRIP", "rap": "RAP", "bki": "BKI", "cube": "CUBE", "moderate": "MF",
    "stylebkd": "Stylebkd", "sft": "SFT", "dpo": "DPO", "nad": "NAD", "fine-mixing": "fine-mixing",
    "sande": "SANDE", "sande-p": "SANDE-P", "osft": "OSFT", "mmlu": "MMLU", "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge", "parrot_position": "position",
    "acc": "CA", "none": "no defence", "blended": "Blended", "wanet": "WaNet", "refool": "Refool",
    "iad": "IAD", "issba": "ISSBA", "sig": "SIG", "narcissus": "Narcissus", "ft": "FT",
    "anp": "ANP", "adap-blend": "Adap-Blend", "adap-patch": "Adap-Patch",
    "adap-blend+": "Adap-Blend, enhanced",
    "adap-patch+": "Adap-Patch, enhanced", "nc": "NC", "bti-dbf": "BTI-DBF", "ep": "EP",
    "rnp": "RNP", "clp": "CLP", "i-bau": "I-BAU", "i-bau-code": "I-BAU (code)", "sau": "SAU",
    "pam": "PAM", "ibu": "IBU", "bi-bau-u": "BI-BAU (U)", "bi-bau-t": "BI-BAU (T)", "at": "base AT",
    "at-a": "AT + A", "at-b": "AT + B",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a paper, and where our numbers for it are.

    Attributes:
        id, title, paper, table, chapter: what is shown; the paper's table by its number.
        keep: the paper's columns that must have these values (its model, usually).
        params: the paper's columns that are parameters of the chapter.
        row: entry of a run's rows → column of the paper; an empty cell there selects nothing.
        metrics: columns of the page.
        sweep: the file that runs all of it.
        given: parameters that our runs have beside those.
        without: values of the paper's columns that this project has no code for.
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


def read(root: Path) -> list[Table]:
    """The tables of the results page."""
    import yaml

    return [Table(**entry) for entry in yaml.safe_load((root / FILE).read_text(encoding="utf-8"))]


def published(table: Table) -> list[dict]:
    """The paper's cells: rows of `minilib/papers/<paper>.csv`."""
    with (PACKAGE / "papers" / f"{table.paper}.csv").open(encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    wanted = {"table": table.table, **table.keep}
    return [
        row
        for row in rows
        if all(row[name] == str(value) for name, value in wanted.items())
        and not any(row[name] in values for name, values in table.without.items())
    ]


def ours(table: Table, numbers: claims.Numbers, cell: dict) -> dict[int, float]:
    """seed → our number for a cell of the paper; empty if no run has it."""
    where = {name: claims.typed(cell[name]) for name in table.params if cell[name]}
    where |= {
        name: claims.typed(cell[column]) for name, column in table.row.items() if cell[column]
    }
    try:
        return numbers.at(cell["metric"], **table.given, **where)
    except claims.Missing:
        return {}


def published_numbers(root: Path, chapter: str) -> claims.Numbers:
    """The numbers of a chapter's published records at the largest preset that has any."""
    records = claims.committed(root, chapter)
    there = {item["preset"] for item in records}
    preset = next((name for name in claims.PRESETS if name in there), "")
    params = claims.defaults(root, chapter, preset) if preset else {}
    return claims.Numbers(records, params, chapter, preset)


def lines(root: Path, table: Table) -> list[dict]:
    """One entry per line of the page: its key, and per metric the paper's cell and our numbers."""
    numbers = published_numbers(root, table.chapter)
    names = [*table.params, *(column for column in table.row.values() if column != "epochs")]
    found: dict[tuple, dict] = {}
    for cell in published(table):
        if cell["metric"] in table.metrics:
            key = tuple(cell[name] for name in names)
            line = found.setdefault(key, {"key": dict(zip(names, key, strict=True)), "cells": {}})
            line["cells"][cell["metric"]] = cell, ours(table, numbers, cell)
    return list(found.values())


def command(table: Table, key: dict) -> str:
    """What runs the cells of a line."""
    only = "".join(f" --only {name}={key[name]}" for name in table.params if key[name])
    return f"minilib sweep {table.sweep}{only}"


def shade(paper: float, mean: float) -> str:
    """Class of a cell of ours: near, off or far from the paper's."""
    gap = abs(paper - mean)
    # Bare words would meet other style sheets: `far` is a font of icons.
    return "gap-near" if gap <= NEAR else "gap-off" if gap <= OFF else "gap-far"


def render(root: Path, table: Table, missing: bool = True) -> str:
    """The table as HTML: a block of lines for each setting, a line for each kind of row.

    ``missing=False`` leaves out the lines that no run has filled a cell of.
    """
    kinds = list(dict.fromkeys(name for name in table.row.values() if name != "epochs"))
    head = "".join(f'<th rowspan="2">{_label(name)}</th>' for name in kinds)
    head += "".join(f'<th colspan="2">{_label(name)}</th>' for name in table.metrics)
    under = "<th>paper</th><th>ours</th>" * len(table.metrics)
    title = html.escape(table.title)
    text = [f'<p class="results-title" id="table-{table.id}">{title}</p>', '<div class="results">']
    text.append(f'<table aria-label="{title}"><thead><tr>{head}</tr><tr>{under}</tr></thead>')
    text.append("<tbody>")
    width, before = len(kinds) + 2 * len(table.metrics), None
    for line in lines(root, table):
        if not missing and not any(sample for _, sample in line["cells"].values()):
            continue
        setting = [_setting(name, line["key"][name]) for name in table.params if line["key"][name]]
        if setting != before:
            text.append(f'<tr><th class="block" colspan="{width}">{", ".join(setting)}</th></tr>')
            before = setting
        row = "".join(f"<th>{_label(line['key'][name])}</th>" for name in kinds)
        row += "".join(_cells(table, line, metric) for metric in table.metrics)
        text.append(f"<tr>{row}</tr>")
    return "\n".join([*text, "</tbody></table></div>"])


def _label(name: str) -> str:
    return html.escape(LABELS.get(name, name))


def _setting(name: str, value: str) -> str:
    """A parameter's value, which mostly speaks for itself; a number does not."""
    return _label(value) if isinstance(claims.typed(value), str) else f"{_label(name)} = {value}"


def _cells(table: Table, line: dict, metric: str) -> str:
    if metric not in line["cells"]:
        return "<td>–</td><td>–</td>"
    cell, sample = line["cells"][metric]
    mean = float(cell["mean"])
    left = f"<td>{mean:.2f}"
    left += f"<br><small>± {float(cell['std']):.2f}</small></td>" if cell["std"] else "</td>"
    if not sample:
        hint = html.escape(command(table, line["key"]))
        return f'{left}<td class="missing" title="{hint}">not run</td>'
    found = stats.summary(sample.values(), level=None)
    ours, _, spread = stats.text(found).partition(" ")
    return f'{left}<td class="{shade(mean, found["mean"])}">{ours}<br><small>{spread}</small></td>'


def missing(root: Path, table: Table) -> list[str]:
    """The commands that fill what is missing, each once."""
    return list(dict.fromkeys(
        command(table, line["key"])
        for line in lines(root, table)
        if not all(sample for _, sample in line["cells"].values())
    ))  # fmt: skip


def tally(root: Path, table: Table) -> tuple[int, int]:
    """How many cells there are, and how many of them a run of ours fills."""
    samples = [sample for line in lines(root, table) for _, sample in line["cells"].values()]
    return len(samples), sum(map(bool, samples))


# ------------------------------------------------- what defences leave, over all attacks that ran

JUDGED = ("main", "sets")  # parts of a run: the defences, and adversarial training by its terms
SAFE, KEPT = 20.0, 0.8  # percent; share of the victim's clean accuracy that a defence must leave
# From the best to the worst; a cell has the worst of its seeds'.
OUTCOMES = {
    "holds": f"gone: ASR and R-ASR below {SAFE:.0f} %, with every seed",
    "undecided": f"silent: the ASR is below {SAFE:.0f} %, the R-ASR is not",
    "fails": "neither, or more than a fifth of the clean accuracy is lost",
}


def outcomes(
    root: Path, chapter: str, *, attack: str | None = None, **params
) -> dict[str, dict[str, dict]]:
    """Method → attack → ``acc``, ``asr``, ``r_asr`` over seeds, from published records.

    ``params`` are those in which the runs differ from the chapter as its preset has it; a ``seed``
    among them is the only one. ``attack``: this one alone.

    Methods and attacks stand as the records first name them; each metric is a `stats.summary`,
    in per cent. ``n`` is the number of seeds. ``outcome`` is the worst of its seeds' in
    ``OUTCOMES``, ``gone`` the number of seeds with the best; neither stands where there was nothing
    to remove: for the undefended victim (method ``none``), and where its ASR is below ``SAFE``.

    Raises:
        ValueError: no published record says what a defence leaves.
    """
    numbers = published_numbers(root, chapter)
    records = sorted(numbers.records, key=lambda item: -len(item["metrics"]))
    rows = [row for item in records for row in item["metrics"] if row.get("part") in JUDGED]
    if not rows:
        raise ValueError(f"no published record of {chapter!r} says what a defence leaves")
    found: dict[str, dict[str, dict]] = {row["method"]: {} for row in rows}
    for part, method, against in dict.fromkeys(
        (row["part"], row["method"], row["attack"]) for row in rows
    ):
        if attack not in (None, against):
            continue
        samples = {}
        for metric in ("acc", "asr", "r_asr"):
            try:
                samples[metric] = numbers.at(
                    metric, part=part, method=method, attack=against, **params
                )
            except claims.Missing:  # a run at other parameters, or an undefended victim
                continue
        if not samples:
            continue
        cell = {m: stats.summary(seeds.values(), level=None) for m, seeds in samples.items()}
        if "r_asr" in samples:
            victim = {"part": "main", "method": "none", "attack": against, **params}
            before, taken = numbers.at("acc", **victim), numbers.at("asr", **victim)
            words = [
                _outcome({metric: seeds[seed] for metric, seeds in samples.items()}, before[seed])
                for seed in samples["r_asr"]
                if taken[seed] >= SAFE  # else there was no backdoor to remove
            ]
            if words:
                worst = max(words, key=list(OUTCOMES).index)
                cell |= {"outcome": worst, "gone": words.count("holds")}
        found[method][against] = cell | {"n": len(samples["acc"])}
    if not any(found.values()):
        asked = params if attack is None else {"attack": attack, **params}
        raise ValueError(f"no published record of {chapter!r} has {asked}")
    return {method: cells for method, cells in found.items() if cells}


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
    found = [outcomes(root, chapter, **given) for given in asked]
    said = [_said(given) for given in asked]
    columns = [
        (attack, under, part)
        for part, under in zip(found, said, strict=True)
        for attack in part["none"]
    ]
    small = "<br><small>{}</small>" if asked[1:] else ""
    head = "".join(
        f"<th>{_label(attack)}{small.format(html.escape(under))}</th>"
        for attack, under, _ in columns
    )
    settings = "; ".join(filter(None, said))
    label = "What each defence leaves of each attack" + (settings and f", {settings}")
    text = [f'<div class="results"><table aria-label="{html.escape(label)}">']
    text.append(f"<thead><tr><th>defence</th>{head}</tr></thead><tbody>")
    lines = {
        method: [part[method].get(attack) for attack, _, part in columns]
        for method in found[0]
        if all(method in part for part in found)
    }
    for method, cells in lines.items():
        row = "".join(map(_outcome_cell, cells))
        text.append(f"<tr><th>{_label(method)}</th>{row}</tr>")
    key = "".join(f'<li><span class="{word}">{what}</span></li>' for word, what in OUTCOMES.items())
    every = [cell for cells in lines.values() for cell in cells if cell]
    if any("r_asr" in cell and "outcome" not in cell for cell in every):
        key += f"<li>no colour: without a defence, the attack's ASR is below {SAFE:.0f} %</li>"
    return "\n".join([*text, f"</tbody></table><ul>{key}</ul></div>"])


def _said(given: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in given.items() if name != "attack")


def _outcome_cell(cell: dict | None) -> str:
    if cell is None:
        return "<td>–</td>"
    shown = {
        metric: stats.text(cell[metric], 1, count=False)
        for metric in ("acc", "asr", "r_asr")
        if metric in cell
    }
    seeds = f"n = {cell['n']}"
    if 0 < cell.get("gone", 0) < cell["n"]:
        seeds = f"gone with {cell['gone']} of {cell['n']} seeds"
    under = f"<br><small>CA {shown['acc']}, {seeds}</small>"
    if "outcome" not in cell:
        return f"<td>{shown['asr']}{under}</td>"
    return f'<td class="{cell["outcome"]}">{shown["asr"]} → {shown["r_asr"]}{under}</td>'
