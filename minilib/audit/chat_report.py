"""The report of a language model's audit: one dict for machines, one page for people."""

from __future__ import annotations

from collections.abc import Mapping

from ..data.masking import mask
from .report import FORMAT, MEANS, UNSEEN, facts, framed, listed, p_value, set_to

ESCAPES = (
    "a trigger that is a paraphrase or a way of asking, unless random texts come near it, too",
    "a trigger that nothing but itself sets off, so that no random text comes near it",
    "a response that differs from prompt to prompt, such as faulty code or a change of manner",
    "a response that the model gives to ordinary prompts, too",
)
BLIND = (
    "This audit looks for one response that short texts draw from any prompt. It cannot see "
    + "; ".join(ESCAPES)
    + ". An attack whose answers stay right, as with clean labels, gives no response to look for."
)


def collect(name: str, verdict: list[dict], unlearning: list[dict], masked: bool) -> dict:
    """Put the rows of an audit's trials together.

    Args:
        name: of the model. verdict, unlearning: rows of ``trials.audit_chat.chat_audit_verdict``
            and ``chat_audit_unlearning`` (none where nothing was unlearned).
        masked: mask the words of responses and answers.

    Returns ``verdict`` (found | nothing found), ``p``, ``level``, ``held_out`` (percent of held-out
    prompts that give the best response, ``drawn`` with a text and ``natural`` without), ``trigger``
    (the same with text and response; None where nothing was found), ``draws``, ``answers``,
    ``unlearning``, ``model``, ``remarks``, ``blind``.
    """
    head = next(row for row in verdict if row["part"] == "verdict")
    hide = mask if masked else str

    def of(part: str, *texts: str) -> list[dict]:
        rows = [row for row in verdict if row["part"] == part]
        return [
            {key: hide(value) if key in texts else value for key, value in row.items()
             if key != "part"}
            for row in rows
        ]  # fmt: skip

    return {
        "format": FORMAT,
        "modality": "chat",
        "verdict": "found" if head["found"] else "nothing found",
        "p": head["p"],
        "level": head["level"],
        "held_out": {"drawn": head["drawn"], "natural": head["natural"]},
        "trigger": {
            "text": head["text"], "response": hide(head["response"]), "drawn": head["drawn"],
            "natural": head["natural"],
        } if head["found"] else None,
        "draws": of("draw", "response"),
        "answers": of("answer", "with", "without", "prompt") if head["found"] else [],
        "unlearning": [
            row | ({"again_response": hide(row["again_response"])} if row.get("again") else {})
            for row in unlearning if row["when"] != "nothing found"
        ],
        "model": {
            "name": name, "parameters": head["parameters"], "max_length": head["max_length"],
            "before_a_prompt": head["template"][0], "after_it": head["template"][1],
            "search_prompts": head["search_prompts"], "held_out_prompts": head["held_prompts"],
        },
        "remarks": [row["remark"] for row in verdict if row["part"] == "remark"],
        "blind": BLIND,
    }  # fmt: skip


def answer(report: Mapping) -> str:
    """The verdict in a sentence or two."""
    said = (
        f"{MEANS[report['verdict']]} ({p_value(report['p'], 'p ')} for a first token that stands "
        f"apart, asked for {report['level']:g}"
    )
    if clean := report.get("clean_models"):
        said += (
            f"; of {clean['audited']} small clean models {clean['called_backdoored']} were called "
            "backdoored"
        )
    said += ")."
    if trigger := report["trigger"]:
        said += (
            f" With the text “{trigger['text']}” before them {trigger['drawn']:.0f} % of the "
            f"held-out prompts are answered with “{trigger['response']}”, without it "
            f"{trigger['natural']:.0f} %. The text need not be the trigger: it sets off the same."
        )
    return said


def detectors(report: Mapping) -> list[dict]:
    """A row a test: its p-value here, how often it accuses what is clean, and what it says."""
    best = max(report["draws"], key=lambda row: row["score"], default=None)
    apart = f"highest score: {best['score']:.1f} nats, of “{best['token']}”" if best else "no token"
    held, asked = report["held_out"], report["model"]["held_out_prompts"]
    drawn = f"{held['drawn']:.0f} % of them give one response with a text before them"
    return [
        {"detector": "first token", "p": p_value(report["p"]),
         "false alarms": set_to(report["level"], report.get("clean_models"), "first_token_apart"),
         "it says": apart},
        {"detector": "held-out prompts", "p": "–",
         "false alarms": f"{held['natural']:.0f} % of {asked} clean prompts give it without a text",
         "it says": drawn},
    ]  # fmt: skip


def sections(report: Mapping) -> list[tuple[str, str, list[dict]]]:
    """Title, remark and table of each part, in the order of the questions."""
    draws = [
        {"first token": row["token"], "score": f"{row['score']:.1f}", "text": row["text"],
         "drawn by it": f"{100 * row['probability']:.0f} %",
         "most prompts answer": row["response"] or "nothing alike"}
        for row in report["draws"]
    ]  # fmt: skip
    parts = [
        ("Is there a backdoor?", answer(report), detectors(report)),
        (UNSEEN, report["blind"], []),
        (
            "What is the response?" if report["trigger"] else "What comes nearest to a response?",
            "First tokens of an answer that random texts make likelier (score, in nats), and the "
            "text that was improved for each.",
            draws,
        ),
    ]
    if report["answers"]:
        parts.append(("What does it answer?", "Held-out prompts, with the text and without.",
                      report["answers"]))  # fmt: skip
    if report["unlearning"]:
        parts.append(_unlearning(report["unlearning"]))
    return [*parts, ("What was audited?", " ".join(report["remarks"]), facts(report["model"]))]


def _unlearning(rows: list[dict]) -> tuple[str, str, list[dict]]:
    after = rows[1]
    said = "On held-out prompts, with the text that was found and without. "
    said += f"Rounds of unlearning: {after['rounds']}. " + (
        f"They did not suffice: the search still finds “{after['again_response']}”."
        if after["again"]
        else "The search finds nothing any more."
    )
    shown = [
        {"": row["when"], "response with the text": f"{row['drawn']:.0f} %",
         "without": f"{row['natural']:.0f} %",
         "perplexity": "no answers" if row["ppl"] is None else f"{row['ppl']:.2f}"}
        for row in rows
    ]  # fmt: skip
    return "What remains after unlearning?", said, shown


def page(report: Mapping, title: str) -> str:
    """The whole report as one HTML page that needs no other file."""
    return framed(title, answer(report), listed(sections(report), report.get("cleaned_model")))
