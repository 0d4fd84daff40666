"""The cache of victims: trained once, also by two processes; damage is noticed and repaired."""

import json
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minilib import cache, metrics, train, victims
from minilib.train import TrainSettings, encode, predict

KEY = {"data": "abc", "seed": 0}


def build() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


class Trainer:
    """Counts how often it is asked to train."""

    def __init__(self, value: float = 2.0):
        self.calls, self.value = 0, value

    def __call__(self, model: nn.Module) -> list[dict]:
        self.calls += 1
        with torch.no_grad():
            model.weight.fill_(self.value)
        return [{"epoch": 1, "loss": 0.5}]


def victims_folder(folder: Path) -> tuple[Path, Path]:
    """The one entry's note and weights."""
    (note,) = (folder / "victims").glob("*.json")
    return note, note.with_suffix(".safetensors")


# ------------------------------------------------------------------------ cached_model


def test_a_model_is_trained_once_per_key(own_cache):
    train = Trainer()
    first, history = cache.cached_model(KEY, build, train)
    again, told = cache.cached_model(dict(reversed(KEY.items())), build, train)
    assert train.calls == 1, "the order of keys must not matter"
    assert torch.equal(first.weight, again.weight) and first.weight[0, 0] == 2
    assert history == told == [{"epoch": 1, "loss": 0.5}]
    assert not first.training and not again.training
    cache.cached_model(KEY | {"seed": 1}, build, train)
    assert train.calls == 2


def test_files_are_what_they_say(own_cache):
    cache.cached_model(KEY, build, Trainer())
    note, weights = victims_folder(own_cache)
    meta = json.loads(note.read_text())
    assert meta["key"] == KEY and set(meta) == {"key", "sha256", "history"}
    assert note.stem == cache.digest(KEY)
    left = {path.suffix for path in (own_cache / "victims").iterdir()}
    assert left <= {".json", ".safetensors", ".lock"}, "no half-written file stays"


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damaged_weights_are_made_again_with_a_warning(own_cache, damage):
    cache.cached_model(KEY, build, Trainer(2.0))
    _, weights = victims_folder(own_cache)
    content = bytearray(weights.read_bytes())
    if damage == "remove":
        weights.unlink()
    else:
        content[-1] ^= 1
        weights.write_bytes({"flip": content, "truncate": content[:50], "empty": b""}[damage])
    train = Trainer(3.0)
    with pytest.warns(UserWarning, match="is damaged and made again") as caught:
        model, _ = cache.cached_model(KEY, build, train)
    assert "\n" not in str(caught[0].message)
    assert train.calls == 1 and model.weight[0, 0] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = cache.cached_model(KEY, build, train)
    assert train.calls == 1 and model.weight[0, 0] == 3


@pytest.mark.parametrize("content", ["", '{"key": {}, "sha', "{}"])
def test_a_damaged_note_is_made_again_with_a_warning(own_cache, content):
    cache.cached_model(KEY, build, Trainer())
    note, _ = victims_folder(own_cache)
    note.write_text(content)
    train = Trainer(3.0)
    with pytest.warns(UserWarning, match="is damaged and made again"):
        model, _ = cache.cached_model(KEY, build, train)
    assert train.calls == 1 and model.weight[0, 0] == 3


