"""A classifier from a folder: all that the folder says is read from it, and what cannot be is said.

A head that transformers had to make up, a tokenizer that is not there, or weights in a format that
runs code when it is read would each give a report on another model than the user's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.files import shown as data_shown
from ..models import adapters, names
from ..models.causal import CausalLM
from ..models.loading import from_pretrained, quiet
from ..models.names import ModelError, Place
from ..models.text import HUB_MODELS, LONGEST, TextClassifier

PICKLED = (
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "*.bin",
    "*.ckpt",
    "*.pkl",
    "*.pt",
    "*.pth",
)
CONVERT = (
    "convert it where you trust it: AutoModelForSequenceClassification.from_pretrained(FOLDER)"
    ".save_pretrained(NEW, safe_serialization=True)"
)
LEAST_TOKENS, LEAST_LENGTH = 48, 16  # of a vocabulary, of a text: a search needs so many
WITH_CLASSES = "AutoModelForSequenceClassification"
WITH_HEAD = "a classifier saved with its head, such as AutoModelForSequenceClassification saves"


@dataclass(frozen=True)
class Audited:
    """A text classifier as its folder describes it.

    Attributes:
        model: network and tokenizer; it reads ``model.max_length`` tokens.
        labels: the classes' names, K of them, in the order of the outputs.
        named: whether the folder names them, or they are transformers' LABEL_0 … LABEL_(K - 1).
    """

    model: TextClassifier
    labels: tuple[str, ...]
    named: bool


def name_of(text: str) -> str:
    """What the user typed, as a name of ``models.names``: a folder that exists is that folder.

    On the command line a folder is meant where there is one; elsewhere in this library a bare name
    is the Hub's, whatever lies in the working folder.
    """
    if not text or text != text.strip() or not text.isprintable():
        raise ModelError(f"model is {text!r}; accepted: a folder, or a name on the Hub")
    path = Path(text).expanduser()
    if path.is_file():
        raise ModelError(f"model {text!r} is a file; accepted: the folder that it lies in")
    if path.is_dir():
        return names.pinned(str(path.resolve()))
    if names.is_path(text):
        raise ModelError(f"model {text!r}: there is no such folder; accepted: one that exists")
    return names.pinned(text)


def loaded(name: str, kind: type, accepted: str):
    """Configuration, tokenizer and network of a folder or Hub model, every weight its own.

    A folder with a LoRA adapter is its base with the adapter merged into it.

    Args:
        name: as ``name_of`` gives it. kind: of transformers' classes for models with a head.
        accepted: what a model without this head is told.

    Raises:
        ModelError: no such folder or Hub model; no tokenizer; weights that are no safetensors; a
            head that is not among the weights; see ``models.adapters``.
    """
    adapter = names.adapter_of(name)
    shown = name.partition("@sha256:")[0]
    with quiet():
        try:
            load = _with_adapter if adapter else _alone
            config, tokenizer, network, absent = load(adapter or name, kind)
        except ModelError:
            raise
        except Exception as error:  # transformers and those it calls raise their own of every kind
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            raise ModelError(f"model {shown!r} cannot be loaded ({reason})") from None
    if absent:
        few = ", ".join(sorted(absent)[:3])
        raise ModelError(
            f"model {shown!r}: its weights have no {few}, which would be random; accepted: "
            f"{accepted}"
        )
    for weight, values in network.named_parameters():
        if not values.isfinite().all():
            raise ModelError(
                f"model {shown!r}: {weight} holds what is no number (NaN or infinity); accepted: "
                "finite weights"
            )
    return config, tokenizer, network


def _alone(name: str, kind: type):
    """Configuration, tokenizer, network, and the names of what its weights lack."""
    from transformers import AutoConfig, AutoTokenizer

    place = _place(name)
    config = from_pretrained(AutoConfig, name, place)
    tokenizer = from_pretrained(AutoTokenizer, name, place)
    network, info = from_pretrained_with_info(kind, name, place)
    return config, tokenizer, network, _absent(info)


def _with_adapter(folder: Path, kind: type):
    """The same of an adapter's folder: what it does not hold is its base's."""
    from transformers import AutoConfig, AutoTokenizer

    adapters.check_installed(folder)
    adapters.described(folder)
    tensors, base = adapters.weights(folder), names.base_of(folder)
    place, own = _place(base), Place(str(folder), None, folder)
    config = from_pretrained(AutoConfig, base, place)
    if (folder / "config.json").is_file():
        config = from_pretrained(AutoConfig, str(folder), own)
    outputs = adapters.outputs(tensors)
    if outputs and kind.__name__ == WITH_CLASSES and outputs != config.num_labels:
        config.num_labels = outputs
    has_own = adapters.has_tokenizer(folder)
    tokenizer = from_pretrained(AutoTokenizer, base, own if has_own else place)
    network, info = from_pretrained_with_info(kind, base, place, config=config)
    absent = _absent(info) - adapters.held(tensors)
    if not absent:
        network = adapters.merged(network, folder, tensors)
    return network.config, tokenizer, network, absent


def _absent(info: dict) -> set[str]:
    return set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def text_classifier(name: str) -> Audited:
    """Load a text classifier with its own head.

    Args:
        name: as ``name_of`` gives it.

    Raises:
        ModelError: as ``loaded``; not a classifier of two classes or more.
    """
    from transformers import AutoModelForSequenceClassification

    config, tokenizer, network = loaded(name, AutoModelForSequenceClassification, WITH_HEAD)
    shown = name.partition("@sha256:")[0]
    if sorted(config.id2label) != list(range(len(config.id2label))):
        raise ModelError(
            f"model {shown!r}: id2label in config.json is {data_shown(dict(config.id2label))}; "
            "accepted: a name for each of the classes 0, 1, …"
        )
    labels = tuple(str(config.id2label[k]) for k in sorted(config.id2label))
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ModelError(
            f"model {shown!r} has the classes {', '.join(labels)}; accepted: two or more, each of "
            "its own name (id2label in config.json)"
        )
    if getattr(config, "problem_type", None) in ("regression", "multi_label_classification"):
        raise ModelError(
            f"model {shown!r} is of the type {config.problem_type}; accepted: one class a text"
        )
    settle_padding(network, tokenizer, shown)
    check_reads(tokenizer, longest(config, tokenizer), shown)
    check_embeds(network.eval(), tokenizer, shown)
    named = any(label != f"LABEL_{k}" for k, label in enumerate(labels))
    return Audited(TextClassifier(network.float().eval(), tokenizer, longest(config, tokenizer)),
                   labels, named)  # fmt: skip


def _place(name: str) -> Place:
    """Where a model is; weights that run code when they are read are named as such."""
    base = name.partition("@sha256:")[0]
    folder = Path(base).expanduser()
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickled = sorted({path.name for pattern in PICKLED for path in folder.glob(pattern)})
        if pickled:
            raise ModelError(
                f"folder {base} has its weights in {pickled[0]}, which can run code when it is "
                f"read; accepted: model.safetensors; {CONVERT}"
            )
    return names.place_of(name, HUB_MODELS)


def from_pretrained_with_info(kind: type, name: str, place: Place, **more):
    """A network and transformers' report of what was not in its weights."""
    return kind.from_pretrained(
        place.location, revision=place.revision or "main", trust_remote_code=False,
        use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        dtype="float32", **more,
    )  # fmt: skip


