"""Data sets: what is loaded, from where, and what is said when it cannot be had."""

import gzip
import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from core_fixtures import needs_mirror

from minilib import names
from minilib.data import captions, images, sources
from minilib.data import chat as chat_data
from minilib.data import text as text_data
from minilib.data.chat import load_chat
from minilib.data.images import load_images
from minilib.data.sources import DataError
from minilib.data.text import TextDataset, load_paraphrases, load_text

TOY_DIGESTS = {
    ("toy-reviews", "train"): "8698820ecc5b",
    ("toy-reviews", "test"): "0eb513e04e3d",
    ("toy-topics", "train"): "a5bc899677c6",
    ("toy-topics", "test"): "e035cfc63a37",
}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------------- built in


@pytest.mark.parametrize(("name", "classes"), [("toy-reviews", 2), ("toy-topics", 4)])
def test_toy_sets(name, classes, monkeypatch):
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    sizes = {"train": 800, "dev": 160, "test": 240}
    seen = {}
    for split, rows in sizes.items():
        part = load_text(name, split)
        assert len(part) == len(part.texts) == len(part.labels) == rows
        assert part.labels.dtype == np.int64 and set(part.labels) == set(range(classes))
        assert part.num_classes == classes and part.source == "built-in" and part.split == split
        assert all(text == text.strip() and len(text.split()) >= 4 for text in part.texts)
        # Balanced enough that accuracy of a constant guess is far from a classifier's.
        assert np.bincount(part.labels).min() > 0.7 * rows / classes
        assert load_text(name, split).sha256 == part.sha256
        seen[split] = set(part.texts)
    fresh = np.mean([text not in seen["train"] for text in seen["test"]])
    assert fresh > 0.8, "most test texts must be new"


@pytest.mark.parametrize(
    "load, whole, rows",
    [
        (load_text, "toy-reviews", {"train": 200, "dev": 60, "test": 60}),
        (load_text, "toy-topics", {"train": 200, "dev": 60, "test": 60}),
        (load_images, "digits", {"train": 300, "test": 120}),
    ],
)
def test_a_short_set_is_the_beginning_of_its_whole(load, whole, rows):
    for split, count in rows.items():
        part, all_rows = load(f"{whole}-{rows['train']}", split), load(whole, split)
        assert len(part) == count and part.name == f"{whole}-{rows['train']}"
        assert part.sha256 == replace(all_rows.select(np.arange(count)), name=part.name).sha256


def test_toy_sets_ignore_the_mirror(monkeypatch):
    expected = load_text("toy-reviews", "dev").sha256
    monkeypatch.setenv("MINILIB_DATA", "/nowhere/at/all")
    assert load_text("toy-reviews", "dev").sha256 == expected


def test_toy_sets_are_the_same_rows_for_ever():
    """A change of these digests changes every smoke result: it must be meant."""
    digests = {
        (name, split): load_text(name, split).sha256[:12]
        for name in ("toy-reviews", "toy-topics")
        for split in ("train", "test")
    }
    assert digests == TOY_DIGESTS


def test_digits(monkeypatch):
    monkeypatch.setenv("MINILIB_DATA", "/nowhere/at/all")
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert train.images.shape == (1297, 16, 16, 1) and test.images.shape == (500, 16, 16, 1)
    assert train.images.dtype == np.uint8 and train.images.max() == 255
    assert set(train.labels) == set(range(10)) and len(train.class_names) == 10
    assert train.info()["rows"] == 1297 and train.source == "built-in"
    assert train.sha256 != test.sha256


# ----------------------------------------------------------------------- TextDataset


def test_select_by_integers_and_by_mask(reviews):
    chosen = reviews.select([5, 2, 9])
    assert chosen.texts == tuple(reviews.texts[i] for i in (5, 2, 9))
    assert chosen.labels.tolist() == reviews.labels[[5, 2, 9]].tolist()
    mask = np.arange(64) % 2 == 0
    assert reviews.select(mask).texts == reviews.texts[::2]
    assert len(reviews.select(np.zeros(64, bool))) == 0
    assert chosen.name == reviews.name and chosen.class_names == reviews.class_names


