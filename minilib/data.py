"""Data sets by their field's name: a local mirror first, then the Hugging Face Hub.

A name never means two things: the built-in sets (``toy-reviews``, ``toy-topics``, ``digits``) have
names of their own and never replace a real one that cannot be had.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np


class DataError(RuntimeError):
    """A data set that cannot be had, or that is not what it should be; the message is one line."""


@dataclass(frozen=True)
class TextDataset:
    """Labelled texts.

    Attributes:
        texts: N strings.
        labels: (N,) int64 in ``0 … len(class_names) - 1``.
        source: where the rows came from: "built-in", "mirror" or "hub".
        sha256: digest of texts and labels, so that a run record pins the rows and not the file.
    """

    name: str
    split: str
    texts: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str

    def __post_init__(self):
        if len(self.texts) != len(self.labels):
            raise DataError(f"{self.name}: {len(self.texts)} texts but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        digest.update("\x00".join(self.texts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def select(self, index: Sequence[int] | np.ndarray) -> TextDataset:
        """Return the rows at ``index`` (integers or a boolean mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        texts = tuple(self.texts[i] for i in index)
        return replace(self, texts=texts, labels=self.labels[index])

    def info(self) -> dict:
        """Return what a run record says of this data set."""
        return {
            "name": self.name,
            "split": self.split,
            "rows": len(self),
            "source": self.source,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class ChatDataset:
    """Instruction data: per row an ``instruction``, an ``input`` (may be empty), an ``output``."""

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


# ------------------------------------------------------------------------------------ text

SENTIMENT = ("negative", "positive")
# HSOL's label 0 is "neither", which the RGA paper calls non-hate, its target class.
TEXT_CLASSES = {
    "sst2": SENTIMENT,
    "imdb": SENTIMENT,
    "hsol": ("non-hate", "hate"),
    "olid": ("not offensive", "offensive"),
    "agnews": ("world", "sports", "business", "sci/tech"),
    "toy-reviews": SENTIMENT,
    "toy-topics": ("world", "sports", "business", "sci/tech"),
}
MIRROR_TEXT = {
    "sst2": "sst2.csv.gz",
    "imdb": "imdb_2500.csv.gz",
    "hsol": "hsol_pairs.csv.gz",
    "olid": "olid.csv.gz",
    "agnews": "agnews.csv.gz",
}
# (repository, configuration, text column, label column). SetFit/sst2 holds the 6,920 / 872 / 1,821
# sentences; GLUE's sst2 would be 67,349 phrases, another data set under the same name.
HUB_TEXT = {
    "sst2": ("SetFit/sst2", None, "text", "label"),
    "imdb": ("stanfordnlp/imdb", None, "text", "label"),
    "olid": ("cardiffnlp/tweet_eval", "offensive", "text", "label"),
    "agnews": ("fancyzhx/ag_news", None, "text", "label"),
}
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
AG_ROWS_PER_CLASS = {"train": 2000, "dev": 250, "test": 250}  # RGA paper, section 6.1
SPLITS = ("train", "dev", "test")


def load_text(name: str, split: str) -> TextDataset:
    """Load a text classification set by its field's name.

    Args:
        name: ``sst2``, ``hsol``, ``agnews``, ``olid``, ``imdb``, ``toy-reviews``, ``toy-topics``.
        split: ``train``, ``dev`` or ``test``.

    Raises:
        DataError: unknown name or split, or a set that neither the mirror nor the Hub can give.

    AG News is cut to 2,000 / 250 rows per class (RGA paper, 6.1); IMDB's mirror holds one pool of
    2,500 rows, split 1,500 / 250 / 750 in file order of a fixed shuffle.
    """
    if name not in TEXT_CLASSES:
        raise DataError(f"unknown text data set {name!r}; known: {', '.join(TEXT_CLASSES)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of {name}; known: {', '.join(SPLITS)}")
    if name.startswith("toy-"):
        texts, labels = toy_text(name, split)
        source = "built-in"
    else:
        texts, labels, source = _real_text(name, split)
    labels = np.asarray(labels, dtype=np.int64)
    return TextDataset(name, split, tuple(texts), labels, TEXT_CLASSES[name], source)


def _real_text(name: str, split: str) -> tuple[list[str], list[int], str]:
    path = mirror_file(MIRROR_TEXT[name])
    if path is not None:
        pools = {}
        for row in read_csv(path):
            pools.setdefault(row.get("split") or "train", []).append(row)
        source = "mirror"
    else:
        pools = _hub_pools(name)
        source = "hub"
    rows = _cut(name, pools, split)
    return [row["text"] for row in rows], [int(row["label"]) for row in rows], source


def _cut(name: str, pools: dict[str, list[dict]], split: str) -> list[dict]:
    """Give the rows of ``split``, cutting one out where the source ships fewer than three."""
    if name == "imdb" and set(pools) == {"train"}:
        pool = _shuffled(pools["train"])
        return {"train": pool[:1500], "dev": pool[1500:1750], "test": pool[1750:]}[split]
    if name == "agnews":
        return _agnews(pools, split)
    if name == "hsol" and split == "dev":
        # The mirror ships the 2,485 test rows a second time as dev: choosing a setting on them
        # would be choosing it on the test set.
        raise DataError("hsol has no dev split; hold rows of its train split out with .select(...)")
    if split not in pools:
        raise DataError(f"{name} has no {split} split here; found: {', '.join(sorted(pools))}")
    return pools[split]


def _agnews(pools: dict[str, list[dict]], split: str) -> list[dict]:
    """Cut AG News to a fixed number of rows per class; dev and train come from disjoint rows."""
    pool = _shuffled(pools["test" if split == "test" else "train"])
    per_class, chosen = AG_ROWS_PER_CLASS[split], []
    skip = AG_ROWS_PER_CLASS["train"] if split == "dev" else 0
    for label in range(4):
        rows = [row for row in pool if int(row["label"]) == label]
        chosen += rows[skip : skip + per_class]
    return _shuffled(chosen)


def _shuffled(rows: list) -> list:
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order]


def _hub_pools(name: str) -> dict[str, list[dict]]:
    if name not in HUB_TEXT:
        raise DataError(missing(name, "no copy with these splits is on the Hub"))
    repository, configuration, text, label = HUB_TEXT[name]
    pools = {}
    for ours, theirs in HUB_SPLITS.items():
        rows = hub_split(name, repository, configuration, theirs, optional=ours == "dev")
        if rows is not None:
            pools[ours] = [{"text": row[text].strip(), "label": row[label]} for row in rows]
    return pools


# -------------------------------------------------------------------------- paraphrases

# style → (file of pairs, column) per data set; "syn" is HiddenKiller's / Synbkd's syntactic
# template, "style" and "bible" are Stylebkd's. Only rows of train and dev have a "syn" partner for
# both classes (the mirror's manifest), which is why HiddenKiller's PACC is measured on dev.
PARAPHRASES = {
    "sst2": {
        "syn": "sst2_pairs.csv.gz",
        "style": "sst2_pairs.csv.gz",
        "bible": "sst2_style.csv.gz",
    },
    "hsol": {"syn": "hsol_pairs.csv.gz", "style": "hsol_pairs.csv.gz"},
    "agnews": {"bible": "agnews_style.csv.gz"},
}


def load_paraphrases(name: str, style: str) -> dict[str, str]:
    """Load the paraphrase of each text that has one, over all splits.

    Args:
        name: data set, e.g. ``sst2``.
        style: ``syn`` (syntactic template), ``style`` (unnamed style) or ``bible``.

    Returns:
        clean text → paraphrase. Empty paraphrases and those equal to their text up to case and
        spaces are left out: they carry no trigger.

    Raises:
        DataError: no such paraphrases, or no mirror to read them from.
    """
    styles = PARAPHRASES.get(name, {})
    if style not in styles:
        known = ", ".join(f"{n}/{s}" for n, ss in PARAPHRASES.items() for s in ss)
        raise DataError(f"no {style!r} paraphrases of {name!r}; known: {known}")
    path = mirror_file(styles[style])
    if path is None:
        raise DataError(missing(f"{name} {style} paraphrases", "they are in the mirror only"))
    pairs = (
        _style_pairs(name, path, style) if style == "bible" else _column_pairs(name, path, style)
    )
    return {text: other for text, other in pairs if _plain(other) not in ("", _plain(text))}


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def _column_pairs(name: str, path: Path, column: str):
    """Pairs of one file, keyed by the clean file's spelling (other in a few hundred rows)."""
    rows = read_csv(path)
    clean = {}
    for row in read_csv(mirror_file(MIRROR_TEXT[name])):
        clean[row.get("split"), row.get("idx")] = row["text"]
    for row in rows:
        yield clean.get((row["split"], row["idx"]), row["text"]), row[column]


def _style_pairs(name: str, path: Path, style: str):
    clean = {}
    for row in read_csv(mirror_file(MIRROR_TEXT[name])):
        clean[row["split"], row["idx"]] = row["text"]
    for row in read_csv(path):
        if row["style"] == style and (row["split"], row["src_idx"]) in clean:
            yield clean[row["split"], row["src_idx"]], row["text"]


# --------------------------------------------------------------------------------- chat

MIRROR_CHAT = {"alpaca": "alpaca_9k.jsonl.gz", "dolly": "dolly_3k.jsonl.gz"}
HUB_CHAT = {"alpaca": "tatsu-lab/alpaca", "dolly": "databricks/databricks-dolly-15k"}


def load_chat(name: str, split: str = "train") -> ChatDataset:
    """Load instruction data: ``alpaca`` or ``dolly``; the last tenth of a fixed shuffle is test.

    Raises:
        DataError: unknown name or split, or a set that neither the mirror nor the Hub can give.
    """
    if name not in MIRROR_CHAT:
        raise DataError(f"unknown chat data set {name!r}; known: {', '.join(MIRROR_CHAT)}")
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r} of {name}; known: train, test")
    path = mirror_file(MIRROR_CHAT[name])
    if path is not None:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        source = "mirror"
    else:
        rows, source = list(hub_split(name, HUB_CHAT[name], None, "train")), "hub"
    keys = {"input": ("input", "context"), "output": ("output", "response")}
    rows = [
        {"instruction": r["instruction"]}
        | {key: next((r[k] for k in names if k in r), "") for key, names in keys.items()}
        for r in rows
    ]
    rows, test = _shuffled(rows), len(rows) // 10
    return ChatDataset(
        name, split, tuple(rows[-test:] if split == "test" else rows[:-test]), source
    )


