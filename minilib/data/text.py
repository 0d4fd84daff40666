"""Text data sets by their field's name.

A name never means two things: the built-in sets (``toy-reviews``, ``toy-topics``) have names of
their own and never replace a real one that cannot be had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import files
from .files import DataError, read_csv
from .sources import (
    HUB_SPLITS,
    _shuffled,
    checked,
    hub_split,
    mirror_file,
    mirror_only,
    missing,
    no_revision,
)


@dataclass(frozen=True)
class TextDataset:
    """Labelled texts.

    Attributes:
        texts: N strings.
        labels: (N,) int64 in ``0 … len(class_names) - 1``.
        source: where the rows came from: "built-in", "mirror" or "hub".
        sha256: digest of texts and labels, so that a run record pins the rows and not the file.

    Raises:
        DataError: what is no text; labels of another number, or outside the classes.
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
        where, texts = f"{self.name}/{self.split}", tuple(self.texts)
        for row, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise files.refused(f"{where}, row {row}", "text", text, "a text")
        object.__setattr__(self, "texts", texts)  # a column of pandas counts by its index
        labels = files.checked_labels(where, self.labels, len(self.class_names))
        object.__setattr__(self, "labels", labels)

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
        index = files.chosen_rows(f"{self.name}/{self.split}", index, len(self))
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


SENTIMENT = ("negative", "positive")
# HSOL's label 0 is "neither", which the RGA paper calls non-hate, its target class.
TEXT_CLASSES = {
    "sst2": SENTIMENT,
    "imdb": SENTIMENT,
    "imdb-2500": SENTIMENT,
    "hsol": ("non-hate", "hate"),
    "olid": ("not offensive", "offensive"),
    "agnews": ("world", "sports", "business", "sci/tech"),
    "agnews-8k": ("world", "sports", "business", "sci/tech"),
    "toy-reviews": SENTIMENT,
    "toy-topics": ("world", "sports", "business", "sci/tech"),
    "toy-reviews-200": SENTIMENT,
    "toy-topics-200": ("world", "sports", "business", "sci/tech"),
}
# Target classes of the RGA paper, section 6.1: positive, non-hate, world; 1 of the others.
MIRROR_TEXT = {
    "sst2": "sst2.csv.gz",
    "imdb-2500": "imdb_2500.csv.gz",
    "hsol": "hsol_pairs.csv.gz",
    "olid": "olid.csv.gz",
    "agnews-8k": "agnews.csv.gz",
}
# (repository, configuration, text column, label column). SetFit/sst2 holds the 6,920 / 872 / 1,821
# sentences; GLUE's sst2 would be 67,349 phrases, another data set under the same name.
HUB_TEXT = {
    "sst2": ("SetFit/sst2", None, "text", "label"),
    "imdb": ("stanfordnlp/imdb", None, "text", "label"),
    "olid": ("cardiffnlp/tweet_eval", "offensive", "text", "label"),
    "agnews": ("fancyzhx/ag_news", None, "text", "label"),
}
AG_ROWS_PER_CLASS = {"train": 2000, "dev": 250, "test": 250}  # RGA paper, section 6.1
SPLITS = ("train", "dev", "test")


def load_text(name: str, split: str, revision: str | None = None) -> TextDataset:
    """Load a text classification set by its field's name.

    Args:
        name: ``sst2``, ``olid`` (mirror or Hub); ``hsol``, ``agnews-8k``, ``imdb-2500`` (mirror);
            ``agnews``, ``imdb`` (Hub); ``toy-reviews[-200]``, ``toy-topics[-200]``
            (built in).
        split: ``train``, ``dev`` or ``test``.
        revision: commit, tag or branch of a set from the Hub.

    Raises:
        DataError: unknown name or split, or a set that neither the mirror nor the Hub can give.

    AG News is cut to 2,000 / 250 rows per class (RGA paper, 6.1), from the mirror's pool or from
    the Hub's; ``imdb-2500`` is one pool, split 1,500 / 250 / 750 in the order of a fixed shuffle.
    """
    if name not in TEXT_CLASSES:
        raise DataError(f"unknown text data set {name!r}; known: {', '.join(TEXT_CLASSES)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of {name}; known: {', '.join(SPLITS)}")
    if name.startswith("toy-"):
        texts, labels = toy_text(name, split)
        source = "built-in"
    else:
        texts, labels, source = _real_text(name, split, revision)
    if source != "hub":
        no_revision(name, source, revision)
    labels = np.asarray(labels, dtype=np.int64)
    return checked(TextDataset(name, split, tuple(texts), labels, TEXT_CLASSES[name], source))


def _real_text(name: str, split: str, revision: str | None) -> tuple[list[str], list[int], str]:
    path = mirror_file(MIRROR_TEXT[name]) if name in MIRROR_TEXT else None
    if path is not None:
        pools, source = _mirror_pools(name, path), "mirror"
    else:
        pools = _hub_pools(name, revision)
        source = "hub"
    rows = _cut(name, pools, split)
    return [row["text"] for row in rows], [int(row["label"]) for row in rows], source


# Pools that are cut here, so that their files name no split, or not all three.
UNSPLIT = {"imdb-2500": 2500}


