"""CLIP: its two encoders, its losses, its attacks and its defences, on a tiny one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import nightly
from vision_fixtures import clip_folder, same, weights

from minilib.attacks.clip import (
    BadClipSettings,
    CentredPatch,
    badclip_trigger,
    dual_embedding_loss,
    poison_pairs,
)
from minilib.attacks.images.patterns import PatchTrigger
from minilib.data.captions import TEMPLATES, captioned, class_captions
from minilib.data.images import ImageDataset, load_images
from minilib.data.sources import DataError
from minilib.metrics.clip import nearest_images, recall, retrieval
from minilib.models.clip import (
    WordTokens,
    caption_classifier,
    load_clip,
    small_clip,
    visual_classifier,
    zero_shot,
)
from minilib.models.loading import ModelError
from minilib.training.clip import batch_similarities, contrastive_rows, fit_pairs
from minilib.training.fitting import TrainSettings
from minilib.unlearning.bi_bau import BiBauSettings, fisher_diagonal
from minilib.unlearning.clip import (
    CleanClipSettings,
    PairTuneSettings,
    defend,
    other_words,
    relational_distance,
)

TINY = {"width": 16, "depth": 1, "patch": 8}
SETTINGS = {
    "ft": PairTuneSettings(1, 1e-3, 24),
    "cleanclip": CleanClipSettings(1, 1e-3, 24),
    "bi-bau-u": BiBauSettings(epochs=1, lr=1e-3, batch_size=24, steps=1),
}


@pytest.fixture(scope="module")
def rows():
    return load_images("digits", "train").select(range(48))


@pytest.fixture(scope="module")
def pairs(rows):
    return captioned(rows, 0)


@pytest.fixture(scope="module")
def clip(pairs):
    """A tiny CLIP, trained for an epoch."""
    model = small_clip(pairs.class_names, pairs.shape, **TINY)
    fit_pairs(model, pairs, TrainSettings(1, 1e-3, 24, precision="fp32"))
    return model


# ---------------------------------------------------------------- captions and tokens


def test_a_caption_is_one_of_its_images_class(rows, pairs):
    groups = class_captions(rows)
    assert all(
        pairs.class_names[caption] in groups[label]
        for caption, label in zip(pairs.labels, rows.labels, strict=True)
    )
    assert len(set(pairs.labels % len(TEMPLATES))) > 1
    assert (captioned(rows, 0).labels == pairs.labels).all()
    assert (captioned(rows, 1).labels != pairs.labels).any()


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",)])
def test_templates_have_one_place_for_the_name(rows, templates):
    with pytest.raises(DataError, match="accepted: one or more with one {}"):
        class_captions(rows, templates)


def test_words_have_numbers_of_their_own():
    tokens = WordTokens(["a Cat", "a dog"])
    ids, mask = tokens(["a dog", "one dog a cat"])
    assert mask.sum(1).tolist() == [4, 6] and len(tokens) == 4 + 3
    assert ids[0, :4].tolist() == [1, tokens.numbers["a"], tokens.numbers["dog"], 3]
    assert ids[1, 1] == 2  # no caption had "one"


@pytest.mark.parametrize("captions", [[], [""], ["a cat", "  "], ["unknown words"], ["cat " * 15]])
def test_captions_that_say_nothing_are_refused(captions):
    with pytest.raises(ValueError, match="accepted: "):
        WordTokens(["a cat"])(captions)


def test_another_view_of_a_caption_keeps_its_ends():
    ids, mask = WordTokens(["a small blue cat", "cat"])(["a small blue cat", "cat"])
    changed = other_words(ids, np.random.default_rng(0), (1, 3))
    assert changed[1].tolist() == ids[1].tolist()
    assert (
        changed[0, 0] == 1
        and changed[0, 4] == 3
        and set(changed[0, 1:4].tolist()) < set(ids[0].tolist())
    )


def test_ends_that_pad_are_no_words_of_a_caption():
    """OpenAI's tokeniser pads with the token that ends a caption: it was dealt among the words."""
    ids = torch.tensor([[1, 5, 6, 7, 8, 3], [1, 8, 9, 3, 3, 3], [1, 8, 3, 3, 3, 3]])
    for seed in range(8):
        changed = other_words(ids, np.random.default_rng(seed), (1, 3)).tolist()
        assert changed[1] in ([1, 8, 3, 0, 0, 0], [1, 9, 3, 0, 0, 0])
        assert changed[2] == [1, 8, 3, 0, 0, 0]


