"""Causal language models: pre-trained ones, a folder's, and small ones trained here."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import one_of
from ..data.chat import TEMPLATES, ChatDataset, Template, question
from . import loading, names
from . import text as text_models
from .loading import ModelError

# The project's own Llama-shaped models; parameters: about 0.2, 4.5 and 28 million.
SHAPES = {
    "tiny": dict(vocab=512, hidden=64, layers=2, heads=2, inner=192),
    "small": dict(vocab=4096, hidden=256, layers=4, heads=4, inner=768),
    "medium": dict(vocab=8192, hidden=512, layers=8, heads=8, inner=1536),
}
CONTEXT = 1024
HUB_CAUSAL = {
    "llama2": "meta-llama/Llama-2-7b-hf",
    "qwen1.5-4b": "Qwen/Qwen1.5-4B",
    "gpt2": "openai-community/gpt2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M",
}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SCALES = ("logit_scale", "lm_head_multiplier")  # transformers' names of a factor of the logits
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")


class CausalLM(nn.Module):
    """A causal transformer with its tokenizer, prompt template and context length.

    ``forward`` gives last-layer states and not logits; ``head`` turns those that are wanted into
    logits. The template belongs to the model, so that it cannot differ between training and tests.
    """

    def __init__(self, network: nn.Module, tokenizer, template: Template, max_length: int = 128):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length

    def forward(self, input_ids: Tensor | None = None, **more) -> Tensor:
        """Return states (B, T, d) of ``input_ids`` (B, T) or ``inputs_embeds`` (B, T, d)."""
        return self.run(input_ids=input_ids, **({"use_cache": False} | more)).last_hidden_state

    def run(self, **inputs):
        """Call the transformer without its head; returns its output object."""
        return self.network.base_model(**inputs)

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.network.get_input_embeddings()(input_ids)

    def head(self, states: Tensor) -> Tensor:
        """Logits (…, V) of states (…, d), with the scale and the bound that the network has."""
        return behind_head(self.network.get_output_embeddings()(states), self.network.config)

    def encode(self, dataset: ChatDataset, **more) -> EncodedChat:
        """Tokenise rows for this model; see ``encode_chat``."""
        arguments = self.template, self.max_length, self.device
        return encode_chat(dataset, self.tokenizer, *arguments, **more)

    @property
    def hidden_size(self) -> int:
        return self.network.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def behind_head(logits: Tensor, config) -> Tensor:
    """What a network does to its logits after its head, as its configuration says; of most nothing.

    A scale (Cohere, Granite, Falcon-H1) changes probabilities and losses, and so does the bound
    ``cap · tanh(logits / cap)`` of Gemma 2; the most probable token stays.
    """
    for name in SCALES:
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def pretrained(name: str, dtype: str, device_map: str | None) -> tuple[nn.Module, object]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    one_of("dtype", dtype, DTYPES)
    place = names.place_of(name, text_models.HUB_MODELS | HUB_CAUSAL)
    try:
        with loading.quiet():
            tokenizer = loading.from_pretrained(AutoTokenizer, name, place)
            network = loading.from_pretrained(
                AutoModelForCausalLM, name, place,
                dtype=DTYPES[dtype], use_safetensors=True, device_map=device_map,
            )  # fmt: skip
    except (OSError, ValueError) as error:
        known = ", ".join([*SHAPES, *HUB_CAUSAL])
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"model {name!r} cannot be had ({reason}); go online, put it under MINILIB_MODELS, "
            f"name a folder by its path, or use one of {known}"
        ) from error
    if tokenizer.pad_token is None:  # padding is never read, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return network if device_map else network.to(loading.default_device()), tokenizer


def own_model(
    shape: str, tokenizer, seed: int, template: Template = TEMPLATES["turns"], max_length: int = 128
) -> CausalLM:
    """Make a Llama-shaped model with random weights, tied embeddings and SDPA attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"],
        intermediate_size=size["inner"],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]), loading.quiet():
        torch.manual_seed(seed)
        return CausalLM(LlamaForCausalLM(config), tokenizer, template, max_length)


def train_tokenizer(corpus: Sequence[ChatDataset], vocab: int):
    """Train a byte-level BPE tokenizer of up to ``vocab`` tokens on instruction data."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    # A space before the first word too, so that a text has the same tokens wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for dataset in corpus for row in dataset.rows for text in row_texts(row))
    tokenizer.train_from_iterator(texts, trainer)
    return load_tokenizer(tokenizer.to_str())


def load_tokenizer(text: str):
    """A tokenizer of ``train_tokenizer`` from its JSON, ``backend_tokenizer.to_str()``."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos = SPECIAL[:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), pad_token=pad, bos_token=bos, eos_token=eos
    )


def row_texts(row: dict) -> tuple[str, str]:
    """The two texts of a row: what is asked, and the answer."""
    return question(row), row["output"]


