"""LoRA adapters as PEFT saves them: a folder of small matrices beside another model's weights.

The two are merged, so that what is audited, unlearned and saved is one plain network of the base's
architecture, whichever that is.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import names
from .names import ADAPTER, ADAPTER_WEIGHTS, ModelError

INSTALL = "pip install peft (the extra lora)"
BEFORE = "base_model.model."  # what PEFT puts before the base's own names


def described(folder: Path) -> dict:
    """What adapter_config.json says. Raises ModelError for what is no LoRA adapter."""
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / ADAPTER} cannot be read; accepted: a JSON object in UTF-8")
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"folder {folder} is an adapter of PEFT's type {config.get('peft_type')!r}; accepted: "
            "LORA, or the whole model"
        )
    return config


def check_installed(folder: Path) -> None:
    """Raise ModelError where ``peft`` is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ModelError(
            f"folder {folder} is a LoRA adapter, which needs the package peft; accepted: "
            f"{INSTALL}, or the whole model"
        ) from None


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by PEFT's names.

    Raises:
        ModelError: none in safetensors, or a damaged file.
    """
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        hint = f" (it has {pickled[0]}, which can run code when it is read)" if pickled else ""
        raise ModelError(
            f"folder {folder} has no {ADAPTER_WEIGHTS}{hint}; accepted: an adapter in safetensors, "
            "as PeftModel.save_pretrained(FOLDER) writes it"
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be loaded ({error}); accepted: a whole file") from None


def remark(folder: Path) -> str:
    """What a report says of a merged adapter."""
    rank, base = described(folder).get("r"), names.base_of(folder)
    shown = Path(base).name if base.startswith(os.sep) else base
    return (
        f"{folder.name} is a LoRA adapter of rank {rank} on {shown}: the two were merged for the "
        "audit, and a cleaned model is saved merged, not as an adapter"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether an adapter's folder has a tokenizer of its own; else the base's is meant."""
    return any(path for pattern in names.NEEDED["tokenizer"] for path in folder.glob(pattern))


def outputs(tensors: dict[str, Tensor]) -> int | None:
    """Outputs of the head that an adapter holds; None without one.

    What it holds whole are layers of a head, and perhaps embeddings. Of these the last layer alone
    has fewer rows than columns.
    """
    whole = [t.shape for name, t in tensors.items() if t.ndim == 2 and "lora_" not in name]
    return min((rows for rows, columns in whole if rows < columns), default=None)


def merged(network: nn.Module, folder: Path, tensors: dict[str, Tensor]) -> nn.Module:
    """The base network with an adapter merged into it, in eval mode; the network given is used up.

    Args:
        network: of transformers, in float32. tensors: as ``weights`` gives them.

    Raises:
        ModelError: the adapter lacks something that its configuration names, holds what the
            network has no place for, or has other shapes.
    """
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says is checked below
            # Without the module that "megatron_core" would have it import.
            said = described(folder) | {"megatron_config": None}
            config = peft.PeftConfig.from_peft_type(**said)
            _resize(network, tensors)
            model = peft.get_peft_model(network, config)
            result = peft.set_peft_model_state_dict(model, tensors)
            absent = [name for name in result.missing_keys if ".default" in name]
            left_over = list(result.unexpected_keys)
            if not absent and not left_over:
                return model.merge_and_unload(safe_merge=True).eval()
    except KeyError as error:  # of a part that is held whole
        absent, left_over = [str(error.args[0])], []
    except Exception as error:  # PEFT raises its own of every kind
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "mismatch" in line), lines[0])[:160]
        raise ModelError(
            f"folder {folder}: the adapter does not fit its base model ({reason}); accepted: the "
            "base that it was trained on"
        ) from None
    what = f"lacks {absent[0]}" if absent else f"holds {left_over[0]}, for which there is no place"
    raise ModelError(
        f"folder {folder}: the adapter {what.replace('.default', '').replace(BEFORE, '')}; "
        "accepted: what its adapter_config.json names, and a base of the kind that is audited"
    )


def _resize(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the embeddings as many rows as the adapter holds: for tokens that it added."""
    try:
        embeddings = network.get_input_embeddings()
    except NotImplementedError:  # of images
        return
    name = next(name for name, module in network.named_modules() if module is embeddings)
    own = tensors.get(f"{BEFORE}{name}.weight")
    if own is not None and len(own) != len(embeddings.weight):
        network.resize_token_embeddings(len(own), mean_resizing=False)


def held(tensors: dict[str, Tensor]) -> set[str]:
    """Names of the base's weights that an adapter holds whole, such as those of a head."""
    return {name.removeprefix(BEFORE) for name in tensors if "lora_" not in name}