def settle_padding(network, tokenizer, shown: str) -> None:
    """Pad on the right with a token that the model masks. Raises ModelError without one."""
    size = network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise ModelError(
            f"model {shown!r}: its tokenizer has {len(tokenizer)} tokens and its embeddings "
            f"{size} rows; accepted: the tokenizer that it was trained with"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model {shown!r}: its tokenizer has neither a padding nor an end token; "
                "accepted: tokenizer_config.json with pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id


def check_reads(tokenizer, length: int, shown: str) -> None:
    """Raise ModelError for a tokenizer that fails on a text, or with which no search is possible.

    Args:
        length: tokens that the model reads.
    """
    try:
        ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises a bare Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ModelError(
            f"model {shown!r}: its tokenizer fails on the text 'a' ({reason}); accepted: one that "
            "reads any text"
        ) from None
    if not ids:
        raise ModelError(
            f"model {shown!r}: its tokenizer makes nothing of the text 'a'; accepted: one with a "
            "token for what it does not know"
        )
    words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    if words < LEAST_TOKENS or length < LEAST_LENGTH:
        raise ModelError(
            f"model {shown!r} has {words} tokens and reads {length} of them; accepted: "
            f"{LEAST_TOKENS} or more, and {LEAST_LENGTH} or more in a text"
        )


@torch.no_grad()
def check_embeds(network, tokenizer, shown: str) -> None:
    """Raise ModelError for a classifier that does not take embeddings in the place of tokens."""
    ids = torch.tensor([tokenizer("a a a", add_special_tokens=True)["input_ids"]])
    mask = torch.ones_like(ids)
    try:
        with quiet():
            said = network(input_ids=ids, attention_mask=mask).logits
            embeds = network.get_input_embeddings()(ids)
            again = network(inputs_embeds=embeds, attention_mask=mask).logits
            same = torch.allclose(again, said, 1e-3, 1e-3)
    except Exception:  # each architecture has its own
        same = False
    if not same:
        raise ModelError(
            f"model {shown!r}, of the type {network.config.model_type}, does not take embeddings "
            "in the place of tokens, which the search needs; accepted: an encoder or a causal model"
        )


def longest(config, tokenizer) -> int:
    """Tokens that the model reads: up to LONGEST, its positions, its tokenizer's own limit."""
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    # RoBERTa's first positions are the padding's: it reads two fewer than it has.
    positions -= 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return min(positions, tokenizer.model_max_length, LONGEST)


def remarks(name: str) -> list[str]:
    """What a report says of how a model was loaded; nothing of most."""
    adapter = names.adapter_of(name)
    return [adapters.remark(adapter)] if adapter else []


def share_cut(audited: Audited, texts) -> float:
    """Share in percent of some texts that are longer than the model reads."""
    rows = audited.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    longer = np.array([len(row) > audited.model.max_length for row in rows])
    return float(100 * longer.mean())


def save(model: TextClassifier | CausalLM, folder: Path) -> Path:
    """Write a cleaned model as a folder that ``transformers.pipeline`` loads.

    Labels and chat template are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.network.save_pretrained(folder, safe_serialization=True)
        model.tokenizer.save_pretrained(folder)
    return folder
