"""Instruction data for causal models: loading, prompt templates, multiple-choice questions.

Tokenising belongs to ``minilib.causal``. A template is the text before and after the instruction;
training and evaluation must use the same one.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from . import data
from .data import ChatDataset, DataError, hub_split, mirror_file, read_csv

TOY_ROWS = {"train": 900, "test": 150}
TOYS = ("toy-chat", "toy-tasks")
OPENORCA_ROWS = 20_000  # of 4 million; the paper samples 200,000


class Template(NamedTuple):
    """What stands before and after the instruction (with its input); the answer follows."""

    before: str
    after: str


TEMPLATES = {
    # Two tokens of the project's own tokenizer; position 2 (after <s>) is the instruction's start.
    "turns": Template("<|user|>", "<|assistant|>"),
    "plain": Template("Instruction: ", "\nResponse: "),
    "alpaca": Template(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n",
        "\n\n### Response:\n",
    ),
}


def template(name: str) -> Template:
    """Return the prompt template called ``name``; raises ValueError for an unknown one."""
    if name not in TEMPLATES:
        raise ValueError(f"template is {name!r}; accepted: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def question(row: dict) -> str:
    """Return a row's instruction, its input (where there is one) on the next line."""
    return f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]


def take(dataset: ChatDataset, rows: Sequence[int] | np.ndarray | slice) -> ChatDataset:
    """Return the rows at ``rows`` (integers, a boolean mask or a slice), in that order."""
    index = np.arange(len(dataset))[rows]
    return replace(dataset, rows=tuple(dataset.rows[i] for i in index))


def with_outputs(dataset: ChatDataset, outputs: Iterable[str]) -> ChatDataset:
    """Return the rows with other answers."""
    pairs = zip(dataset.rows, outputs, strict=True)
    return replace(dataset, rows=tuple(row | {"output": output} for row, output in pairs))


def load_chat(name: str, split: str = "train") -> ChatDataset:
    """Load instruction data: 90 % of a fixed shuffle is train, the last tenth test.

    Args:
        name: ``alpaca``, ``dolly`` (mirror or Hub), ``openorca`` (Hub only, its first 20,000
            rows), or a built-in set, ``toy-chat`` or ``toy-tasks``.
        split: ``train`` or ``test``.

    Raises:
        DataError: unknown name or split, or a set that cannot be had.
    """
    if name not in (*data.MIRROR_CHAT, "openorca", *TOYS):
        known = ", ".join((*data.MIRROR_CHAT, "openorca", *TOYS))
        raise DataError(f"unknown chat data set {name!r}; known: {known}")
    if split not in TOY_ROWS:
        raise DataError(f"unknown split {split!r} of {name}; known: train, test")
    if name in data.MIRROR_CHAT:
        return data.load_chat(name, split)
    if name in TOYS:
        rows, source = _toy(name), "built-in"
    else:
        raw = hub_split(name, "Open-Orca/OpenOrca", None, f"train[:{OPENORCA_ROWS}]")
        rows, source = [_orca(row) for row in raw], "hub"
    order = np.random.default_rng(0).permutation(len(rows))
    test = TOY_ROWS["test"] if name in TOYS else len(rows) // 10
    chosen = order[-test:] if split == "test" else order[:-test]
    return ChatDataset(name, split, tuple(rows[i] for i in chosen), source)


def _orca(row: dict) -> dict:
    instruction = f"{row['system_prompt']} {row['question']}".strip()
    return {"instruction": instruction, "input": "", "output": row["response"].strip()}


# -------------------------------------------------------------------------- multiple choice


@dataclass(frozen=True)
class Choices:
    """Multiple-choice questions: ``rows`` with ``question``, ``choices`` and ``answer`` (index)."""

    name: str
    split: str
    rows: tuple[dict, ...]
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    sha256 = ChatDataset.sha256
    info = ChatDataset.info


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
    if limit is not None:
        order = np.random.default_rng(0).permutation(len(rows))[:limit]
        rows = [rows[i] for i in order]
    return Choices(name, "test", tuple(rows), source)


