"""A victim that was a language model before it was a classifier (chapter 02, "elsewhere")."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from transformers import LlamaForSequenceClassification

from .. import cache, models, train
from ..causal import CausalLM, causal_lm
from ..chat import load_chat
from ..chat import template as chat_template
from ..data import TextDataset
from ..models import TextClassifier
from ..settings import Sande
from ..train import TrainSettings


def chat_base() -> CausalLM:
    """Make the clean language model of chapter 05 at its own settings, trained there or here."""
    cfg = Sande()
    settings = TrainSettings(
        cfg.base_epochs, cfg.base_lr, cfg.batch_size, weight_decay=0.0, seed=0
    )  # as chapter 05 has them, so that one cached model serves both
    return causal_lm(
        cfg.model,
        (load_chat(cfg.dataset), load_chat(cfg.other)),
        settings,
        template=chat_template(cfg.template),
        max_length=cfg.max_length,
    )[0]


def causal_classifier(
    base: CausalLM, dataset: TextDataset, settings: TrainSettings
) -> tuple[TextClassifier, list[dict]]:
    """Fine-tune a Llama-shaped language model with a new head as a classifier; cached.

    Args:
        base: is not changed. dataset: poisoned or clean. settings: of the fine-tuning.

    Returns: the classifier, which reads its answer off the last token, and its history.
    """
    settings = replace(settings, precision=train.resolve_precision(settings.precision, base.device))
    key = {
        "base": cache.weights_digest(base),
        "data": dataset.sha256,
        "settings": asdict(settings),
        **cache.conditions(
            base.device, ("train", "models", "detection.language"), "fine_tune", "causal_classifier"
        ),
    }

    def build() -> TextClassifier:
        config = type(base.network.config).from_dict(base.network.config.to_dict())
        config.num_labels = dataset.num_classes
        with torch.random.fork_rng(), models.quiet():
            torch.manual_seed(settings.seed)  # of the head's weights
            network = LlamaForSequenceClassification(config)
        network.model.load_state_dict(base.network.model.state_dict())
        return TextClassifier(network.to(base.device), base.tokenizer)

    return cache.cached_model(
        key, build, lambda network: train.fine_tune(network, dataset, settings)
    )
