"""Fixtures of the vision lab's tests: digits, a BadNets victim, a clean model; cached."""

from dataclasses import replace

import pytest
import torch

from minilib.image_victims import attacked, image_scenario, image_victim
from minilib.images import load_images
from minilib.train import TrainSettings

# fp32, so that a machine without bf16 measures the same.
SMOKE = TrainSettings(15, 1e-2, 64, schedule="linear", precision="fp32")
SHORT = replace(SMOKE, epochs=1)


@pytest.fixture(scope="session")
def digits():
    """Training and test rows."""
    return load_images("digits", "train"), load_images("digits", "test")


@pytest.fixture(scope="session")
def case():
    """BadNets on digits; the defender owns a tenth of the clean rows."""
    return image_scenario("digits", "badnets", share=0.1)


@pytest.fixture(scope="session")
def victim(case):
    return attacked(case, "cnn", SMOKE)[0]


@pytest.fixture(scope="session")
def clean_model(case):
    return image_victim(case.clean, "cnn", SMOKE)[0]


def weights(model) -> dict:
    """A copy of everything in a model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before: dict) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
