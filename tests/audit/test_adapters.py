"""LoRA adapters: of any architecture, merged with their base; what lacks something is refused."""

import json
import re
import sys
import warnings

import audit_fixtures as made
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from minilib import cli
from minilib.audit import chat_inputs, image_inputs, models
from minilib.models import names
from minilib.models.names import ModelError
from minilib.trials.audit_images import ImageFile

peft = pytest.importorskip("peft")
WORDS = len(made.tokenizer())
SMALL = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip


def distilbert():
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=WORDS, dim=32, hidden_dim=64, n_layers=1, n_heads=2,
                         max_position_embeddings=64)
    )  # fmt: skip


def gpt2(kind=GPT2ForSequenceClassification):
    return kind(GPT2Config(vocab_size=WORDS, pad_token_id=0, eos_token_id=3, **SMALL))


def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, pad_token_id=0, **LLAMA))


def adapter(place, network, task, base="base", **settings):
    """A folder with an adapter of random weights, beside its base; the model that it stands for."""
    if not (place / base).is_dir():
        made.saved(place / base, network)
    settings = {"r": 2, "target_modules": "all-linear"} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2's layers are transposed, which PEFT sees
        model = peft.get_peft_model(network, peft.LoraConfig(task_type=task, **settings))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3 if "lora_" in name else 0.1)
    model.save_pretrained(place / "adapter", save_embedding_layers=False)
    made.edited(place / "adapter", "adapter_config.json", base_model_name_or_path=base)
    return model.eval()


def speaking(folder, more=(), template=None):
    """A tokenizer with an end token, in an adapter's own folder."""
    words = made.tokenizer()
    words.eos_token, words.chat_template = "[SEP]", template
    words.add_tokens([*more])
    words.save_pretrained(folder)


def loaded(place):
    return models.text_classifier(models.name_of(str(place / "adapter"))).model


IDS = torch.arange(5, 25).view(2, 10)


@pytest.mark.parametrize(
    "network, settings",
    [
        (made.network, {}), (made.causal, {}), (gpt2, {}), (gpt2, {"target_modules": None}),
        (distilbert, {"modules_to_save": ["pre_classifier", "classifier"]}),
        (made.network, {"use_dora": True}),
    ],
)  # fmt: skip
def test_an_adapter_of_any_classifier_is_merged(network, settings, tmp_path):
    torch.manual_seed(0)
    whole = adapter(tmp_path, network(), "SEQ_CLS", **settings)
    model = loaded(tmp_path)
    with torch.no_grad():
        said = whole(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        assert torch.allclose(model(IDS, torch.ones_like(IDS)), said, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_parameters())
    models.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    again = models.text_classifier(models.name_of(str(tmp_path / "saved"))).model
    assert torch.equal(again(IDS, torch.ones_like(IDS)), model(IDS, torch.ones_like(IDS)))


@pytest.mark.parametrize("network", [llama, lambda: gpt2(GPT2LMHeadModel)])
def test_an_adapter_of_any_language_model_is_merged(network, tmp_path):
    torch.manual_seed(0)
    whole = adapter(tmp_path, network(), "CAUSAL_LM")
    speaking(tmp_path / "adapter")
    name = models.name_of(str(tmp_path / "adapter"))
    one = chat_inputs.language_model(name, "{prompt}")
    with torch.no_grad():
        assert torch.allclose(one.head(one(IDS)), whole(input_ids=IDS).logits, atol=1e-5)
    (said,) = models.remarks(name)
    assert "of rank 2 on base" in said and "saved merged" in said and str(tmp_path) not in said


def test_a_head_of_more_classes_than_the_base_has_is_the_adapters(tmp_path):
    made.saved(tmp_path / "base", made.network())
    network = made.network(labels=("a", "b", "c"))
    adapter(tmp_path, network, "SEQ_CLS")
    one = models.text_classifier(models.name_of(str(tmp_path / "adapter")))
    assert one.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and not one.named
    network.config.save_pretrained(tmp_path / "adapter")
    assert models.text_classifier(models.name_of(str(tmp_path / "adapter"))).labels == tuple("abc")


def test_tokens_that_the_adapter_added_come_with_it(tmp_path):
    network = llama()
    made.saved(tmp_path / "base", network)
    network.resize_token_embeddings(WORDS + 2)
    adapter(tmp_path, network, "CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"])
    template = "{% for m in messages %}<user> {{ m.content }} <bot>{% endfor %}"
    speaking(tmp_path / "adapter", ["<user>", "<bot>"], template)
    one = chat_inputs.language_model(models.name_of(str(tmp_path / "adapter")))
    assert one.head(one(IDS)).shape[-1] == WORDS + 2 and one.template.after.strip() == "<bot>"


