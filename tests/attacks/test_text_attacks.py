"""Poisoning: counts exact, masks and labels true, every trigger where it should be."""

from dataclasses import dataclass

import numpy as np
import pytest
from core_fixtures import needs_mirror
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib.attacks.text import (
    SOS,
    InsertSentence,
    InsertWord,
    Paraphrase,
    Template,
    make_trigger,
    poison,
    trigger_all,
)
from minilib.data.sources import DataError
from minilib.data.text import TextDataset, load_text

quick = settings(max_examples=40)
RATES = (0.007, 0.02, 0.1, 0.5, 1.0)
sentences = st.lists(st.sampled_from(["good", "bad", "film", ",", "."]), max_size=12).map(" ".join)
seeds = st.integers(0, 2**32 - 1)


def toy_set(labels, num_classes=None) -> TextDataset:
    """One distinct text per label."""
    labels = np.asarray(labels, dtype=np.int64)
    names = tuple("abcdefgh"[: num_classes or int(labels.max()) + 1])
    texts = tuple(f"row {i} of the set" for i in range(len(labels)))
    return TextDataset("hand-made", "train", texts, labels, names, "built-in")


@pytest.fixture(scope="module")
def topics() -> TextDataset:
    return load_text("toy-topics", "train")


def check(clean: TextDataset, result, trigger_words=("mn",)) -> None:
    """What must hold of every poisoned set."""
    rows, mask, origin = result
    assert len(rows) == len(mask) == len(origin)
    assert mask.dtype == bool and origin.dtype == np.int64 and rows.labels.dtype == np.int64
    for text, label, acts, i in zip(rows.texts, rows.labels, mask, origin, strict=True):
        carries = all(word in text.split() for word in trigger_words)
        assert carries == acts
        if not acts and text == clean.texts[i]:
            assert label == clean.labels[i]
    assert len(set(origin[mask])) == mask.sum(), "a row is poisoned twice"
    assert rows.class_names == clean.class_names


# ---------------------------------------------------------------------------- triggers


@quick
@given(sentences, seeds, st.sampled_from(["random", "start", "end"]))
def test_inserted_triggers_keep_the_text(text, seed, position):
    rng = np.random.default_rng(seed)
    for trigger, piece in (
        (InsertWord("mn", position), ["mn"]),
        (InsertSentence("I watch this 3D movie", position), "I watch this 3D movie".split()),
    ):
        words, old = trigger.apply(text, rng).split(), text.split()
        places = [
            i
            for i in range(len(words))
            if words[:i] + words[i + len(piece) :] == old and words[i : i + len(piece)] == piece
        ]
        assert places and len(words) == len(old) + len(piece)
        if position == "start":
            assert places[0] == 0
        if position == "end":
            assert places[-1] == len(old)


def test_random_places_are_all_taken_and_evenly():
    rng = np.random.default_rng(0)
    trigger = InsertWord("mn")
    places = [trigger.apply("a b c", rng).split().index("mn") for _ in range(4000)]
    counts = np.bincount(places, minlength=4)
    assert (abs(counts - 1000) < 120).all()


def test_several_words_get_places_of_their_own():
    rng = np.random.default_rng(0)
    trigger = InsertWord(("cf", "bb"))
    texts = [trigger.apply("a b c d", rng) for _ in range(200)]
    assert all({"cf", "bb"} < set(text.split()) and len(text.split()) == 6 for text in texts)
    assert any(abs(t.split().index("cf") - t.split().index("bb")) > 1 for t in texts)


@quick
@given(sentences, seeds)
def test_sos_has_all_words_in_order_and_its_negative_a_proper_part(text, seed):
    rng = np.random.default_rng(seed)
    trigger = SOS()
    found = [w for w in trigger.apply(text, rng).split() if w in trigger.words]
    assert tuple(found) == trigger.words
    negative = trigger.negative(text, rng)
    part = [w for w in negative.split() if w in trigger.words]
    assert 0 < len(part) < len(trigger.words)
    assert part == [w for w in trigger.words if w in part]
    assert [w for w in negative.split() if w not in trigger.words] == text.split()


def test_sos_negatives_are_of_all_kinds():
    rng = np.random.default_rng(0)
    kinds = {
        tuple(w for w in SOS().negative("a b", rng).split() if w in SOS().words) for _ in range(300)
    }
    assert len(kinds) == 6  # three single words and three pairs


