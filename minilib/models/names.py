"""What a model's name stands for: one of ours, a folder's content, or a revision on the Hub.

A name never means two things. ``minilm``, ``tiny``, ``tiny-causal``, ``small`` and ``medium`` are
ours. A path (absolute, or from ``.`` or ``~``) is a folder, and so is the name of one that lies in
the folder MINILIB_MODELS. All others are the Hub's, whatever lies in the working folder.
``NAME@REVISION`` is a commit, tag or branch on the Hub; ``NAME@sha256:DIGITS`` a folder whose
content has that digest. Recipes hold the latter, so that other weights are another victim.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

OURS = ("minilm", "tiny", "tiny-causal", "small", "medium")
# What a model in the file formats of transformers needs: each line, one of its patterns.
NEEDED = {
    "config": ("config.json",),
    "weights in safetensors": ("*.safetensors",),
    "tokenizer": ("tokenizer.json", "vocab.txt", "vocab.json", "*.model"),
}
READ = ("*.json", "*.txt", "*.model", "*.safetensors")
DIGEST = re.compile(r"sha256:[0-9a-f]{16}")
REVISION = re.compile(r"[\w][\w./-]{0,99}")


class ModelError(RuntimeError):
    """A model that cannot be had, or whose file is not what it should be; one line."""


class Place(NamedTuple):
    """Where a model is loaded from: ``location`` for transformers, and the Hub's revision."""

    location: str
    revision: str | None = None
    folder: Path | None = None


def place_of(name: str, hub: dict[str, str]) -> Place:
    """Where the model of a name is.

    Args:
        name: as described above, none of OURS. hub: short names of repositories on the Hub.

    Raises:
        ModelError: a folder that is not there, that lacks weights, a configuration or a tokenizer
            (with which every word would be unknown), or whose content is not what the name says.
    """
    folder, pin = _folder(name)
    if folder is None:
        base, at, revision = name.partition("@")
        if at and not REVISION.fullmatch(revision):
            raise ModelError(
                f"model {name!r}: its revision is {revision!r}; accepted: a commit, tag or branch"
            )
        return Place(hub.get(base, base), revision or None)
    if not folder.is_dir():
        raise ModelError(f"model {name!r}: there is no folder {folder}; accepted: one that exists")
    for what, patterns in NEEDED.items():
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            raise ModelError(f"folder {folder} has no {what}; accepted: {' or '.join(patterns)}")
    if pin and pin != digest(folder):
        raise ModelError(
            f"folder {folder} has another content, {digest(folder)}, than the recipe's {pin}; "
            "accepted: the files that it was made with"
        )
    return Place(str(folder), None, folder)


def pinned(name: str) -> str:
    """The name for a recipe: that of a folder gets the digest of its content, all others stay."""
    folder, pin = _folder(name)
    if folder is None or pin or not folder.is_dir():
        return name
    return f"{name}@{digest(folder)}"


def pin(recipe) -> None:
    """In a recipe's ``__post_init__``: its ``model`` is named with the content of its folder."""
    if isinstance(recipe.model, str):
        object.__setattr__(recipe, "model", pinned(recipe.model))


def with_revision(name: str, revision: str | None) -> str:
    """A Hub model's name at a revision. Raises ModelError where the name has one of its own."""
    if revision is None:
        return name
    if name in OURS or "@" in name or _folder(name)[0] is not None:
        raise ModelError(f"revision is {revision!r}; accepted: with a name of the Hub without one")
    return f"{name}@{revision}"


def digest(folder: Path) -> str:
    """Digest of what a model is read from: weights, configuration and tokenizer."""
    paths = sorted({path for pattern in READ for path in folder.glob(pattern) if path.is_file()})
    stats = ((path, path.stat()) for path in paths)
    return _digest(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()[:16]}"


def _folder(name: str) -> tuple[Path | None, str | None]:
    """The folder that a name stands for, and the digest in the name; None for what is no folder."""
    base, _, pin = name.rpartition("@")
    name, pin = (base, pin) if DIGEST.fullmatch(pin) else (name, None)
    if name in OURS or not name:
        return None, None
    if Path(name).is_absolute() or name.startswith((".", "~")):
        return Path(name).expanduser(), pin
    models = os.environ.get("MINILIB_MODELS")
    inside = models and ".." not in Path(name).parts and (Path(models) / name).is_dir()
    return (Path(models) / name, pin) if inside or (pin and models) else (None, None)
