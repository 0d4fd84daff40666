"""Tables of labelled texts from outside: CSV, Parquet, JSON lines, with named columns.

A row that is not as it should be is named: file, line, value, and what would be accepted. Labels
are read by name, through the model's own names, never by position.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import numbers
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.files import DataError, shown
from ..data.text import TextDataset

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".ndjson", ".parquet")
LEAST = 20  # rows of a table: fewer say nothing
MOST_BYTES = 2**30
BOM = "\ufeff"


@dataclass(frozen=True)
class Table:
    """Rows of a file that were accepted, and what was passed over or noticed.

    Attributes:
        rows: the texts with the model's labels. lines: (N,) int64, the file's line of each row.
        remarks: one line each, for the report.
    """

    rows: TextDataset
    lines: np.ndarray
    remarks: tuple[str, ...]


def digest(path: str | Path) -> str:
    """The sha256 of a file. Raises DataError where it cannot be read."""
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise DataError(f"{path} cannot be read (a folder, pipe or device); accepted: a file")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); accepted: a file") from None


def read(
    path: str | Path, text: str, label: str, classes: Sequence[str], called: str = ""
) -> Table:
    """Read a table of labelled texts.

    Args:
        path: a file whose name ends in one of FORMATS, or in one of them and ``.gz``.
        text, label: names of its columns. classes: the model's, in the order of its outputs.
        called: ``0=negative,1=positive``: what the table's labels are called in the model.

    Raises:
        DataError: no such file or column; a row with another number of cells; an empty text; a
            label of no class; fewer than LEAST rows; rows of one class only.
    """
    path = Path(path)
    if text == label:
        raise DataError(f"text and label are both {text!r}; accepted: two columns")
    records = records_in(path, (text, label))
    texts, labels, lines = [], [], []
    index = {name: k for k, name in enumerate(classes)}
    folded = {name.casefold().strip(): k for k, name in enumerate(classes)}
    if called:
        index = {name: folded[other.casefold()] for name, other in named(called, classes)}
        folded = {}
    by_number = not called and all(name == f"LABEL_{k}" for k, name in enumerate(classes))
    for line, record in records:
        where = f"{path.name}, line {line}"
        value = record[text]
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"{where}: {text} is {_said(value)}; accepted: a text that is not empty"
            )
        if "\0" in value:
            raise DataError(f"{where}: {text} holds a NUL; accepted: text in UTF-8 without one")
        texts.append(value)
        labels.append(_class(record[label], index, folded, by_number, where, label, classes))
        lines.append(line)
    if len(texts) < LEAST:
        raise DataError(f"{path.name} has {len(texts)} rows; accepted: {LEAST} or more")
    labels = np.array(labels, np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if (counts > 0).sum() < 2:
        only = classes[int(counts.argmax())]
        raise DataError(f"{path.name} has rows of one class only ({only}); accepted: two or more")
    rows = TextDataset(path.name, "table", tuple(texts), labels, tuple(classes), "file")
    return Table(rows, np.array(lines, np.int64), tuple(_remarks(path.name, rows, counts)))


def named(labels: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """``0=negative,1=positive`` as pairs of a table's label and the model's.

    Raises:
        DataError: no such pairs, a label twice, or a class that the model does not have.
    """
    pairs = [tuple(item.strip().rpartition("=")[::2]) for item in labels.split(",")]
    if not all(name and other for name, other in pairs):
        raise DataError(f"labels is {shown(labels)}; accepted: pairs such as 0=negative,1=positive")
    if len({name for name, _ in pairs}) < len(pairs):
        raise DataError(f"labels is {shown(labels)}; accepted: each label once")
    for name, other in pairs:
        if other.casefold() not in {one.casefold() for one in classes}:
            raise DataError(
                f"labels says {name}={other}; accepted: the model's classes, {', '.join(classes)}"
            )
    return pairs


def _remarks(name: str, rows: TextDataset, counts: np.ndarray) -> list[str]:
    """What is odd about a table and no reason to refuse it."""
    remarks = []
    twice = len(rows) - len(set(rows.texts))
    if twice:
        remarks.append(f"{name}: {twice} texts stand there more than once")
    absent = [rows.class_names[k] for k in np.flatnonzero(counts == 0)]
    if absent:
        remarks.append(f"{name}: no row of class {', '.join(absent)}; nothing is said of it")
    return remarks


def shared(one: TextDataset, other: TextDataset) -> int:
    """How many texts of a table stand in another one, too."""
    return len(set(one.texts) & set(other.texts))


def _class(value, index, folded, by_number, where, column, classes) -> int:
    """The class that a label names. A number is a name here, unless the model's names are."""
    if isinstance(value, bool) or value is None or isinstance(value, float) and math.isnan(value):
        raise _no_class(where, column, value, classes)
    name = str(value).strip() if not isinstance(value, float) else f"{value:g}"
    if name in index:
        return index[name]
    if name.casefold() in folded:
        return folded[name.casefold()]
    if by_number and name.isdecimal() and int(name) < len(classes):
        return int(name)  # LABEL_1 is what transformers calls class 1 where nobody named it
    raise _no_class(where, column, value, classes)


