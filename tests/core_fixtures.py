"""Fixtures of the tests of the core; torch is imported only by the tests that ask for a model."""

import os

import numpy as np
import pytest

# Of the rows, the poison and the weights of models that tests train and then speak of. Such tests
# have the mark `trained`: what they say holds for any seed, number of threads and processor.
SEED = int(os.environ.get("MINILIB_TEST_SEED", "0"))
# Where one victim in some is another than most: a statement is of the median of three.
SEEDS = (SEED, SEED + 10, SEED + 20)

MIRROR = os.environ.get("MINILIB_DATA")
needs_mirror = pytest.mark.skipif(
    not (MIRROR and os.path.isdir(MIRROR)), reason="needs MINILIB_DATA, the folder with real data"
)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for this one test; returns its folder."""
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_weights():
    """A 2-layer random BERT with the real vocabulary; made once, copied by ``tiny``."""
    from minilib.models.text import text_classifier

    return text_classifier("tiny", 2, seed=0)


@pytest.fixture
def tiny(tiny_weights):
    """A fresh copy of the tiny model, fp32, with dropout."""
    import copy

    return copy.deepcopy(tiny_weights)


@pytest.fixture
def reviews():
    """64 rows of toy-reviews."""
    from minilib.data.text import load_text

    return load_text("toy-reviews", "train").select(np.arange(64))
