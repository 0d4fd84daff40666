"""Things that took long to make, kept under the hash of what made them.

A victim's key holds its data's digest, model name, settings and the code that trains it. Files are
written beside and renamed, under a lock that another process waits for, so a killed run leaves no
half-written entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import filelock
import platformdirs
import torch
from torch import nn

from . import fingerprint, models
from .runs import write_json


def cache_dir() -> Path:
    """Return the cache folder: MINILIB_CACHE, or the user's cache folder."""
    return Path(os.environ.get("MINILIB_CACHE") or platformdirs.user_cache_dir("minilib"))


def digest(key: Mapping) -> str:
    """Hash a JSON-able mapping; 16 hex digits."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_digest(modules: tuple[str, ...], *functions: str) -> str:
    """Hash what ``functions`` of these ``minilib`` modules run, docstrings and comments left out.

    What stands in the same modules and is not reached from them does not count, so that a new
    model or loss leaves everything standing that was made without it.
    """
    library = fingerprint.Library.read(fingerprint.PACKAGE, within=modules)
    sources = library.reachable([(f"minilib.{name}", one) for name in modules for one in functions])
    missing = {name for name in functions if not any(f"def {name}(" in text for text in sources)}
    if missing:
        raise ValueError(f"no function {', '.join(sorted(missing))} in {', '.join(modules)}")
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def conditions(device: torch.device, modules: tuple[str, ...], *functions: str) -> dict:
    """Say under what a result was computed: device type, torch and the code that computed it."""
    return {
        "device": device.type,
        "torch": torch.__version__,
        "code": code_digest(modules, *functions),
    }


def weights_digest(model: nn.Module) -> str:
    """Hash a model's weights; 16 hex digits."""
    value = hashlib.sha256()
    for name, tensor in sorted(models.state(model).items()):
        value.update(name.encode())
        value.update(tensor.numpy().tobytes())
    return value.hexdigest()[:16]


@contextmanager
def _entry(kind: str, key: Mapping):
    folder = cache_dir() / kind
    folder.mkdir(parents=True, exist_ok=True)
    name = digest(key)
    with filelock.FileLock(folder / f"{name}.lock"):  # freed by the system if its holder dies
        yield folder, name


def cached_model(
    key: Mapping, build: Callable[[], nn.Module], train: Callable[[nn.Module], list[dict]]
) -> tuple[nn.Module, list[dict]]:
    """Return the trained model of ``key`` and its training history, training it at most once.

    Args:
        key: JSON-able description of everything that determines the result.
        build: makes the untrained model.
        train: trains it in place, returns its history (JSON-able).

    An entry whose weights do not match their checksum is made again, with a warning.
    """
    with _entry("victims", key) as (folder, name):
        note, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
        if note.exists():
            try:
                meta = json.loads(note.read_text(encoding="utf-8"))
                sha256, history = meta["sha256"], meta["history"]
                return models.load(build(), weights, sha256).eval(), history
            except (models.ModelError, OSError, ValueError, KeyError, TypeError) as error:
                message = f"cached victim {name} is damaged and made again: {error}"
                warnings.warn(message, stacklevel=2)
        model = build()
        history = train(model)
        part = folder / f"{name}.safetensors.part"
        sha256 = models.save(model, part)
        part.replace(weights)
        write_json(note, {"key": dict(key), "sha256": sha256, "history": history})
        return model.eval(), history


def cached_json(kind: str, key: Mapping, compute: Callable[[], dict]) -> dict:
    """Return the JSON-able result of ``compute`` for ``key``, computing it at most once."""
    with _entry(kind, key) as (folder, name):
        note = folder / f"{name}.json"
        if note.exists():
            try:
                return json.loads(note.read_text(encoding="utf-8"))["value"]
            except (ValueError, KeyError, TypeError):
                warnings.warn(f"cached {kind} {name} is damaged and made again", stacklevel=2)
        value = compute()
        write_json(note, {"key": dict(key), "value": value})
        return json.loads(json.dumps(value))  # the same types whether fresh or cached
