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
import json
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
READ = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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
    _check_content(folder, pin)
    return Place(str(folder), None, folder)


def _check_content(folder: Path, pin: str | None) -> None:
    if pin and pin != digest(folder):
        raise ModelError(
            f"folder {folder} has another content, {digest(folder)}, than the recipe's {pin}; "
            "accepted: the files that it was made with"
        )


def adapter_of(name: str) -> Path | None:
    """The folder of a name in which a LoRA adapter lies without its model; None: no such folder.

    Raises:
        ModelError: a model lies beside it, so that either could be meant; another content than the
            name says.
    """
    folder, pin = _folder(name)
    if folder is None or not (folder / ADAPTER).is_file():
        return None
    if whole := _whole_models(folder):
        raise ModelError(
            f"folder {folder} has an adapter ({ADAPTER}) and a model ({whole[0]}); accepted: one "
            "of the two, or both merged (PeftModel.merge_and_unload().save_pretrained(NEW))"
        )
    _check_content(folder, pin)
    return folder


def _whole_models(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.safetensors") if p.name != ADAPTER_WEIGHTS)


def base_of(folder: Path) -> str:
    """The name of the model that an adapter belongs to, as its adapter_config.json says.

    A relative path was written in the folder that the adapter was trained from. So it is looked for
    in the adapter's folder and in all above it; what is no folder there is a name on the Hub.

    Raises:
        ModelError: it names none, or a path that is not there.
    """
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, AttributeError):
        base = revision = None
    if not isinstance(base, str) or not base.strip():
        raise ModelError(
            f"{folder / ADAPTER} names no base model; accepted: base_model_name_or_path, a folder "
            "or a name on the Hub"
        )
    for above in (folder, *folder.parents):
        place = above / Path(base).expanduser()
        try:
            if (place / "config.json").is_file():
                return str(place.resolve())
        except OSError:  # a name too long for a file, a folder that is closed to us
            continue
    if is_path(base):
        raise ModelError(
            f"folder {folder}: its base model {base!r} is not there; accepted in {ADAPTER}: a path "
            "that exists, from the adapter's folder or one above it, or a name on the Hub"
        )
    return f"{base}@{revision}" if isinstance(revision, str) and revision else base


def local_base(folder: str) -> list[str]:
    """The folder of an adapter's base, where it is one: what a name's content is besides its own.

    Raises:
        ModelError: as ``adapter_of`` and ``base_of``.
    """
    adapter = adapter_of(str(Path(folder).expanduser().resolve()))
    base = base_of(adapter) if adapter else ""
    return [base] if base.startswith(os.sep) else []


def is_path(text: str) -> bool:
    """Whether a text can only be meant as a path, and not as a name on the Hub."""
    return text.startswith((".", "~", "/")) or (os.sep in text.rstrip("/") and text.count("/") != 1)


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
    """Digest of what a model is read from: weights, configuration and tokenizer.

    Of a LoRA adapter they are those of its base, too, where that is a folder.
    """
    folders = [folder]
    if (folder / ADAPTER).is_file() and not _whole_models(folder):
        folders += [Path(base)] if (base := base_of(folder)).startswith(os.sep) else []
    paths = [
        path
        for one in folders
        for path in sorted({p for pattern in READ for p in one.glob(pattern) if p.is_file()})
    ]
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