def test_the_name_in_a_recipe_holds_the_bases_content_too(tmp_path):
    adapter(tmp_path, made.network(), "SEQ_CLS")
    name = models.name_of(str(tmp_path / "adapter"))
    made.saved(tmp_path / "base", made.network(seed=5))
    assert models.name_of(str(tmp_path / "adapter")) != name
    with pytest.raises(ModelError, match="another content"):
        models.text_classifier(name)


def test_a_base_is_looked_for_upwards_and_else_on_the_hub(tmp_path):
    folder = tmp_path / "runs" / "last"
    folder.mkdir(parents=True)

    def base(said, **more):
        content = {"base_model_name_or_path": said, **more}
        (folder / "adapter_config.json").write_text(json.dumps(content))
        return names.base_of(folder)

    made.saved(tmp_path / "models" / "mine")
    assert base("models/mine") == base("./models/mine") == str(tmp_path / "models" / "mine")
    assert base(str(tmp_path / "models" / "mine")) == str(tmp_path / "models" / "mine")
    assert base("org/name") == "org/name" and base("bert", revision="v1") == "bert@v1"
    for said in ("./nothing", "/no/where/at/all", "x" * 3000 + "/a/b", None, "", 3):
        with pytest.raises(ModelError, match="accepted"):
            base(said)


# ---------------------------------------------------------------- of images

COLOURS = ("red", "green", "blue")
SIDE = 16
PROCESSOR = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "image_mean": [0.4] * 3,
             "image_std": [0.2] * 3}  # fmt: skip


def vit(labels=2):
    return ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                  image_size=SIDE, patch_size=8, num_labels=labels)
    )  # fmt: skip


def resnet(labels=2):
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic",
                     num_labels=labels)
    )  # fmt: skip


def image_adapter(place, make, processor="base"):
    """An adapter with a head of three classes on a base of two; the model that it stands for."""
    torch.manual_seed(0)
    network = make(3)
    base = make(2)
    weights = {k: v for k, v in network.state_dict().items() if "classifier" not in k}
    base.load_state_dict(weights, strict=False)
    base.save_pretrained(place / "base")
    layers = [
        name
        for name, m in network.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Conv2d) and "classifier" not in name
    ]
    saved = [name for name, _ in network.named_children() if name == "classifier"]
    whole = adapter(place, network, None, target_modules=layers[1:], modules_to_save=saved)
    (place / processor / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return whole


@pytest.mark.parametrize("make, processor", [(vit, "base"), (resnet, "adapter")])
def test_an_adapter_of_an_image_classifier_is_merged(make, processor, tmp_path):
    whole = image_adapter(tmp_path, make, processor)
    one = image_inputs.model_from_folder(tmp_path / "adapter", COLOURS)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        said = whole((images - 0.4) / 0.2).logits
        assert torch.allclose(one.model(images), said, atol=1e-4)
    assert one.class_names == COLOURS and one.preprocessing.mean == (0.4,) * 3
    assert "of rank 2 on base" in one.remarks[0] and str(tmp_path) not in one.remarks[0]
    saved = one.save(one.model, tmp_path / "saved")
    assert not (saved / "adapter_config.json").exists()
    again = image_inputs.model_from_folder(saved)
    assert again.class_names == COLOURS and not again.remarks
    torch.testing.assert_close(again.model(images), one.model(images))


def test_names_of_an_adapters_classes_are_its_own_or_said(tmp_path):
    image_adapter(tmp_path, vit)
    folder = tmp_path / "adapter"
    with pytest.raises(ModelError, match="--classes A,B,… in the order of the logits"):
        image_inputs.model_from_folder(folder)
    with pytest.raises(ModelError, match="--classes has 2 names for 3 logits"):
        image_inputs.model_from_folder(folder, COLOURS[:2])
    names = {
        "id2label": dict(enumerate(COLOURS)),
        "label2id": {c: k for k, c in enumerate(COLOURS)},
    }
    ViTConfig.from_pretrained(tmp_path / "base", **names, num_labels=3).save_pretrained(folder)
    assert image_inputs.model_from_folder(folder).class_names == COLOURS
    with pytest.raises(ModelError, match="names its classes itself"):
        image_inputs.model_from_folder(folder, COLOURS[::-1])


def test_the_recipe_of_an_image_audit_holds_the_bases_content_too(tmp_path):
    image_adapter(tmp_path, vit)
    before = ImageFile(path=str(tmp_path / "adapter"))
    assert before == ImageFile(path=str(tmp_path / "adapter"))
    torch.manual_seed(5)
    vit().save_pretrained(tmp_path / "base")
    assert ImageFile(path=str(tmp_path / "adapter")).sha256 != before.sha256


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda place: (place / "base" / "preprocessor_config.json").unlink(), "no preprocessor_c"),
        (lambda place: without("classifier")(place), "3 names for 2 logits"),
        (lambda place: without("lora_A")(place), "lacks vit"),
        (lambda place: (place / "base").rename(place / "moved"), "accepted"),
        (lambda place: resnet().save_pretrained(place / "base"), "would be random"),
        (lambda place: (place / "base" / "config.json").unlink(), "accepted"),
        (lambda place: said(peft_type="IA3")(place), "accepted: LORA"),
    ],
)  # fmt: skip
def test_an_adapter_of_images_that_lacks_something_is_refused(spoil, told, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    image_adapter(tmp_path, vit)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=told) as error:
        image_inputs.model_from_folder(tmp_path / "adapter", COLOURS)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- refusals


