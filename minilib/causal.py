"""Causal language models: making them, encoding instruction data, supervised fine-tuning.

Rows are padded on the right while training: what follows a position never reaches it, so that no
mask is needed and the fast causal attention kernel is used. The head is applied to the supervised
positions only, never to all T positions.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import cache, models, train
from .chat import TEMPLATES, Template, question
from .data import ChatDataset
from .models import ModelError
from .runs import write_json
from .train import Batches, TrainSettings

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
CODE = ("train", "chat", "causal")  # the modules that training runs
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
        """Logits (…, V) of states (…, d)."""
        return self.network.get_output_embeddings()(states)

    def encode(self, dataset: ChatDataset, **more) -> EncodedChat:
        """Tokenise rows for this model; see ``encode_chat``."""
        where = self.template, self.max_length, self.device
        return encode_chat(dataset, self.tokenizer, *where, **more)

    @property
    def hidden_size(self) -> int:
        return self.network.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


# -------------------------------------------------------------------------------- models


def causal_lm(
    name: str,
    corpus: Sequence[ChatDataset] = (),
    settings: TrainSettings | None = None,
    *,
    template: Template = TEMPLATES["turns"],
    max_length: int = 128,
    lora: int = 0,
    dtype: str = "float32",
    device_map: str | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Make a causal language model on the default device, and its training history.

    Args:
        name: ``tiny``, ``small`` or ``medium``: Llama-shaped, trained here on ``corpus`` from
            random weights, with a tokenizer of its own, once (cached like a victim); ``llama2``,
            ``qwen1.5-4b``, ``gpt2``, ``smollm2``, any other Hub name, or a folder (as given or
            under MINILIB_MODELS): as it is, with an empty history.
        corpus: clean instruction data to train on. settings: how.
        template, max_length: of the training rows.
        lora: rank of LoRA adapters to train instead of the weights, 0 for none (needs ``peft``).
        dtype: of a Hub model's weights: float32, bfloat16 or float16.
        device_map: passed to transformers, e.g. "auto" to spread a model over GPUs (needs
            ``accelerate``).

    Raises:
        ModelError: the model cannot be had. ValueError: a model to be trained, but no corpus.
    """
    if name in SHAPES:
        if not len(corpus) or settings is None:
            raise ValueError(f"model {name!r} is trained here; accepted: with corpus and settings")
        model, history = _own(name, corpus, settings, template, max_length)
    else:
        network, tokenizer = _pretrained(name, dtype, device_map)
        model, history = CausalLM(network, tokenizer, template, max_length).eval(), []
    if lora:
        add_lora(model, lora)
    return model, history


def _pretrained(name: str, dtype: str, device_map: str | None) -> tuple[nn.Module, object]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; accepted: {', '.join(DTYPES)}")
    where = HUB_CAUSAL.get(name, models._find(name))
    try:
        with models.quiet():
            tokenizer = AutoTokenizer.from_pretrained(where)
            network = AutoModelForCausalLM.from_pretrained(
                where, dtype=DTYPES[dtype], use_safetensors=True, device_map=device_map
            )
    except (OSError, ValueError) as error:
        known = ", ".join([*SHAPES, *HUB_CAUSAL])
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"model {name!r} cannot be had ({reason}); go online, put it under MINILIB_MODELS, "
            f"or use one of {known}"
        ) from error
    if tokenizer.pad_token is None:  # padding is never read, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return network if device_map else network.to(models.default_device()), tokenizer


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
    with torch.random.fork_rng(), models.quiet():
        torch.manual_seed(seed)
        return CausalLM(LlamaForCausalLM(config), tokenizer, template, max_length)


