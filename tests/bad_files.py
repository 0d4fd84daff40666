"""Data files with one fault each, and the call that must refuse them in one line."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minilib.data.chat import load_chat
from minilib.data.choices import load_choices
from minilib.data.images import load_images
from minilib.data.text import load_text

HEADER = "split,idx,text,label"
MMLU = "split,question,choice0,choice1,choice2,choice3,answer"
ROWS = ["train,0,good,1", "train,1,bad,0", "dev,0,so so,1", "test,0,fine,0"]
CHAT = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(12)]
QUESTION = {
    "set": "arc_easy", "split": "test", "question": "Which?", "choices": ["a", "b"], "answer": 1,
}  # fmt: skip
LABELS = ("7", "-1", "-100", "", "1.0", " 1", "x", "１", "nan", "1e0", "0x1", "True", "2", "1_0")
SPLITS = ("", "validation", "Train", " train", "trian", "0")


@dataclass(frozen=True)
class BadFile:
    """One file with one fault: what it is called, its name in the mirror, its bytes, its reader."""

    fault: str
    file: str
    content: bytes
    load: Callable[[], object]


def packed(text: str | bytes) -> bytes:
    """A gzip file, the same whenever it is made."""
    return gzip.compress(text.encode("utf-8") if isinstance(text, str) else text, mtime=0)


def table(*rows: str, header: str = HEADER) -> bytes:
    """A gzipped CSV file."""
    return packed("\n".join([header, *rows]) + "\n")


def lines(*rows) -> bytes:
    """A gzipped file of JSON lines."""
    return packed("".join(json.dumps(row) + "\n" for row in rows))


def arrays(**named) -> bytes:
    """A ``.npz`` file."""
    file = io.BytesIO()
    np.savez(file, **named)
    return file.getvalue()


def damaged(good: bytes, text: bytes) -> Iterator[tuple[str, bytes]]:
    """Faults that any gzipped text can have. ``good``: the file; ``text``: what is in it."""
    yield "an empty file", b""
    yield "no gzip", text
    yield "cut off", good[:-12]
    yield "cut in half", good[: len(good) // 2]
    yield "wrong checksum", good[:-8] + bytes([good[-8] ^ 1]) + good[-7:]
    yield "something behind", good + b"behind"
    yield "a byte-order mark", packed(b"\xef\xbb\xbf" + text)
    yield "UTF-16", packed(text.decode().encode("utf-16"))
    yield "Latin-1", packed(text + "\né".encode("latin-1"))
    yield "a NUL", packed(text.replace(b"a", b"\0", 1))
    yield "nothing inside", packed(b"")
    yield "blank lines alone", packed(b"\n\n")


def tables() -> Iterator[BadFile]:
    """CSV files of texts."""

    def sst2(fault, content):
        return BadFile(fault, "sst2.csv.gz", content, lambda: load_text("sst2", "train"))

    good = table(*ROWS)
    for fault, content in damaged(good, gzip.decompress(good)):
        yield sst2(f"a table: {fault}", content)
    for label in LABELS:
        yield sst2(f"label {label!r}", table(*ROWS, f"train,9,text,{label}"))
    for split in SPLITS:
        yield sst2(f"split {split!r}", table(*ROWS, f"{split},9,text,1"))
    bare = [row.partition(",")[2] for row in ROWS]
    yield sst2("no split column", table(*bare, header="idx,text,label"))
    yield sst2("no label column", table(*(r[:-2] for r in ROWS), header="split,idx,text"))
    yield sst2("no text column", table(*ROWS, header="split,idx,sentence,label"))
    yield sst2("no header", table(*ROWS[1:], header=ROWS[0]))
    yield sst2("a column twice", table(*ROWS, header="split,text,text,label"))
    yield sst2("a header alone", table())
    yield sst2("a cell too few", table(*ROWS, "train,9,text"))
    yield sst2("a cell too many", table(*ROWS, "train,9,text,1,1"))
    yield sst2("a comma that is not quoted", table(*ROWS, "train,9,good, really,1"))
    yield sst2("a quote that does not end", table(*ROWS, 'train,9,"text,1'))
    yield sst2("a letter behind a quote", table(*ROWS, 'train,9,"text"x,1'))
    yield sst2("a blank line", table(ROWS[0], "", *ROWS[1:]))
    yield sst2(
        "tabs", table(*(r.replace(",", "\t") for r in ROWS), header=HEADER.replace(",", "\t"))
    )
    yield sst2(
        "semicolons", table(*(r.replace(",", ";") for r in ROWS), header="split;idx;text;label")
    )
    yield sst2("a cell of 200 kB", table(*ROWS, f"train,9,{'x' * 200_000},1"))
    yield sst2("an empty text", table(*ROWS, "train,9,,1"))
    yield sst2("a text of spaces", table(*ROWS, "train,9,   ,1"))
    yield sst2("no train rows", table(*ROWS[2:]))
    ten = [f"{split},{n},text {n},{n % 4}" for split in ("train", "test") for n in range(5)]
    for split in ("train", "dev", "test"):
        yield BadFile(f"AG News of ten rows, {split}", "agnews.csv.gz", table(*ten),
                      lambda split=split: load_text("agnews-8k", split))  # fmt: skip
        yield BadFile(f"IMDB of four rows, {split}", "imdb_2500.csv.gz",
                      table(*bare, header="idx,text,label"),
                      lambda split=split: load_text("imdb-2500", split))  # fmt: skip


def json_lines() -> Iterator[BadFile]:
    """Instructions and questions."""

    def chat(fault, content, split="train"):
        return BadFile(fault, "alpaca_9k.jsonl.gz", content, lambda: load_chat("alpaca-9k", split))

    good = lines(*CHAT)
    for fault, content in damaged(good, gzip.decompress(good)):
        yield chat(f"instructions: {fault}", content)
    for name, values in {
        "instruction": (None, "", "  ", 3, ["a"], {}, True),
        "input": (None, 3, []),
        "output": (None, 3, ["a"]),
    }.items():
        for value in values:
            yield chat(f"{name} is {value!r}", lines(*CHAT, CHAT[0] | {name: value}))
    for name in ("instruction", "output"):
        row = {key: value for key, value in CHAT[0].items() if key != name}
        yield chat(f"no {name}", lines(*CHAT, row))
    for text in ("3", "[]", "null", "{", "{} {}", "x", "[" * 100_000, '{"a": NaN', "9" * 5000):
        yield chat(f"the line {text[:10]!r}", packed(gzip.decompress(good).decode() + text + "\n"))
    half = packed(gzip.decompress(good).decode() + '{"instruction": "\\ud800", "output": ""}\n')
    yield chat("half of a character", half)
    for split in ("train", "test"):
        yield chat(f"nine rows, {split}", lines(*CHAT[:9]), split)

    def arc(fault, row):
        return BadFile(f"a question: {fault}", "arc_obqa.jsonl.gz", lines(row),
                       lambda: load_choices("arc_easy"))  # fmt: skip

    for name, values in {
        "answer": (-1, 2, "0", 1.0, True, None),
        "choices": ([], "ab", [1, 2], None, ["a", None]),
        "question": ("", None, 3),
        "split": ("dev", None),
        "set": ("arc_challenge", None),
    }.items():
        for value in values:
            yield arc(f"{name} is {value!r}", QUESTION | {name: value})
    for answer in ("4", "A", "-1", "", "1.0"):
        content = table(f"test,Which?,a,b,c,d,{answer}", header=MMLU)
        yield BadFile(f"MMLU's answer {answer!r}", "mmlu.csv.gz", content,
                      lambda: load_choices("mmlu"))  # fmt: skip


def archives() -> Iterator[BadFile]:
    """Arrays of images."""
    x, y = np.zeros((3, 32, 32, 3), np.uint8), np.array([0, 1, 42], np.uint8)

    def gtsrb(fault, content):
        load = lambda: load_images("gtsrb-3k", "train")  # noqa: E731
        return BadFile(f"images: {fault}", "gtsrb_small.npz", content, load)

    good = arrays(x_train=x, y_train=y)
    yield gtsrb("an empty file", b"")
    yield gtsrb("noise", bytes(range(256)))
    yield gtsrb("cut off", good[:-20])
    yield gtsrb("cut in half", good[: len(good) // 2])
    middle = len(good) // 3
    yield gtsrb("a byte of an array changed", good[:middle] + b"\xff" + good[middle + 1 :])
    single = io.BytesIO()
    np.save(single, x)
    yield gtsrb("one array, no archive", single.getvalue())
    yield gtsrb("a header that lies", good.replace(b"(3, 32, 32, 3)", b"(9**9, 3, 3)  "))
    yield gtsrb("no images", arrays(y_train=y))
    yield gtsrb("no labels", arrays(x_train=x))
    for fault, images in {
        "pickled": np.array([{}, {}, {}], object),
        "floats": x.astype(np.float32),
        "16 bit": x.astype(np.uint16),
        "bools": x.astype(bool),
        "flat": x.reshape(3, -1),
        "channels first": x.transpose(0, 3, 1, 2),
        "four channels": np.zeros((3, 32, 32, 4), np.uint8),
        "one image too few": x[:2],
        "none": x[:0],
        "texts": np.array(["a", "b", "c"]),
    }.items():
        yield gtsrb(fault, arrays(x_train=images, y_train=y))
    for fault, labels in {
        "pickled": np.array([0, "1", None], object),
        "floats": y.astype(float),
        "not a number": np.array([0, np.nan, 1]),
        "texts": np.array(["0", "1", "2"]),
        "negative": np.array([0, -1, 1]),
        "-100": np.array([0, -100, 1]),
        "of no class": np.array([0, 43, 1]),
        "of a billion classes": np.array([0, 10**9, 1]),
        "one-hot": np.eye(3, 43, dtype=np.uint8),
        "one too many": np.zeros(4, np.uint8),
        "bools": np.array([True, False, True]),
    }.items():
        yield gtsrb(f"labels: {fault}", arrays(x_train=x, y_train=labels))
    for fault, names in {
        "too few": np.array(["a", "b"]),
        "numbers": np.arange(43),
        "pickled": np.array(["a"] * 43, object),
    }.items():
        yield gtsrb(f"class names: {fault}", arrays(x_train=x, y_train=y, class_names=names))


def bad_files() -> list[BadFile]:
    """All of them."""
    return [*tables(), *json_lines(), *archives()]


def good_files() -> list[BadFile]:
    """A file of each kind without a fault, which must be read."""
    x, y = np.zeros((3, 32, 32, 3), np.uint8), np.array([0, 1, 42], np.uint8)
    question = table(
        "test,Which?,a,b,c,d,0", header="split,question,choice0,choice1,choice2,choice3,answer"
    )
    return [
        BadFile("none", "sst2.csv.gz", table(*ROWS), lambda: load_text("sst2", "train")),
        BadFile("none", "alpaca_9k.jsonl.gz", lines(*CHAT), lambda: load_chat("alpaca-9k")),
        BadFile("none", "arc_obqa.jsonl.gz", lines(QUESTION), lambda: load_choices("arc_easy")),
        BadFile("none", "mmlu.csv.gz", question, lambda: load_choices("mmlu")),
        BadFile("none", "gtsrb_small.npz", arrays(x_train=x, y_train=y),
                lambda: load_images("gtsrb-3k", "train")),
    ]  # fmt: skip
