"""Where data come from: a local mirror first, then the Hugging Face Hub; checksums of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from .. import ledger, names
from .files import DataError

# ------------------------------------------------------------------------------------ text


@cache
def checksums() -> dict[str, dict[str, str]]:
    """Data set → split → digest of what its name stands for (`data/checksums.yml`)."""
    import yaml

    text = (files("minilib") / "data" / "checksums.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def checked(dataset):
    """Return a data set that holds what its name stands for.

    One whose name has no checksum passes; trials that read it cannot be published.

    Raises:
        DataError: it holds something else. MINILIB_ANY_DATA=1 lets it pass, unpublishable too.
    """
    checksum = checksums().get(dataset.name, {}).get(dataset.split)
    if checksum != dataset.sha256:
        if checksum is not None and os.environ.get("MINILIB_ANY_DATA") != "1":
            raise DataError(
                f"{dataset.name}/{dataset.split} from the {dataset.source} has {len(dataset):,} "
                f"rows with sha256 {dataset.sha256[:12]}…; its name stands for {checksum[:12]}…. "
                "Set MINILIB_ANY_DATA=1 to go on with other data; their trials stay local"
            )
        ledger.unchecked.add(dataset.name)
    return dataset


HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def _shuffled(rows: list) -> list:
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order]


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


def mirror_files(name: str, files: Sequence[str]) -> list[Path]:
    """Return the paths of a set that only the mirror has; raises DataError without MINILIB_DATA."""
    paths = [mirror_file(file) for file in files]
    if None in paths:
        raise mirror_only(name)
    return paths


def mirror_only(name: str) -> DataError:
    """What to raise where the mirror alone has a set; it names the whole set that the Hub has."""
    whole = names.whole(name)
    other = f" ({whole} is the whole set, from the Hub)" if whole != name else ""
    return DataError(missing(name, f"it is in the mirror only{other}"))


def hub_split(
    name: str,
    repository: str,
    configuration: str | None,
    split: str,
    optional: bool = False,
    revision: str | None = None,
    data_files: str | None = None,
):
    """Load one split from the Hub through ``datasets``; None where an optional split is absent.

    Args:
        revision: commit, tag or branch; the newest where it is None. What was read is told by the
            digest of its rows, which each trial records.
        data_files: pattern of the only files of the split that are fetched.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise DataError(missing(name, "the package `datasets` is not installed")) from error
    try:
        at = {} if revision is None else {"revision": revision}
        if optional and split not in get_dataset_split_names(repository, configuration, **at):
            return None
        at |= {"data_files": {split: data_files}} if data_files else {}
        at |= {"trust_remote_code": False}  # no script of the repository runs, whatever is set
        return load_dataset(repository, configuration, split=split, **at)
    except Exception as error:  # whatever the network or the Hub raises, the user needs one line
        reason = f"the Hub gave no {repository} ({type(error).__name__})"
        raise DataError(missing(name, reason)) from error


def no_revision(name: str, source: str, revision: str | None) -> None:
    """Refuse a revision of what is not from the Hub."""
    if revision is not None:
        raise DataError(
            f"revision of {name} is {revision!r}, and it is from the {source}; accepted: with a "
            "set from the Hub"
        )


def missing(name: str, reason: str) -> str:
    """Say in one line that a data set cannot be had and what to do about it."""
    return (
        f"data set {name} cannot be had: {reason}; set MINILIB_DATA to a folder with the mirror, "
        "go online with `pip install datasets`, or use a built-in set (toy-reviews, toy-topics)"
    )