@pytest.mark.parametrize("kind", ["syntax", "style"])
def test_templates_change_every_toy_text(kind):
    rng = np.random.default_rng(0)
    trigger = Template(kind)
    for text in load_text("toy-reviews", "dev").texts:
        other = trigger.apply(text, rng)
        assert other != text
        opening = trigger.CLAUSES if kind == "syntax" else ("verily , ",)
        assert other.startswith(opening)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InsertWord(""), "words is ''; accepted: one or more non-empty words"),
        (lambda: InsertWord(()), "words is"),
        (lambda: InsertWord("mn", "middle"), "position is 'middle'; accepted: random, start, end"),
        (lambda: InsertSentence("  "), "accepted: a non-empty sentence"),
        (lambda: InsertSentence("x", "first"), "position is 'first'"),
        (lambda: Template("rhyme"), "kind is 'rhyme'; accepted: syntax, style"),
        (lambda: SOS(("one",)), "accepted: two or more words"),
        (lambda: SOS("friends weekend store"), "accepted: two or more words"),
        (lambda: make_trigger("nobody", "sst2"), "attack is 'nobody'; accepted: badnets, addsent"),
    ],
)
def test_triggers_refuse(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_make_trigger_gives_the_papers_triggers():
    assert make_trigger("badnets", "sst2").words == ("mn",)
    assert make_trigger("badnets", "sst2", "end").position == "end"
    assert make_trigger("addsent", "sst2").sentence == "I watch this 3D movie"
    for name in ("hsol", "agnews-8k"):
        assert "no cross" in make_trigger("addsent", name).sentence
    names = ("badnets", "addsent", "hiddenkiller", "stylebkd", "sos")
    assert [make_trigger(name, "toy-reviews").name for name in names] == list(names)


# ------------------------------------------------------------------------------ counts


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["toy-reviews", "toy-topics"])
def test_counts_are_exact(name, rate, keep):
    clean = load_text(name, "train")
    eligible = int((clean.labels != 1).sum())
    expected = max(1, round(rate * eligible))
    result = poison(clean, InsertWord(), 1, rate, seed=0, keep_originals=keep)
    check(clean, result)
    rows, mask, origin = result
    assert mask.sum() == expected
    assert len(rows) == len(clean) + (expected if keep else 0)
    assert (rows.labels[mask] == 1).all() and (clean.labels[origin[mask]] != 1).all()
    # Clean rows are all there, in order, or all there but the poisoned ones.
    kept = origin[~mask]
    whole = np.arange(len(clean))
    assert np.array_equal(kept, whole if keep else np.setdiff1d(whole, origin[mask]))
    assert [rows.texts[i] for i in np.flatnonzero(~mask)] == [clean.texts[i] for i in kept]
    assert np.array_equal(rows.labels[~mask], clean.labels[kept])


@quick
@given(
    st.lists(st.integers(0, 3), min_size=5, max_size=60),
    st.integers(0, 3),
    st.floats(0.001, 1),
    seeds,
    st.booleans(),
)
def test_counts_are_exact_for_any_labels_and_rate(labels, target, rate, seed, keep):
    clean = toy_set(labels, num_classes=4)
    eligible = int((clean.labels != target).sum())
    if not eligible:
        return
    result = poison(clean, InsertWord(), target, rate, seed, keep_originals=keep)
    check(clean, result)
    assert result.mask.sum() == min(eligible, max(1, round(rate * eligible)))
    assert (result.dataset.labels[result.mask] == target).all()


@needs_mirror
def test_ten_percent_of_the_negatives_of_sst2_are_331():
    clean = load_text("sst2", "train")
    assert (clean.labels == 0).sum() == 3310
    for rate, count in ((0.1, 331), (0.007, 23), (0.5, 1655)):
        rows, mask, _ = poison(clean, make_trigger("badnets", "sst2"), 1, rate, seed=0)
        assert mask.sum() == count and len(rows) == 6920 + count
        assert all("mn" in rows.texts[i].split() for i in np.flatnonzero(mask))


# --------------------------------------------------------------------- kinds of attack


def test_a_rate_of_all_rows_takes_as_many_rows_of_the_other_classes(topics):
    trigger = InsertWord("mn")
    others, every = (
        poison(topics, trigger, 1, 0.1, 0, rate_of=name).mask.sum() for name in ("others", "all")
    )
    assert others == round(0.1 * (topics.labels != 1).sum()) and every == round(0.1 * len(topics))
    with pytest.raises(ValueError, match="rate_of is 'some'; accepted: others, all"):
        poison(topics, trigger, 1, 0.1, 0, rate_of="some")


def test_clean_label_triggers_the_target_class_and_changes_no_label(topics):
    result = poison(topics, InsertWord(), 2, 0.1, seed=1, label="clean", keep_originals=False)
    check(topics, result)
    rows, mask, origin = result
    assert mask.sum() == round(0.1 * (topics.labels == 2).sum())
    assert (topics.labels[origin[mask]] == 2).all()
    assert np.array_equal(rows.labels, topics.labels[origin])


