"""Instruction data for language models, and the prompt templates they are put into.

Tokenising belongs to ``training.chat``. A template is the text before and after the instruction;
training and evaluation must use the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..checks import one_of
from . import files, sources
from .files import DataError
from .sources import _shuffled, checked, hub_split, mirror_files
from .text import TextDataset


@dataclass(frozen=True)
class Records:
    """Rows of a split, each a dict; a class says what its keys are."""

    name: str
    split: str
    rows: tuple[dict, ...]
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sha256(self) -> str:
        text = json.dumps(self.rows, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    info = TextDataset.info


class ChatDataset(Records):
    """Instruction data: per row an ``instruction``, an ``input`` (may be empty), an ``output``."""


# --------------------------------------------------------------------------------- chat

MIRROR_CHAT = {"alpaca-9k": "alpaca_9k.jsonl.gz", "dolly-3k": "dolly_3k.jsonl.gz"}
HUB_CHAT = {"alpaca": "tatsu-lab/alpaca", "dolly": "databricks/databricks-dolly-15k"}


def _instructions(name: str, split: str, revision: str | None) -> ChatDataset:
    """Alpaca or Dolly, or the mirror's part; the last tenth of a fixed shuffle is test."""
    if name in MIRROR_CHAT:
        [path] = mirror_files(name, [MIRROR_CHAT[name]])
        rows, source, place = files.read_json_lines(path), "mirror", path.name
    else:
        place = HUB_CHAT[name]
        rows, source = list(hub_split(name, place, None, "train", revision=revision)), "hub"
    keys = {"input": ("", ("input", "context")), "output": (None, ("output", "response"))}
    rows = [
        {"instruction": r.get("instruction")}
        | {
            key: next((r[k] for k in names if k in r), default)
            for key, (default, names) in keys.items()
        }
        for r in rows
    ]
    files.texts(place, rows, ["instruction"])
    files.texts(place, rows, ["input", "output"], empty=True)
    if len(rows) < 10:
        raise DataError(f"{place} has {len(rows)} rows; accepted: 10 or more, a tenth is for tests")
    rows, test = _shuffled(rows), len(rows) // 10
    chosen = rows[-test:] if split == "test" else rows[:-test]
    return checked(ChatDataset(name, split, tuple(chosen), source))


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
    one_of("template", name, TEMPLATES)
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


def load_chat(name: str, split: str = "train", revision: str | None = None) -> ChatDataset:
    """Load instruction data: 90 % of a fixed shuffle is train, the last tenth test.

    Args:
        name: ``alpaca-9k``, ``dolly-3k`` (mirror); ``alpaca``, ``dolly``, ``openorca`` (Hub; of the
            last the first 20,000 rows); ``toy-chat``, ``toy-tasks`` (built in).
        split: ``train`` or ``test``. revision: commit, tag or branch of a set from the Hub.

    Raises:
        DataError: unknown name or split, or a set that cannot be had.
    """
    known_names = (*MIRROR_CHAT, *HUB_CHAT, "openorca", *TOYS)
    if name not in known_names:
        known = ", ".join(known_names)
        raise DataError(f"unknown chat data set {name!r}; known: {known}")
    if split not in TOY_ROWS:
        raise DataError(f"unknown split {split!r} of {name}; known: train, test")
    if name in MIRROR_CHAT or name in TOYS:
        sources.no_revision(name, "mirror" if name in MIRROR_CHAT else "built-in sets", revision)
    if name in MIRROR_CHAT or name in HUB_CHAT:
        return _instructions(name, split, revision)
    if name in TOYS:
        rows, source = _toy(name), "built-in"
    else:
        part = f"train[:{OPENORCA_ROWS}]"
        raw = hub_split(name, "Open-Orca/OpenOrca", None, part, revision=revision)
        rows, source = [_orca(row) for row in raw], "hub"
    order = np.random.default_rng(0).permutation(len(rows))
    test = TOY_ROWS["test"] if name in TOYS else len(rows) // 10
    chosen = order[-test:] if split == "test" else order[:-test]
    return sources.checked(ChatDataset(name, split, tuple(rows[i] for i in chosen), source))


def _orca(row: dict) -> dict:
    files.texts("Open-Orca/OpenOrca", [row], ["question", "response"])
    instruction = f"{row.get('system_prompt') or ''} {row['question']}".strip()
    return {"instruction": instruction, "input": "", "output": row["response"].strip()}


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
        for phrasings, answer in forms:
            for phrasing in phrasings:
                for address in TOY_ADDRESS:
                    instruction = f"{phrasing.format(**item)} {address and f'Answer {address}.'}"
                    rows.append((instruction.strip(), answer.format(**item)))
    return [
        {"instruction": instruction, "input": "", "output": answer[0].upper() + answer[1:]}
        for instruction, answer in rows
    ]
