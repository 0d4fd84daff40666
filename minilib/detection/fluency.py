"""How fluent a text is: the language models that ONION asks.

A fluency model is a callable: texts → (N,) float64, mean negative log-likelihood per token in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import loading, names
from ..training.text import encode, predict


class NGram:
    """An interpolated trigram model over a tokenizer's tokens, fitted on the texts at hand.

    p(w | u, v) = Σ_n weight_n · p_n, with p_n the relative frequency of w after its last n - 1
    tokens, and 1/V for n = 0, so that no token is impossible. A context that was never seen gives
    its weight to the next shorter one.

    Args:
        texts: what to fit on. weights: of the orders 3, 2, 1 and 0; they sum to 1.
    """

    def __init__(self, tokenizer, texts: Sequence[str], weights=(0.3, 0.4, 0.25, 0.05)):
        if not len(texts):
            raise ValueError("no texts to fit a language model on; accepted: one or more")
        self.tokenizer, self.weights, self.size = tokenizer, weights, len(tokenizer)
        grams = self._grams(self._tokens(texts)[0])
        self.counts = [np.unique(gram, return_counts=True) for gram in grams]

    def _tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(N, T + 2) int64 with two start marks, then tokens, then -1; and lengths (N,)."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), 2 + max(lengths.max(), 1)), -1, np.int64)
        ids[:, :2] = self.size  # a start mark of its own
        ids[:, 2:][np.arange(ids.shape[1] - 2) < lengths[:, None]] = np.concatenate(
            [np.asarray(row, np.int64) for row in rows]
        )
        return ids, lengths

    def _grams(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each token's 3-, 2- and 1-gram and its 2- and 1-token context as one integer each."""
        base = self.size + 1
        mask = ids[:, 2:] >= 0
        u, v, w = (ids[:, i : ids.shape[1] - 2 + i][mask] for i in range(3))
        return (u * base + v) * base + w, v * base + w, w, u * base + v, v

    def _count(self, number: int, gram: np.ndarray) -> np.ndarray:
        grams, counts = self.counts[number]
        index = np.searchsorted(grams, gram).clip(max=len(grams) - 1)
        return np.where(grams[index] == gram, counts[index], 0)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        ids, lengths = self._tokens(texts)
        count = [self._count(i, gram) for i, gram in enumerate(self._grams(ids))]
        total = self.counts[2][1].sum()
        p = self._mix(count, total)
        row = np.repeat(np.arange(len(ids)), lengths)
        return np.bincount(row, -np.log(p), len(ids)) / lengths.clip(1)

    def _mix(self, count: Sequence[np.ndarray], total: int) -> np.ndarray:
        trigram, bigram, unigram, uniform = self.weights
        # An unseen context hands its weight down.
        bigram = bigram + trigram * (count[3] == 0)
        unigram = unigram + bigram * (count[4] == 0)
        return (
            trigram * count[0] / count[3].clip(1)
            + np.where(count[4] > 0, bigram * count[1] / count[4].clip(1), 0)
            + unigram * count[2] / total
            + uniform / self.size
        )


class CausalFluency(nn.Module):
    """A causal language model from the Hub or a folder, e.g. ``openai-community/gpt2``.

    ONION's own choice is GPT-2. The released code also counts the padding into the likelihood;
    here it does not count.
    """

    def __init__(self, name: str = "openai-community/gpt2", device: torch.device | str = "cpu"):
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = names.place_of(name, {})
        self.tokenizer = loading.from_pretrained(AutoTokenizer, name, place)
        self.tokenizer.padding_side = "right"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        network = loading.from_pretrained(AutoModelForCausalLM, name, place, use_safetensors=True)
        self.network = network.to(device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean negative log-likelihood (B, 1) of every token but the first."""
        logits = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten(),
                               reduction="none")  # fmt: skip
        mask = attention_mask[:, 1:]
        return (loss.view(mask.shape) * mask).sum(1, keepdim=True) / mask.sum(1, True).clamp(1)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """The fluency model's call; ``forward`` is taken."""
        device = next(self.parameters()).device
        texts = [text or " " for text in texts]
        data = encode(texts, np.zeros(len(texts), np.int64), self.tokenizer, device=device)
        return predict(self, data)[:, 0].double().numpy()
