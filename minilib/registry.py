"""Methods from outside: attacks, detectors and defences that another package brings.

A module calls ``register`` for each of its methods. The modules are those of the entry points in
the group "minilib.methods" of installed packages, and those named in MINILIB_METHODS (separated by
commas), by name or as a file. They are imported when a name is first looked up. What a method is,
is named as "module:attribute" and imported when it is first used, so that settings, claims and the
command line go on without PyTorch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import names
from .checks import one_of

# What ``target`` is called with, and what it returns.
KINDS = {
    "attack": "(dataset, position) → trigger of texts",
    "image attack": "(dataset, target, seed) → trigger of images",
    "detector": "(victim, dataset, known) → Detection",
    "unlearning": "(logits, reference_logits, labels, settings) → loss, scalars to log",
    "defence": "unlearning.Defence: what runs, its settings, what it needs",
}


@dataclass(frozen=True)
class Method:
    """What was registered. ``target``: what it is, or "module:attribute" where to find it."""

    kind: str
    name: str
    target: Callable | str

    def load(self) -> Any:
        """What the target names. Raises ValueError where there is no such thing."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{self.kind} {self.name!r} is {self.target!r}; {error}") from error


class Names(list):
    """The names of one kind, in the book's order; those from outside come last."""

    def __init__(self, kind: str, *known: str):
        super().__init__(known)
        self.kind = kind
        LISTS[kind] = self


LISTS: dict[str, Names] = {}
_METHODS: dict[tuple[str, str], Method] = {}
_loaded: list[str] = []


def register(kind: str, name: str, target: Callable | str, label: str = "") -> None:
    """Add a method of one's own.

    Args:
        kind: one of KINDS, which says what ``target`` is. name: its key in settings and trials.
        target: what it is, or "module:attribute" where to find it. label: what pages call it.

    Raises:
        ValueError: an unknown kind, or a name that is taken.
    """
    one_of("kind", kind, KINDS)
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"name is {name!r}; accepted: letters, digits, - and _")
    if name in LISTS.get(kind, ()) or name in names.NAMES:
        raise ValueError(f"name is {name!r}, which is taken; accepted: one of your own")
    _METHODS[kind, name] = Method(kind, name, target)
    (LISTS.get(kind) or Names(kind)).append(name)
    shown_as = {"image attack": "attack", "unlearning": "method", "defence": "method"}
    names.NAMES[name] = names.Name(label or name, shown_as.get(kind, kind))


def load_outside() -> None:
    """Import what registers methods, once. Raises ValueError for what cannot be imported."""
    wanted = _named()
    if "entry points" not in _loaded:
        _loaded.append("entry points")
        from importlib.metadata import entry_points

        wanted += [point.value for point in entry_points(group="minilib.methods")]
    for module in wanted:
        if module not in _loaded:
            _loaded.append(module)
            try:
                importlib.import_module(module)
            except Exception as error:  # a file of somebody's own can fail in any way
                _loaded.remove(module)
                raise ValueError(f"MINILIB_METHODS names {module!r}; {error}") from error


def _named() -> list[str]:
    """The modules that MINILIB_METHODS names; of a file such as ``my_methods.py``, the one in it.

    The `minilib` command does not look for modules in the working folder, and a notebook's kernel
    works in another one. So the file's folder joins the places where Python looks, and its path is
    written down in full for the processes that this one starts.
    """
    entries = [name.strip() for name in os.environ.get("MINILIB_METHODS", "").split(",")]
    entries = [
        str(Path(n).expanduser().resolve()) if n.endswith(".py") else n for n in entries if n
    ]
    files = [Path(name) for name in entries if name.endswith(".py")]
    if files:
        os.environ["MINILIB_METHODS"] = ",".join(entries)
    for folder in dict.fromkeys(str(path.parent) for path in files):
        if folder not in sys.path:
            sys.path.append(folder)
    return [Path(name).stem if name.endswith(".py") else name for name in entries]


def find(kind: str, name: str) -> Any:
    """What a name of a kind stands for, where it comes from outside; else None."""
    load_outside()
    method = _METHODS.get((kind, name))
    return method and method.load()
