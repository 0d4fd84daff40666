"""Data files: tables, lines of JSON, archives of arrays.

A file that holds anything else than it should is refused in one line that names the file, the row
(from 1, the header not counted), the value and what is accepted. Nothing is guessed: a column that
is missing, or a label of no class, would otherwise train another model without a word.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SHOWN = 60  # characters of a value in a message


class DataError(RuntimeError):
    """A data set that cannot be had, or that is not what it should be; the message is one line."""


def shown(value) -> str:
    """A value for a message, cut."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def refused(where: str, name: str, value, accepted: str) -> DataError:
    """What to raise for a value: where it stands, what it is, and what would be accepted."""
    return DataError(f"{where}: {name} is {shown(value)}; accepted: {accepted}")


# ---------------------------------------------------------------- text


def read_text(path: Path) -> str:
    """The text of a gzipped file.

    Raises:
        DataError: it cannot be opened, is no whole gzip file, or is not UTF-8; it begins with a
            byte-order mark, which would become part of the first name; or it holds a NUL.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is cut off or damaged"
        raise DataError(f"{path.name} cannot be read ({reason}); accepted: a gzip file") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n")
        byte = content[error.start]
        raise DataError(
            f"{path.name}, line {row + 1}: byte 0x{byte:02x} is not UTF-8; accepted: text in UTF-8"
        ) from None
    for character, name in (("\ufeff", "a byte-order mark"), ("\0", "a NUL")):
        if character == text[:1] or (character == "\0" and character in text):
            raise DataError(f"{path.name} has {name}; accepted: plain text in UTF-8 without one")
    return text


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict]:
    """Read a gzipped CSV file with a header into dicts of texts.

    Args:
        columns: names that the header must have.

    Raises:
        DataError: no such table, or one with a column too few, a name twice, or a row of another
            number of cells.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[dict] = []
    try:
        header = next(lines, [])
        if len(set(header)) < len(header):
            raise DataError(
                f"{path.name}: a column stands twice in {shown(header)}; accepted: once"
            )
        absent = [name for name in columns if name not in header]
        if absent:
            raise DataError(
                f"{path.name}: its columns are {shown(header)}; accepted: those and "
                f"{', '.join(absent)}"
            )
        for number, cells in enumerate(lines, start=1):
            if len(cells) != len(header):
                raise DataError(
                    f"{path.name}, row {number}: {len(cells)} cells, {shown(cells)}; "
                    f"accepted: {len(header)}, as in its header"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path.name}, row {len(rows) + 1}: {error}; accepted: CSV") from None
    if not rows:
        raise DataError(f"{path.name} has no rows; accepted: one or more below a header")
    return rows


def read_json_lines(path: Path) -> list[dict]:
    """Read a gzipped file of one JSON object a line; blank lines are passed over.

    Raises:
        DataError: a line that is no object, or a text that UTF-8 cannot hold.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, row {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise refused(where, "it", line, "whole characters, no half of a pair") from None
        except (ValueError, RecursionError):
            raise refused(where, "it", line, "one JSON object a line") from None
        if not isinstance(row, dict):
            raise refused(where, "it", row, "a JSON object")
        rows.append(row)
    if not rows:
        raise DataError(f"{path.name} has no rows; accepted: one JSON object a line")
    return rows


# ---------------------------------------------------------------- values


def texts(place: str, rows: Iterable[dict], names: Iterable[str], empty: bool = False) -> None:
    """Refuse rows whose entries of these names are no texts, or are empty unless that is meant.

    Args:
        place: the file, or what else the rows are from, for the message.
    """
    for number, row in enumerate(rows, start=1):
        for name in names:
            value = row.get(name)
            if not isinstance(value, str) or not (empty or value.strip()):
                accepted = "a text" if empty else "a text that is not empty"
                raise refused(f"{place}, row {number}", name, value, accepted)


def one_of_these(place: str, rows: Iterable[dict], name: str, accepted: Sequence) -> None:
    """Refuse rows whose entry of this name is none of those accepted."""
    for number, row in enumerate(rows, start=1):
        if row.get(name) not in accepted:
            raise refused(
                f"{place}, row {number}", name, row.get(name), ", ".join(map(str, accepted))
            )


def checked_labels(where: str, labels, num_classes: int) -> np.ndarray:
    """Labels (N,) as int64: those of uint8 count past 255 as 0, a column of pandas by its index.

    Raises:
        DataError: what is no whole number in ``0 … num_classes - 1``.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels are {labels.shape} {labels.dtype}; accepted: (N,) whole numbers"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        row = int(wrong[0])
        accepted = f"0 … {num_classes - 1}"
        raise refused(f"{where}, row {row + 1}", "label", int(labels[row]), accepted)
    return labels.astype(np.int64, copy=False)


def chosen_rows(where: str, index, rows: int) -> np.ndarray:
    """Positions (n,) int64 of a choice of rows: whole numbers, or a mask (rows,) bool.

    Raises:
        DataError: a mask of another number of rows, or what is neither.
    """
    index = np.asarray(index)
    if index.dtype == bool and index.shape == (rows,):
        return np.flatnonzero(index)
    if index.ndim != 1 or index.dtype.kind not in "iu" and len(index):
        raise DataError(
            f"{where}: the choice is {index.shape} {index.dtype}; accepted: (n,) whole numbers, or "
            f"a mask ({rows},) bool"
        )
    return index.astype(np.int64)


# ---------------------------------------------------------------- arrays


@contextmanager
def opened_archive(path: Path) -> Iterator[tuple[Callable[[str], np.ndarray], list]]:
    """Open a ``.npz`` file; gives a function from a name to its array, and the names.

    Raises:
        DataError: no such archive, or name; an array that is damaged, too large, or pickled, which
            would run code. Raised by the function too.
    """
    broken = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, MemoryError, KeyError,
              NotImplementedError, RuntimeError, SyntaxError, TypeError)  # fmt: skip
    try:
        archive = np.load(path, allow_pickle=False)
        names = archive.files
    except (*broken, AttributeError):
        raise DataError(f"{path.name} is damaged; accepted: a .npz archive of arrays") from None

    def array(name: str) -> np.ndarray:
        if name not in names:
            raise DataError(f"{path.name} has {shown(names)}; accepted: those and {name}")
        try:
            return archive[name]
        except broken as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{path.name}: {name} cannot be read ({reason[:SHOWN]}); "
                "accepted: a whole array of numbers or texts, nothing pickled"
            ) from None

    with archive:
        yield array, names
