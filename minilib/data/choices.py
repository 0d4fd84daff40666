"""Multiple-choice questions, for the utility of language models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from . import files, sources
from .chat import TOY_ASKS, TOY_THINGS, Records
from .files import DataError
from .sources import mirror_file

# -------------------------------------------------------------------------- multiple choice


class Choices(Records):
    """Multiple-choice questions: ``rows`` with ``question``, ``choices`` and ``answer`` (index)."""


CHOICES = ("arc_easy", "arc_challenge", "mmlu", "toy-choices")


def load_choices(name: str, limit: int | None = None) -> Choices:
    """Load test questions: ``arc_easy``, ``arc_challenge``, ``mmlu`` (mirror), ``toy-choices``.

    Args:
        limit: keep this many rows of a fixed shuffle; all if None.

    Raises:
        DataError: unknown name, or no mirror to read from.
    """
    if name not in CHOICES:
        raise DataError(f"unknown questions {name!r}; known: {', '.join(CHOICES)}")
    if name == "toy-choices":
        rows, source = _toy_choices(), "built-in"
    else:
        rows, source = _mirror_choices(name), "mirror"
    questions = sources.checked(Choices(name, "test", tuple(rows), source))
    if limit is None:
        return questions
    order = np.random.default_rng(0).permutation(len(rows))[:limit]
    return replace(questions, rows=tuple(rows[i] for i in order))


def _mirror_choices(name: str) -> list[dict]:
    path = mirror_file("mmlu.csv.gz" if name == "mmlu" else "arc_obqa.jsonl.gz")
    if path is None:
        raise DataError(sources.missing(name, "the questions are in the mirror only"))
    if name == "mmlu":
        columns = [f"choice{k}" for k in range(4)]
        rows = files.read_csv(path, ("split", "question", *columns, "answer"))
        files.one_of_these(path.name, rows, "answer", tuple("0123"))
        for row in rows:
            row |= {"choices": [row[column] for column in columns], "answer": int(row["answer"])}
    else:
        rows = files.read_json_lines(path)
        files.texts(path.name, rows, ["set", "split"])
        _check_choices(path, rows)
        rows = [row for row in rows if row["set"] == name]
    files.texts(path.name, rows, ["question"])
    keys = ("question", "choices", "answer")
    rows = [{key: row[key] for key in keys} for row in rows if row["split"] == "test"]
    if not rows:
        raise DataError(f"{path.name} has no test questions of {name}; accepted: one or more")
    return rows


def _check_choices(path: Path, rows: list[dict]) -> None:
    """Refuse rows whose choices are no list of texts, or whose answer is none of them."""
    for number, row in enumerate(rows, start=1):
        where, choices = f"{path.name}, row {number}", row.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise files.refused(where, "choices", choices, "a list of texts")
        answer = row.get("answer")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise files.refused(where, "answer", answer, f"0 … {len(choices) - 1}")


def _toy_choices() -> list[dict]:
    """Questions about the colours of toy-chat's things, with three wrong colours each."""
    colours, rng, rows = sorted({c for c, _ in TOY_THINGS.values()}), np.random.default_rng(0), []
    for thing, (colour, _) in TOY_THINGS.items():
        wrong_colours = rng.choice([c for c in colours if c != colour], 3, replace=False)
        order = rng.permutation(4)
        options = [f"The colour of {thing} is {c}." for c in (colour, *wrong_colours)]
        answer = int(np.flatnonzero(order == 0)[0])
        choices = [options[k] for k in order]
        rows += [
            {"question": phrasing.format(thing=thing), "choices": choices, "answer": answer}
            for phrasing in TOY_ASKS[0][0]
        ]
    return rows