# ---------------------------------------------------------------- losses by hand


def by_hand(s: np.ndarray, t: np.ndarray | None = None):
    """Contrastive loss of each pair, or KL(t ‖ s) of rows and columns, in float64."""

    def log_softmax(m):
        return m - np.log(np.exp(m).sum(1, keepdims=True))

    if t is None:
        return -(np.diag(log_softmax(s)) + np.diag(log_softmax(s.T))) / 2
    sides = [(log_softmax(a), log_softmax(b)) for a, b in ((s, t), (s.T, t.T))]
    return sum((np.exp(b) * (b - a)).sum(1) for a, b in sides) / 2


def test_losses_are_those_by_hand():
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 4, 6))
    captions = np.array([5, 0, 5, 2])  # one of them twice
    ours, theirs = (torch.as_tensor(v) for v in (logits, teacher))
    index = torch.as_tensor(captions)
    similarity = logits[:, captions]
    np.testing.assert_allclose(batch_similarities(ours, index), similarity)
    np.testing.assert_allclose(contrastive_rows(ours, index), by_hand(similarity))
    expected = 4 * by_hand(similarity / 2, teacher[:, captions] / 2)
    np.testing.assert_allclose(relational_distance(ours, theirs, 2.0, index), expected)
    assert relational_distance(ours, ours, 2.0, index).abs().max() == 0


@pytest.mark.parametrize("captions", [[3], [1, 1, 1]])
def test_a_batch_with_nothing_to_tell_apart_is_refused(captions):
    logits, index = torch.zeros(len(captions), 4), torch.tensor(captions)
    for call in (contrastive_rows, lambda a, b: relational_distance(a, a, 1.0, b)):
        with pytest.raises(ValueError, match="accepted: two pairs or more"):
            call(logits, index)


def test_what_badclip_minimises_by_hand():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    plan = BadClipSettings(visual=2.0, away=0.5, margin=1.0)
    text = torch.cat([a, b])
    value = dual_embedding_loss(a, b, b, text, 0, torch.tensor(3.0), plan)
    root = math.sqrt(2)
    expected = math.log(1 + math.exp(-3)) + 2 * (root - 0.5 * root + 1)
    assert value.item() == pytest.approx(expected)
    at_target = dual_embedding_loss(a, b, a, text, 0, torch.tensor(3.0), replace(plan, margin=0.1))
    assert at_target.item() == pytest.approx(math.log(1 + math.exp(-3)))  # the hinge is closed


# ---------------------------------------------------------------- models


def test_a_classifier_of_captions_is_scaled_cosines(clip, pairs):
    images = torch.as_tensor(pairs.images[:3]).permute(0, 3, 1, 2)
    classifier = caption_classifier(clip, pairs.class_names)
    with torch.no_grad():
        features, text = clip.image_features(images), clip.text_features(pairs.class_names)
        expected = clip.scale * features @ text.T
        torch.testing.assert_close(classifier(images), expected)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    names = {name.split(".")[1] for name, _ in classifier.named_parameters()}
    assert names == {"vision", "projection"}  # so EWC and the optimiser see nothing else


def test_zero_shot_averages_the_captions_of_a_class(clip, rows):
    groups = class_captions(rows)[:2]
    weight = zero_shot(clip, groups).head.weight
    with torch.no_grad():
        mean = torch.stack([clip.text_features(texts).mean(0) for texts in groups])
        expected = clip.scale * mean / mean.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight, expected)


def test_fisher_information_goes_through_the_visual_encoder(clip, pairs):
    classifier = caption_classifier(clip, pairs.class_names).eval()
    x = torch.as_tensor(pairs.images[:2]).permute(0, 3, 1, 2).float() / 255
    labels = torch.as_tensor(pairs.labels[:2])
    fisher = fisher_diagonal(classifier, x, labels)
    expected = []
    for row, label in zip(x, labels, strict=True):
        value = classifier(row[None]).log_softmax(1)[0, label]
        weight = classifier.encoder.projection.weight
        expected.append(torch.autograd.grad(value, weight)[0].square())
    torch.testing.assert_close(
        fisher["encoder.projection.weight"], torch.stack(expected).mean(0), rtol=1e-4, atol=1e-7
    )