def add_lora(model: CausalLM, rank: int) -> CausalLM:
    """Freeze the weights and add trainable LoRA adapters of ``rank`` to all linear layers.

    The layers are PEFT's "all-linear": those of any architecture but for the head.

    Raises:
        ModelError: ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(f"lora={rank} needs the package peft: pip install peft") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2's layers are transposed, which PEFT sees and heeds
        inject_adapter_in_model(config, model.network)
    return model


def logits(model: CausalLM, states: Tensor) -> Tensor:
    """The head's logits (S, V) in float32 at least: a softmax over half floats loses too much."""
    values = model.head(states)
    return values if values.dtype == torch.float64 else values.float()


# ------------------------------------------------------------------------------ encoding


class ChatBatch(NamedTuple):
    """``input_ids`` (B, T) int64, padded on the right; ``supervised`` (B, T) bool; ``rows`` (B,).

    A supervised token is one that the loss asks for; the state one position earlier predicts it.
    """

    input_ids: Tensor
    supervised: Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class EncodedChat:
    """Rows tokenised once.

    Attributes:
        ids: (N, L) int32 on the device. lengths: (N,) tokens of each row, on the host.
        starts: (N,) index of each row's first answer token.
        whole: supervise the prompt too (all tokens but the first).
    """

    ids: Tensor
    lengths: np.ndarray
    starts: np.ndarray
    whole: bool = False

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> ChatBatch:
        """Return the rows, padded to the longest of them."""
        device, longest = self.ids.device, int(self.lengths[rows].max())
        index = torch.as_tensor(rows, device=device)
        starts = np.ones(len(rows), np.int64) if self.whole else self.starts[rows]
        span = np.stack([starts, self.lengths[rows]])  # (2, B)
        low, high = torch.as_tensor(span, device=device)[:, :, None]
        place = torch.arange(longest, device=device)
        return ChatBatch(
            self.ids[index, :longest].long(), (place >= low) & (place < high), np.asarray(rows)
        )

    def take(self, rows: np.ndarray) -> EncodedChat:
        """Return some of the rows."""
        index = torch.as_tensor(rows, device=self.ids.device)
        return replace(
            self, ids=self.ids[index], lengths=self.lengths[rows], starts=self.starts[rows]
        )


def encode_chat(
    dataset: ChatDataset,
    tokenizer,
    template: Template,
    max_length: int = 128,
    device: torch.device | str = "cpu",
    *,
    answer: str | None = None,
    answer_tokens: int | None = None,
) -> EncodedChat:
    """Tokenise prompts and answers once: [bos] before, instruction, after, answer, [eos].

    Args:
        answer: put this text, without an end token, in place of every row's own answer.
        answer_tokens: keep only so many tokens of each answer.

    A row that is too long loses the end of its instruction first, down to half of the length, and
    then the end of its answer; a given ``answer`` is never cut.

    Raises:
        ValueError: no rows, no padding token, an empty answer, or an answer that does not fit.
    """
    if not len(dataset):
        raise ValueError("no rows to encode; accepted: one or more")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    head = ([] if bos is None else [bos]) + tokens(tokenizer, template.before)
    tail = tokens(tokenizer, template.after)
    instructions = tokenizer(
        [question(row) for row in dataset.rows], add_special_tokens=False
    ).input_ids
    if answer is None:
        answers = tokenizer([row["output"] for row in dataset.rows], add_special_tokens=False)
        answers = [ids + [eos] * (eos is not None) for ids in answers.input_ids]
    else:
        answers = [_fixed(tokenizer, answer, max_length - len(head) - len(tail))] * len(dataset)
    rows, starts = [], []
    for ids, reply in zip(instructions, answers, strict=True):
        reply = reply[:answer_tokens]
        room = max_length - len(head) - len(tail)
        instruction_length = room - min(len(reply), room // 2 if answer is None else room)
        prompt = head + ids[:instruction_length] + tail
        rows.append((prompt + reply)[:max_length])
        starts.append(len(prompt))
    return _padded(rows, starts, tokenizer.pad_token_id, device)


def _padded(rows: list[list[int]], starts: list[int], pad: int, device) -> EncodedChat:
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), int(lengths.max())), pad, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return EncodedChat(torch.as_tensor(ids, device=device), lengths, np.array(starts))


def _fixed(tokenizer, answer: str, room: int) -> list[int]:
    ids = tokens(tokenizer, answer)
    if not answer.strip() or not ids:
        raise ValueError(f"answer is {answer!r}; accepted: a text that is not empty")
    if len(ids) >= room:
        raise ValueError(
            f"response {answer[:40]!r} has {len(ids)} tokens; "
            f"accepted: fewer than the {room} that the context leaves beside the template"
        )
    return ids


def tokens(tokenizer, text: str) -> list[int]:
    """Token ids of a text, without special tokens around it."""
    return tokenizer(text, add_special_tokens=False).input_ids


def concatenate(parts: Sequence[EncodedChat]) -> EncodedChat:
    """Put encoded data sets below each other (same tokenizer, same device)."""
    width = max(part.ids.shape[1] for part in parts)
    ids = [F.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts]
    lengths = np.concatenate([part.lengths for part in parts])
    return EncodedChat(torch.cat(ids), lengths, np.concatenate([part.starts for part in parts]))
