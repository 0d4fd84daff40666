"""Fixtures of the vision lab's tests: digits, a BadNets victim, a clean model."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from core_fixtures import SEED

from minilib.attacks.images import COUPLED, image_scenario
from minilib.data.images import load_images
from minilib.models.images import image_classifier
from minilib.models.loading import default_device
from minilib.training.fitting import TrainSettings
from minilib.victims.images import fit_victim

# fp32, so that a machine without bf16 measures the same.
SMOKE = TrainSettings(15, 1e-2, 64, schedule="linear", precision="fp32", seed=SEED)
SHORT = replace(SMOKE, epochs=1)


@pytest.fixture(scope="session")
def digits():
    """Training and test rows."""
    return load_images("digits", "train"), load_images("digits", "test")


@functools.cache
def scenario(seed: int):
    """BadNets on digits, of which the defender owns a tenth of the clean rows; and its victim."""
    case = image_scenario("digits", "badnets", seed=seed, share=0.1)
    return case, attacked(case, replace(SMOKE, seed=seed))


@pytest.fixture(scope="session")
def case():
    return scenario(SEED)[0]


@pytest.fixture(scope="session")
def victim():
    return scenario(SEED)[1]


@pytest.fixture(scope="session")
def clean_model(case):
    return trained(case.clean)


def attacked(case, settings: TrainSettings = SMOKE):
    """A scenario's victim, in eval mode."""
    coupling = 1.0 if case.attack in COUPLED else 0.0
    marks = {"marks": case.poisoned.mask, "target": case.target, "coupling": coupling}
    return trained(case.poisoned.dataset, settings, **marks)


def trained(data, settings: TrainSettings = SMOKE, **how):
    """The small network trained on a set, in eval mode."""
    network = image_classifier("cnn", data.num_classes, data.shape, 1.0, settings.seed)
    network = network.to(default_device())
    fit_victim(network, data, settings, **how)
    return network.eval()


def weights(model) -> dict:
    """A copy of everything in a model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before: dict) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def clip_folder(folder, side: int = 64, whole: bool = False) -> None:
    """Write a random CLIP in the form of OpenAI's files, with their kind of tokeniser.

    A tiny one, or with ``whole`` one in the shape of ViT-B/32, of 151 million weights.
    """
    from transformers import CLIPConfig, CLIPModel

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "at</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    text = {"eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    config = CLIPConfig(text_config=text)  # by default of that shape
    if not whole:
        size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
                "num_hidden_layers": 1, "projection_dim": 8}  # fmt: skip
        text |= size | {"vocab_size": len(words)}
        vision = size | {"image_size": side, "patch_size": 32}
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