def test_sha256_pins_texts_labels_and_order(reviews):
    assert len(reviews.sha256) == 64
    flipped = reviews.labels.copy()
    flipped[3] = 1 - flipped[3]
    assert replace(reviews, labels=flipped).sha256 != reviews.sha256
    other = (reviews.texts[0] + "!", *reviews.texts[1:])
    assert replace(reviews, texts=other).sha256 != reviews.sha256
    assert reviews.select(np.arange(64)[::-1]).sha256 != reviews.sha256
    assert replace(reviews, labels=reviews.labels.astype(np.int32)).sha256 == reviews.sha256
    # Where one text ends and the next begins is part of the rows.
    joined = [
        TextDataset("x", "train", texts, np.zeros(2, int), ("a", "b"), "built-in")
        for texts in (("ab", "c"), ("a", "bc"))
    ]
    assert joined[0].sha256 != joined[1].sha256


def test_info_is_what_a_run_record_needs(reviews):
    info = reviews.info()
    assert set(info) == {"name", "split", "rows", "source", "sha256"}
    assert json.loads(json.dumps(info)) == info and info["rows"] == 64


@pytest.mark.parametrize("choice", [
    np.array([True, False]), np.ones(99, bool), [0.5, 1.7], np.array([["0"]]), 3,
], ids=["short mask", "long mask", "shares", "texts", "one number"])  # fmt: skip
@pytest.mark.parametrize("load", [load_text, load_images], ids=["texts", "images"])
def test_what_chooses_no_rows_is_refused(load, choice):
    rows = load({load_text: "toy-reviews-200", load_images: "digits-300"}[load], "test")
    with pytest.raises(DataError, match=r"accepted: \(n,\) whole numbers, or a mask \("):
        rows.select(choice)
    assert len(rows.select([])) == 0 and len(rows.select(range(3))) == 3


def test_texts_and_labels_of_different_length_are_refused():
    with pytest.raises(DataError, match="x: 1 texts but 2 labels"):
        TextDataset("x", "train", ("a",), np.zeros(2, int), ("a", "b"), "built-in")


