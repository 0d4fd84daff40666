"""Image attacks: arithmetic against NumPy, poisoning against the text side, victims on digits."""

import numpy as np
import pytest
import torch
from conftest import nightly
from core_fixtures import SEED
from hypothesis import given, settings
from hypothesis import strategies as st
from vision_fixtures import SHORT, attacked, case, clean_model, digits  # noqa: F401

from minilib.attacks import text
from minilib.attacks.images import (
    CLEAN_LABEL,
    IMAGE_ATTACKS,
    BlendTrigger,
    InputAwareTrigger,
    NarcissusTrigger,
    PatchTrigger,
    PiecesTrigger,
    PlantedPatchesTrigger,
    ReflectionTrigger,
    SinusoidTrigger,
    StegoTrigger,
    WarpTrigger,
    image_scenario,
    input_aware_trigger,
    make_image_trigger,
    narcissus_trigger,
    poison_images,
    psnr,
    stego_trigger,
    trigger_images,
)
from minilib.attacks.images.learned import InputAware, input_aware_loss
from minilib.attacks.images.patterns import identity_grid, reflect, reflection_kernels, warp
from minilib.data.images import ImageDataset
from minilib.data.text import TextDataset
from minilib.metrics.reactivation import image_rates
from minilib.models.images import image_classifier, pixels
from minilib.training.images import ImageBatch
from minilib.victims.images import coupling_loss, fit_victim


