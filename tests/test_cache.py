"""The cache of victims: trained once, also by two processes; damage is noticed and repaired."""

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import toy_trials as toy
from torch import nn

from minilib import cache, ledger, provenance
from minilib.metrics import classification
from minilib.models import loading
from minilib.training.text import encode, predict
from minilib.victims import text as text_victims

ONE = toy.ToyVictim(data=toy.ToyData())


def build() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


class Trainer:
    """Counts how often it is asked to train."""

    def __init__(self, value: float = 2.0):
        self.calls, self.value = 0, value

    def __call__(self, model: nn.Module) -> list[dict]:
        self.calls += 1
        ledger.note({"name": "toy", "rows": 4})
        with torch.no_grad():
            model.weight.fill_(self.value)
        return [{"epoch": 1, "loss": torch.tensor(0.5)}]


def entry(folder: Path) -> tuple[Path, Path]:
    """The one entry's note and weights."""
    (note,) = (folder / "toy_victim").glob("*.json")
    return note, note.with_suffix(".safetensors")


def test_a_model_is_trained_once_per_recipe(own_cache):
    train = Trainer()
    with ledger.noting() as first_read:
        first, history = cache.kept_model(ONE, build, train)
    with ledger.noting() as read_again:
        again, told = cache.kept_model(toy.ToyVictim(data=toy.ToyData(), epochs=3), build, train)
    assert train.calls == 1
    assert torch.equal(first.weight, again.weight) and first.weight[0, 0] == 2
    assert history == told == [{"epoch": 1, "loss": 0.5}]
    assert first_read == read_again == [{"name": "toy", "rows": 4}], "also from the cache"
    assert not first.training and not again.training
    cache.kept_model(toy.ToyVictim(data=toy.ToyData(seed=1)), build, train)
    assert train.calls == 2


def test_files_are_what_they_say(own_cache):
    cache.kept_model(ONE, build, Trainer())
    note, weights = entry(own_cache)
    meta = json.loads(note.read_text())
    assert note.stem == ledger.key_of(ONE) and meta["recipe"] == ledger.described(ONE)
    assert set(meta) == {"recipe", "sha256", "history", "data"}
    loading.verify(weights, meta["sha256"])
    left = {path.suffix for path in (own_cache / "toy_victim").iterdir()}
    assert left <= {".json", ".safetensors", ".lock"}, "no half-written file stays"


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damaged_weights_are_made_again_with_a_warning(own_cache, damage):
    cache.kept_model(ONE, build, Trainer(2.0))
    _, weights = entry(own_cache)
    content = bytearray(weights.read_bytes())
    if damage == "remove":
        weights.unlink()
    else:
        content[-1] ^= 1
        weights.write_bytes({"flip": content, "truncate": content[:50], "empty": b""}[damage])
    train = Trainer(3.0)
    with pytest.warns(UserWarning, match="is damaged and made again") as caught:
        model, _ = cache.kept_model(ONE, build, train)
    assert "\n" not in str(caught[0].message)
    assert train.calls == 1 and model.weight[0, 0] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = cache.kept_model(ONE, build, train)
    assert train.calls == 1 and model.weight[0, 0] == 3


@pytest.mark.parametrize("content", ["", '{"recipe": {}, "sha', "{}", '{"recipe": {"epochs": 9}}'])
def test_a_damaged_note_is_made_again_with_a_warning(own_cache, content):
    cache.kept_model(ONE, build, Trainer())
    note, _ = entry(own_cache)
    note.write_text(content)
    train = Trainer(3.0)
    with pytest.warns(UserWarning, match="is damaged and made again"):
        model, _ = cache.kept_model(ONE, build, train)
    assert train.calls == 1 and model.weight[0, 0] == 3


