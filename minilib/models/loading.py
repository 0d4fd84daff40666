"""What all models share: the device, weights in safetensors files, quiet libraries."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import ledger
from .names import ModelError, Place


def default_device() -> torch.device:
    """Return the device that MINILIB_DEVICE names, else the GPU where there is one, else the CPU.

    Raises:
        ModelError: a device that is not there, or on which this library does not compute: Apple's
            GPU ("mps") has no float64 and rounds so differently that no number here would hold.
    """
    named = os.environ.get("MINILIB_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(named)
    except RuntimeError:
        device = None
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    usable = ["cpu", *(["cuda"] if there else []), *(f"cuda:{n}" for n in range(there))]
    if device is None or str(device) not in usable:
        raise ModelError(f"MINILIB_DEVICE is {named!r}; accepted here: {', '.join(usable)}")
    return device


def verify(path: Path, sha256: str) -> None:
    """Raise ModelError unless the file at ``path`` has this digest."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ModelError(
            f"{path.name} has sha256 {digest[:12]}…, expected {sha256[:12]}…; not loaded"
        )


def from_pretrained(kind: type, name: str, place: Place, **more):
    """Load a model or tokenizer by a class of transformers; no code of a repository runs.

    What was loaded is noted for the trial that is being computed: a folder's digest (in its name),
    or the commit on the Hub.
    """
    loaded = kind.from_pretrained(
        place.location, revision=place.revision or "main", trust_remote_code=False, **more
    )
    commit = getattr(getattr(loaded, "config", None), "_commit_hash", None)
    if place.folder is None and commit:
        info = {"name": f"model {name}", "split": "weights", "source": "hub", "revision": commit}
        ledger.note(info)
    return loaded


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's weights to the CPU."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def save(model: nn.Module, path: Path) -> str:
    """Write a model's weights as safetensors and return the file's sha256."""
    save_file({k: v.contiguous() for k, v in state(model).items()}, path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(model: nn.Module, path: Path, sha256: str) -> nn.Module:
    """Read weights that ``save`` wrote into ``model``, after verifying their checksum."""
    verify(path, sha256)
    model.load_state_dict(load_file(path))
    return model


@contextmanager
def in_eval(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode; afterwards each of their modules is in the mode it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode, without gradients towards their weights; both are put back."""
    flags = {p: p.requires_grad for model in models for p in model.parameters()}
    with in_eval(*models):
        for model in models:
            model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading reports and progress bars; errors still get through."""
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