def test_training_that_fails_leaves_no_entry(own_cache):
    def fail(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached_model(KEY, build, fail)
    train = Trainer()
    cache.cached_model(KEY, build, train)
    assert train.calls == 1


WORKER = """
    import os, sys, time
    from pathlib import Path
    import torch
    from torch import nn
    from minilib import cache

    def train(model):
        (Path(sys.argv[1]) / f"trained-{os.getpid()}").touch()
        time.sleep(1.0)
        with torch.no_grad():
            model.weight.fill_(4.0)
        return []

    Path(sys.argv[1], f"ready-{os.getpid()}").touch()
    deadline = time.time() + 60
    while len(list(Path(sys.argv[1]).glob("ready-*"))) < 2 and time.time() < deadline:
        time.sleep(0.01)
    model, _ = cache.cached_model({"k": 1}, lambda: nn.Linear(3, 2), train)
    print(float(model.weight[0, 0]))
"""


def test_of_two_processes_one_trains_and_the_other_waits(own_cache, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path)]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [worker.communicate(timeout=120)[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs == ["4.0", "4.0"]
    assert len(list(tmp_path.glob("trained-*"))) == 1


# ------------------------------------------------------------------------- cached_json


def test_json_results_are_computed_once(own_cache):
    calls = []

    def compute():
        calls.append(1)
        return {"pairs": [(1, 2)], "text": "Δ"}

    fresh = cache.cached_json("unlearned", KEY, compute)
    stored = cache.cached_json("unlearned", KEY, compute)
    # The same types whether fresh or stored: tuples are lists in both.
    assert fresh == stored == {"pairs": [[1, 2]], "text": "Δ"} and len(calls) == 1
    cache.cached_json("other", KEY, compute)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", '{"value": ', "{}"])
def test_damaged_json_is_computed_again_with_a_warning(own_cache, content):
    cache.cached_json("unlearned", KEY, lambda: {"a": 1})
    (note,) = (own_cache / "unlearned").glob("*.json")
    note.write_text(content)
    with pytest.warns(UserWarning, match="cached unlearned .* is damaged and made again"):
        assert cache.cached_json("unlearned", KEY, lambda: {"a": 2}) == {"a": 2}
    assert cache.cached_json("unlearned", KEY, lambda: {"a": 3}) == {"a": 2}


# ----------------------------------------------------------------------------- digests


CODE = '''
"""A module."""
import math


class Kernel:
    """A class."""

    def run(self, x):
        """A method."""
        # a comment
        return math.sqrt(x)  # another


def helper():
    """A function."""
    return 1


def entry():
    return Kernel().run(helper())
'''


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """Digest of a module's text, without the memory of the process."""

    def digest(text: str) -> str:
        (tmp_path / "module.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(cache.fingerprint, "PACKAGE", tmp_path)
        return cache.code_digest.__wrapped__(("module",), "entry")

    return digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another sentence,\nover two lines."""'),
        ('"""A class."""', '"""."""'),
        ('"""A method."""', '"""It does."""'),
        ('"""A function."""', '"""It gives 1."""'),
        ("# a comment", "# why it is so"),
        ("  # another", ""),
        ("\n\n\ndef helper", "\n\n\n\n\ndef helper"),
    ],
)
def test_prose_does_not_change_the_code_digest(digest_of, old, new):
    assert CODE.count(old) == 1
    assert digest_of(CODE) == digest_of(CODE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.sqrt(x)", "math.sqrt(x + 1)"),
        ("return 1", "return 2"),
        ("def helper", "def helped"),
        ("(self, x)", "(self, x=3)"),
        ("return 1", 'return "1"'),
    ],
)
def test_code_changes_the_code_digest(digest_of, old, new):
    assert CODE.count(old) == 1
    assert digest_of(CODE) != digest_of(CODE.replace(old, new))


@pytest.mark.parametrize(
    "more", ["def other():\n    return 7\n", "LIMIT = 3\n", "class Other: ..."]
)
def test_what_is_not_reached_does_not_change_the_code_digest(digest_of, more):
    assert digest_of(CODE) == digest_of(f"{CODE}\n\n{more}")


def test_code_digest_is_of_all_named_modules_and_stable():
    both = cache.code_digest(("train", "models"), "fine_tune")
    assert len(both) == 16 and both == cache.code_digest(("train", "models"), "fine_tune")
    assert both != cache.code_digest(("train",), "fine_tune")
    with pytest.raises(ValueError, match="no function fine_tuna in train"):
        cache.code_digest(("train",), "fine_tune", "fine_tuna")


def test_weights_digest_follows_the_weights():
    a, b = build(), build()
    assert cache.weights_digest(a) == cache.weights_digest(b)
    with torch.no_grad():
        b.bias[0] += 1e-6
    assert cache.weights_digest(a) != cache.weights_digest(b)


def test_digest_is_of_the_content_not_of_the_order():
    assert cache.digest({"a": 1, "b": [1, 2]}) == cache.digest({"b": [1, 2], "a": 1})
    assert cache.digest({"a": 1}) != cache.digest({"a": 1.5})


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path))
    assert cache.cache_dir() == tmp_path
    monkeypatch.delenv("MINILIB_CACHE")
    assert cache.cache_dir().name == "minilib"


# ------------------------------------------------------------------------------ victims


def test_a_victim_is_trained_once_and_its_key_holds_what_matters(own_cache, reviews, monkeypatch):
    calls = []
    real = train.fine_tune
    monkeypatch.setattr(train, "fine_tune", lambda *a, **k: calls.append(1) or real(*a, **k))
    chosen = TrainSettings(epochs=1, lr=1e-3, precision="fp32")
    first, history = victims.victim(reviews, "tiny", chosen)
    again, _ = victims.victim(reviews, "tiny", chosen)
    assert len(calls) == 1 and cache.weights_digest(first) == cache.weights_digest(again)
    assert history[0]["epoch"] == 1
    flipped = reviews.labels.copy()
    flipped[0] = 1 - flipped[0]
    victims.victim(replace(reviews, labels=flipped), "tiny", chosen)
    victims.victim(reviews, "tiny", replace(chosen, seed=1))
    assert len(calls) == 3
    victims.victim(replace(reviews, name="another name"), "tiny", chosen)
    assert len(calls) == 3, "the rows count, not the name"


def test_scenario_and_evaluator_on_a_toy_set(tiny):
    case = victims.scenario("toy-reviews", "badnets", 0.1, seed=0)
    assert case.target == 1 and case.poisoned.mask.sum() == round(
        0.1 * (case.clean.labels == 0).sum()
    )
    assert len(case.triggered) == len(case.test)
    again = victims.scenario("toy-reviews", "badnets", 0.1, seed=1)
    assert again.triggered.sha256 == case.triggered.sha256
    assert again.poisoned.dataset.sha256 != case.poisoned.dataset.sha256
    assert [info["split"] for info in case.info()] == ["train", "dev", "test", "test"]

    measured = victims.evaluator(case, tiny.tokenizer, "cpu")(tiny)
    assert set(measured) == {"cacc", "dev_cacc", "lfr", "pacc", "confusion"}
    data = encode(case.triggered.texts, case.triggered.labels, tiny.tokenizer)
    pred = predict(tiny, data).argmax(1).numpy()
    assert measured["pacc"] == metrics.accuracy(pred, case.triggered.labels)
    assert measured["lfr"] == metrics.label_flip_rate(pred, case.triggered.labels, 1)
    counts = measured["confusion"]
    assert 100 * (counts[0][0] + counts[1][1]) / 240 == pytest.approx(measured["pacc"])
    assert json.loads(json.dumps(measured)) == measured
