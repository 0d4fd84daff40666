"""The report of an image classifier's audit: one dict for machines, one page for people."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape

from . import evidence
from .report import FORMAT, MEANS, UNSEEN, facts, framed, p_value, set_to, table

LEVEL = evidence.LEVEL  # as for texts: no more suspicious model among twenty references
ESCAPES = (
    "a warp, a style, a trigger that differs from image to image: none is a fixed change of pixels",
    "a trigger so large or faint that clean networks are led astray by as small a change",
    "a trigger that was learnt together with countermeasures against such a search",
)
BLIND = (
    "This audit looks for one fixed change of pixels. It cannot see "
    + "; ".join(ESCAPES)
    + ". Of a "
    "clean-label attack it sees only such a change, if the attack has taught one."
)
INDEX = 2.0  # above it Neural Cleanse calls a class an outlier
KIND_NAMES = {"patch": "a patch", "blend": "a change of all pixels"}


def collect(
    name: str, verdict: list[dict], unlearning: list[dict], level: float, references: int = 0
) -> dict:
    """Put the rows of an audit's trials together.

    Args:
        name: of the model. verdict, unlearning: rows of ``trials.audit_images.image_audit_verdict``
            and ``image_audit_unlearning`` (none where nothing was unlearned). references: networks
            of the null; 0: not told.

    Returns ``verdict`` (found | nothing found), ``p``, ``level``, ``said``, ``references``,
    ``trigger`` (kind, class; None where nothing was found), ``classes``, ``unlearning``, ``model``,
    ``remarks``, ``blind``.
    """
    head = next(row for row in verdict if row["part"] == "verdict")
    found = head["p"] <= level
    return {
        "format": FORMAT,
        "modality": "image",
        "verdict": "found" if found else "nothing found",
        "p": head["p"],
        "level": level,
        "said": head["said"],
        "references": references,
        "trigger": {"kind": head["trigger_kind"], "class": head["found_class"]} if found else None,
        "classes": [
            {key: value for key, value in row.items() if key not in ("part", "number")}
            for row in verdict if row["part"] == "class"
        ],
        "unlearning": unlearning if found else [],
        "model": {
            "name": name, "classes": head["num_classes"], "clean_images": head["clean_rows"],
            "accuracy": head["acc"], "accuracy_of_references": head["reference_acc"],
        },
        "remarks": [row["remark"] for row in verdict if row["part"] == "remark"],
        "blind": BLIND,
    }  # fmt: skip


def answer(report: Mapping) -> str:
    """The verdict in a sentence or two."""
    said = (
        f"{MEANS[report['verdict']]} (p = {report['p']:.3f}; at this level the verdict errs in "
        f"{100 * report['level']:.0f} % of clean models like the references). "
    )
    if report["trigger"] is None:
        return said + f"The nearest to a trigger: {report['said']}."
    return said + f"{report['said'][0].upper()}{report['said'][1:]}."


def detectors(report: Mapping) -> list[dict]:
    """A row a detector: its p-value here, how often it accuses what is clean, and what it says."""
    clean, count = report.get("clean_models"), report["references"]
    null = ""
    if count:
        as_small = round(report["p"] * (count + 1)) - 1
        null = f"; {as_small} of {count} networks trained on the clean images have one as small"
    highest = max(report["classes"], key=lambda row: row["index"])
    measured = "not measured"
    if clean and clean["indexed"]:
        measured = f"above {INDEX:g} in {clean['index_above']} of {clean['indexed']} clean networks"
    class_of = f"{highest['class']} ({KIND_NAMES[highest['kind']]})"
    return [
        {"detector": "reversed triggers", "p": p_value(report["p"]),
         "false alarms": set_to(report["level"], clean), "it says": report["said"] + null},
        {"detector": "Neural Cleanse's index", "p": "–", "false alarms": measured,
         "it says": f"{highest['index']:.1f} for {class_of}; "
                    f"it accuses above {INDEX:g}, and is no part of the verdict"},
    ]  # fmt: skip


def sections(report: Mapping) -> list[tuple[str, str, list[dict]]]:
    """Title, remark and table of each part, in the order of the questions."""
    parts = [
        ("Is there a backdoor?", answer(report), detectors(report)),
        (UNSEEN, report["blind"], []),
        (
            "What is the trigger?" if report["trigger"] else "What comes nearest to a trigger?",
            "For each class the smallest change that makes the model sure of it. Size: of a patch "
            "in pixels, of a change of all pixels its Euclidean norm. Times smaller: than the "
            "median of networks trained on the clean images. Index: Neural Cleanse's.",
            sorted(
                map(_class_row, report["classes"]), key=lambda row: -float(row["times smaller"])
            ),
        ),
    ]
    if report["unlearning"]:
        rows = [
            {"": row["when"], **{k.upper(): f"{row[k]:.1f} %" for k in ("acc", "asr", "pacc")}}
            for row in report["unlearning"]
        ]
        said = "With the trigger that was found, on clean images that were not tuned on."
        parts.append(("What remains after unlearning?", said, rows))
    said = " ".join(f"{remark}." for remark in report["remarks"])
    return [*parts, ("What was audited?", said, facts(report["model"]))]


def _class_row(row: Mapping) -> dict:
    return {
        "class": row["class"], "trigger": KIND_NAMES[row["kind"]],
        "size": "none found" if row["size"] is None else f"{row['size']:.2f}",
        "times smaller": f"{math.exp(row['shrinkage']):.2f}",
        "index": f"{row['index']:.1f}",
        "held-out images led there": f"{100 * row['held_rate']:.0f} %",
    }  # fmt: skip


def page(report: Mapping, title: str, picture: bytes | None = None) -> str:
    """The whole report as one HTML page that needs no other file.

    Args:
        picture: PNG of the trigger that stands out, or None.
    """
    body = []
    for heading, said, rows in sections(report):
        body.append(f"<h2>{escape(heading)}</h2><p>{escape(said)}</p>")
        if picture and heading.startswith(("What is the trigger", "What comes nearest")):
            data = base64.b64encode(picture).decode()
            text = "The trigger of the class that stands out, on mid-grey"
            body.append(
                f'<p><img alt="{text}" width="192" style="image-rendering:pixelated" '
                f'src="data:image/png;base64,{data}"></p>'
            )
        body.append(table(rows))
        if heading.startswith("What remains") and report.get("cleaned_model"):
            where = escape(report["cleaned_model"])
            body.append(f"<p>The cleaned model is in <code>{where}</code>.</p>")
    return framed(title, answer(report), "".join(body))


def png(image) -> bytes:
    """An image (H, W, C) uint8 as PNG."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()