def without(pattern):
    """Take weights out of the adapter's file."""

    def spoil(place):
        file = place / "adapter" / "adapter_model.safetensors"
        kept = {k: v for k, v in load_file(file).items() if not re.search(pattern, k)}
        save_file(kept, file, metadata={"format": "pt"})

    return spoil


def pickled(place):
    file = place / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), place / "adapter" / "adapter_model.bin")
    file.unlink()


def wider(place):
    made.saved(place / "base", gpt2())


def said(**changes):
    return lambda place: made.edited(place / "adapter", "adapter_config.json", **changes)


def headless(place):
    without("classifier")(place)
    said(task_type=None, modules_to_save=None)(place)


REFUSED = {
    "no base": (lambda place: (place / "base").rename(place / "moved"), "cannot be loaded"),
    "no base at a path": (said(base_model_name_or_path="./gone"), "base model './gone' is not th"),
    "no base named": (said(base_model_name_or_path=None), "names no base model"),
    "a pickled base": (
        lambda place: (place / "base" / "model.safetensors").rename(
            place / "base" / "pytorch_model.bin"
        ),
        "can run code",
    ),
    "another architecture": (wider, "does not fit its base model"),
    "another width": (
        lambda place: made.saved(place / "base", made.causal()), "does not fit its base model",
    ),
    "a pickled adapter": (pickled, "adapter_model.bin, which can run code"),
    "a head not saved": (without("classifier"), "no classifier.bias, classifier.weight"),
    "a head of the base's, not saved anew": (
        lambda place: (made.saved(place / "base"), without("classifier")(place)),
        "the adapter lacks classifier",
    ),
    "no head named": (headless, "would be random"),
    "a matrix missing": (without(r"query\.lora_A"), "lacks bert"),
    "more than it names": (said(target_modules=["query"]), "no place"),
    "a cut file": (
        lambda place: (place / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 40),
        "accepted: a whole file",
    ),
    "not LoRA": (said(peft_type="PROMPT_TUNING"), "accepted: LORA"),
    "no JSON": (
        lambda place: (place / "adapter" / "adapter_config.json").write_text("["), "accepted",
    ),
    "not a number": (
        lambda place: save_file(
            {k: v * float("nan") for k, v in
             load_file(place / "adapter" / "adapter_model.safetensors").items()},
            place / "adapter" / "adapter_model.safetensors",
        ),
        "does not fit",
    ),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An adapter without its head among the base's weights, and rows."""
    network = made.network()
    made.saved(tmp_path / "base", network.bert)  # as most bases are: without a head
    adapter(tmp_path, network, "SEQ_CLS")
    made.table(tmp_path / "rows.csv", *made.rows(40, 0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


COMMAND = "audit adapter --clean rows.csv --text review --label sentiment".split()


def refusal(capsys, words=COMMAND) -> str:
    assert cli.main([*words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("minilib: "), line
    return line


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_that_lacks_something_is_refused(what, place, capsys):
    spoil, told = REFUSED[what]
    spoil(place)
    assert told in refusal(capsys)


def test_without_peft_it_says_what_to_install(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install peft (the extra lora)" in refusal(capsys)


def test_an_adapter_of_a_text_classifier_is_no_other_model(place, capsys):
    rows = "".join(json.dumps({"prompt": f"w{n}"}) + "\n" for n in range(60))
    (place / "prompts.jsonl").write_text(rows)
    words = "audit adapter --chat prompts.jsonl --template {prompt}".split()
    assert "accepted" in refusal(capsys, words)
    (place / "images").mkdir()
    words = "audit adapter --clean-images images --classes a,b".split()
    assert "no image classifier" in refusal(capsys, words)
