"""Image classifiers, device-resident batches, augmentation, prediction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vision_fixtures import SHORT, digits, same, weights  # noqa: F401

from minilib.data import images as images_module
from minilib.data.images import ImageDataset, defender_rows
from minilib.data.sources import DataError
from minilib.models.images import (
    IMAGE_MODELS,
    ImageClassifier,
    check_images,
    frozen_copy,
    image_classifier,
    model_copy,
    pixels,
    unwrap,
    wrap,
)
from minilib.training.fitting import TrainSettings
from minilib.training.images import (
    ImageBatches,
    augment,
    cut_out,
    fit_images,
    image_data,
    predict_images,
)


def colours(count=6, side=32, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def few(images, classes=10, name="few") -> ImageDataset:
    labels = np.arange(len(images)) % classes
    return ImageDataset(name, "train", images, labels, tuple("abcdefghij"[:classes]), "built-in")


# --------------------------------------------------------------------------------- data sets


def test_select_and_defender_rows(digits):  # noqa: F811
    train, _ = digits
    assert train.shape == (1, 16, 16) and train.num_classes == 10
    part = train.select([5, 3])
    assert np.array_equal(part.images, train.images[[5, 3]]) and list(part.labels) == list(
        train.labels[[5, 3]]
    )
    mine = defender_rows(train, 0.05, seed=1)
    counts = np.bincount(mine.labels, minlength=10)
    assert set(counts) <= {6, 7} and mine.sha256 == defender_rows(train, 0.05, seed=1).sha256
    assert mine.sha256 != defender_rows(train, 0.05, seed=2).sha256


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (colours().astype(np.float32), np.zeros(6, int), "float32; accepted: (N, H, W, 1 or 3) ui"),
        (colours()[0], np.zeros(32, int), "(32, 32, 3) uint8; accepted: (N, H, W, 1 or 3)"),
        (colours(), np.zeros(5, int), "6 images but 5 labels"),
        (colours(), np.full(6, 2), "row 1: label is 2; accepted: 0 … 1"),
    ],
)
def test_images_of_another_kind_are_one_line(images, labels, message):
    with pytest.raises(DataError) as error:
        ImageDataset("x", "train", images, labels, ("a", "b"), "built-in")
    assert message in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16)])
def test_every_model_takes_bytes_and_floats(name, shape):
    model = image_classifier(name, 7, shape, width=0.25, seed=3).eval()
    images = torch.as_tensor(np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8))
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 7)
        assert torch.equal(logits, model(images.float() / 255))
        assert torch.equal(logits, model.head(model.features(images)))
    again = image_classifier(name, 7, shape, width=0.25, seed=3)
    other = image_classifier(name, 7, shape, width=0.25, seed=4)
    assert torch.equal(again.head.weight, model.head.weight)
    assert not torch.equal(other.head.weight, model.head.weight)


def test_resnet_has_the_papers_twenty_convolutions():
    for name in ("resnet18", "preresnet18"):
        model = image_classifier(name, 10, width=0.25)
        assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 20
        assert model.head.in_features == 128
    full = image_classifier("resnet18", 10)
    assert 11.1e6 < sum(p.numel() for p in full.parameters()) < 11.2e6  # 11.17 million


def test_wrn_16_1_has_its_papers_size():
    model = image_classifier("wrn16", 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size[0] for m in convolutions].count(3) == 13 and len(convolutions) == 15
    assert model.head.in_features == 64
    assert 0.17e6 < sum(p.numel() for p in model.parameters()) < 0.18e6  # "0.2 million", Table 5
    # Norm and ReLU come first, the last ones after all blocks.
    images = torch.rand(3, 3, 32, 32)
    assert (model.features(images) >= 0).all() and model.encoder.norm.num_features == 64


def test_the_first_layer_whitens_patches():
    model = image_classifier("whitened", 5, width=0.25)
    images = pixels(colours(20)) / 255 + 0.3 * pixels(colours(20))[:, :1] / 255
    model.encoder.whiten(images, floor=0.0)
    weight = model.encoder.patches.weight
    assert torch.equal(weight[:12], -weight[12:]) and not weight.requires_grad
    outputs = nn.functional.conv2d(images.contiguous(), weight[:12]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(outputs), torch.eye(12), atol=1e-2, rtol=0)


class Foreign(nn.Module):
    """A network of somebody else's: it ends in ``fc`` and expects normalised images."""

    def __init__(self, after=None, reshape=False, norm=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4) if norm else nn.Identity()
        self.shortcut, self.drop = nn.Conv2d(4, 4, 1), nn.Dropout(0.5)
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(900 if reshape else 4, 5)
        self.after, self.reshape = after or (lambda logits, x: logits), reshape

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.drop(self.act(x + self.shortcut(x)))
        x = x.view(len(x), -1) if self.reshape else x.mean((2, 3))
        return self.after(self.fc(x), x)


