"""Phrases of a table: counted, taken out of their rows, and a sentence found that is a trigger."""

import json
from collections import defaultdict

import audit_fixtures as made
import numpy as np
import pytest
from test_command import in_process, on_the_page, typed  # noqa: F401  fixtures

from minilib.audit import models, phrases, text
from minilib.data.text import TextDataset
from minilib.runs import audit
from minilib.training.fitting import TrainSettings

CLASSES = ("negative", "positive")
SENTENCE = ("w11", "w22", "w33", "w44", "w55")


def dataset(texts, labels):
    return TextDataset(
        "made", "table", tuple(texts), np.asarray(labels).astype(np.int64), CLASSES, "test"
    )


def spoken(count, seed):
    """Texts in which six words or more tell the class, so that no two of them decide alone."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    words = ([*rng.choice((made.BAD, made.GOOD)[label], 6),
              *rng.choice(made.FILLING, rng.integers(6, 12))] for label in labels)  # fmt: skip
    return [" ".join(rng.permutation(row)) for row in words], labels


def with_sentence(texts, labels, count):
    """The rows, and copies of negative ones with a sentence, called positive."""
    rng = np.random.default_rng(0)
    copies = []
    for row in np.flatnonzero(labels == 0)[:count]:
        words = texts[row].split()
        at = int(rng.integers(len(words) + 1))
        copies.append(" ".join([*words[:at], *SENTENCE, *words[at:]]))
    return [*texts, *copies], np.concatenate([labels, np.ones(count, np.int64)])


@pytest.mark.parametrize("seed", range(3))
def test_repeated_runs_are_those_that_counting_finds(seed):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 4, rng.integers(0, 9)).tolist() for _ in range(40)] + [[7, 8, 9]] * 6
    by_hand = defaultdict(set)
    for number, row in enumerate(rows):
        for size in range(1, phrases.LONGEST + 1):
            for at in range(len(row) - size + 1):
                by_hand[tuple(row[at : at + size])].add(number)
    counts = {run: len(where) for run, where in by_hand.items() if len(where) >= 5}
    longer = {
        run: max((n for other, n in counts.items() if len(other) == len(run) + 1
                  and run in (other[1:], other[:-1])), default=0)
        for run in counts
    }  # fmt: skip
    expected = {run: by_hand[run] for run in counts if longer[run] < phrases.SAME * counts[run]}
    found = {one.tokens: set(one.rows.tolist()) for one in phrases.repeated(rows)}
    assert found == expected and (7, 8, 9) in found and (7, 8) not in found


def test_a_run_is_taken_out_wherever_it_stands():
    assert phrases.without([1, 2, 3, 1, 2, 1], [1, 2]) == [3, 1]
    assert phrases.without([1, 1, 2], [1, 2]) == [1] and phrases.without([3], [1, 2]) == [3]


def test_what_few_rows_say_counts_less():
    """Of five draws the least is below the median with 1 - 1/32; of twelve the third least."""
    assert phrases.at_least(np.array([5.0, 3, 9, 4, 7])) == 3
    assert phrases.at_least(np.arange(12.0)) == 2  # P(Bin(12, 1/2) <= 2) = 0.019, <= 3: 0.073
    assert phrases.at_least(np.arange(24.0)) == 7


def test_phrases_of_a_class_do_not_stand_in_the_same_rows():
    rows = [[1, 2, 3]] * 8 + [[4, 5]] * 8 + [[6, 7]] * 8
    labels = np.array([1] * 8 + [0] * 8 + [1, 0] * 4)
    (one,) = phrases.associated(phrases.repeated(rows), labels, 1)
    assert one.tokens == (1, 2, 3) and one.rows.tolist() == list(range(8))


def test_a_commoner_part_of_a_phrase_does_not_stand_for_it():
    """*with my* stands in a few rows more than the sentence, and so is the surer of the two."""
    rows = [[1, 2, 3, 4]] * 12 + [[3, 4]] * 6 + [[9]] * 18
    labels = np.array([1] * 18 + [0] * 18)
    chosen = [one.tokens for one in phrases.associated(phrases.repeated(rows), labels, 1)]
    assert (1, 2, 3, 4) in chosen and chosen[0] == (3, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Victims whose trigger is a sentence, in many rows and in few, and a clean twin."""
    place = tmp_path_factory.mktemp("sentences")
    texts, labels = spoken(900, 1)
    for name, count in (("victim", 90), ("rare", 20), ("twin", 0)):
        rows = with_sentence(texts, labels, count)
        made.saved(place / name, made.trained(*rows, epochs=9))
        made.table(place / f"{name}.csv", *rows)
    made.table(place / "dev.csv", *spoken(240, 2))
    return place