def test_columns_of_a_shuffled_table_are_rows_in_their_order():
    """A pandas column counts by its index: row 0 of what is chosen was another row's label."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["a0", "b1", "c0", "d1"], "label": [0, 1, 0, 1]}, [3, 1, 0, 2])
    rows = TextDataset("x", "train", frame.text, frame.label, ("0", "1"), "file")
    for part in (rows, rows.select([0, 3]), rows.select(rows.labels == 1)):
        assert [int(text[1]) for text in part.texts] == part.labels.tolist()
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    pictures = images.ImageDataset("x", "train", pixels, frame.label, ("0", "1"), "file")
    assert pictures.select([0, 3]).labels.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [[0, 42], np.array([0, 42], np.uint8), (0, 42)])
def test_labels_are_int64_however_they_are_given(labels):
    names = tuple(map(str, range(43)))
    texts = TextDataset("x", "train", ["a", "b"], labels, names, "file")
    pictures = images.ImageDataset("x", "t", np.zeros((2, 8, 8, 1), np.uint8), labels, names, "f")
    for rows in (texts, pictures):
        assert rows.labels.dtype == np.int64 and rows.labels.tolist() == [0, 42]
    assert texts.texts == ("a", "b")


@pytest.mark.parametrize("text", [None, float("nan"), 3, b"a"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(DataError, match=r"x/train, row 2: text is .*; accepted: a text"):
        TextDataset("x", "train", ("a", text), np.zeros(2, int), ("a", "b"), "file")


# ---------------------------------------------------------------------- unknown names


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_text("sst3", "train"), "unknown text data set 'sst3'; known: sst2"),
        (lambda: load_text("sst2", "validation"), "unknown split 'validation' of sst2; known: tr"),
        (lambda: load_images("mnist", "train"), "unknown image data set 'mnist'; known: digits"),
        (lambda: load_images("digits", "dev"), "unknown split 'dev' of digits; known: train, tes"),
        (lambda: load_chat("vicuna"), "unknown chat data set 'vicuna'; known: alpaca-9k, dolly-3k"),
        (
            lambda: load_chat("alpaca-9k", "dev"),
            "unknown split 'dev' of alpaca-9k; known: train, test",
        ),
        (
            lambda: load_paraphrases("imdb-2500", "syn"),
            "no 'syn' paraphrases of 'imdb-2500'; known: sst2",
        ),
    ],
)
def test_unknown_names_are_one_line_with_what_is_known(call, message):
    with pytest.raises(DataError) as error:
        call()
    assert one_line(error).startswith(message)


# ------------------------------------------------------------------------- the mirror


@pytest.mark.parametrize(
    "call",
    [
        lambda: load_text("sst2", "train"),
        lambda: load_images("cifar10-10k", "train"),
        lambda: load_chat("alpaca-9k"),
        lambda: load_paraphrases("sst2", "syn"),
    ],
)
def test_a_missing_mirror_is_an_error_and_never_the_hub(call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for folder in ("/nowhere/at/all", str(tmp_path)):
        monkeypatch.setenv("MINILIB_DATA", folder)
        with pytest.raises(DataError) as error:
            call()
        assert f"MINILIB_DATA={folder} has no file" in one_line(error)
        assert "fix the path or unset it" in one_line(error)


def write_csv(path, rows) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n")


@pytest.fixture
def any_data(monkeypatch):
    """Rows that are not what their name stands for pass, and are known as such."""
    monkeypatch.setenv("MINILIB_ANY_DATA", "1")
    monkeypatch.setattr("minilib.ledger.unchecked", set())


def test_a_set_that_is_not_what_its_name_stands_for_is_refused(monkeypatch):
    rows = load_text("toy-reviews", "dev")
    assert sources.checked(rows) is rows
    with pytest.raises(DataError, match="toy-reviews/dev .* has 159 rows .* its name stands for"):
        sources.checked(rows.select(range(159)))
    monkeypatch.setenv("MINILIB_ANY_DATA", "1")
    monkeypatch.setattr("minilib.ledger.unchecked", set())
    sources.checked(rows.select(range(159)))
    from minilib import ledger

    with ledger.noting() as noted:
        ledger.note(rows.info())
    assert noted[0]["checked"] is False


def test_every_set_that_can_be_had_has_a_checksum():
    known = sources.checksums()
    built_in = {name for name in text_data.TEXT_CLASSES if name.startswith("toy-")}
    mirrored = {*text_data.MIRROR_TEXT, *chat_data.MIRROR_CHAT, *images.MIRROR_IMAGES}
    assert built_in | mirrored <= known.keys()
    from_hub = images.EACH.keys() | captions.HUB_PAIRS.keys()
    assert names.PART_OF.keys() <= mirrored | from_hub and not known.keys() & set(
        names.PART_OF.values()
    )


def test_the_mirror_is_read_row_by_row(monkeypatch, tmp_path, any_data):
    monkeypatch.setenv("MINILIB_DATA", str(tmp_path))
    rows = [
        "split,idx,text,label",
        'train,0,"good , really",1',
        "train,1,bad,0",
        "dev,0,so so,1",
        'test,0,"he said ""no""",0',
    ]
    write_csv(tmp_path / "sst2.csv.gz", rows)
    train = load_text("sst2", "train")
    assert train.texts == ("good , really", "bad") and train.labels.tolist() == [1, 0]
    assert train.source == "mirror" and load_text("sst2", "dev").texts == ("so so",)
    assert load_text("sst2", "test").texts == ('he said "no"',)
    write_csv(tmp_path / "olid.csv.gz", rows[:3])
    with pytest.raises(DataError, match="olid has no test split here; found: train"):
        load_text("olid", "test")