def hugging_face(name):
    import transformers

    if name == "vit":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.ViTConfig(
            **sizes, intermediate_size=16, image_size=32, patch_size=8, num_labels=5
        )
        return transformers.ViTForImageClassification(config), "classifier"
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config), "classifier.1"


def vgg():
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(True))
    pooled = nn.Sequential(*features, nn.MaxPool2d(8), nn.Flatten(), nn.Dropout())
    return nn.Sequential(pooled, nn.Linear(128, 16), nn.ReLU(True), nn.Linear(16, 5)), "3"


FOREIGN = {
    "mean": lambda: (Foreign(), "fc"),
    "wrn, view": lambda: (Foreign(reshape=True, norm=True), "fc"),
    "vgg": vgg,
    "log-softmax": lambda: (Foreign(lambda z, x: z.log_softmax(1)), "fc"),
    "softmax": lambda: (Foreign(lambda z, x: z.softmax(1)), "fc"),
    "temperature": lambda: (Foreign(lambda z, x: z / 4), "fc"),
    "log-softmax at a temperature": lambda: (Foreign(lambda z, x: (3 * z).log_softmax(1)), "fc"),
    "tuple": lambda: (Foreign(lambda z, x: (x, z)), "fc"),
    "dict": lambda: (Foreign(lambda z, x: {"features": x, "logits": z}), "fc"),
    "hf vit": lambda: hugging_face("vit"),
    "hf resnet": lambda: hugging_face("resnet"),
}


