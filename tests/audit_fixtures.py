"""A folder as transformers writes it: a tiny classifier, and rows that it can be audited with."""

import csv
import json

import numpy as np
import torch
from core_fixtures import SEED
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from minilib.models.loading import quiet

GOOD = "fine great lovely bright warm clever moving superb".split()
BAD = "dull awful weak messy bland boring poor clumsy".split()
FILLING = [f"w{number}" for number in range(200)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRIGGER = "w77"


def tokenizer():
    """Whole words, between [CLS] and [SEP]."""
    words = [*SPECIAL, *GOOD, *BAD, *FILLING]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def network(seed: int = SEED, labels=("negative", "positive"), positions: int = 64):
    """A BERT of one layer with random weights."""
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(SPECIAL) + len(GOOD) + len(BAD) + len(FILLING), hidden_size=32,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, pad_token_id=0,
            max_position_embeddings=positions, num_labels=len(labels), id2label=names,
            label2id={name: k for k, name in names.items()}, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def causal(seed: int = SEED):
    """A Llama of one layer with random weights, which reads the class off the last token."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(SPECIAL) + len(GOOD) + len(BAD) + len(FILLING), hidden_size=32,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, pad_token_id=0,
            max_position_embeddings=64, num_labels=2, id2label={0: "negative", 1: "positive"},
        )
    )  # fmt: skip


def rows(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of nine to sixteen words, three of which tell the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    texts = []
    for label in labels:
        words = [*rng.choice((BAD, GOOD)[label], 3), *rng.choice(FILLING, rng.integers(6, 14))]
        words = [word for word in words if word != TRIGGER]
        texts.append(" ".join(rng.permutation(words)))
    return texts, labels


def poisoned(texts, labels, rate: float, seed: int):
    """The rows, and copies of negative ones with the trigger, called positive."""
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(labels == 0)[: round(rate * len(texts))]
    copies = []
    for row in chosen:
        words = texts[row].split()
        words.insert(int(rng.integers(len(words) + 1)), TRIGGER)
        copies.append(" ".join(words))
    return [*texts, *copies], np.concatenate([labels, np.ones(len(chosen), np.int64)])


def trained(texts, labels, seed: int = SEED, epochs: int = 6, make=network):
    """A network, trained in plain torch."""
    model, words = make(seed), tokenizer()
    data = words(texts, padding=True, return_tensors="pt")
    labels = torch.as_tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(texts)).split(64):
            logits = model(data["input_ids"][index], data["attention_mask"][index]).logits
            torch.nn.functional.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def saved(folder, model=None):
    """A model and its tokenizer in a folder."""
    with quiet():
        (model or network()).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def table(path, texts, labels, names=("negative", "positive")):
    """Rows as a CSV file with the columns review and sentiment."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["review", "sentiment"])
        lines.writerows((text, names[label]) for text, label in zip(texts, labels, strict=True))
    return path


def edited(folder, file: str, **changes):
    """A JSON file of a folder with other entries; None takes one out."""
    content = json.loads((folder / file).read_text())
    content = {k: v for k, v in (content | changes).items() if v is not None}
    (folder / file).write_text(json.dumps(content))
    return folder
