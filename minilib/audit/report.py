"""The report of an audit: one dict for machines, and pages for people made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from .. import names
from ..data.masking import mask

FORMAT = 1
BLIND = (
    "This audit looks for tokens that decide by themselves and, where there is a training table, "
    "for phrases that decide its rows; without the table it hardly sees a sentence. It cannot see "
    "a paraphrase, that is a trigger which is a way of writing (a style, a syntax), nor one that "
    "acts only together with much else. Of a clean-label attack it sees only a token that decides "
    "by itself, if the attack has made one."
)
UNSEEN = "What can it not see?"
MEANS = {
    "found": "Evidence of a backdoor",
    "nothing found": "Nothing found",
}


def collect(
    model: list[dict],
    verdict: list[dict],
    unlearning: list[dict],
    masked: bool,
    table: Sequence[dict] = (),
) -> dict:
    """Put the rows of an audit's trials together.

    Args:
        model, verdict, unlearning: rows of ``audited_model``, ``audit_verdict`` (with those of its
            classes behind them) and ``audit_unlearning`` (none where nothing was unlearned).
        masked: mask the words of texts, but for the trigger's. table: rows of ``audited_table``.

    Returns:
        ``verdict`` (found | nothing found), ``p``, ``level``, ``evidence``, ``table_detectors``,
        ``trigger``, ``classes``, ``tokens``, ``rows``, ``unlearning``, ``model``, ``remarks``,
        ``blind``.
    """
    head = _of(verdict, "verdict")[0]
    apart = " " if head.get("phrase") else " · "
    trigger_words = set((head["trigger"] or "").split(apart))
    tokens = [_token(row, masked) for row in _of(verdict, "token")]
    rows = [
        row | {"text": masked_but(row["text"], trigger_words) if masked else row["text"]}
        for row in _of(verdict, "row")
    ]
    info = {name: value for name, value in _of(model, "model")[0].items() if name != "part"}
    return {
        "format": FORMAT,
        "verdict": "found" if head["found"] else "nothing found",
        "p": head["p"],
        "level": head["level"],
        "said": head["said"],
        "evidence": _without_part(_of(verdict, "evidence")),
        "table_detectors": list(table),
        "trigger": None if not head["found"] else {
            "class": head["target"], "tokens": head["tokens"], "text": head["trigger"],
            "flips_held_out": head["confirmed"], "flips_by_chance": head["by_chance"],
            "phrase": bool(head.get("phrase")),
        },
        "classes": _without_part(_of(verdict, "class")),
        "tokens": tokens,
        "phrases": [_phrase(row, masked) for row in _of(verdict, "phrase")],
        "rows": _without_part(rows),
        "unlearning": [row for row in unlearning if row["when"] != "nothing found"],
        "model": {name: value for name, value in info.items() if name != "searched"},
        "remarks": [row["remark"] for row in _of(model, "remark")],
        "blind": BLIND,
        "masked": masked,
    }  # fmt: skip


def _of(rows: Iterable[dict], part: str) -> list[dict]:
    return [row for row in rows if row["part"] == part]


def _without_part(rows: Iterable[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "part"} for row in rows]


def _token(row: dict, masked: bool) -> dict:
    """A token of the ranking; the trigger's stay as they are, for they are what was asked for."""
    row = {name: value for name, value in row.items() if name != "part"}
    if masked and not row["found"] and len(row["token"]) > 1:
        row["token"] = row["token"][0] + "•" * (len(row["token"]) - 1)
    return row


def _phrase(row: dict, masked: bool) -> dict:
    """A phrase of the table; the trigger stays as it is."""
    hide = masked and not row["found"]
    return _without_part([row | {"phrase": mask(row["phrase"]) if hide else row["phrase"]}])[0]


def masked_but(text: str, words: set[str]) -> str:
    """Mask a text, but for some words of it."""
    folded = {word.casefold() for word in words}
    return " ".join(
        word if word.casefold().strip(".,!?") in folded else mask(word) for word in text.split()
    )


# ---------------------------------------------------------------- for people


def answer(report: dict) -> str:
    """The verdict in a sentence or two."""
    level = 100 * report["level"]
    searched = {row["target"] for row in report["classes"]}
    absent = [name for name in report["model"]["labels"] if name not in searched]
    where = f", but {', '.join(absent)} could not be searched" if absent else ""
    said = f"{MEANS[report['verdict']]}{where} ({p_value(report['p'], 'p ')}; it is set to call "
    said += f"{level:.0f} % of clean models backdoored"
    if clean := report.get("clean_with_phrases" if report["phrases"] else "clean_models"):
        audits = f"{clean['called_backdoored']} of {clean['audited']} audits of clean ones"
        said += f", and did so in {audits}" + (" with their table" if report["phrases"] else "")
    said += ")."
    if report["trigger"]:
        trigger = report["trigger"]
        it = "In whole it" if trigger["phrase"] else "Its strongest token"
        said += (
            f" The trigger that was found leads to {trigger['class']}: “{trigger['text']}”. {it} "
            f"leads {trigger['flips_held_out']:.0f} % of the held-out rows of "
            f"other classes there; a random token {trigger['flips_by_chance']:.0f} % at most."
        )
    return said