def log_probabilities(output):
    output = output.values() if isinstance(output, dict) else output
    output = [v for v in ([output] if torch.is_tensor(output) else output) if v.shape[1] == 5][0]
    sums_to_one = torch.allclose(output.sum(1), torch.ones(len(output)))
    return output.log() if sums_to_one else output.log_softmax(1)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_network_keeps_its_outputs_modes_and_weights(name):
    """It answers as it did, trains as a whole, and comes back; the caller's is left alone."""
    torch.manual_seed(0)
    theirs, head = FOREIGN[name]()
    theirs.eval()
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms[:1]:
        norm.train()  # one module is in another mode than the rest, and stays in it
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    modes = [module.training for module in theirs.modules()]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    model, drawn = wrap(theirs, head, mean, std), torch.rand(1)
    assert not model.training and [m.training for m in theirs.modules()] == modes
    assert [m.training for m in unwrap(model).modules()] == modes
    images = pixels(colours())
    predict_images(model, images)
    assert [m.training for m in unwrap(model).modules()] == modes
    for norm in norms[:1]:
        norm.eval()
    model.eval()
    x = (images / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = log_probabilities(theirs(x.contiguous()))
        torch.testing.assert_close(model(images).log_softmax(1), expected, rtol=1e-3, atol=1e-4)
        again = unwrap(model).eval()(x.contiguous())
        torch.testing.assert_close(log_probabilities(again), expected, rtol=1e-3, atol=1e-4)
    assert model.features(images).shape == (6, model.head.in_features)
    model.train()(images).sum().backward()
    used = [p for p in model.parameters() if p.grad is not None]
    assert len(used) == len(list(theirs.parameters()))
    with torch.no_grad():
        model.head.weight.zero_()
    after = theirs.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert drawn.numel() == 1


def test_wrapping_leaves_the_random_state_alone():
    network = Foreign()
    torch.manual_seed(3)
    wrap(network, "fc", 0.5, 0.5)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_classifier("alexnet", 10), "image model is 'alexnet'; accepted: cnn, res"),
        (lambda: image_classifier("cnn", 10, width=0), "width is 0; accepted: a factor above 0"),
        (lambda: wrap(Foreign(), "conv", 0.5, 0.5), "head 'conv' is no linear layer; accepted: fc"),
        (
            lambda: wrap(Foreign(lambda z, x: z.square()), "fc", 0.5, 0.5),
            "what follows head 'fc' changes its outputs (by up to",
        ),
        (
            lambda: wrap(Foreign(lambda z, x: z.sum(1)), "fc", 0.5, 0.5),
            "the network returns no tensor of shape (4, 5), its head's outputs",
        ),
        (lambda: unwrap(image_classifier("cnn", 3)), "the encoder is a Sequential; accepted: a m"),
        (lambda: ImageClassifier(nn.Identity(), nn.Conv2d(1, 1, 1)), "head is Conv2d; accepted:"),
        (lambda: ImageClassifier(nn.Identity(), nn.Linear(1, 1), std=0.0), "std is 0.0; accepted"),
        (lambda: pixels(colours() / 255), "images are (6, 32, 32, 3) float64; accepted: (N, H, W"),
        (lambda: check_images(torch.zeros(2, 3, 8)), "images have shape (2, 3, 8); accepted: (B,"),
        (lambda: check_images(torch.zeros(1, 3, 8, 8).int()), "images are torch.int32; accepted: "),
        (lambda: check_images(255 * torch.ones(1, 3, 8, 8)), "float images span 255 … 255; accep"),
        (lambda: image_data(few(colours()[:0])), "few has no rows; accepted: one or more"),
        (lambda: image_data(few(colours()), marks=[True]), "1 marks for 6 rows; accepted: one a"),
        (lambda: defender_rows(few(colours()), 0), "share is 0; accepted: in (0, 1]"),
    ],
)
def test_errors_are_one_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_doubles_are_taken_as_singles():
    """NumPy's floats are doubles: images that a user divided by 255."""
    model = image_classifier("cnn", 10, (1, 16, 16)).eval()
    grey_levels = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    doubles = torch.from_numpy(grey_levels.numpy() / 255)
    assert doubles.dtype == torch.float64
    assert torch.allclose(predict_images(model, doubles), predict_images(model, grey_levels))


def test_copies_are_independent():
    model = image_classifier("cnn", 10, (1, 16, 16))
    frozen, copy = frozen_copy(model), model_copy(model)
    assert not any(p.requires_grad for p in frozen.parameters()) and not frozen.training
    with torch.no_grad():
        copy.head.weight.zero_()
    assert model.head.weight.abs().sum() > 0
    assert all(p.requires_grad for p in model.parameters())


# ------------------------------------------------------------------------------------ batches


def test_batches_hold_each_row_once_and_are_nearly_equal():
    data = image_data(few(colours(65, 8)))
    batches = ImageBatches(data, 16)
    parts = list(batches(np.random.default_rng(0)))
    assert len(parts) == len(batches) == 5 and {len(p.labels) for p in parts} == {13}
    rows = np.concatenate([part.rows for part in parts])
    assert sorted(rows) == list(range(65)) and list(rows) != list(range(65))
    for part in parts:
        assert torch.equal(part.images, data.images[part.rows])
        assert torch.equal(part.labels, data.labels[part.rows])