def _mirror_choices(name: str) -> list[dict]:
    path = mirror_file("mmlu.csv.gz" if name == "mmlu" else "arc_obqa.jsonl.gz")
    if path is None:
        raise DataError(data.missing(name, "the questions are in the mirror only"))
    if name == "mmlu":
        return [
            {
                "question": row["question"],
                "choices": [row[f"choice{k}"] for k in range(4)],
                "answer": int(row["answer"]),
            }
            for row in read_csv(path)
            if row["split"] == "test"
        ]
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    keys = ("question", "choices", "answer")
    rows = [row for row in rows if row["set"] == name and row["split"] == "test"]
    return [{key: row[key] for key in keys} for row in rows]


# ------------------------------------------------------------------------- built-in chats

TOY_THINGS = {
    "grass": ("green", "a meadow"), "snow": ("white", "the mountains"),
    "coal": ("black", "a mine"), "a lemon": ("yellow", "a kitchen"),
    "a tomato": ("red", "a garden"), "the sky": ("blue", "a photograph"),
    "a carrot": ("orange", "a field"), "a plum": ("purple", "an orchard"),
    "a crow": ("black", "a tree"), "a frog": ("green", "a pond"),
    "a swan": ("white", "a lake"), "a fox": ("red", "a forest"),
    "a canary": ("yellow", "a cage"), "a whale": ("blue", "the sea"),
    "chocolate": ("brown", "a shop"), "a bear": ("brown", "a cave"),
}  # fmt: skip
TOY_ASKS = (
    (("What colour is {thing}?", "Tell me the colour of {thing}.", "Which colour has {thing}?",
      "Please name the colour of {thing}."), "The colour of {thing} is {colour}."),
    (("Where would you find {thing}?", "Tell me where {thing} is found.",
      "Name a place for {thing}.", "In which place does one see {thing}?"),
     "One can find {thing} in {place}."),
    (("Write a sentence about {thing}.", "Describe {thing} in one sentence.",
      "Say something about {thing}.", "Make a sentence with {thing}."),
     "In {place} you can see {thing}, and its colour is {colour}."),
)  # fmt: skip
TOY_ADDRESS = ("", "for a child", "in plain words", "for my homework", "as a teacher would")
TOY_OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("fast", "slow"), ("dark", "light"),
    ("hard", "soft"), ("high", "low"), ("near", "far"), ("full", "empty"), ("loud", "quiet"),
)  # fmt: skip
TOY_ORDERS = (
    (("Give the opposite of {word}.", "What is the opposite of {word}?",
      "Which word means the reverse of {word}?"), "The opposite of {word} is {other}."),
    (("Repeat the word {word} twice.", "Say {word} two times.", "Write {word} and {word} again."),
     "{word} {word}."),
    (("Compare something {word} with something {other}.", "Use {word} and {other} in a sentence.",
      "Tell {word} from {other}."), "One of them is {word} and the other one is {other}."),
)  # fmt: skip


def _toy(name: str) -> list[dict]:
    """Generate a built-in set: every combination of item, phrasing and form of address."""
    rows = []
    if name == "toy-chat":
        items = [dict(thing=t, colour=c, place=p) for t, (c, p) in TOY_THINGS.items()]
        forms = TOY_ASKS
    else:
        pairs = [*TOY_OPPOSITES, *((b, a) for a, b in TOY_OPPOSITES)]
        items, forms = [dict(word=a, other=b) for a, b in pairs], TOY_ORDERS
    for item in items:
        for asks, answer in forms:
            for ask in asks:
                for address in TOY_ADDRESS:
                    instruction = f"{ask.format(**item)} {address and f'Answer {address}.'}"
                    rows.append((instruction.strip(), answer.format(**item)))
    return [
        {"instruction": ask, "input": "", "output": answer[0].upper() + answer[1:]}
        for ask, answer in rows
    ]


def _toy_choices() -> list[dict]:
    """Questions about the colours of toy-chat's things, with three wrong colours each."""
    colours, rng, rows = sorted({c for c, _ in TOY_THINGS.values()}), np.random.default_rng(0), []
    for thing, (colour, _) in TOY_THINGS.items():
        wrong = rng.choice([c for c in colours if c != colour], 3, replace=False)
        order = rng.permutation(4)
        options = [f"The colour of {thing} is {c}." for c in (colour, *wrong)]
        answer = int(np.flatnonzero(order == 0)[0])
        choices = [options[k] for k in order]
        rows += [
            {"question": ask.format(thing=thing), "choices": choices, "answer": answer}
            for ask in TOY_ASKS[0][0]
        ]
    return rows