def _no_class(where: str, column: str, value, classes: Sequence[str]) -> DataError:
    few = ", ".join(classes[:8]) + (" …" if len(classes) > 8 else "")
    return DataError(f"{where}: {column} is {_said(value)}; accepted: the model's classes, {few}")


def _said(value) -> str:
    """A value for a message; what a table has for nothing is called so."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return "missing (NaN)"
    return shown(value)


# ---------------------------------------------------------------- formats


def records_in(path: Path, columns: Sequence[str]) -> list[tuple[int, dict]]:
    """(line, row) of a file; a CSV's header is its line 1, a Parquet file's first row is 1.

    Raises:
        DataError: no such file, not one of FORMATS, damaged, or without a column.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = suffixes[-2] if packed and len(suffixes) > 1 else (suffixes or [""])[-1]
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"{path.name} is no table that is known; accepted: {known}, or those + .gz")
    if not path.is_file():
        raise DataError(f"{path} is not there; accepted: a file that exists")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path.name} is larger than 1 GiB; accepted: a sample of its rows")
    if kind == ".parquet":
        return _parquet(path, columns)
    content = _content(path, packed)
    if kind in (".csv", ".tsv"):
        return _csv(path, content, "\t" if kind == ".tsv" else ",", columns)
    return _json(path, content, columns)


def _content(path: Path, packed: bool) -> str:
    """The text of a file, without a byte-order mark, which would be part of the first name."""
    try:
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is cut off or damaged"
        raise DataError(f"{path.name} cannot be read ({reason}); accepted: a whole file") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path.name} is in UTF-16; accepted: text in UTF-8")
    try:
        return content.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise DataError(
            f"{path.name}, line {line}: byte 0x{byte:02x} is not UTF-8; accepted: text in UTF-8"
        ) from None


def _check_columns(name: str, header: Sequence[str], columns: Sequence[str]) -> None:
    if len(set(header)) < len(header):
        raise DataError(f"{name}: a column stands twice in {shown(list(header))}; accepted: once")
    if not header:
        raise DataError(f"{name} is empty; accepted: a table with the names of its columns")
    for column in columns:
        if column not in header:
            few = ", ".join(map(str, header[:12]))
            raise DataError(f"{name} has no column {column!r}; accepted: one of {few}")


def _csv(path: Path, content: str, mark: str, columns: Sequence[str]) -> list[tuple[int, dict]]:
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=mark, strict=True)
    records = []
    try:
        header = next(lines, [])
        _check_columns(path.name, header, columns)
        begins = lines.line_num + 1
        for cells in lines:
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path.name}, line {begins}: {len(cells)} cells, {shown(cells)}; "
                    f"accepted: {len(header)}, as in its header"
                )
            if cells:
                records.append((begins, dict(zip(header, cells, strict=True))))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path.name}, line {lines.line_num}: {error}; accepted: CSV") from None
    return records


def _json(path: Path, content: str, columns: Sequence[str]) -> list[tuple[int, dict]]:
    records = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError):
            raise DataError(f"{where}: {shown(line)}; accepted: one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: {shown(row)}; accepted: one JSON object a line")
        for column in columns:
            if column not in row:
                few = ", ".join(list(row)[:12])
                raise DataError(f"{where}: no {column!r}; accepted: one of {few}")
        records.append((number, row))
    return records


def _parquet(path: Path, columns: Sequence[str]) -> list[tuple[int, dict]]:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        _check_columns(path.name, names, columns)
        rows = parquet.read_table(path, columns=list(columns)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise DataError(f"{path.name} cannot be read ({reason}); accepted: Parquet") from None
    return [(number, _plain(row)) for number, row in enumerate(rows, start=1)]


def _plain(row: dict) -> dict:
    """Whole numbers of whatever width as Python's own."""
    return {
        name: int(value)
        if isinstance(value, numbers.Integral) and not isinstance(value, bool)
        else value
        for name, value in row.items()
    }
