"""Large things that trials need, such as victims, kept under the recipe that made them.

Files are written beside and renamed, under a lock that another process waits for, so that a killed
run leaves no half-written entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable

import filelock
from safetensors import SafetensorError
from torch import nn

from . import ledger
from .models import loading
from .provenance import cache_dir, plain, write_json


def kept_model(
    one, build: Callable[[], nn.Module], train: Callable[[nn.Module], list[dict]]
) -> tuple[nn.Module, list[dict]]:
    """Return the trained model of a recipe and its training history, training it at most once.

    Args:
        one: a recipe declared with ``ledger.cached``. build: makes the untrained model.
        train: trains it in place, returns its history (JSON-able).

    What data sets training read is kept with the model, and noted again when it is taken from the
    cache. An entry whose weights do not match their checksum, or that is another recipe's, is made
    again, with a warning; a model that cannot be kept (a full disk, a folder that
    cannot be written) is returned, with one too.
    """
    kind, key = ledger.kind_of(one), ledger.key_of(one)
    folder = cache_dir() / kind.name
    note, weights = folder / f"{key}.json", folder / f"{key}.safetensors"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot be written may still be read
            folder.mkdir(parents=True, exist_ok=True)
            # Freed by the system if its holder dies.
            stack.enter_context(filelock.FileLock(folder / f"{key}.lock"))
        if os.path.exists(note):  # also where what should be a folder is a file
            try:
                meta = json.loads(note.read_text(encoding="utf-8"))
                if meta["recipe"] != ledger.described(one):
                    raise ValueError("it is of another recipe")
                model = loading.load(build(), weights, meta["sha256"]).eval()
                for info in meta["data"]:
                    ledger.note(info)
                return model, meta["history"]
            except (loading.ModelError, OSError, ValueError, KeyError, TypeError) as error:
                message = f"cached {kind.name} {key} is damaged and made again: {error}"
                warnings.warn(message, stacklevel=2)
        with ledger.noting() as data:
            model = build()
            history = plain(train(model))
        temp_path = folder / f"{key}.safetensors.part"
        try:
            sha256 = loading.save(model, temp_path)
            temp_path.replace(weights)
            meta = {"recipe": ledger.described(one), "sha256": sha256, "history": history}
            write_json(note, meta | {"data": plain(data)})
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temp_path.unlink(missing_ok=True)
            warnings.warn(f"{kind.name} {key} is not kept: {error}", stacklevel=2)
        return model.eval(), history
