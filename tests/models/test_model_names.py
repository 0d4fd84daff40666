"""Names of models stand for content: a folder's digest, a revision of the Hub, or one of ours."""

import ast
import json

import pytest
import torch
from conftest import ROOT
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from minilib import ledger
from minilib.models import loading, names
from minilib.models import text as text_models
from minilib.models.names import ModelError, Place, pinned, place_of
from minilib.trials.chat import ChatBase
from minilib.trials.clip import ClipBase
from minilib.trials.text import BackdoorTokens, EmbeddingTraining, TextClean, TextVictim

HUB = {"bert": "google-bert/bert-base-uncased"}


@pytest.fixture
def folder(tmp_path):
    """The files of a model, their content of no meaning."""
    place = tmp_path / "models" / "mine"
    place.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (place / name).write_text(name)
    return place


def test_names_of_ours_and_of_the_hub_keep_their_keys(tmp_path, monkeypatch, folder):
    victim = TextVictim(data=TextClean(dataset="sst2"), model="minilm", seed=0)
    key = ledger.key_of(victim)
    for name in names.OURS:  # folders that have their names change nothing
        folder.rename(folder.with_name(name))
        folder = folder.with_name(name)
        monkeypatch.setenv("MINILIB_MODELS", str(folder.parent))
        assert pinned(name) == name
    assert ledger.key_of(TextVictim(data=victim.data, model="minilm", seed=0)) == key
    for name in ("bert", "owner/other", "owner/other@v1"):
        assert pinned(name) == name


def test_a_folder_never_takes_the_name_of_the_hub_by_accident(folder, monkeypatch):
    for name in ("bert", "google-bert/bert-base-uncased"):
        target = folder.parent / name
        target.mkdir(parents=True)
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(folder.parent)
    monkeypatch.delenv("MINILIB_MODELS", raising=False)
    assert place_of("bert", HUB) == Place("google-bert/bert-base-uncased")
    assert place_of("google-bert/bert-base-uncased", HUB).folder is None
    assert place_of("./bert", HUB).folder is not None
    monkeypatch.setenv("MINILIB_MODELS", str(folder.parent))  # whoever sets it means it
    assert place_of("bert", HUB).folder == folder.parent / "bert"
    assert pinned("bert").startswith("bert@sha256:")
    assert pinned("bert/../mine") == "bert/../mine", "no way out of the folder of models"


@pytest.mark.parametrize("changed", ["config.json", "model.safetensors", "tokenizer.json"])
def test_other_content_is_another_victim(folder, changed):
    def key():
        victim = TextVictim(data=TextClean(dataset="sst2"), model=str(folder), seed=0)
        return ledger.key_of(victim), victim.model

    before, name = key()
    assert key() == (before, name) and place_of(name, HUB).location == str(folder)
    (folder / "README.md").write_text("no part of the model")
    assert key()[0] == before
    (folder / changed).write_text("something else")
    assert key()[0] != before
    with pytest.raises(ModelError, match="another content, sha256:.* than the recipe's sha256:"):
        place_of(name, HUB)


def test_every_recipe_with_a_model_of_text_pins_it(folder):
    data = TextClean(dataset="sst2")
    wanted = pinned(str(folder))
    assert "@sha256:" in wanted
    recipes = [
        TextVictim(data=data, model=str(folder), seed=0),
        EmbeddingTraining(model=str(folder), seed=0),
        BackdoorTokens(data=data, model=str(folder)),
        ChatBase(model=str(folder)),
        ClipBase(dataset="digits", seed=0, model=str(folder)),
    ]
    assert [one.model for one in recipes] == [wanted] * 5
    restored = ledger.restored(TextVictim, ledger.described(recipes[0]))
    assert restored == recipes[0]


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_not_whole_is_refused(folder, lacks):
    (folder / lacks).unlink()
    with pytest.raises(ModelError, match=f"has no .*; accepted: .*{lacks.rpartition('.')[2]}"):
        text_models.text_classifier(str(folder), 2, 0)


@pytest.mark.parametrize("name, says", [
    ("./nothing/here", "there is no folder nothing/here"),
    ("bert@", "its revision is ''"),
    ("bert@a b", "its revision is 'a b'; accepted: a commit, tag or branch"),
    ("bert@" + "a" * 101, "its revision is"),
])  # fmt: skip
def test_names_that_stand_for_nothing_are_one_line(name, says):
    with pytest.raises(ModelError) as refused:
        place_of(name, HUB)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_revision_reaches_the_hub_and_is_noted(monkeypatch):
    asked = []

    class Kind:
        @classmethod
        def from_pretrained(cls, location, **more):
            asked.append((location, more))
            loaded = cls()
            loaded.config = type("Config", (), {"_commit_hash": "c0ffee"})
            return loaded

    assert names.with_revision("bert", "v1") == "bert@v1"
    place = place_of("bert@v1", HUB)
    with ledger.noting() as noted:
        loading.from_pretrained(Kind, "bert@v1", place, dtype=1)
    more = {"revision": "v1", "trust_remote_code": False, "dtype": 1}
    assert asked == [("google-bert/bert-base-uncased", more)]
    assert [one["revision"] for one in noted] == ["c0ffee"]
    assert noted[0]["split"] == "weights"
    for name in ("minilm", "bert@v2", "./mine"):
        with pytest.raises(ModelError, match="accepted: with a name of the Hub without one"):
            names.with_revision(name, "v1")


def test_a_folder_of_a_real_model_is_loaded_by_its_pinned_name(tmp_path):
    config = BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(), loading.quiet():
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(text_models.minilm_folder()).save_pretrained(tmp_path)
    for name in (str(tmp_path), pinned(str(tmp_path))):
        assert text_models.text_classifier(name, 2, 0).num_labels == 2
    kept = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(kept | {"hidden_act": "relu"}))
    with pytest.raises(ModelError, match="another content"):
        text_models.text_classifier(name, 2, 0)


def test_no_code_of_a_repository_is_ever_run():
    """``trust_remote_code=False`` stands in every call that could load somebody's code."""
    seen = 0
    paths = [
        p for top in ("minilib", "examples", "tools", "bench") for p in (ROOT / top).rglob("*.py")
    ]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = getattr(node.func.value, "id", "")
            if node.func.attr == "from_pretrained" and owner != "loading":
                seen += 1
                assert "trust_remote_code" in {keyword.arg for keyword in node.keywords}, path
    assert seen >= 2