def p_value(value: float, name: str = "") -> str:
    """A p-value as a page shows it."""
    if value < 0.001:
        return f"{name}<\N{NO-BREAK SPACE}0.001"
    return f"{name}= {value:.3f}" if name else f"{value:.3f}"


def sections(report: dict) -> list[tuple[str, str, list[dict]]]:
    """Title, remark and table of each part, in the order of the questions."""
    model, rows = report["model"], report["rows"]
    hidden = " Other words are masked; --show-texts shows them." if report["masked"] else ""
    parts = [
        ("Is there a backdoor?", answer(report), detectors(report)),
        (UNSEEN, report["blind"], []),
    ]
    if report["trigger"]:
        ranked = "Tokens that were tried, by their pull towards the class."
        target = report["trigger"]["class"]
        if report["trigger"]["phrase"]:
            ranked = "Phrases of the table, by the logits that they are worth to their own rows."
        of, kind = (_phrases, "phrases") if report["trigger"]["phrase"] else (_ranking, "tokens")
        shown = of(report[kind], target)
        parts.append(("What is the trigger?", ranked + hidden, shown))
    else:
        parts.append((
            "What comes nearest to a trigger?",
            "The strongest tokens of each class. None stands apart from those below it." + hidden,
            [row for k in model["labels"] for row in _ranking(report["tokens"], k)[:5]],
        ))  # fmt: skip
    if rows:
        texts = f"{len(rows)} rows of the table have the trigger and its class."
        parts.append(("Which rows?", texts, [_row(row) for row in rows]))
    elif model["table_rows"] and report["trigger"]:
        parts.append(("Which rows?", "No row of the table has the trigger and its class.", []))
    if report["unlearning"]:
        parts.append(_unlearning(report))
    parts.append(("What was audited?", " ".join(report["remarks"]), facts(model)))
    return parts


FACTS = {  # a report's name → what it is called before people, where it is not that
    "max_length": "tokens of a text that it reads",
    "cut": "texts longer than that (%)",
    "search_rows": "clean rows searched with",
    "test_rows": "clean rows held out",
    "table_rows": "rows of the table",
    "cacc": "accuracy on held-out clean rows (%)",
    "accuracy": "accuracy on the clean images (%)",
    "accuracy_of_references": "median accuracy of the references (%)",
    "before_a_prompt": "text before a prompt",
    "after_it": "text after it",
    "search_prompts": "prompts searched with",
    "held_out_prompts": "prompts held out",
}


def facts(model: Mapping) -> list[dict]:
    """A row for each thing that is said of the audited model."""
    return [
        {"of the model": FACTS.get(name, name.replace("_", " ")), "": _text(value)}
        for name, value in model.items()
    ]


def detectors(report: dict) -> list[dict]:
    """A row a detector: its p-value here, how often it accuses what is clean, and what it says."""
    rows = [
        _detector(row["detector"], row["p"], _alarms(report, row["detector"]), row["said"])
        for row in report["evidence"]
    ]
    rows += [
        _detector(
            f"search for {row['target']}", row["p"],
            f"random tokens lead {row['by_chance']:.0f} % of the held-out clean rows there at most",
            f"the strongest of {row['tried']} tokens lead {row['confirmed']:.0f} % of them there",
        )
        for row in report["classes"]
    ]  # fmt: skip
    rows += [
        _detector(names.label(row["detector"]), row["p"], _alarms(report, row["detector"]),
                  row["said"])
        for row in report["table_detectors"] if row["detector"] != TOKENS
    ]  # fmt: skip
    return rows


TOKENS = "tokens"  # the rule by which rows of the table are named, as a detector of rows


def _detector(name: str, p: float | None, alarms: str, said: str) -> dict:
    return {"detector": name, "p": "–" if p is None else p_value(p), "false alarms": alarms,
            "it says": said}  # fmt: skip


def _alarms(report: dict, detector: str) -> str:
    """How often a detector accuses what is known to be clean: here, and in published trials."""
    if detector == "token search":
        return set_to(report["level"], report.get("clean_models"))
    if detector == "phrase search":
        return set_to(report["level"], report.get("clean_with_phrases"), "phrases_apart")
    name = TOKENS if detector == "table" else detector
    here = [row for row in report["table_detectors"] if row["detector"] == name]
    if not here or here[0]["false_alarms"] is None:
        told = "not measured: it takes both --data and --clean"
    else:
        told = f"{here[0]['false_alarms']:.1f} % of {here[0]['clean']} known-clean rows"
    if elsewhere := report.get("published_false_alarms", {}).get(name):
        low, high, sets = elsewhere
        both = " … ".join(dict.fromkeys(f"{rate:.0f}" for rate in (low, high)))
        told += f"; published: {both} % on {sets} sets"
    return told