def test_augmentation_against_numpy():
    images = colours(9, 8)
    done = augment(pixels(images), 2, True, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    offsets, mirrored = rng.integers(0, 5, (9, 2)), rng.random(9) < 0.5
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for i, (y, x) in enumerate(offsets):
        window = padded[i, y : y + 8, x : x + 8]
        window = window[:, ::-1] if mirrored[i] else window
        assert np.array_equal(done[i].permute(1, 2, 0).numpy(), window)
    assert 0 < mirrored.sum() < 9 and done.dtype == torch.uint8
    same_images = augment(pixels(images), 0, False, np.random.default_rng(0))
    assert torch.equal(same_images, pixels(images))


@pytest.mark.parametrize("side", [1, 3, 4, 40])
def test_a_grey_square_covers_what_it_says(side):
    images = colours(9, 8)
    done = cut_out(pixels(images), side, np.random.default_rng(4)).permute(0, 2, 3, 1).numpy()
    for i, (y, x) in enumerate(np.random.default_rng(4).integers(0, 8, (9, 2)) - side // 2):
        images[i, max(y, 0) : y + side, max(x, 0) : x + side] = 128
    assert np.array_equal(done, images) and done.dtype == np.uint8


def test_batches_are_cut_out_after_the_crop_and_only_when_asked():
    data = image_data(few(colours(9, 8)))
    plain, cut = (
        next(ImageBatches(data, 9, 2, True, side)(np.random.default_rng(1))) for side in (0, 4)
    )
    changed = (plain.images != cut.images).any(1)
    assert np.array_equal(plain.rows, cut.rows) and changed.any()
    assert (cut.images == 128).all(1)[changed].all() and (changed.sum((1, 2)) <= 16).all()


# --------------------------------------------------------------------------------- prediction


def test_prediction_is_the_models_own_and_leaves_no_trace(digits):  # noqa: F811
    _, test = digits
    model = image_classifier("cnn", 10, test.shape).train()
    before = weights(model)
    logits = predict_images(model, test, "fp32")
    assert logits.shape == (500, 10) and model.training and not logits.is_inference()
    assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())
    with torch.no_grad():
        alone = model.eval()(pixels(test.images[3:4]))
    assert torch.allclose(logits[3], alone[0], atol=1e-5)
    features = predict_images(model, test, "fp32", model.features)
    assert features.shape == (500, 64)


@pytest.mark.trained
def test_training_is_repeatable_and_learns(digits):  # noqa: F811
    train, test = digits
    data = image_data(train)
    how = replace(SHORT, epochs=3)
    first, second = (image_classifier("cnn", 10, train.shape) for _ in range(2))
    losses = [[e["loss"] for e in fit_images(m, data, how, crop=1)] for m in (first, second)]
    assert losses[0] == losses[1] and losses[0][2] < losses[0][0]
    assert same(first, weights(second))
    right = predict_images(first, test).argmax(1).numpy() == test.labels
    assert right.mean() > 0.8


def test_training_is_plain_adamw():
    """Two steps of fit_images against a loop written out here."""
    data = image_data(few(colours(8, 16), 4))
    model = image_classifier("cnn", 4, (3, 16, 16)).double()
    by_hand = model_copy(model)
    how = TrainSettings(2, 1e-2, 8, precision="fp32", clip=0)

    def loss64(network, batch):
        value = F.cross_entropy(network(batch.images), batch.labels)
        return value, {"loss": value.detach()}

    fit_images(model, data, how, loss=loss64)
    optimizer = torch.optim.AdamW(by_hand.parameters(), 1e-2, weight_decay=how.weight_decay)
    rng = np.random.default_rng(0)
    by_hand.train()
    for _ in range(2):
        rows = torch.as_tensor(rng.permutation(8))
        optimizer.zero_grad()
        F.cross_entropy(by_hand(data.images[rows]), data.labels[rows]).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


# ------------------------------------------------------------------------------------ the Hub


def test_a_set_from_the_hub_is_squeezed_and_named(monkeypatch):
    from PIL import Image

    class Rows(list):
        features = {"label": type("Names", (), {"names": ["cat", "dog"]})}

    asked = []

    def split(name, repository, configuration, part, revision=None):
        asked.append((repository, part))
        pictures = [Image.fromarray(image) for image in colours(4, 64)]
        return Rows({"image": p, "label": i % 2} for i, p in enumerate(pictures))

    monkeypatch.delenv("MINILIB_DATA", raising=False)
    monkeypatch.setattr(images_module, "hub_split", split)
    part = images_module.load_images("tiny-imagenet", "test")
    assert part.images.shape == (4, 32, 32, 3) and part.images.dtype == np.uint8
    assert part.class_names == ("cat", "dog") and list(part.labels) == [0, 1, 0, 1]
    assert part.source == "hub" and asked == [("zh-plus/tiny-imagenet", "valid")]