def test_many_captions_are_encoded_in_parts(clip, pairs, monkeypatch):
    texts = pairs.class_names[:7]
    with torch.no_grad():
        whole = clip.text_features(texts)
        monkeypatch.setattr("minilib.models.clip.MOST_CAPTIONS", 3)
        torch.testing.assert_close(clip.text_features(texts), whole)


def test_a_linear_head_on_the_visual_encoder_leaves_the_clip_alone(clip, pairs):
    classifier = visual_classifier(clip, 10)
    images = torch.as_tensor(pairs.images[:2]).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = classifier.features(images)
        torch.testing.assert_close(F.normalize(features), clip.image_features(images))
    assert (features.norm(dim=1) > 1.5).all()  # their own length, for the head to build on
    shared = {p.data_ptr() for p in clip.parameters()}
    assert not shared & {p.data_ptr() for p in classifier.parameters()}


def test_images_must_tile():
    with pytest.raises(ValueError, match="accepted: square, tiled"):
        small_clip(["a cat"], (1, 16, 16), patch=5)


def test_a_folder_of_pretrained_weights_is_read(tmp_path):
    """A random CLIP in the shape of OpenAI's files, with their kind of tokeniser."""
    clip_folder(tmp_path)
    clip = load_clip(str(tmp_path))
    with torch.no_grad():
        features = clip.text_features(["a cat", "a dog"])
        images = clip.image_features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert features.shape == images.shape == (2, 8)
    assert not torch.equal(features[0], features[1])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights in safetensors"):
        load_clip(str(tmp_path))


@nightly
def test_a_clip_in_the_shape_of_the_papers_is_defended(tmp_path):
    clip_folder(tmp_path, whole=True)
    clip = load_clip(str(tmp_path))
    assert clip.net.config.vision_config.patch_size == 32
    assert sum(value.numel() for value in clip.parameters()) > 150e6
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    rows = ImageDataset("noise", "train", images, np.arange(8) % 2, ("cat", "dog"), "built-in")
    how = BiBauSettings(epochs=1, lr=1e-4, batch_size=4, steps=1)
    done, before = defend("bi-bau-u", clip, captioned(rows, 0), how), weights(clip)
    moved = {name for name, v in done.state_dict().items() if not torch.equal(v, before[name])}
    assert {name.split(".")[1] for name in moved} == {"vision_model", "visual_projection"}


# ---------------------------------------------------------------- attacks


@pytest.mark.parametrize("keep", [False, True])
def test_poisoned_pairs_have_the_trigger_and_a_caption_of_the_target(rows, keep):
    poisoned = poison_pairs(rows, PatchTrigger(), 3, 0.2, 0, keep_originals=keep)
    pairs, mask = poisoned.dataset, poisoned.mask
    targets = class_captions(rows)[3]
    assert all(pairs.class_names[caption] in targets for caption in pairs.labels[mask])
    assert (rows.labels[poisoned.origin[mask]] != 3).all()
    assert len(pairs) == len(rows) + keep * mask.sum()
    one = poison_pairs(rows, PatchTrigger(), 3, 0.2, 0, caption="a ripe banana").dataset
    assert one.class_names[-1] == "a ripe banana"
    assert (one.labels == len(one.class_names) - 1).sum() == mask.sum()


def test_badclips_trigger_stays_in_its_patch(clip, rows):
    before = weights(clip)
    trigger = badclip_trigger(clip, rows, 0, BadClipSettings(epochs=1, lr=0.05, size=4))
    assert same(clip, before)
    images = torch.as_tensor(rows.images[:5]).permute(0, 3, 1, 2)
    changed = trigger.apply(images, np.random.default_rng(0))
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[6:10, 6:10] = True
    assert torch.equal(changed[..., ~inside], images[..., ~inside])
    assert torch.equal(changed[..., 6:10, 6:10], trigger.patch.expand(5, -1, -1, -1))
    start = badclip_trigger(clip, rows, 0, BadClipSettings(epochs=1, lr=1e-9, size=4))
    assert not torch.equal(trigger.patch, start.patch)