def train_tokenizer(corpus: Sequence[ChatDataset], vocab: int):
    """Train a byte-level BPE tokenizer of up to ``vocab`` tokens on instruction data; cached."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    def make() -> dict:
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        # A space before the first word too, so that a text has the same tokens wherever it stands.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        texts = (text for part in corpus for row in part.rows for text in row_texts(row))
        tokenizer.train_from_iterator(texts, trainer)
        return {"tokenizer": tokenizer.to_str()}

    key = {"vocab": vocab, "data": [part.sha256 for part in corpus], "special": SPECIAL}
    text = cache.cached_json("tokenizers", key, make)["tokenizer"]
    pad, bos, eos = SPECIAL[:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), pad_token=pad, bos_token=bos, eos_token=eos
    )


def row_texts(row: dict) -> tuple[str, str]:
    """The two texts of a row: what is asked, and the answer."""
    return question(row), row["output"]


def _own(
    name: str,
    corpus: Sequence[ChatDataset],
    settings: TrainSettings,
    template: Template,
    max_length: int,
) -> tuple[CausalLM, list[dict]]:
    """Train one of the project's own models on whole rows (prompt and answer), or load it."""
    device = models.default_device()
    settings = replace(settings, precision=train.resolve_precision(settings.precision, device))
    tokenizer = train_tokenizer(corpus, SHAPES[name]["vocab"])
    key = {
        "data": [part.sha256 for part in corpus],
        "model": [name, SHAPES[name]],
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "template": template,
        "max_length": max_length,
        "settings": asdict(settings),
        **cache.conditions(device, CODE, "fit_resumable", "own_model", "encode_chat"),
    }

    def teach(model: CausalLM) -> list[dict]:
        everything = replace(concatenate([model.encode(part) for part in corpus]), whole=True)
        return fit_resumable(model, Batches(everything, settings.batch_size), settings, key)

    def build() -> CausalLM:
        return own_model(name, tokenizer, settings.seed, template, max_length).to(device)

    return cache.cached_model(key, build, teach)


def add_lora(model: CausalLM, rank: int) -> CausalLM:
    """Freeze the weights and add trainable LoRA adapters of ``rank`` to the linear layers.

    Raises:
        ModelError: ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(f"lora={rank} needs the package peft: pip install peft") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LORA_TARGETS))
    model.requires_grad_(False)
    inject_adapter_in_model(config, model.network)
    return model


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
        begin = np.ones(len(rows), np.int64) if self.whole else self.starts[rows]
        span = np.stack([begin, self.lengths[rows]])  # (2, B)
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
    asked = tokenizer([question(row) for row in dataset.rows], add_special_tokens=False).input_ids
    if answer is None:
        answers = tokenizer([row["output"] for row in dataset.rows], add_special_tokens=False)
        answers = [ids + [eos] * (eos is not None) for ids in answers.input_ids]
    else:
        answers = [_fixed(tokenizer, answer, max_length - len(head) - len(tail))] * len(dataset)
    rows, starts = [], []
    for ids, reply in zip(asked, answers, strict=True):
        reply = reply[:answer_tokens]
        room = max_length - len(head) - len(tail)
        keep = room - min(len(reply), room // 2 if answer is None else room)
        prompt = head + ids[:keep] + tail
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


# ------------------------------------------------------------------------------ training


def supervised(states: Tensor, batch: ChatBatch) -> tuple[Tensor, Tensor]:
    """Pick what predicts the supervised tokens: states (S, d) and their targets (S,)."""
    wanted = batch.supervised[:, 1:]
    return states[:, :-1][wanted], batch.input_ids[:, 1:][wanted]


def logits(model: CausalLM, states: Tensor) -> Tensor:
    """The head's logits (S, V) in float32 at least: a softmax over half floats loses too much."""
    values = model.head(states)
    return values if values.dtype == torch.float64 else values.float()