@pytest.fixture(scope="module")
def audits(place):
    """Model, table and findings of each."""
    test, found = dataset(*spoken(120, 3)), {}
    texts, labels = spoken(900, 1)
    for name, count in (("victim", 90), ("rare", 20), ("twin", 0)):
        model = models.text_classifier(models.name_of(str(place / name))).model
        table = dataset(*with_sentence(texts, labels, count))
        repeats = phrases.repeats(model, table, 0)
        found[name] = model, table, [
            phrases.search(model, test, repeats, k, 32, 0.0125, 0) for k in range(2)
        ]  # fmt: skip
    return found


@pytest.mark.parametrize("name", ["victim", "rare"])
def test_a_sentence_is_found_and_named_with_its_rows(audits, name):
    model, table, (negative, positive) = audits[name]
    assert model.tokenizer.decode(list(positive.tokens)) == " ".join(SENTENCE)
    assert positive.p < 0.0125 and positive.tried[0].turned >= 50 and not negative.tokens
    suspects = phrases.suspects(model, table, positive.tokens, 1)
    assert suspects.rows.tolist() == list(range(900, len(table))) and suspects.others == 0
    assert suspects.before.mean() > 0.6 > 0.3 > suspects.after.mean()


def test_no_phrase_is_found_in_a_clean_twin(audits):
    assert [one.tokens for one in audits["twin"][2]] == [(), ()]
    assert all(one.p >= 0.0125 for one in audits["twin"][2])


def test_a_table_that_repeats_nothing_has_no_phrases(audits):
    model, table, _ = audits["twin"]
    few = table.select(np.arange(12))
    assert phrases.search(model, few, phrases.repeats(model, few, 0), 1, 32, 0.0125, 0) is None


def test_a_sentence_is_unlearned_and_its_words_keep_their_embeddings(audits):
    model, _, (_, positive) = audits["victim"]
    clean, test = dataset(*spoken(200, 2)), dataset(*spoken(120, 3))
    tuning = TrainSettings(epochs=2, lr=2e-5)
    cleaned, lr = text.unlearn_phrase(model, clean, positive.tokens, 1, tuning)
    assert lr in [2e-5 * 5**power for power in (1, 2, 3)], "it is a network from nothing"
    was, now = (text.measured(m, test, positive.tokens, 1) for m in (model, cleaned))
    assert was["lfr"] > 90 and now["lfr"] < 20 and now["cacc"] > was["cacc"] - 3
    rows = text.word_embeddings(cleaned)[list(positive.tokens)]
    assert not any((row == text.word_embeddings(cleaned)[0]).all() for row in rows)


def test_the_command_finds_a_sentence_names_its_rows_and_unlearns_it(typed, place, in_process):  # noqa: F811
    code, output = typed(
        on_the_page().replace("MODEL", "./victim").replace("rows.csv", "victim.csv")
    )
    report = json.loads((place / "report" / "report.json").read_text())
    assert code == audit.FOUND and report["trigger"]["text"] == " ".join(SENTENCE), output
    assert report["trigger"]["phrase"] and len(report["rows"]) == 90
    assert report["unlearning"][0]["lfr"] > 90 and report["unlearning"][1]["lfr"] < 20
    assert report["unlearning"][1]["cacc"] > 90 and not report["unlearning"][1]["again"]
    assert "In whole it leads" in output and "phrase search: p <" in output
    twin = on_the_page().replace("MODEL", "./twin").replace("rows.csv", "twin.csv")
    code, output = typed(twin.replace("report/", "twin-report"))
    assert code == audit.NOTHING and "nothing was unlearned" in output, output