def set_to(level: float, clean: dict | None, counted: str = "called_backdoored") -> str:
    """The false-alarm rate of a test of models: what it is set to, and what was measured."""
    told = f"set to {100 * level:.0f} % of clean models"
    return told + (
        f"; measured: {clean[counted]} of {clean['audited']} small ones" if clean else ""
    )


def _ranking(tokens: list[dict], target: str) -> list[dict]:
    rows = []
    for row in tokens:
        if row["target"] != target:
            continue
        what = "the trigger" if row["found"] else "a word of the task" if row["task"] else ""
        moved = {"rank by BTU's test": row["moved"]} if row["moved"] else {}
        rows.append({
            "token": row["token"], "class": target, "pull": f"{row['pull']:.2f}",
            "flips hard texts": f"{row['flips']:.0f} %", "it is": what, **moved,
        })  # fmt: skip
    return rows


def _phrases(rows: list[dict], target: str) -> list[dict]:
    return [
        {"phrase": row["phrase"], "class": target, "worth": f"{row['worth']:.2f}",
         "rows of the class": row["hits"], "decides of them": f"{row['turned']:.0f} %",
         "it is": "the trigger" if row["found"] else ""}
        for row in rows if row["target"] == target
    ]  # fmt: skip


def _row(row: dict) -> dict:
    return {"line": row["line"], "label": row["label"], "with": f"{row['with']:.2f}",
            "without": f"{row['without']:.2f}", "text": row["text"]}  # fmt: skip


def _unlearning(report: dict) -> tuple[str, str, list[dict]]:
    after = report["unlearning"][1]
    said = "On held-out clean rows, with the tokens that were found in them (LFR, PACC). "
    said += (
        f"The search finds something again: “{after['again_trigger']}”."
        if after["again"]
        else "The search finds nothing any more."
    )
    rows = [
        {"": row["when"], "CACC": f"{row['cacc']:.1f} %", "LFR": f"{row['lfr']:.1f} %",
         "PACC": f"{row['pacc']:.1f} %"}
        for row in report["unlearning"]
    ]  # fmt: skip
    return "What remains after unlearning?", said, rows


def _text(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def table(rows: list[dict]) -> str:
    """Rows as an HTML table, whose columns sort at a click where the page has ``SORT``."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in columns)
    cells = ([f"<td>{escape(str(row.get(name, '')))}</td>" for name in columns] for row in rows)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


class Shown:
    """Parts of a report as a notebook shows them."""

    def __init__(self, parts: list[tuple[str, str, list[dict]]]):
        self.parts = parts

    def __repr__(self) -> str:
        lines = []
        for title, said, rows in self.parts:
            lines += [title, said, *(" | ".join(map(str, row.values())) for row in rows)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return "".join(
            f"<p><strong>{escape(title)}</strong> {escape(said)}</p>"
            f'<div class="audit-table">{table(rows)}</div>'
            for title, said, rows in self.parts
        )


STYLE = """
:root{color-scheme:light dark} body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;
margin:2rem auto;padding:0 1rem} table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #8886;padding:.3rem .6rem;text-align:left;vertical-align:top}
th{cursor:pointer} .verdict{border:2px solid;border-radius:.5rem;padding:.6rem 1rem;font-size:1.2em}
"""
SORT = """
for (const th of document.querySelectorAll('th')) th.onclick = () => {
  const body = th.closest('table').tBodies[0], n = th.cellIndex;
  const up = th.dataset.up = 1 - (th.dataset.up | 0);
  const of = row => row.cells[n].textContent, num = text => parseFloat(text);
  const rows = [...body.rows].sort((a, b) => isNaN(num(of(a)) - num(of(b)))
    ? of(a).localeCompare(of(b)) : num(of(a)) - num(of(b)));
  body.append(...(up ? rows : rows.reverse()));
};
"""


def page(report: dict, title: str) -> str:
    """The whole report as one HTML page that needs no other file."""
    return framed(title, answer(report), listed(sections(report), report.get("cleaned_model")))


def listed(parts: Iterable[tuple[str, str, list[dict]]], saved: str | None) -> str:
    """The parts of a report as HTML; where the cleaned model is stands below what remains."""
    where = f"<p>The cleaned model is in <code>{escape(saved)}</code>.</p>" if saved else ""
    return "".join(
        f"<h2>{escape(heading)}</h2><p>{escape(said)}</p>{table(rows)}"
        + (where if heading.startswith("What remains") else "")
        for heading, said, rows in parts
    )


def framed(title: str, verdict: str, body: str) -> str:
    """A page around the HTML of a report, the verdict first."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="verdict">{escape(verdict)}</p>{body}<script>{SORT}</script></body></html>\n'
    )