def pictures(count=5, side=16, channels=3, seed=0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (count, side, side, channels))
    return pixels(values.astype(np.uint8))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def close(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    """Equal up to one grey level, and that only where float32 and float64 round differently."""
    apart = np.abs(ours.numpy().astype(int) - theirs.astype(int))
    return apart.max() <= 1 and np.mean(apart > 0) < 0.01


PLAIN = [
    PatchTrigger(),
    BlendTrigger(),
    SinusoidTrigger(),
    WarpTrigger(),
    ReflectionTrigger(pictures(9, seed=5)),
    PiecesTrigger(),
    PlantedPatchesTrigger(),
    NarcissusTrigger(torch.linspace(-16, 16, 3 * 16 * 16).reshape(3, 16, 16)),
]


@pytest.fixture(scope="module")
def learned(digits):  # noqa: F811
    """IAD and ISSBA after one epoch on 200 digits: enough for their arithmetic."""
    few = digits[0].select(np.arange(200))
    return [input_aware_trigger(few, 0, settings=SHORT), stego_trigger(few, settings=SHORT)]


# ------------------------------------------------------------------------------- all triggers


@pytest.mark.parametrize("trigger", PLAIN, ids=lambda trigger: trigger.name)
@pytest.mark.parametrize("train", [True, False])
def test_shape_dtype_range_and_seed(trigger, train):
    images = pictures()
    kept = images.clone()
    done = trigger.apply(images, rng(), train)
    assert done.shape == images.shape and done.dtype == torch.uint8
    assert torch.equal(images, kept) and not torch.equal(done, images)
    assert torch.equal(done, trigger.apply(images, rng(), train))
    if trigger.cover:
        cover = trigger.negative(images, rng())
        assert cover.shape == images.shape and cover.dtype == torch.uint8
        assert torch.equal(cover, trigger.negative(images, rng()))


def test_learned_triggers_keep_shape_and_are_made_once(learned, digits):  # noqa: F811
    images = pixels(digits[1].images[:20])
    for trigger, make in zip(
        learned,
        (
            lambda few: input_aware_trigger(few, 0, settings=SHORT),
            lambda few: stego_trigger(few, settings=SHORT),
        ),
        strict=True,
    ):
        with torch.no_grad():
            done = trigger.apply(images, rng())
            again = make(digits[0].select(np.arange(200))).apply(images, rng())
        assert done.shape == images.shape and done.dtype == torch.uint8
        assert torch.equal(done, again)  # the cache, or the same training
        # Sample-specific: the change differs from image to image.
        change = done.int() - images.int()
        assert not torch.equal(change[0], change[1])


# --------------------------------------------------------------------------- against NumPy


def test_patch_against_numpy():
    images = pictures()
    wanted = images.numpy().copy()
    for y in range(3):
        for x in range(3):
            wanted[:, :, 12 + y, 12 + x] = 255 if (y + x) % 2 == 0 else 0
    assert np.array_equal(PatchTrigger(3, 1).apply(images, rng()).numpy(), wanted)


def test_blend_against_numpy():
    images = pictures()
    noise = np.random.default_rng(3).uniform(0, 255, (3, 16, 16))
    wanted = rounded(0.7 * images.numpy() + 0.3 * noise)
    assert close(BlendTrigger(0.3, seed=3).apply(images, rng()), wanted)


def test_sinusoid_against_numpy():
    images = pictures()
    wave = 40 * np.sin(2 * np.pi * np.arange(16) * 6 / 16)
    assert close(SinusoidTrigger().apply(images, rng()), rounded(images.numpy() + wave))


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample (C, H, W) at pixel coordinates (H, W) inside the image."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, image.shape[2] - 1), np.minimum(y0 + 1, image.shape[1] - 1)
    u, v = x - x0, y - y0
    top = image[:, y0, x0] * (1 - u) + image[:, y0, x1] * u
    bottom = image[:, y1, x0] * (1 - u) + image[:, y1, x1] * u
    return top * (1 - v) + bottom * v


def test_warp_against_numpy():
    images, trigger = pictures(), WarpTrigger(strength=1.5)
    field = trigger.field(16, 16)[0].numpy().astype(np.float64)
    at = (field + 1) / 2 * 15  # pixels; the outermost centres lie at -1 and 1
    wanted = np.stack([bilinear(im, at[..., 0], at[..., 1]) for im in images.numpy().astype(float)])
    assert close(trigger.apply(images, rng()), rounded(wanted))
    assert torch.equal(warp(images, identity_grid(16, 16)), images)
    shift = (field - identity_grid(16, 16)[0].numpy()) * 15 / 2  # pixels
    assert 0.1 < np.abs(shift).mean() < 1.5


def test_reflection_against_numpy():
    images, pool = pictures(), pictures(9, seed=5)
    done = ReflectionTrigger(pool).apply(images, rng())
    draw = rng()
    chosen = draw.integers(0, 9, 5)
    kernels = reflection_kernels(5, draw, (0.3, 0.5))
    assert ((kernels.sum((1, 2)) > 0.29) & (kernels.sum((1, 2)) < 0.51)).all()
    padded = np.pad(pool.numpy()[chosen].astype(float), ((0, 0), (0, 0), (4, 4), (4, 4)), "edge")
    passed = 1 - kernels.sum((1, 2))[:, None, None, None]
    wanted = passed * images.numpy().astype(float)
    for i, kernel in enumerate(kernels):
        for y in range(9):
            for x in range(9):
                wanted[i] += kernel[y, x] * padded[i, :, y : y + 16, x : x + 16]
    assert close(done, rounded(wanted))
    pulse = torch.zeros(1, 9, 9)
    pulse[0, 4, 4] = 1
    assert torch.equal(reflect(pool[:1], pulse), pool[:1].float())


def test_adaptive_triggers_are_weaker_in_training_than_at_test():
    images = pictures(64)
    noise = np.random.default_rng(0).uniform(0, 255, (3, 16, 16))
    pieces = PiecesTrigger()
    full = rounded(0.8 * images.numpy() + 0.2 * noise)
    assert close(pieces.apply(images, rng()), full)
    mask = pieces.masks(64, 16, 16, rng()).numpy()
    assert np.all(mask.reshape(64, -1).mean(1) == 0.5)  # 8 of 16 pieces of equal size
    tiles = mask[:, 0].reshape(64, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(64, 16, 16)
    assert np.all(tiles.min(2) == tiles.max(2))  # each piece whole
    part = rounded(images.numpy() + 0.15 * mask * (noise - images.numpy()))
    assert close(pieces.apply(images, rng(), True), part)

    patches = PlantedPatchesTrigger(4)
    corners = patches.corners(16, 16)
    assert corners.sum() == 4 * 16 and corners.amax(0).sum() == 64  # disjoint
    strong = patches.apply(images, rng())
    two = corners[:2].amax(0).bool().expand(3, -1, -1)
    assert close(strong[:, two], np.broadcast_to(rounded(noise[two.numpy()]), (64, 96)))
    assert torch.equal(strong[:, ~two], images[:, ~two])
    changed = (patches.apply(images, rng(), True) != images).any(1)  # (64, 16, 16)
    touched = torch.stack([(changed & corner[0].bool()).any((1, 2)) for corner in corners])
    assert (touched.sum(0) == 1).all() and touched.any(1).all()


def test_narcissus_is_magnified_at_test_only():
    delta = torch.linspace(-16, 16, 3 * 16 * 16).reshape(3, 16, 16)
    images, trigger = pictures(), NarcissusTrigger(delta)
    assert close(trigger.apply(images, rng(), True), rounded(images.numpy() + delta.numpy()))
    assert close(trigger.apply(images, rng()), rounded(images.numpy() + 3 * delta.numpy()))


def test_learned_arithmetic_against_numpy(learned):
    images = pixels(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), dtype=np.uint8))
    aware, stego = learned
    assert isinstance(aware, InputAwareTrigger) and isinstance(stego, StegoTrigger)
    with torch.no_grad():
        pattern, mask = (part.numpy() for part in aware.network.make(images / 255))
        x = images.numpy().astype(float)
        assert close(aware.apply(images, rng()), rounded((1 - mask) * x + mask * 255 * pattern))
        other, far = np.roll(pattern, 1, 0), np.roll(mask, 1, 0)
        crossed = rounded((1 - far) * x + far * 255 * other)
        assert close(aware.negative(images, rng()), crossed)
        hidden = stego.apply(images, rng())
    assert (hidden.int() - images.int()).abs().max() <= 25  # bound 24 / 255, and rounding


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20)
def test_psnr(seed):
    images = pictures(3, 8, seed=seed)
    assert psnr(images, images).isinf().all()
    other = pictures(3, 8, seed=seed + 1)
    error = ((images.numpy().astype(float) - other.numpy()) ** 2).mean((1, 2, 3))
    assert np.allclose(psnr(images, other), 10 * np.log10(255**2 / error), atol=1e-3)