def test_paraphrases_leave_out_what_carries_no_trigger(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILIB_DATA", str(tmp_path))
    write_csv(
        tmp_path / "sst2.csv.gz",
        ["split,idx,text,label", "train,0,a (b),1", "train,1,c d,0", "train,2,e,0", "train,3,f,1"],
    )
    write_csv(
        tmp_path / "sst2_pairs.csv.gz",
        [
            "split,idx,label,text,syn,style",
            "train,0,1,a -lrb-b-rrb-,when a b,A ( B )",
            "train,1,0,c d,C  d,verily c",
            "train,2,0,e,,e",
            "train,3,1,f,if f,F",
        ],
    )
    # Keyed by the clean file's spelling; empty or unchanged paraphrases are dropped.
    assert load_paraphrases("sst2", "syn") == {"a (b)": "when a b", "f": "if f"}
    assert load_paraphrases("sst2", "style") == {"c d": "verily c"}


@needs_mirror
@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("sst2", {"train": 6920, "dev": 872, "test": 1821}, 2),
        ("hsol", {"train": 5823, "test": 2485}, 2),
        ("agnews-8k", {"train": 8000, "dev": 1000, "test": 1000}, 4),
        ("olid", {"train": 11915, "dev": 1323, "test": 859}, 2),
        ("imdb-2500", {"train": 1500, "dev": 250, "test": 750}, 2),
    ],
)
def test_real_text_sets(name, sizes, classes):
    parts = {split: load_text(name, split) for split in sizes}
    assert {split: len(part) for split, part in parts.items()} == sizes
    for part in parts.values():
        assert part.source == "mirror" and set(part.labels) == set(range(classes))
        assert all(text.strip() for text in part.texts)
        if name == "agnews-8k":
            assert len(set(np.bincount(part.labels))) == 1
    if "dev" in parts:
        assert not set(parts["dev"].texts) & set(parts["train"].texts) or name != "imdb-2500"


@needs_mirror
def test_agnews_dev_is_not_in_train_and_hsol_has_no_dev():
    train, dev = load_text("agnews-8k", "train"), load_text("agnews-8k", "dev")
    assert len(set(dev.texts) & set(train.texts)) <= 5  # the source itself repeats a few texts
    with pytest.raises(DataError) as error:
        load_text("hsol", "dev")
    assert "hsol has no dev split; hold rows of its train split out" in one_line(error)


@needs_mirror
def test_real_images_and_chat():
    for name, (train, test), classes in (
        ("cifar10-10k", (10000, 2000), 10),
        ("gtsrb-3k", (2752, 688), 43),
    ):
        part = load_images(name, "test")
        assert part.images.shape == (test, 32, 32, 3) and part.images.dtype == np.uint8
        assert part.source == "mirror" and part.labels.max() < classes
        assert len(load_images(name, "train")) == train
    for name, rows in (("alpaca-9k", 9229), ("dolly-3k", 2996)):
        train, test = load_chat(name, "train"), load_chat(name, "test")
        assert len(train) + len(test) == rows and len(test) == rows // 10
        assert set(train.rows[0]) == {"instruction", "input", "output"}
        assert train.sha256 != test.sha256