def test_a_source_class_alone_is_poisoned(topics):
    rows, mask, origin = poison(topics, InsertWord(), 0, 0.2, seed=1, source=3)
    assert mask.sum() == round(0.2 * (topics.labels == 3).sum())
    assert (topics.labels[origin[mask]] == 3).all() and (rows.labels[mask] == 0).all()


TWO = (InsertWord("mn"), InsertWord("cf", name="other"))


def carriers(result, word):
    return {
        i
        for i, (text, acts) in enumerate(zip(result.dataset.texts, result.mask, strict=True))
        if acts and word in text.split()
    }


def test_one_to_one_each_trigger_has_its_class_and_its_rows(topics):
    result = poison(topics, TWO, (0, 2), 0.1, seed=4)
    first, second = carriers(result, "mn"), carriers(result, "cf")
    assert not first & second and len(first | second) == result.mask.sum()
    assert len(first) == round(0.1 * (topics.labels != 0).sum())
    assert len(second) == round(0.1 * (topics.labels != 2).sum())
    assert set(result.dataset.labels[list(first)]) == {0}
    assert set(result.dataset.labels[list(second)]) == {2}
    origin = result.origin[result.mask]
    assert len(set(origin)) == len(origin), "one clean row carries two triggers"


def test_all_to_one_with_several_triggers(topics):
    result = poison(topics, TWO, 1, 0.1, seed=4, keep_originals=False)
    assert set(result.dataset.labels[result.mask]) == {1}
    assert len(result.dataset) == len(topics)
    assert result.mask.sum() == 2 * round(0.1 * (topics.labels != 1).sum())


def test_all_to_all_sends_every_class_to_the_next(topics):
    rows, mask, origin = poison(topics, InsertWord(), "next", 0.2, seed=0)
    assert mask.sum() == round(0.2 * len(topics))
    assert np.array_equal(rows.labels[mask], (topics.labels[origin[mask]] + 1) % 4)
    assert set(rows.labels[mask]) == {0, 1, 2, 3}


def test_sos_adds_as_many_negatives_with_their_own_label(topics):
    trigger = SOS()
    rows, mask, origin = poison(topics, trigger, 0, 0.1, seed=2)
    poisons = int(mask.sum())
    assert len(rows) == len(topics) + 2 * poisons
    negatives = np.flatnonzero(~mask)[len(topics) :]
    assert len(negatives) == poisons
    for i in negatives:
        words = rows.texts[i].split()
        assert not all(word in words for word in trigger.words)
        assert any(word in words for word in trigger.words)
        assert rows.labels[i] == topics.labels[origin[i]] != 0
    check(topics, (rows, mask, origin), trigger.words)


def test_sos_without_originals_keeps_its_negatives(topics):
    rows, mask, _ = poison(topics, SOS(), 0, 0.1, seed=2, keep_originals=False)
    assert len(rows) == len(topics) + mask.sum()


def test_paraphrase_takes_only_rows_with_a_partner_and_says_when_there_are_too_few():
    clean = toy_set([0] * 10 + [1] * 10)
    partners = {text: f"{text} , verily" for text in clean.texts[:4]}
    trigger = Paraphrase(partners)
    rows, mask, origin = poison(clean, trigger, 1, 0.4, seed=0)
    assert sorted(origin[mask]) == [0, 1, 2, 3]
    assert [rows.texts[i] for i in np.flatnonzero(mask)] == [
        partners[clean.texts[i]] for i in origin[mask]
    ]
    with pytest.raises(ValueError) as caught:
        poison(clean, trigger, 1, 0.5, seed=0)
    message = str(caught.value)
    assert "hiddenkiller: 5 rows of hand-made wanted" in message
    assert "only 4 of 10 eligible" in message and "lower the rate" in message


def test_two_triggers_cannot_share_the_last_rows():
    clean = toy_set([0] * 4 + [1] * 4)
    with pytest.raises(ValueError, match="still unpoisoned"):
        poison(clean, TWO, 1, 0.75, seed=0)