# ----------------------------------------------------------------------------------- poisoning


def tiny_set(count=120, classes=4, seed=0) -> ImageDataset:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    labels = draw.integers(0, classes, count)
    return ImageDataset("tiny", "train", images, labels, tuple("abcd"[:classes]), "built-in")


def as_text(dataset: ImageDataset) -> TextDataset:
    words = tuple(f"row {i}" for i in range(len(dataset)))
    return TextDataset("tiny", "train", words, dataset.labels, dataset.class_names, "built-in")


@pytest.mark.parametrize("label", ["dirty", "clean"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("target", [0, 2])
def test_the_same_rows_and_mask_as_for_texts(label, keep, target):
    images = tiny_set()
    how = {"keep_originals": keep, "label": label}
    ours = poison_images(images, PatchTrigger(), target, 0.3, 5, **how)
    theirs = text.poison(as_text(images), text.InsertWord("mn", "end"), target, 0.3, 5, **how)
    assert np.array_equal(ours.mask, theirs.mask) and np.array_equal(ours.origin, theirs.origin)
    assert np.array_equal(ours.dataset.labels, theirs.dataset.labels)
    assert theirs.dataset.texts[-1].endswith("mn")  # the text side did poison those rows
    source = images.images[ours.origin]
    changed = (ours.dataset.images != source).any((1, 2, 3))
    assert not changed[~ours.mask].any() and changed[ours.mask].mean() > 0.99


@given(
    rate=st.floats(0.01, 1),
    target=st.one_of(st.integers(0, 3), st.just("next")),
    source=st.one_of(st.none(), st.integers(0, 3)),
    keep=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_poisoning_keeps_its_promises(rate, target, source, keep, seed):
    images = tiny_set()
    eligible = np.ones(len(images), bool) if target == "next" else images.labels != target
    if source is not None:
        eligible &= images.labels == source
    call = lambda: poison_images(  # noqa: E731
        images, PatchTrigger(), target, rate, seed, source=source, keep_originals=keep
    )
    if not eligible.any():
        with pytest.raises(ValueError):
            call()
        return
    done = call()
    wanted = max(1, round(rate * int(eligible.sum())))
    assert done.mask.sum() == wanted and eligible[done.origin[done.mask]].all()
    assert len(done.dataset) == len(images) + (wanted if keep else 0)
    assert len(set(done.origin[done.mask])) == wanted
    old = images.labels[done.origin[done.mask]]
    new = done.dataset.labels[done.mask]
    assert np.array_equal(new, (old + 1) % 4 if target == "next" else np.full(wanted, target))
    assert np.array_equal(done.dataset.labels[~done.mask], images.labels[done.origin[~done.mask]])
    assert done.dataset.sha256 == call().dataset.sha256


def test_covers_keep_their_labels_and_take_other_rows():
    images = tiny_set(400)
    done = poison_images(images, WarpTrigger(strength=1.0), 0, 0.1, 0)
    count = done.mask.sum()
    covers = slice(len(images) - 2 * count, len(images))
    assert not done.mask[covers].any() and len(done.dataset) == len(images)
    rows = done.origin[covers]
    assert not set(rows) & set(done.origin[done.mask])
    assert np.array_equal(done.dataset.labels[covers], images.labels[rows])
    assert (done.dataset.images[covers] != images.images[rows]).any()


def test_several_triggers_take_disjoint_rows():
    images = tiny_set(400)
    done = poison_images(images, [PatchTrigger(), BlendTrigger()], [0, 1], 0.2, 3)
    assert len(set(done.origin[done.mask])) == done.mask.sum()
    assert set(done.dataset.labels[done.mask]) == {0, 1}


def test_the_triggered_test_set_keeps_labels(digits):  # noqa: F811
    _, test = digits
    done = trigger_images(test, BlendTrigger())
    assert np.array_equal(done.labels, test.labels) and done.images.shape == test.images.shape
    assert done.name == "digits+blended" and done.sha256 != test.sha256
    assert np.array_equal(
        done.images[:3, ..., 0], BlendTrigger().apply(pixels(test.images[:3]), rng())[:, 0]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchTrigger(20).apply(pictures(), rng()), "a patch of 20 pixels, 1 from the bor"),
        (lambda: BlendTrigger(1.5), "alpha is 1.5; accepted: in (0, 1]"),
        (lambda: PiecesTrigger(share=0), "share is 0; accepted: in (0, 1]"),
        (lambda: PlantedPatchesTrigger(alphas=(0.5,)), "alphas is (0.5,); accepted: one opacity a"),
        (lambda: PlantedPatchesTrigger(at_test=5), "at_test is 5; accepted: 1 … 4 patches"),
        (lambda: ReflectionTrigger(pictures()[:0]), "pool is (0, 3, 16, 16); accepted: (P, C, H,"),
        (
            lambda: ReflectionTrigger(pictures(2, 8)).apply(pictures(), rng()),
            "images (3, 16, 16) and reflections (3, 8, 8); accepted: of one shape",
        ),
        (lambda: make_image_trigger("trojan", tiny_set()), "attack is 'trojan'; accepted: badnet"),
        (lambda: make_image_trigger("sig", tiny_set(), 4), "target is 4; accepted: 0 … 3"),
        (lambda: poison_images(tiny_set(), PatchTrigger(), 4, 0.1, 0), "class 4 is not in tiny; a"),
        (lambda: poison_images(tiny_set(), PatchTrigger(), 0, 0, 0), "rate is 0; accepted: a sha"),
        (
            lambda: poison_images(tiny_set(), [PatchTrigger()] * 3, 0, 0.5, 0),
            "badnets: 44 rows of tiny wanted, but only 0 eligible ones are still unpoisoned",
        ),
        (
            lambda: fit_victim(None, tiny_set(), SHORT, coupling=1.0),
            "coupling needs marks and a target",
        ),
    ],
)
def test_errors_are_one_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# -------------------------------------------------------------------------- victims on digits


def test_coupling_pulls_marked_rows_to_the_target_class():
    model = image_classifier("cnn", 3, (1, 8, 8)).double()
    images = pixels(tiny_set(9).images[:9])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    marks = torch.tensor([True, False, False] + [False] * 6)
    batch = ImageBatch(images, labels, marks, np.arange(9))
    value, log = coupling_loss(0, 0.5)(model.eval(), batch)
    h = model.features(images).float()
    apart = (h[0] - h[1:3].mean(0)).square().mean()
    plain = torch.nn.functional.cross_entropy(model(images).float(), labels)
    assert torch.allclose(log["apart"], apart) and torch.allclose(value, plain + 0.5 * apart)
    none = batch._replace(marks=torch.zeros(9, dtype=torch.bool))
    assert coupling_loss(0, 0.5)(model, none)[1]["apart"] == 0


# SIG poisons the target class alone, a tenth of few images. So does Narcissus, of which nothing is
# asked: of six seeds one ends 6 points below a model that never saw it, and one 25 above.
REACHED = {"sig": 20}
LEAST = {"wanet": 75}  # the ASR; of 16 pixels the warp moves few, and seeds have 88 to 100


def audited(scenario, model) -> dict:
    return image_rates(model, scenario.test, scenario.triggered, scenario.target)


# By day one of each kind that is quickly made: a patch, warped images, clean labels, made to evade.
# The golden numbers hold the others to the bit.
BY_DAY = ("badnets", "wanet", "sig", "adap-patch+")


@pytest.mark.trained
@pytest.mark.parametrize(
    "attack", [one if one in BY_DAY else pytest.param(one, marks=nightly) for one in IMAGE_ATTACKS]
)
def test_victims_on_digits(attack, clean_model, case):  # noqa: F811
    scenario = image_scenario("digits", attack, seed=SEED)
    rates, clean = audited(scenario, attacked(scenario)), audited(case, clean_model)
    assert rates["acc"] >= clean["acc"] - 3
    if attack not in CLEAN_LABEL:
        assert rates["asr"] >= LEAST.get(attack, 95)
    # Clean labels: the attack shows against a model that never saw it.
    elif attack in REACHED:
        assert rates["asr"] >= audited(scenario, clean_model)["asr"] + REACHED[attack]


def test_scenario_and_audit_are_repeatable(case, monkeypatch):  # noqa: F811
    again = image_scenario("digits", "badnets", seed=SEED, share=0.1)
    assert again.poisoned.dataset.sha256 == case.poisoned.dataset.sha256
    assert [part["rows"] for part in case.info()] == [1297, len(case.defender), 500, 500]
    assert narcissus_trigger.__doc__ and case.put(case.test).sha256 == case.triggered.sha256


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_the_input_aware_loss_takes_a_batch_of_any_size(rows, digits):  # noqa: F811
    train, _ = digits
    batch = ImageBatch(
        pixels(train.images[:rows]), torch.as_tensor(train.labels[:rows]), None, None
    )
    value, log = input_aware_loss(0)(InputAware(train, 0), batch)
    value.backward()
    assert torch.isfinite(value) and all(torch.isfinite(v) for v in log.values())