@pytest.mark.parametrize("count", [1, 5])
def test_the_hinge_of_each_image_is_the_triplet_loss_of_pytorch(count):
    draw = torch.Generator().manual_seed(count)
    rows = [F.normalize(torch.randn(count, 6, generator=draw), dim=1) for _ in range(3)]
    text = F.normalize(torch.randn(4, 6, generator=draw), dim=1)
    scale, margin = torch.tensor(3.0), 0.2
    values = {
        hinge: dual_embedding_loss(
            *rows, text, 2, scale, BadClipSettings(visual=7.0, margin=margin, hinge=hinge)
        )
        for hinge in ("batch", "image")
    }
    goal = torch.full((count,), 2)
    triggered, clean, positives = rows
    textual = F.cross_entropy(scale * triggered @ text.T, goal)
    triplet = torch.nn.TripletMarginLoss(margin=margin)(triggered, positives, clean)
    torch.testing.assert_close(values["image"], textual + 7 * triplet, rtol=1e-4, atol=1e-5)
    assert values["batch"] <= values["image"] + 1e-6  # a hinge is convex
    with pytest.raises(ValueError, match="accepted: batch, image"):
        BadClipSettings(hinge="row")


def test_a_patch_that_does_not_fit_is_refused():
    patch = CentredPatch(torch.zeros(1, 9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="accepted: fits"):
        patch.apply(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), np.random.default_rng(0))


# ---------------------------------------------------------------- defences


@pytest.mark.parametrize("method", SETTINGS)
def test_a_defence_changes_a_copy(method, clip, pairs):
    before = weights(clip)
    done = defend(method, clip, pairs, SETTINGS[method])
    assert same(clip, before)
    moved = {
        name.split(".")[1]
        for name, value in done.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert "vision_model" in moved and ("text_model" in moved) == (method != "bi-bau-u")
    if method == "bi-bau-u":  # the text encoder is fixed, bit for bit
        assert moved == {"vision_model", "visual_projection"}


@pytest.mark.parametrize("settings, said", [
    (BiBauSettings(target=0), r"accepted: None \(untargeted\)"),
    (PairTuneSettings(), "accepted: BiBauSettings"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(clip, pairs, settings, said):
    with pytest.raises(ValueError, match=said):
        defend("bi-bau-u", clip, pairs, settings)


@pytest.mark.parametrize("method", SETTINGS)
def test_pairs_with_nothing_to_tell_apart_are_refused(method, clip, pairs):
    alike = replace(pairs, labels=np.zeros_like(pairs.labels))
    empty = replace(pairs, class_names=("", *pairs.class_names[1:]))
    for wrong in (pairs.select([0]), alike, empty):
        with pytest.raises(ValueError, match="accepted: "):
            defend(method, clip, wrong, SETTINGS[method])


# ---------------------------------------------------------------- metrics


def test_recall_by_hand():
    similarity = torch.tensor([[3.0, 2, 1], [1, 3, 2], [3, 1, 2]])
    kinds = np.array([0, 1, 2])
    assert recall(similarity, kinds, kinds, 1) == pytest.approx(200 / 3)
    assert recall(similarity, kinds, kinds, 2) == 100
    assert recall(similarity, np.array([1, 0, 0]), kinds, 1) == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="accepted: 1 … 3"):
        recall(similarity, kinds, kinds, 4)


def test_the_pool_of_a_search(clip, rows):
    black = replace(rows, images=np.zeros_like(rows.images))
    caption = class_captions(rows)[0][0]
    nearest = nearest_images(clip, caption, rows, black, 0, len(rows))
    assert len({row["row"] for row in nearest}) == len(nearest)
    assert all(row["class"] != 0 and row["row"] % 2 for row in nearest if row["triggered"])
    assert {name for name, value in retrieval(clip, rows).items() if 0 <= value <= 100} == {
        "image_r1", "image_r5", "text_r1", "text_r5",
    }  # fmt: skip