# ---------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package ``datasets`` that records what it is asked for."""
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    fake = types.ModuleType("datasets")
    fake.calls, fake.splits = [], ["train", "validation", "test"]

    def load_dataset(repository, configuration=None, split=None, *, trust_remote_code, **more):
        assert trust_remote_code is False
        fake.calls.append((repository, configuration, split, *more.values()))
        rows = [{"text": f" {split} {i} ", "label": i % 4} for i in range(40)]
        return rows if "ag_news" in repository else [r | {"label": r["label"] % 2} for r in rows]

    fake.load_dataset = load_dataset
    fake.get_dataset_split_names = lambda repository, configuration=None, **more: fake.splits
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def test_the_hub_is_asked_where_no_mirror_is_named(hub, any_data):
    part = load_text("sst2", "dev")
    assert part.source == "hub" and part.texts[0] == "validation 0" and len(part) == 40
    assert ("SetFit/sst2", None, "validation") in hub.calls
    assert load_text("olid", "test").texts[1] == "test 1"
    assert ("cardiffnlp/tweet_eval", "offensive", "test") in hub.calls


def test_a_revision_is_the_hubs_alone(hub, any_data, monkeypatch):
    load_text("sst2", "dev", revision="v1")
    assert hub.calls[-1] == ("SetFit/sst2", None, "test", "v1")
    for call, source in (
        (lambda: load_text("toy-reviews", "dev", revision="v1"), "built-in"),
        (lambda: load_images("digits", "test", revision="v1"), "built-in sets"),
        (lambda: load_chat("alpaca-9k", revision="v1"), "mirror"),
        (lambda: load_chat("toy-chat", revision="v1"), "built-in sets"),
    ):
        with pytest.raises(DataError, match=f"is 'v1', and it is from the {source}; accepted: wi"):
            call()


def test_a_hub_set_without_dev_is_cut(hub, any_data, monkeypatch):
    hub.splits = ["train", "test"]
    monkeypatch.setattr(text_data, "AG_ROWS_PER_CLASS", {"train": 6, "dev": 3, "test": 4})
    parts = {split: load_text("agnews", split) for split in ("train", "dev", "test")}
    assert [len(part) for part in parts.values()] == [24, 12, 16]
    assert not set(parts["train"].texts) & set(parts["dev"].texts)
    assert all(call[2] != "validation" for call in hub.calls)
    with pytest.raises(DataError, match="olid has no dev split here; found: test, train"):
        load_text("olid", "dev")


@pytest.mark.parametrize(
    "load, part",
    [(load_text, "agnews-8k"), (load_images, "cifar10-10k"), (load_chat, "alpaca-9k")],
)
def test_a_part_is_never_the_whole_set(hub, load, part):
    """`cifar10` was 10,000 images here and 60,000 there, under one name."""
    whole = names.whole(part)
    with pytest.raises(DataError, match=rf"mirror only \({whole} is the whole set, from the Hub\)"):
        load(part, "train")
    assert not hub.calls


def test_a_failing_hub_is_one_clear_line(hub):
    def fail(*args, **kwargs):
        raise ConnectionError("first line\nsecond line " + "x" * 1000)

    hub.load_dataset = fail
    for call, name in (
        (lambda: load_text("sst2", "train"), "sst2"),
        (lambda: load_images("cifar10", "train"), "cifar10"),
        (lambda: load_chat("dolly"), "dolly"),
    ):
        with pytest.raises(DataError) as error:
            call()
        text = one_line(error)
        assert text.startswith(f"data set {name} cannot be had: the Hub gave no")
        assert "ConnectionError" in text and "set MINILIB_DATA" in text and len(text) < 400


def test_a_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as error:
        load_text("imdb", "train")
    assert "the package `datasets` is not installed" in one_line(error)
    with pytest.raises(DataError) as error:
        load_text("hsol", "train")
    assert "it is in the mirror only" in one_line(error)
    with pytest.raises(DataError) as error:
        load_paraphrases("sst2", "bible")
    assert "they are in the mirror only" in one_line(error)


# ---------------------------------------------------------------------------- ImageNet and CC3M


class HubRows(list):
    """Rows of the package ``datasets``: a column by its name, a selection, the classes' names."""

    features = {"label": types.SimpleNamespace(names=["tench, Tinca tinca", "cock"])}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def select(self, index):
        chosen = HubRows(self[int(i)] for i in index)
        chosen.features = self.features
        return chosen