def test_training_that_fails_leaves_no_entry(own_cache):
    def fail(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.kept_model(ONE, build, fail)
    train = Trainer()
    cache.kept_model(ONE, build, train)
    assert train.calls == 1


def test_a_full_disk_takes_the_entry_and_not_the_model(own_cache, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_json", full)
    with pytest.warns(UserWarning, match="is not kept: .*No space left"):
        model, history = cache.kept_model(ONE, build, Trainer())
    assert model.weight[0, 0] == 2 and history and not model.training
    monkeypatch.undo()
    train = Trainer()
    cache.kept_model(ONE, build, train)
    assert train.calls == 1


@pytest.mark.parametrize("place", ["a file", "no room for a lock"])
def test_where_nothing_can_be_kept_the_model_is_trained_all_the_same(tmp_path, monkeypatch, place):
    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "a file" else tmp_path
    monkeypatch.setenv("MINILIB_CACHE", str(folder))
    if place == "no room for a lock":
        monkeypatch.setattr(cache.filelock.FileLock, "acquire", full)
        monkeypatch.setattr(loading, "save", full)
    with pytest.warns(UserWarning, match="is not kept"):
        model, _ = cache.kept_model(ONE, build, Trainer())
    assert model.weight[0, 0] == 2


def test_a_cache_that_can_only_be_read_is_read(own_cache, monkeypatch):
    def full(*_):
        raise OSError(30, "Read-only file system")

    cache.kept_model(ONE, build, Trainer())
    monkeypatch.setattr(cache.filelock.FileLock, "acquire", full)
    train = Trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = cache.kept_model(ONE, build, train)
    assert model.weight[0, 0] == 2 and train.calls == 0


WORKER = """
    import os, sys, time
    from pathlib import Path
    import torch
    import toy_trials as toy
    from torch import nn
    from minilib import cache

    def train(model):
        (Path(sys.argv[1]) / f"trained-{os.getpid()}").touch()
        time.sleep(1.0)
        with torch.no_grad():
            model.weight.fill_(4.0)
        return []

    Path(sys.argv[1], f"ready-{os.getpid()}").touch()
    while len(list(Path(sys.argv[1]).glob("ready-*"))) < 2:
        time.sleep(0.01)
    one = toy.ToyVictim(data=toy.ToyData())
    model, _ = cache.kept_model(one, lambda: nn.Linear(3, 2), train)
    print(float(model.weight[0, 0]))
"""


def test_of_two_processes_one_trains_and_the_other_waits(own_cache, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(provenance.PACKAGE.parent)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path)]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [worker.communicate()[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs == ["4.0", "4.0"]
    assert len(list(tmp_path.glob("trained-*"))) == 1


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path))
    assert provenance.cache_dir() == tmp_path
    monkeypatch.delenv("MINILIB_CACHE")
    assert provenance.cache_dir().name == "minilib"


# ------------------------------------------------------------------------------ scenarios


def test_scenario_and_evaluator_on_a_toy_set(tiny):
    case = text_victims.scenario("toy-reviews", "badnets", 0.1, seed=0)
    assert case.target == 1 and case.poisoned.mask.sum() == round(
        0.1 * (case.clean.labels == 0).sum()
    )
    assert len(case.triggered) == len(case.test)
    again = text_victims.scenario("toy-reviews", "badnets", 0.1, seed=1)
    assert again.triggered.sha256 == case.triggered.sha256
    assert again.poisoned.dataset.sha256 != case.poisoned.dataset.sha256
    assert [info["split"] for info in case.info()] == ["train", "dev", "test", "test"]

    measured = classification.evaluator(case, tiny.tokenizer, "cpu")(tiny)
    assert set(measured) == {"cacc", "dev_cacc", "lfr", "pacc", "confusion"}
    data = encode(case.triggered.texts, case.triggered.labels, tiny.tokenizer)
    pred = predict(tiny, data).argmax(1).numpy()
    assert measured["pacc"] == classification.accuracy(pred, case.triggered.labels)
    assert measured["lfr"] == classification.label_flip_rate(pred, case.triggered.labels, 1)
    counts = measured["confusion"]
    assert 100 * (counts[0][0] + counts[1][1]) / 240 == pytest.approx(measured["pacc"])
    assert json.loads(json.dumps(measured)) == measured