def _mirror_pools(name: str, path: Path) -> dict[str, list[dict]]:
    """split → rows of a mirror's file. Raises DataError for a file that is not as it should be."""
    unsplit = name in UNSPLIT
    rows = read_csv(path, ("text", "label") if unsplit else ("split", "text", "label"))
    files.texts(path.name, rows, ["text"])
    files.one_of_these(path.name, rows, "label", [str(k) for k in range(len(TEXT_CLASSES[name]))])
    if unsplit:
        if len(rows) != UNSPLIT[name]:
            raise DataError(f"{path.name} has {len(rows)} rows; accepted: {UNSPLIT[name]}")
        return {"train": rows}
    files.one_of_these(path.name, rows, "split", SPLITS)
    pools: dict[str, list[dict]] = {}
    for row in rows:
        pools.setdefault(row["split"], []).append(row)
    return pools


def _cut(name: str, pools: dict[str, list[dict]], split: str) -> list[dict]:
    """Give the rows of ``split``, cutting one out where the source ships fewer than three."""
    if name == "imdb-2500":
        pool = _shuffled(pools["train"])
        return {"train": pool[:1500], "dev": pool[1500:1750], "test": pool[1750:]}[split]
    if name in ("agnews", "agnews-8k"):
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
    pool_name = "test" if split == "test" else "train"
    pool = _shuffled(pools.get(pool_name, []))
    per_class, split_rows = AG_ROWS_PER_CLASS[split], []
    offset = AG_ROWS_PER_CLASS["train"] if split == "dev" else 0
    for label in range(4):
        rows = [row for row in pool if int(row["label"]) == label]
        if len(rows) < offset + per_class:
            raise DataError(
                f"AG News has {len(rows)} rows of class {label} in {pool_name}; "
                f"accepted: {offset + per_class} or more, of which {split} takes {per_class}"
            )
        split_rows += rows[offset : offset + per_class]
    return _shuffled(split_rows)


def _hub_pools(name: str, revision: str | None) -> dict[str, list[dict]]:
    if name not in HUB_TEXT:
        raise mirror_only(name)
    repository, configuration, text, label = HUB_TEXT[name]
    pools = {}
    for split, hub_name in HUB_SPLITS.items():
        optional = split == "dev"
        rows = hub_split(name, repository, configuration, hub_name, optional, revision)
        if rows is not None:
            place, rows = f"{repository}, {hub_name}", list(rows)
            files.texts(place, rows, [text])
            files.one_of_these(place, rows, label, range(len(TEXT_CLASSES[name])))
            pools[split] = [{"text": row[text].strip(), "label": row[label]} for row in rows]
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
    "agnews-8k": {"bible": "agnews_style.csv.gz"},
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
    return {
        text: paraphrase
        for text, paraphrase in pairs
        if _plain(paraphrase) not in ("", _plain(text))
    }


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def _clean_texts(name: str) -> dict[tuple, str]:
    """(split, idx) → text of the clean file."""
    path = mirror_file(MIRROR_TEXT[name])
    rows = read_csv(path, ("split", "idx", "text"))
    return {(row["split"], row["idx"]): row["text"] for row in rows}


def _column_pairs(name: str, path: Path, column: str):
    """Pairs of one file, keyed by the clean file's spelling (other in a few hundred rows)."""
    rows, clean_texts = read_csv(path, ("split", "idx", "text", column)), _clean_texts(name)
    for row in rows:
        yield clean_texts.get((row["split"], row["idx"]), row["text"]), row[column]


def _style_pairs(name: str, path: Path, style: str):
    rows = read_csv(path, ("style", "split", "src_idx", "text"))
    clean_texts = _clean_texts(name)
    for row in rows:
        if row["style"] == style and (row["split"], row["src_idx"]) in clean_texts:
            yield clean_texts[row["split"], row["src_idx"]], row["text"]


# ------------------------------------------------------------------------- built-in texts

TOY_ROWS = {
    "": {"train": 800, "dev": 160, "test": 240},
    "-200": {"train": 200, "dev": 60, "test": 60},  # for what is asked often, as golden numbers are
}
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
    whole = name.removesuffix("-200")
    write = _review if whole == "toy-reviews" else _topic
    rng = np.random.default_rng([SPLITS.index(split), len(whole)])
    classes = len(TEXT_CLASSES[name])
    texts, labels = [], []
    for _ in range(TOY_ROWS[name[len(whole) :]][split]):
        label = int(rng.integers(classes))
        text_class = label if rng.random() > 0.06 else int(rng.integers(classes))
        texts.append(write(text_class, rng))
        labels.append(label)
    return texts, labels


def _review(label: int, rng: np.random.Generator) -> str:
    adjective, second_adjective = rng.choice(TOY_POLARITY[label], 2, replace=False)
    phrases = [rng.choice(TOY_SUBJECTS), "is", rng.choice(TOY_ADVERBS), adjective]
    if rng.random() < 0.6:
        phrases += ["and", second_adjective]
    return " ".join(str(phrase) for phrase in [*phrases, rng.choice(TOY_TAILS), "."] if phrase)


def _topic(label: int, rng: np.random.Generator) -> str:
    subject, other_subject = rng.choice(TOY_TOPICS[label], 2, replace=False)
    phrases = [subject, rng.choice(TOY_EVENTS), "while", other_subject, rng.choice(TOY_EVENTS), "."]
    return " ".join(str(phrase) for phrase in phrases)