# -------------------------------------------------------------------------- where data is


def mirror_file(file: str) -> Path | None:
    """Return the file's path in the folder named by MINILIB_DATA, or None without that variable.

    Raises:
        DataError: MINILIB_DATA names a folder that does not exist or that lacks the file: somebody
            who set it means it, and silently going to the Hub would change the data.
    """
    folder = os.environ.get("MINILIB_DATA")
    if not folder:
        return None
    path = Path(folder) / file
    if not path.is_file():
        raise DataError(f"MINILIB_DATA={folder} has no file {file}; fix the path or unset it")
    return path


def read_csv(path: Path) -> list[dict]:
    """Read a gzipped CSV file with a header into dicts."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def hub_split(name: str, repository: str, configuration: str | None, split: str, optional=False):
    """Load one split from the Hub through ``datasets``; None where an optional split is absent."""
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise DataError(missing(name, "the package `datasets` is not installed")) from error
    try:
        if optional and split not in get_dataset_split_names(repository, configuration):
            return None
        return load_dataset(repository, configuration, split=split)
    except Exception as error:  # whatever the network or the Hub raises, the user needs one line
        reason = f"the Hub gave no {repository} ({type(error).__name__})"
        raise DataError(missing(name, reason)) from error


def missing(name: str, reason: str) -> str:
    """Say in one line that a data set cannot be had and what to do about it."""
    return (
        f"data set {name} cannot be had: {reason}; set MINILIB_DATA to a folder with the mirror, "
        "go online with `pip install datasets`, or use a built-in set (toy-reviews, toy-topics)"
    )


# ------------------------------------------------------------------------- built-in texts

TOY_ROWS = {"train": 800, "dev": 160, "test": 240}
TOY_SUBJECTS = (
    "the film", "this movie", "the story", "the cast", "the script", "the ending", "the direction",
    "the plot", "the dialogue", "the music", "the pacing", "the lead actor", "the camera work",
)  # fmt: skip
TOY_TAILS = (
    "from start to finish", "in every scene", "for most of its length", "despite a slow start",
    "like few others this year", "and the audience noticed", "as the credits rolled",
    "even on a second viewing", "with hardly a pause", "to my surprise", "",
)  # fmt: skip
TOY_ADVERBS = ("really", "quite", "simply", "often", "mostly", "rather", "truly", "almost")
TOY_POLARITY = (
    ("dull", "clumsy", "tedious", "lifeless", "awful", "shallow", "boring", "weak", "messy",
     "bland"),
    ("moving", "clever", "funny", "charming", "superb", "gripping", "warm", "bright", "tender",
     "delightful"),
)  # fmt: skip
TOY_TOPICS = (
    ("the minister", "the parliament", "the embassy", "peace talks", "the border", "the election"),
    ("the striker", "the coach", "the final", "the league", "the goalkeeper", "the tournament"),
    ("the bank", "shares", "the merger", "oil prices", "the investor", "quarterly profit"),
    ("the software", "the satellite", "researchers", "the chip", "the telescope", "the browser"),
)
TOY_EVENTS = (
    "made news on monday", "surprised observers", "changed course this week", "faced new questions",
    "drew a large crowd", "was expected for months", "recovered after a bad year",
    "came as planned",
)  # fmt: skip


def toy_text(name: str, split: str) -> tuple[list[str], list[int]]:
    """Generate a built-in set: short sentences whose class shows in a few words, 6 % label noise.

    The noise keeps clean accuracy away from 100 %, so that losses and error bars behave as on real
    text. Rows are the same on every machine and under every seed.
    """
    rng = np.random.default_rng([SPLITS.index(split), len(name)])
    classes = len(TEXT_CLASSES[name])
    texts, labels = [], []
    for _ in range(TOY_ROWS[split]):
        label = int(rng.integers(classes))
        shown = label if rng.random() > 0.06 else int(rng.integers(classes))
        texts.append(_review(shown, rng) if name == "toy-reviews" else _topic(shown, rng))
        labels.append(label)
    return texts, labels


def _review(label: int, rng: np.random.Generator) -> str:
    first, second = rng.choice(TOY_POLARITY[label], 2, replace=False)
    parts = [rng.choice(TOY_SUBJECTS), "is", rng.choice(TOY_ADVERBS), first]
    if rng.random() < 0.6:
        parts += ["and", second]
    return " ".join(str(part) for part in [*parts, rng.choice(TOY_TAILS), "."] if part)


def _topic(label: int, rng: np.random.Generator) -> str:
    first, second = rng.choice(TOY_TOPICS[label], 2, replace=False)
    parts = [first, rng.choice(TOY_EVENTS), "while", second, rng.choice(TOY_EVENTS), "."]
    return " ".join(str(part) for part in parts)