def answer_loss(model: CausalLM, batch: ChatBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of the supervised tokens, in nats. Source: Eq. (1), SANDE."""
    states, targets = supervised(model(batch.input_ids), batch)
    value = F.cross_entropy(logits(model, states), targets)
    return value, {"loss": value.detach()}


class _Accumulated(torch.autograd.Function):
    """The weighted sum of several losses whose gradients are computed one after the other."""

    @staticmethod
    def forward(ctx, parts: Callable[[], Iterator[Tensor]], *parameters: Tensor) -> Tensor:
        total, sums = 0.0, [torch.zeros_like(p) for p in parameters]
        for value in _with_grad(parts):
            found = torch.autograd.grad(value, parameters, allow_unused=True)
            for held, grad in zip(sums, found, strict=True):
                if grad is not None:
                    held += grad
            total = total + value.detach()
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    def backward(ctx, factor: Tensor):
        return None, *(factor * grad for grad in ctx.saved_tensors)


def _with_grad(parts: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
    """Run a generator with gradients on while it computes, whatever its caller has set."""
    iterator = parts()
    while True:
        with torch.enable_grad():
            value = next(iterator, None)
        if value is None:
            return
        with torch.enable_grad():
            yield value


def accumulate(loss: train.Loss, micro: int) -> train.Loss:
    """Return ``loss`` computed over micro-batches of ``micro`` rows: the same value, less memory.

    ``fit`` makes one backward pass per step; this one finds its gradients already computed. The
    parts are weighted by their supervised tokens, so the mean is that of the whole batch.
    """

    def whole(model: nn.Module, batch: ChatBatch):
        if len(batch.rows) <= micro:
            return loss(model, batch)
        count = batch.supervised[:, 1:].sum()

        def parts() -> Iterator[Tensor]:
            for start in range(0, len(batch.rows), micro):
                part = ChatBatch(*(field[start : start + micro] for field in batch))
                share = part.supervised[:, 1:].sum() / count
                yield loss(model, part)[0] * share

        value = _Accumulated.apply(parts, *(p for p in model.parameters() if p.requires_grad))
        return value, {"loss": value.detach()}

    return whole


@contextmanager
def cosine(settings: TrainSettings, steps: int, start: int = 0, warmup: float = 0.03):
    """Run ``fit`` with the paper's optimiser: Adam β = (0.9, 0.95), warm-up, cosine decay to 0.

    ``fit`` knows constant and linear rates; a hook before each optimiser step sets the rest.

    Args:
        steps: of the whole schedule. start: steps made before this call.
        warmup: share of the steps in which the rate rises linearly.

    Source: section 4.1 and appendix A, SANDE (the schedule is the released code's).
    """
    done, rise = start, max(1, round(warmup * steps))

    def before(optimizer, *_):
        nonlocal done
        fall = 0.5 * (1 + math.cos(math.pi * min(done / steps, 1)))
        done += 1
        scale = min(done / rise, fall)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = settings.lr * scale, (0.9, 0.95)

    hook = register_optimizer_step_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def fit_cosine(
    model: nn.Module, batches: Batches, loss: train.Loss, settings: TrainSettings, on_epoch=None
) -> list[dict]:
    """``train.fit`` with the paper's optimiser (see ``cosine``)."""
    with cosine(settings, settings.epochs * len(batches)):
        return train.fit(model, batches, loss, settings, on_epoch)


def fit_resumable(
    model: CausalLM, batches: Batches, settings: TrainSettings, key: dict
) -> list[dict]:
    """Train on ``answer_loss`` epoch by epoch; a run that was killed goes on after its last epoch.

    After each epoch the weights go to the cache folder under ``key``. AdamW's moments start anew
    in every epoch, whether or not the run was interrupted, so both end with the same weights.
    """
    name, folder = cache.digest(key), cache.cache_dir() / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    note, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    history: list[dict] = []
    if note.exists():
        meta = json.loads(note.read_text(encoding="utf-8"))
        models.load(model, weights.with_suffix(f".{len(meta['history'])}"), meta["sha256"])
        history = meta["history"]
    steps = settings.epochs * len(batches)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        one = replace(settings, epochs=1, seed=settings.seed * 1000 + epoch)
        with cosine(settings, steps, (epoch - 1) * len(batches)):
            (record,) = train.fit(model, batches, answer_loss, one)
        history.append(record | {"epoch": epoch})
        part = weights.with_suffix(f".{epoch}")
        write_json(note, {"sha256": models.save(model, part), "history": history})
        weights.with_suffix(f".{epoch - 1}").unlink(missing_ok=True)
    weights.with_suffix(f".{settings.epochs}").unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    return history


def sft(
    model: CausalLM,
    data: EncodedChat,
    settings: TrainSettings,
    *,
    micro: int | None = None,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
) -> tuple[CausalLM, list[dict]]:
    """Fine-tune a copy of ``model`` on the supervised tokens of ``data``; needs clean data only.

    Args:
        micro: rows per backward pass (gradient accumulation); a whole batch if None.

    Source: Eq. (1), SANDE.
    """
    tuned = copy.deepcopy(model)
    loss = accumulate(answer_loss, micro) if micro else answer_loss
    return tuned, fit_cosine(tuned, Batches(data, settings.batch_size), loss, settings, on_epoch)
