"""The audit of image classifiers: what is read, what is refused, and what comes back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from core_fixtures import SEED
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from minilib.audit import images
from minilib.audit.image_inputs import model_from_folder, model_from_state, read_clean_images
from minilib.data.files import DataError
from minilib.models.foreign import ARCHITECTURES, foreign_network
from minilib.models.images import image_classifier
from minilib.models.names import ModelError
from minilib.training.fitting import TrainSettings
from minilib.training.images import fit_images, image_data, predict_images
from minilib.unlearning.trigger_test import TriggerTestSettings, TriggerUnlearning

CLASSES = ("cat", "traffic light", "9/11")
SIZE = 16


def resnet_state(name="resnet18", widths=(4, 4, 8, 8), classes=3, channels=3, way="shortcut"):
    """Random weights with the names that kuangliu's ResNets have, or torchvision's."""
    before, end = name.startswith("preact"), "linear" if way == "shortcut" else "fc"
    counts = (3, 4, 6, 3) if name.endswith("34") else (2, 2, 2, 2)
    rng = torch.Generator().manual_seed(0)
    weights, inner = {}, widths[0]

    def conv(key, outer, inner, side):
        weights[f"{key}.weight"] = torch.randn(outer, inner, side, side, generator=rng) / 5

    def norm(key, size):
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0),
                            ("running_var", 1.0)):  # fmt: skip
            weights[f"{key}.{part}"] = torch.full((size,), value)
        weights[f"{key}.num_batches_tracked"] = torch.tensor(0)

    conv("conv1", inner, channels, 3)
    if not before:
        norm("bn1", inner)
    for stage, (outer, blocks) in enumerate(zip(widths, counts, strict=True), 1):
        for number in range(blocks):
            key = f"layer{stage}.{number}"
            conv(f"{key}.conv1", outer, inner, 3)
            conv(f"{key}.conv2", outer, outer, 3)
            norm(f"{key}.bn1", inner if before else outer)
            norm(f"{key}.bn2", outer)
            if inner != outer or (stage > 1 and number == 0):
                conv(f"{key}.{way}.0", outer, inner, 1)
                if not before:
                    norm(f"{key}.{way}.1", outer)
            inner = outer
    weights[f"{end}.weight"] = torch.randn(classes, inner, generator=rng)
    weights[f"{end}.bias"] = torch.zeros(classes)
    return weights


@pytest.fixture
def state_file(tmp_path):
    save_file(resnet_state(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def from_state(path, **changes):
    given = {"architecture": "resnet18", "mean": (0.5, 0.5, 0.5), "std": 0.25, "size": SIZE}
    given |= {"class_names": CLASSES} | changes
    return model_from_state(path, **given)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as transformers writes it: a tiny ViT that has never been trained."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=SIZE, patch_size=8, id2label=dict(enumerate(CLASSES)),
        label2id={name: k for k, name in enumerate(CLASSES)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


PREPROCESSOR = {
    "do_resize": True, "size": {"height": SIZE, "width": SIZE}, "resample": 2, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}  # fmt: skip


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the folder that a test may spoil."""
    import shutil

    return shutil.copytree(saved, tmp_path / "vit")


def picture(path, seed=0, size=(SIZE, SIZE), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)


@pytest.fixture
def clean(tmp_path):
    """Four images of each class; a name that no folder can have is written with "_"."""
    root = tmp_path / "clean"
    for k, name in enumerate(("cat", "traffic light", "9_11")):
        for n in range(4):
            picture(root / name / f"{n}.png", 10 * k + n)
    return root


# ---------------------------------------------------------------- what is read


def test_everything_that_a_folder_says_is_read_from_it(folder, clean):
    audited = model_from_folder(folder)
    assert audited.class_names == CLASSES
    assert audited.preprocessing.mean == (0.4, 0.5, 0.6)
    assert audited.preprocessing.std == (0.2, 0.25, 0.3)
    assert audited.preprocessing.shape == (3, SIZE, SIZE)
    rows = read_clean_images(clean, audited)
    assert rows.dataset.class_names == CLASSES
    assert rows.dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert rows.files[0] == "cat/0.png"