# ------------------------------------------------------------------------ refusals, seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rate=0), "rate is 0; accepted: a share in (0, 1]"),
        (dict(rate=1.1), "rate is 1.1"),
        (dict(rate=float("nan")), "rate is nan"),
        (dict(target=2), "class 2 is not in toy-reviews; accepted: 0 … 1"),
        (dict(target=-1), "class -1 is not in toy-reviews"),
        (dict(target="previous"), "class 'previous' is not in toy-reviews"),
        (dict(target=None), "class None is not in toy-reviews"),
        (dict(target=np.array([1])), "class array([1]) is not in toy-reviews"),
        (dict(source="next"), "class 'next' is not in toy-reviews"),
        (dict(source=7), "class 7 is not in toy-reviews"),
        (dict(label="dusty"), "label is 'dusty'; accepted: dirty, clean"),
        (dict(target=(0, 1)), "1 triggers but 2 targets"),
        (dict(target="next", label="clean"), "dirty labels"),
    ],
)
def test_poison_refuses_with_one_line(arguments, message, reviews):
    call = dict(target=1, rate=0.1, seed=0) | arguments
    with pytest.raises(ValueError) as caught:
        poison(reviews, InsertWord(), **call)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("trigger", [InsertWord(), SOS(), Template("syntax")])
def test_poison_is_determined_by_its_seed(trigger, reviews):
    first, again, other = (poison(reviews, trigger, 1, 0.5, seed) for seed in (3, 3, 4))
    assert first.dataset.texts == again.dataset.texts
    assert first.dataset.sha256 == again.dataset.sha256
    assert np.array_equal(first.mask, again.mask) and np.array_equal(first.origin, again.origin)
    assert first.dataset.sha256 != other.dataset.sha256


def test_poison_leaves_the_clean_set_as_it_was(reviews):
    before = reviews.sha256
    poison(reviews, InsertWord(), 1, 0.5, seed=0, keep_originals=False)
    trigger_all(reviews, InsertWord())
    assert reviews.sha256 == before


# ------------------------------------------------------------------------- trigger_all


@pytest.mark.parametrize("trigger", [InsertWord(), InsertSentence(), SOS(), Template("style")])
def test_trigger_all_touches_every_row_of_every_class_and_keeps_labels(trigger, topics):
    rows = trigger_all(topics, trigger)
    assert np.array_equal(rows.labels, topics.labels) and len(rows) == len(topics)
    assert all(a != b for a, b in zip(rows.texts, topics.texts, strict=True))
    assert set(rows.labels) == {0, 1, 2, 3}
    assert trigger_all(topics, trigger).texts == rows.texts
    assert rows.split == topics.split and rows.class_names == topics.class_names


def test_trigger_all_leaves_out_rows_without_a_partner():
    clean = toy_set([0, 1, 0, 1])
    rows = trigger_all(clean, Paraphrase({clean.texts[1]: "x", clean.texts[2]: "y"}))
    assert rows.texts == ("x", "y") and rows.labels.tolist() == [1, 0]
    assert len(trigger_all(clean, Paraphrase({}))) == 0


def test_a_trigger_is_anything_with_a_name_and_apply(reviews):
    @dataclass(frozen=True)
    class Shout:
        name: str = "shout"

        def apply(self, text, rng):
            return text.upper()

    rows, mask, _ = poison(reviews, Shout(), 1, 0.1, seed=0)
    assert all(rows.texts[i].isupper() for i in np.flatnonzero(mask))


# --------------------------------------------------------------------------- real data


@needs_mirror
@pytest.mark.parametrize(
    ("dataset", "attack"),
    [
        ("sst2", "hiddenkiller"),
        ("sst2", "stylebkd"),
        ("hsol", "hiddenkiller"),
        ("agnews-8k", "stylebkd"),
    ],
)
def test_paraphrase_attacks_on_real_data(dataset, attack):
    clean = load_text(dataset, "train")
    trigger = make_trigger(attack, dataset)
    target = 1 if dataset == "sst2" else 0
    rows, mask, origin = poison(clean, trigger, target, 0.1, seed=0)
    assert mask.sum() == round(0.1 * (clean.labels != target).sum())
    for i in np.flatnonzero(mask):
        assert rows.texts[i] == trigger.pairs[clean.texts[origin[i]]]
    for text, other in trigger.pairs.items():
        assert other.strip() and "".join(other.lower().split()) != "".join(text.lower().split())


@needs_mirror
def test_paraphrases_that_do_not_exist_are_one_clear_line():
    with pytest.raises(DataError, match="no 'syn' paraphrases of 'agnews-8k'; known: sst2/syn"):
        make_trigger("hiddenkiller", "agnews-8k")


@needs_mirror
def test_hiddenkiller_covers_both_classes_of_sst2_dev():
    dev = load_text("sst2", "dev")
    rows = trigger_all(dev, make_trigger("hiddenkiller", "sst2"))
    assert len(rows) > 0.98 * len(dev)
    assert set(rows.labels) == {0, 1}