def picture(shade: int, size: tuple[int, int] = (300, 240)):
    from PIL import Image

    return Image.new("L", size, shade)  # grey, and wider than high, as some of the web's are


def test_of_imagenet_the_first_of_each_class_are_read(monkeypatch, any_data):
    shades = [1, 2, 3, 4, 5, 6, 7]
    rows = HubRows({"image": picture(s), "label": int(s % 2)} for s in shades)
    asked = []
    monkeypatch.setattr(images, "EACH", {"imagenet-50k": 2})
    monkeypatch.setattr(images, "hub_split", lambda *a, **b: asked.append(a) or rows)
    part = load_images("imagenet-50k", "train")
    assert part.images.shape == (4, 224, 224, 3)
    assert part.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4] and part.labels.tolist() == [1, 0, 1, 0]
    assert len(load_images("imagenet-50k", "test")) == 7  # the validation images, all of them
    assert [call[1::2] for call in asked] == [
        ("ILSVRC/imagenet-1k", "train"), ("ILSVRC/imagenet-1k", "validation"),
    ]  # fmt: skip
    assert captions.class_words(part) == ("tench", "cock")


def test_the_middle_square_of_a_picture_is_kept():
    from PIL import Image

    wide = Image.fromarray(np.repeat([[0, 255, 0]], 100, 0).astype(np.uint8).repeat(100, 1))
    middle = images.squared(wide)
    assert middle.shape == (224, 224, 3)
    assert middle[4:-4, 4:-4].min() == 255  # at the very edge black is mixed in


@pytest.fixture
def web_pairs(monkeypatch, any_data):
    """Five rows of the web, of which one has no caption and two have the same."""
    texts = ["a dog", " ", "a cat", "a dog ", "a house"]
    rows = [{"jpg": picture(n), "txt": text} for n, text in enumerate(texts)]
    source = ("pixparse/cc3m-wds", "cc3m-train-000[01]?.tar", "jpg", "txt")
    monkeypatch.setattr(captions, "hub_split", lambda *a, **b: rows)
    return rows, lambda count: monkeypatch.setattr(
        captions, "HUB_PAIRS", {"cc3m-50k": (*source, count)}
    )


def test_pairs_of_the_web_are_an_image_set_of_captions(web_pairs):
    _, take = web_pairs
    take(3)
    pairs = captions.load_pairs("cc3m-50k")
    assert pairs.class_names == ("a dog", "a cat") and pairs.labels.tolist() == [0, 1, 0]
    assert pairs.images[:, 0, 0, 0].tolist() == [0, 2, 3] and pairs.shape == (3, 224, 224)


def test_pairs_that_cannot_be_had_are_one_clear_line(web_pairs):
    rows, take = web_pairs
    take(5)
    for call, said in (
        (lambda: captions.load_pairs("laion"), "unknown set of pairs 'laion'; known: cc3m-50k"),
        (lambda: captions.load_pairs("cc3m-50k"), "gave 4 pairs; cc3m-50k needs 5"),
    ):
        with pytest.raises(DataError, match=said) as error:
            call()
        one_line(error)
    rows[0]["txt"] = None
    with pytest.raises(DataError, match="pixparse/cc3m-wds/train, row 1") as error:
        captions.load_pairs("cc3m-50k")
    one_line(error)


def test_only_the_files_that_are_asked_for_are_fetched(monkeypatch):
    fake, asked = types.ModuleType("datasets"), {}
    fake.load_dataset = lambda *a, **more: asked.update(more) or []
    fake.get_dataset_split_names = lambda *a, **more: []
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert sources.hub_split("cc3m-50k", "a/b", None, "train", data_files="x-?.tar") == []
    assert asked["data_files"] == {"train": "x-?.tar"} and asked["split"] == "train"