def test_logits_are_those_of_transformers_own_processor(folder, clean):
    from transformers import AutoModelForImageClassification, ViTImageProcessorPil

    audited = model_from_folder(folder)
    picture(clean / "cat" / "large.png", 99, (40, 23))
    rows = read_clean_images(clean, audited)
    assert rows.resized == 1
    processor = ViTImageProcessorPil.from_pretrained(folder)
    pictures = [Image.open(clean / name.replace("9/11", "9_11")) for name in rows.files]
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = network(**processor(pictures, return_tensors="pt")).logits
    ours = predict_images(audited.model, rows.dataset, "fp32")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_classes_are_matched_by_name_never_by_position(folder, clean):
    """A model whose labels stand in another order gets the same images under other numbers."""
    config = json.loads((folder / "config.json").read_text())
    turned = dict(enumerate(reversed(CLASSES)))
    config |= {"id2label": turned, "label2id": {name: k for k, name in turned.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = read_clean_images(clean, model_from_folder(folder))
    assert [rows.files[i] for i in np.flatnonzero(rows.dataset.labels == 2)][0].startswith("cat/")


def test_what_is_saved_is_loaded_again_with_its_labels_and_processor(folder, tmp_path):
    from transformers import pipeline

    audited = model_from_folder(folder)
    with torch.no_grad():
        audited.model.head.bias += torch.tensor([0.0, 9.0, 0.0])
    out = audited.save(audited.model, tmp_path / "cleaned")
    again = model_from_folder(out)
    assert again.class_names == CLASSES and again.preprocessing == audited.preprocessing
    x = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(again.model(x), audited.model(x))
    picture(tmp_path / "one.png")
    said = pipeline("image-classification", str(out))(str(tmp_path / "one.png"))
    assert said[0]["label"] == "traffic light"


def test_a_resnet_folder_is_read_and_its_shorter_edge_resized(tmp_path):
    processor = PREPROCESSOR | {"size": {"shortest_edge": 28}, "crop_pct": 0.875}
    how = model_from_folder(resnet_folder(tmp_path / "resnet", processor)).preprocessing
    assert (how.height, how.width, how.resize) == (28, 28, 32)


# What files on the Hub leave to their type: a bare 24 is a square's side in ViT's, the shorter edge
# in ResNet's and CLIP's, of which each cuts another middle out.
PROCESSORS = {
    "ViT's of old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 24},
    "ResNet's of old": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "size": 24, "crop_pct": 0.875,
    },
    "ConvNeXT's, large": {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384},
    },
    "CLIP's of old": {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 24,
        "do_center_crop": True,
    },
    "DeiT's of old": {
        "feature_extractor_type": "DeiTFeatureExtractor", "size": 32, "crop_size": 24,
        "do_center_crop": True,
    },
    "PoolFormer's": {
        "image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24}, "do_center_crop": True, "crop_pct": 0.9,
    },
    "none but its name": {"image_processor_type": "BitImageProcessor"},
}  # fmt: skip
OTHER_PROCESSORS = {
    "colours are swapped": {
        "image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 28},
        "crop_size": {"height": 24, "width": 24}, "do_flip_channel_order": True,
    },
    "the edge is another": {
        "image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224},
    },
}  # fmt: skip


def resnet_folder(folder, processor):
    """A small ResNet, which takes images of any size, with somebody's preprocessor_config.json."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic",
        id2label=dict(enumerate(CLASSES)), label2id={n: k for k, n in enumerate(CLASSES)},
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_are_those_of_transformers_own_processor(kind, clean, tmp_path):
    from transformers import AutoImageProcessor

    picture(clean / "cat" / "wide.png", 98, (400, 300))
    picture(clean / "cat" / "tall.png", 99, (45, 70))
    folder = resnet_folder(tmp_path / "net", PROCESSORS[kind])
    audited = model_from_folder(folder)
    rows = read_clean_images(clean, audited)
    pictures = [Image.open(clean / name) for name in rows.files]
    theirs = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    x = torch.as_tensor(rows.dataset.images).permute(0, 3, 1, 2) / 255
    ours = (x - audited.model.mean) / audited.model.std
    torch.testing.assert_close(ours, theirs["pixel_values"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("what", OTHER_PROCESSORS)
def test_a_processor_that_does_more_than_ours_is_refused(what, tmp_path):
    folder = resnet_folder(tmp_path / "net", OTHER_PROCESSORS[what])
    name = OTHER_PROCESSORS[what]["image_processor_type"]
    refused(lambda: model_from_folder(folder), ModelError, name, "middle cut out")


@pytest.mark.parametrize("size", [(500, 498), (498, 500), (25, 24)])
def test_a_nearly_square_image_loses_its_one_row_too_many(size, clean, tmp_path):
    """Its middle begins at pixel 0, and was not cut out."""
    picture(clean / "cat" / "nearly.png", 99, size)
    processor = PREPROCESSOR | {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24}, "do_center_crop": True,
    }  # fmt: skip
    audited = model_from_folder(resnet_folder(tmp_path / "net", processor))
    assert read_clean_images(clean, audited).dataset.shape == (3, 24, 24)


def kuangliu_block(weights, x, key, stride, before):
    """A residual block in plain functions."""
    f = nn.functional

    def norm(x, name):
        w = {p: weights[f"{key}.{name}.{p}"] for p in ("running_mean", "running_var", "weight",
                                                      "bias")}  # fmt: skip
        return f.batch_norm(x, **w)

    way = next((w for w in ("shortcut", "downsample") if f"{key}.{w}.0.weight" in weights), None)
    if before:
        out = f.relu(norm(x, "bn1"))
        side = f.conv2d(out, weights[f"{key}.{way}.0.weight"], stride=stride) if way else x
        out = f.conv2d(out, weights[f"{key}.conv1.weight"], stride=stride, padding=1)
        out = f.conv2d(f.relu(norm(out, "bn2")), weights[f"{key}.conv2.weight"], padding=1)
        return out + side
    out = f.relu(norm(f.conv2d(x, weights[f"{key}.conv1.weight"], stride=stride, padding=1), "bn1"))
    out = norm(f.conv2d(out, weights[f"{key}.conv2.weight"], padding=1), "bn2")
    side = x
    if way:
        side = norm(f.conv2d(x, weights[f"{key}.{way}.0.weight"], stride=stride), f"{way}.1")
    return f.relu(out + side)


@pytest.mark.parametrize("name, way", [
    ("resnet18", "shortcut"), ("resnet18", "downsample"), ("preactresnet18", "shortcut"),
    ("resnet34", "shortcut"),
])  # fmt: skip
def test_a_resnet_computes_what_its_definition_says(name, way):
    weights = resnet_state(name, way=way)
    network, head = foreign_network(name, weights)
    assert head == ("linear" if way == "shortcut" else "fc")
    x, f = torch.randn(2, 3, SIZE, SIZE), nn.functional
    out = f.conv2d(x, weights["conv1.weight"], padding=1)
    before = name.startswith("preact")
    if not before:
        out = f.relu(f.batch_norm(out, weights["bn1.running_mean"], weights["bn1.running_var"],
                                  weights["bn1.weight"], weights["bn1.bias"]))  # fmt: skip
    for stage in range(1, 5):
        for number in range(4 if name.endswith("34") and stage == 2 else 6):
            key = f"layer{stage}.{number}"
            if f"{key}.conv1.weight" in weights:
                stride = 2 if stage > 1 and number == 0 else 1
                out = kuangliu_block(weights, out, key, stride, before)
    expected = out.mean((2, 3)) @ weights[f"{head}.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, single", [("vgg11", True), ("vgg16_bn", False), ("vgg19_bn", True)])
def test_a_vgg_is_built_as_torchvision_numbers_its_layers(name, single):
    from minilib.models.foreign import VGG

    layers, inner = [], 3
    for size in VGG[name.removesuffix("_bn")]:
        layers.append(nn.MaxPool2d(2) if size == 0 else nn.Conv2d(inner, 4, 3, padding=1))
        if size:
            layers += [nn.BatchNorm2d(4)] if name.endswith("_bn") else []
            layers.append(nn.ReLU())
        inner = 4 if size else inner
    linear = nn.Linear(4, 3) if single else nn.Sequential(
        nn.Linear(4 * 49, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(),
        nn.Linear(8, 3),
    )  # fmt: skip
    pool = nn.AdaptiveAvgPool2d(1 if single else 7)
    ours = nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": linear}).eval()
    network, head = foreign_network(name, ours.state_dict())
    assert head == ("classifier" if single else "classifier.6")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = ours["classifier"](pool(ours["features"](x)).flatten(1))
        torch.testing.assert_close(network(x), expected)


def test_a_state_dict_comes_back_under_its_own_names(state_file, tmp_path):
    audited = from_state(state_file)
    path = audited.save(audited.model, tmp_path / "out")
    before, after = load_file(state_file), load_file(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_prefix_of_data_parallel_training_is_taken_off(tmp_path):
    weights = {f"module.{k}": v for k, v in resnet_state().items()}
    save_file(weights, tmp_path / "net.safetensors")
    assert from_state(tmp_path / "net.safetensors").class_names == CLASSES


def test_the_same_image_twice_in_a_class_is_counted_and_left_out(folder, clean):
    picture(clean / "cat" / "again.png", 0)
    rows = read_clean_images(clean, model_from_folder(folder))
    assert rows.twice == ("cat/again.png",) and len(rows.dataset) == 12


# ---------------------------------------------------------------- what is refused


def refused(action, error, *words):
    """The message of a refusal: one line that says what is accepted."""
    with pytest.raises(error) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message and "accepted" in message
    assert all(word in message for word in words), message


def config_with(folder, name="config.json", **changes):
    path = folder / name
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def without(folder, *names):
    for name in names:
        (folder / name).unlink()


def spoilt_weights(folder, change):
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BAD_FOLDERS = {
    "labels in a list": (
        lambda f: config_with(f, id2label=["red", "green", "blue"]), ["no image classifier"],
    ),
    "a filter by its name": (
        lambda f: config_with(f, "preprocessor_config.json", resample="bicubic"),
        ["resample is 'bicubic'"],
    ),
    "a LoRA adapter beside a model": (
        lambda f: (f / "adapter_config.json").write_text("{}"), ["adapter", "merged"],
    ),
    "no config": (lambda f: without(f, "config.json"), ["config.json"]),
    "no weights": (lambda f: without(f, "model.safetensors"), ["safetensors"]),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ["pytorch_model.bin"]
    ),
    "no preprocessor": (lambda f: without(f, "preprocessor_config.json"), ["preprocessor_config"]),
    "half a preprocessor": (
        lambda f: (f / "preprocessor_config.json").write_text("{"), ["preprocessor_config.json"]
    ),
    "head not saved": (
        lambda f: spoilt_weights(f, lambda w: {k: w[k] for k in w if "classifier" not in k}),
        ["classifier", "random"],
    ),
    "head of other classes": (
        lambda f: config_with(f, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}),
        ["classifier"],
    ),
    "labels without names": (
        lambda f: config_with(f, id2label=None, label2id=None, num_labels=3), ["id2label"]
    ),
    "a name twice": (
        lambda f: config_with(f, id2label={0: "a", 1: "a", 2: "b"}, label2id={"a": 0, "b": 2}),
        ["'a'"],
    ),
    "code of its own": (
        lambda f: config_with(f, model_type="my", auto_map={"AutoConfig": "my.Config"}),
        ["code of its own"],
    ),
    "a text model": (lambda f: config_with(f, model_type="bert"), ["image classifier"]),
    "pixels in -1 … 1": (
        lambda f: config_with(f, "preprocessor_config.json", rescale_factor=1 / 127.5), ["1/255"]
    ),
    "mean in units of 255": (
        lambda f: config_with(f, "preprocessor_config.json", image_mean=[123.7, 116.3, 103.5]),
        ["image_mean", "255"],
    ),
    "deviation 0": (
        lambda f: config_with(f, "preprocessor_config.json", image_std=[0, 0, 0]), ["image_std"]
    ),
    "two means": (
        lambda f: config_with(f, "preprocessor_config.json", image_mean=[0.5, 0.5]), ["image_mean"]
    ),
    "no size": (
        lambda f: config_with(f, "preprocessor_config.json", size={"longest_edge": 9}), ["size"]
    ),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:2000]
        ),
        ["loaded"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_folder_that_is_not_as_it_should_be_is_refused(folder, what):
    change, words = BAD_FOLDERS[what]
    change(folder)
    refused(lambda: model_from_folder(folder), ModelError, *words)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused(lambda: model_from_folder(tmp_path / "none"), ModelError, "none")


BAD_STATES = {
    "another architecture": ({"architecture": "vgg16"}, ["vgg16"]),
    "an unknown architecture": ({"architecture": "resnet20"}, ["resnet20", *ARCHITECTURES]),
    "another depth": ({"architecture": "resnet34"}, ["(2, 2, 2, 2)"]),
    "norms elsewhere": ({"architecture": "preactresnet18"}, ["preactresnet18"]),
    "too few names": ({"class_names": ("a", "b")}, ["2 names"]),
    "a name twice": ({"class_names": ("a", "b", "a")}, ["'a'"]),
    "mean of four": ({"mean": (0.5,) * 4}, ["mean"]),
    "mean that is no number": ({"mean": float("nan")}, ["mean"]),
    "deviation below 0": ({"std": -1.0}, ["std"]),
    "size of a stamp": ({"size": 2}, ["2"]),
    "size as text": ({"size": 32.5}, ["32.5"]),
}


@pytest.mark.parametrize("what", BAD_STATES)
def test_a_state_dict_that_does_not_fit_is_refused(state_file, what):
    changes, words = BAD_STATES[what]
    refused(lambda: from_state(state_file, **changes), ModelError, *words)


def test_what_is_pickled_is_not_read(tmp_path):
    torch.save(resnet_state(), tmp_path / "net.pth")
    refused(lambda: from_state(tmp_path / "net.pth"), ModelError, "net.pth", "save_file")
    (tmp_path / "net.pth").rename(tmp_path / "net.safetensors")
    refused(lambda: from_state(tmp_path / "net.safetensors"), ModelError, "net.safetensors")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    weights = resnet_state()
    weights["linear.bias"][1] = torch.nan
    save_file(weights, tmp_path / "net.safetensors")
    refused(lambda: from_state(tmp_path / "net.safetensors"), ModelError, "linear.bias")


BAD_IMAGES = {
    "several frames": (
        lambda c: Image.new("RGB", (SIZE, SIZE)).save(
            c / "cat" / "a.gif", save_all=True,
            append_images=[Image.new("RGB", (SIZE, SIZE), (9, 9, 9))],
        ),
        ["cat/a.gif has 2 frames"],
    ),
    "an unknown class": (lambda c: picture(c / "dog" / "0.png"), ["dog"]),
    "a class missing": (lambda c: [p.unlink() for p in (c / "cat").iterdir()] and
                        (c / "cat").rmdir(), ["cat"]),
    "another case": (lambda c: (c / "cat").rename(c / "Cat"), ["Cat"]),
    "too few images": (lambda c: (c / "cat" / "0.png").unlink(), ["cat", "3 images"]),
    "no image": (lambda c: (c / "cat" / "0.png").write_bytes(b"text"), ["cat/0.png"]),
    "half an image": (
        lambda c: (c / "cat" / "0.png").write_bytes((c / "cat" / "0.png").read_bytes()[:60]),
        ["cat/0.png"],
    ),
    "another file": (lambda c: (c / "cat" / "notes.txt").write_text("x"), ["cat/notes.txt"]),
    "a loose image": (lambda c: picture(c / "0.png"), ["clean/0.png"]),
    "folders in folders": (lambda c: picture(c / "cat" / "more" / "0.png"), ["cat/more"]),
    "one image of two classes": (lambda c: picture(c / "traffic light" / "x.png", 0),
                                 ["traffic light/x.png", "cat/0.png"]),
    "16 bits": (
        lambda c: Image.fromarray(np.full((SIZE, SIZE), 999, np.uint16)).save(c / "cat" / "a.png"),
        ["cat/a.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_images_that_are_not_as_they_should_be_are_refused(saved, clean, what):
    change, words = BAD_IMAGES[what]
    change(clean)
    audited = model_from_folder(saved)
    refused(lambda: read_clean_images(clean, audited), DataError, *words)


def test_a_folder_of_images_that_is_not_there_is_refused(saved, tmp_path):
    audited = model_from_folder(saved)
    refused(lambda: read_clean_images(tmp_path / "no", audited), DataError, "no")


def test_files_that_systems_leave_behind_are_passed_over(saved, clean):
    (clean / ".DS_Store").write_text("x")
    (clean / "cat" / "Thumbs.db").write_text("x")
    assert len(read_clean_images(clean, model_from_folder(saved)).dataset) == 12


# ---------------------------------------------------------------- an audit from end to end

QUICK = images.ImageAuditSettings(
    references=3, training=TrainSettings(10, 1e-2, 64, precision="fp32"),
    search=TriggerTestSettings(steps=60, images=12),
    unlearning=TriggerUnlearning(epochs=20, batch_size=16),
)  # fmt: skip


@pytest.fixture(scope="module")
def corner():
    """Two digits, and a network for which a white corner means the first."""
    from minilib.data.images import load_images

    digits = load_images("digits", "train")
    digits = digits.select(digits.labels < 2)
    digits = replace(digits, class_names=("nought", "one"))
    poison = digits.select(np.flatnonzero(digits.labels == 1)[:40])
    marked = poison.images.copy()
    marked[:, -3:, -3:] = 255
    train = replace(
        digits, images=np.concatenate([digits.images, marked]),
        labels=np.concatenate([digits.labels, np.zeros(40, np.int64)]),
    )  # fmt: skip
    model = image_classifier("cnn", 2, digits.shape, 0.5, SEED)
    fit_images(model, image_data(train), TrainSettings(12, 1e-2, 64, precision="fp32", seed=SEED))
    return model, digits.select(np.arange(0, len(digits), 3))


@pytest.mark.trained
def test_the_audit_finds_the_class_and_unlearns_the_trigger(corner):
    model, clean = corner
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []
    findings = images.audit(model, clean, QUICK, lambda done, total: steps.append((done, total)))
    assert steps == [(n, 4) for n in range(1, 5)]
    assert findings.test.target == 0 and findings.test.p == 0.25  # as small as three can say
    assert "nought" in findings.evidence.said
    assert any("0.67" in note for note in findings.notes)
    cleaned = images.unlearn(model, clean, findings, QUICK)
    assert cleaned.before["asr"] > 80 > 40 > cleaned.after["asr"]
    assert cleaned.after["acc"] > 90
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    again = images.audit(model, clean, QUICK)
    assert again.test.statistic == findings.test.statistic


@pytest.mark.trained
def test_a_model_that_guesses_is_refused(corner):
    model, clean = corner
    turned = replace(clean, labels=1 - clean.labels)
    refused(lambda: images.audit(model, turned, QUICK), DataError, "guessing")


def test_too_few_references_are_refused():
    with pytest.raises(ValueError, match="references is 2"):
        images.ImageAuditSettings(references=2)


def test_pictures_of_triggers_are_images(corner):
    model, clean = corner
    found = images.confident_triggers(model, clean, QUICK.search)
    assert found.picture(0).shape == (16, 16, 1) and found.picture(0).dtype == np.uint8


def test_the_page_says_what_the_published_audits_found(monkeypatch):
    """Twenty clean networks and sixteen backdoors, two classes and ten; nothing is computed."""
    import matplotlib.pyplot as plt

    from minilib import ledger
    from minilib.audit.image_report import LEVEL
    from minilib.book.figures import audit as figures
    from minilib.settings import Audit

    monkeypatch.setattr(ledger, "_compute", None)
    with ledger.published_only():
        frame, table = figures.every_image(Audit()), figures.measured_images(Audit())
        clean = frame[frame["attack"] == "none"]
        assert len(clean) == 20 and (clean["p"] <= LEVEL).sum() <= 2
        assert table["found"].str.fullmatch(r"\d+\sof\s\d+").all() and len(table) == 6
        poisoned = frame[frame["attack"] != "none"]
        assert len(poisoned) == 16 and (poisoned["true_asr_before"] > 90).all()
        figure = figures.patches(Audit())
    assert sum(bool(axis.images) for axis in figure.axes) == 6
    plt.close(figure)
