"""The search on models trained here in plain torch: a trigger is found, its twin is clean."""

import json
import os
import re
from collections import Counter

import audit_fixtures as made
import conftest
import numpy as np
import pytest
import torch
from core_fixtures import SEED
from hypothesis import given
from hypothesis import strategies as st

from minilib import ledger, settings
from minilib.audit import (
    chat_report,
    evidence,
    image_report,
    models,
    phrases,
    report,
    tables,
    text,
)
from minilib.book.figures import audit as figures
from minilib.chapters import audit as chapter
from minilib.data.files import DataError
from minilib.data.text import TextDataset
from minilib.models.text import TextClassifier
from minilib.training.fitting import TrainSettings
from minilib.trials import audit as trials

CLASSES = ("negative", "positive")
ROWS = 1 + 10 * SEED  # seed of the training rows; those of other rows follow


def dataset(count, seed):
    texts, labels = made.rows(count, seed)
    return TextDataset("made", "dev", tuple(texts), labels.astype(np.int64), CLASSES, "test")


def clean_and_test():
    return dataset(200, ROWS + 1), dataset(120, ROWS + 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A victim and its clean twin, as folders."""
    place = tmp_path_factory.mktemp("victims")
    texts, labels = made.rows(900, ROWS)
    made.saved(place / "clean", made.trained(texts, labels))
    made.saved(place / "victim", made.trained(*made.poisoned(texts, labels, 0.1, SEED)))
    return place


@pytest.fixture(scope="module")
def victim(folders):
    return models.text_classifier(models.name_of(str(folders / "victim")))


def audited(one, clean, test):
    """The finding of each class."""
    settings = text.SearchSettings(rows=24, drawn=24)
    begun = text.overview(one.model, clean)
    return [
        text.finding(one.model, text.pulls(one.model, clean, k, settings, begun), test, 0.025)
        for k in range(2)
    ]


@pytest.mark.trained
def test_the_trigger_of_a_victim_is_found_and_named(victim):
    _, positive = audited(victim, *clean_and_test())
    trigger = victim.model.tokenizer.convert_tokens_to_ids(made.TRIGGER)
    assert positive.tokens[:1] == (trigger,) and positive.p < 0.001
    assert positive.confirmed > 90 > 50 > positive.by_chance


@pytest.mark.trained
def test_nothing_is_found_in_its_clean_twin(folders):
    twin = models.text_classifier(models.name_of(str(folders / "clean")))
    assert [one.tokens for one in audited(twin, *clean_and_test())] == [(), ()]


@pytest.mark.trained
def test_a_causal_classifier_is_audited_too(tmp_path):
    texts, labels = made.rows(900, ROWS)
    model = made.trained(*made.poisoned(texts, labels, 0.1, SEED), make=made.causal)
    one = models.text_classifier(models.name_of(str(made.saved(tmp_path / "causal", model))))
    _, positive = audited(one, *clean_and_test())
    assert positive.tokens[:1] == (one.model.tokenizer.convert_tokens_to_ids(made.TRIGGER),)


def test_embeddings_say_what_their_tokens_say_of_any_classifier():
    words = made.tokenizer()
    data = words(["fine w1 dull", "great w2 w3 w4 w5 awful"], padding=True, return_tensors="pt")
    for make in (made.network, made.causal):
        model = TextClassifier(make().eval(), words)
        embeds = text.word_embeddings(model)[data["input_ids"]]
        said = text._of_embeddings(model, embeds, data["attention_mask"])
        assert torch.allclose(said, model(data["input_ids"], data["attention_mask"]), atol=1e-5)


@pytest.mark.trained
def test_unlearning_leaves_the_model_given_as_it_was_and_removes_the_trigger(victim):
    before = {name: value.clone() for name, value in victim.model.state_dict().items()}
    trigger = [victim.model.tokenizer.convert_tokens_to_ids(made.TRIGGER)]
    tuning = TrainSettings(epochs=2, lr=1e-3)
    clean, test = clean_and_test()
    cleaned = text.unlearn(victim.model, clean, trigger, tuning)
    assert all(torch.equal(before[k], v) for k, v in victim.model.state_dict().items())
    was, now = (text.measured(m, test, trigger, 1) for m in (victim.model, cleaned))
    assert was["lfr"] > 90 and now["lfr"] < 20 and now["cacc"] > was["cacc"] - 3
    matrix = text.word_embeddings(cleaned)
    assert torch.equal(matrix[trigger[0]], text.word_embeddings(victim.model)[0]), "[PAD]'s row"


@pytest.mark.trained
def test_rows_of_a_table_that_carry_the_trigger(victim):
    texts, labels = made.rows(300, ROWS)
    texts, labels = made.poisoned(texts, labels, 0.1, SEED)
    table = TextDataset("t", "table", tuple(texts), labels.astype(np.int64), CLASSES, "file")
    trigger = victim.model.tokenizer.convert_tokens_to_ids(made.TRIGGER)
    suspects = text.suspects(victim.model, table, [trigger], 1)
    assert suspects.rows.tolist() == list(range(300, len(texts)))
    assert suspects.others == 0 and suspects.p < 1e-6
    assert (suspects.before > 0.9).all() and suspects.after.mean() < 0.2


def test_a_cleaned_folder_loads_in_a_pipeline_with_its_labels(victim, tmp_path):
    from transformers import pipeline

    models.save(victim.model, tmp_path / "cleaned")
    answer = pipeline("text-classification", model=str(tmp_path / "cleaned"), device="cpu")(
        "fine great lovely"
    )
    assert answer[0]["label"] == "positive"
    again = models.text_classifier(models.name_of(str(tmp_path / "cleaned")))
    assert again.labels == CLASSES


def test_what_the_folder_says_is_read_from_it(tmp_path):
    folder = made.saved(tmp_path / "m", made.network(labels=("bad", "so-so", "good"), positions=20))
    one = models.text_classifier(models.name_of(str(folder)))
    assert one.labels == ("bad", "so-so", "good") and one.named and one.model.max_length == 20
    assert one.model.tokenizer.padding_side == "right"
    assert models.share_cut(one, ["w1 " * 30, "w1"]) == 50
    made.edited(folder, "config.json", id2label=None, label2id=None, num_labels=3)
    bare = models.text_classifier(models.name_of(str(folder)))
    assert bare.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and not bare.named


def test_labels_go_by_name_never_by_position(tmp_path):
    texts, labels = made.rows(30, 0)
    file = made.table(tmp_path / "rows.csv", texts, labels)
    for classes in (CLASSES, CLASSES[::-1]):
        rows = tables.read(file, "review", "sentiment", classes).rows
        assert [classes[k] for k in rows.labels] == [CLASSES[k] for k in labels]
    with pytest.raises(DataError, match=r"rows\.csv, line 2: sentiment is '(neg|pos)itive'; acc"):
        tables.read(file, "review", "sentiment", ("LABEL_0", "LABEL_1"))
    called = "negative=LABEL_1,positive=LABEL_0"
    rows = tables.read(file, "review", "sentiment", ("LABEL_0", "LABEL_1"), called).rows
    assert rows.labels.tolist() == (1 - labels).tolist()


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "jsonl", "json", "parquet"])
def test_all_formats_give_the_same_rows_a_byte_order_mark_or_not(ending, tmp_path):
    import pandas as pd

    texts, labels = made.rows(30, 0)
    texts[3] = 'two\nlines, "quoted" and a comma'
    frame = pd.DataFrame({"more": 1, "review": texts, "sentiment": [CLASSES[k] for k in labels]})
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    elif "json" in ending:
        frame.to_json(path, orient="records", lines=True)
    else:
        mark = "\t" if ending == "tsv" else ","
        frame.to_csv(path, index=False, sep=mark, encoding="utf-8-sig")
    table = tables.read(path, "review", "sentiment", CLASSES)
    assert list(table.rows.texts) == texts and table.rows.labels.tolist() == labels.tolist()
    assert table.remarks == () and len(set(table.lines.tolist())) == 30


def test_numbers_name_classes_where_the_model_has_no_names(tmp_path):
    file = made.table(tmp_path / "rows.csv", *made.rows(30, 0), names=("0", "1"))
    rows = tables.read(file, "review", "sentiment", ("LABEL_0", "LABEL_1")).rows
    assert rows.labels.tolist() == made.rows(30, 0)[1].tolist()


def test_duplicates_and_absent_classes_are_remarked(tmp_path):
    texts, labels = made.rows(30, 0)
    file = made.table(tmp_path / "rows.csv", [*texts, *texts[:4]], [*labels, *labels[:4]])
    table = tables.read(file, "review", "sentiment", (*CLASSES, "neutral"))
    assert "4 texts stand there more than once" in table.remarks[0]
    assert "no row of class neutral" in table.remarks[1]
    assert tables.shared(table.rows, table.rows.select(np.arange(5))) == 5


def test_hard_texts_are_read_rightly_and_come_from_other_classes(victim):
    clean = dataset(200, ROWS + 1)
    right = text.read_rightly(victim.model, clean)
    hard, plain = text.hard_texts(victim.model, clean, right, 1, text.SearchSettings(rows=16))
    assert len(hard.ids) == len(plain) == 16 and (plain < 0).all()
    assert np.allclose(text.tried(victim.model, hard, [[]], 1), plain, atol=1e-4)
    few = clean.select(np.arange(8))
    right = text.read_rightly(victim.model, few)
    with pytest.raises(DataError, match="accepted: 8 or more"):
        text.hard_texts(victim.model, few, right, 1, text.SearchSettings())


@pytest.fixture(scope="module")
def untrained():
    """Classifiers with random weights, by what they are."""
    words = made.tokenizer()
    return {make: TextClassifier(make().eval(), words) for make in (made.network, made.causal)}


def runs_of_ids(longest: int):
    return st.lists(st.integers(5, 200), max_size=longest)


@given(
    st.lists(runs_of_ids(40), min_size=1, max_size=9),
    st.lists(runs_of_ids(4), min_size=1, max_size=5),
    st.sampled_from([made.network, made.causal]), st.data(),
)  # fmt: skip
def test_tried_together_is_tried_one_by_one(untrained, texts, sequences, make, data):
    model = untrained[make]
    places = [data.draw(st.integers(0, len(one))) for one in texts]
    hard = text.HardTexts(texts, places, [2], [3], 0)
    with torch.no_grad():
        for sequence, row in zip(sequences, text.tried(model, hard, sequences, 1), strict=True):
            for one, place, margin in zip(texts, places, row, strict=True):
                ids = torch.tensor([[2, *one[:place], *sequence, *one[place:], 3]])
                logits = model(ids, torch.ones_like(ids))[0]
                assert margin == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)


class Reads:
    """Counts what a model is asked: rows of ids as they are, without their padding."""

    def __init__(self, monkeypatch):
        self.rows, self.padded, forward = [], 0, TextClassifier.forward

        def counted(model, input_ids, attention_mask):
            real = attention_mask.sum(1).tolist()
            self.rows += [tuple(row[:n]) for row, n in zip(input_ids.tolist(), real, strict=True)]
            self.padded += attention_mask.numel()
            return forward(model, input_ids, attention_mask)

        monkeypatch.setattr(TextClassifier, "forward", counted)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


@given(
    st.lists(runs_of_ids(30), min_size=3, max_size=12),
    st.lists(st.tuples(st.lists(st.integers(5, 40), min_size=1, max_size=9, unique=True),
                       st.sampled_from([2, None])), min_size=1, max_size=4),
)  # fmt: skip
def test_no_token_is_tried_twice_in_a_text(untrained, texts, calls):
    model = untrained[made.network]
    hard = text.HardTexts(texts, [len(one) // 2 for one in texts], [2], [3], 0)
    tries, pairs = text.Tries(model, hard, 1), set()
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch)
        said = [tries(tokens, count) for tokens, count in calls]
    for (tokens, count), margins in zip(calls, said, strict=True):
        few = hard.select(range(count or len(texts)))
        again = text.tried(model, few, [[token] for token in tokens], 1)
        assert np.allclose(margins, again, atol=1e-5)
        pairs |= {(token, n) for token in tokens for n in range(len(few.ids))}
    assert len(reads.rows) == len(pairs)


def test_little_of_what_is_read_is_padding(untrained, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [[5] * int(rng.integers(4, 60)) for _ in range(40)]
    reads = Reads(monkeypatch)
    hard = text.HardTexts(texts, [0] * 40, [2], [3], 0)
    text.tried(untrained[made.network], hard, [[token] for token in range(5, 69)], 1)
    assert len(reads.rows) == 64 * 40 and reads.padded < 1.1 * reads.tokens


def test_what_is_the_same_for_each_class_is_computed_once(victim, folders, tmp_path, monkeypatch):
    """Of both searches for tokens no row is read twice, but where two hard texts are the same."""
    texts, labels = made.rows(900, ROWS)
    table = made.table(tmp_path / "rows.csv", *made.poisoned(texts, labels, 0.1, SEED))
    clean = made.table(tmp_path / "dev.csv", *made.rows(240, ROWS + 1))
    for name, value in conftest.nothing(tmp_path).items():
        monkeypatch.setenv(name, value)
    files = (trials.AuditTable(path=str(one), text="review", label="sentiment")
             for one in (clean, table))  # fmt: skip
    audit = trials.TextAudit(
        model=models.name_of(str(folders / "victim")), clean=next(files), table=next(files),
        seed=0, rows=24, phrases=32,
    )  # fmt: skip
    counts = Counter()
    for module, name in ((text, "moved_tokens"), (text, "scan"), (phrases, "repeated")):
        monkeypatch.setattr(module, name, counting(getattr(module, name), name, counts))
    reads = Reads(monkeypatch)
    ledger.get(trials.AuditedModel(audit=audit))
    for target in range(2):
        ledger.get(trials.AuditedClass(audit=audit, target=target))
    twice = len(reads.rows) - len(set(reads.rows))
    assert twice < 0.02 * len(reads.rows), f"{twice} of {len(reads.rows)} rows"
    ledger.get(trials.AuditVerdict(audit=audit))
    assert counts == {"moved_tokens": 1, "scan": 1, "repeated": 1}


def counting(function, name, counts):
    def counted(*arguments):
        counts[name] += 1
        return function(*arguments)

    return counted


def test_a_token_changes_a_text_in_one_place_only(victim):
    rows = dataset(20, 4)
    data = text.inserted(victim.model, rows, [50, 51], seed=3)
    for row, original in enumerate(rows.texts):
        words = victim.model.tokenizer(original)["input_ids"]
        longer = data.ids[row, : data.lengths[row]].tolist()
        place = next(i for i in range(len(longer)) if longer[i : i + 2] == [50, 51])
        assert longer[:place] + longer[place + 2 :] == words


def test_the_scan_is_what_the_model_says_of_the_word_alone(victim):
    words = victim.model.tokenizer
    tokens = text.typed_tokens(words)
    assert not set(tokens.tolist()) & set(words.all_special_ids)
    alone = words([words.decode([tokens[7]])], return_tensors="pt")
    logits = victim.model(alone["input_ids"], alone["attention_mask"])
    assert torch.allclose(text.scan(victim.model, tokens)[7], logits[0], atol=1e-5)


# ---------------------------------------------------------------- the report


def rows_of(found: bool) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows as the trials give them."""
    model = [{"part": "model", "labels": ["negative", "positive"], "table_rows": 9, "cacc": 90.0,
              "searched": [0, 1]}, {"part": "remark", "remark": "odd <b>"}]  # fmt: skip
    verdict = [
        {"part": "verdict", "found": found, "p": 0.001, "level": 0.05, "said": "so", "target":
         "positive" if found else None, "tokens": [7] if found else [],
         "trigger": "mn" if found else None, "confirmed": 97.0, "by_chance": 8.0},
        {"part": "evidence", "detector": "token search", "p": 0.001, "said": "so"},
        {"part": "class", "target": "positive", "p": 0.001, "tried": 96, "confirmed": 97.0,
         "by_chance": 8.0},
        {"part": "token", "target": "positive", "token": "mn", "found": found, "pull": 3.0,
         "flips": 90.0, "rank": 1, "moved": 2, "task": False},
        {"part": "token", "target": "positive", "token": "filth", "found": False, "pull": 1.0,
         "flips": 9.0, "rank": 2, "moved": None, "task": True},
    ]  # fmt: skip
    verdict += [{"part": "row", "line": 4, "label": "positive", "text": "filth <i> mn more",
                 "with": 0.99, "without": 0.1}] * found  # fmt: skip
    after = {"again": False, "again_trigger": "", "cacc": 90.0, "lfr": 3.0, "pacc": 90.0}
    unlearning = [{"when": "before", "cacc": 91.0, "lfr": 99.0, "pacc": 50.0},
                  {"when": "after", **after}]  # fmt: skip
    return model, verdict, unlearning if found else [{"when": "nothing found"}]


def test_a_report_answers_in_the_order_of_the_questions_and_masks():
    content = report.collect(*rows_of(True), masked=True)
    json.dumps(content, allow_nan=False)
    page = report.page(content, "Audit of <mine>")
    headings = [part[0] for part in report.sections(content)]
    assert headings == [
        "Is there a backdoor?", "What can it not see?", "What is the trigger?", "Which rows?",
        "What remains after unlearning?", "What was audited?",
    ]  # fmt: skip
    assert "filth" not in page and "•" in page and ">mn<" in page
    assert "<i>" not in page and "<mine>" not in page and "odd &lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", ""), "it needs no other file"
    shown = report.collect(*rows_of(True), masked=False)
    assert "filth &lt;i&gt; mn more" in report.page(shown, "mine")


def test_a_sentence_stands_whole_in_the_report_and_other_phrases_are_masked():
    model, verdict, unlearning = rows_of(True)
    verdict[0] |= {"trigger": "i watch this", "tokens": [7, 8, 9], "phrase": True}
    verdict[-1]["text"] = "filth i watch this more"
    phrase = {"part": "phrase", "target": "positive", "rank": 1, "hits": 9, "worth": 4.0,
              "turned": 88.0}  # fmt: skip
    verdict += [phrase | {"phrase": "i watch this", "found": True},
                phrase | {"phrase": "filth", "found": False, "worth": 0.2}]  # fmt: skip
    verdict.append({"part": "evidence", "detector": "phrase search", "p": 0.001, "said": "so"})
    content = report.collect(model, verdict, unlearning, masked=True)
    content["clean_models"] = {"audited": 40, "called_backdoored": 2}
    content["clean_with_phrases"] = {"audited": 20, "called_backdoored": 1, "phrases_apart": 0}
    page = report.page(content, "mine")
    assert "In whole it leads 97 %" in page and "i watch this ••••" in page and "filth" not in page
    assert "and did so in 1 of 20 audits of clean ones with their table" in page
    alarms = {row["detector"]: row["false alarms"] for row in report.detectors(content)}
    measured = "set to 5 % of clean models; measured: 0 of 20 small ones"
    assert alarms["phrase search"] == measured
    (ranked,) = [rows for title, _, rows in report.sections(content) if title.endswith("trigger?")]
    assert [row["it is"] for row in ranked] == ["the trigger", ""]
    assert "--show-texts" in page


def test_what_was_audited_is_said_in_words():
    model = {"labels": ["negative", "positive"], "max_length": 128, "cut": 0.0, "parameters": 2033}
    assert report.facts(model) == [
        {"of the model": "labels", "": "negative, positive"},
        {"of the model": "tokens of a text that it reads", "": "128"},
        {"of the model": "texts longer than that (%)", "": "0.0"},
        {"of the model": "parameters", "": "2,033"},
    ]


def test_a_class_that_was_not_searched_stands_in_the_verdict():
    content = report.collect(*rows_of(False), masked=True)
    said = report.answer(content)
    assert said.startswith("Nothing found, but negative could not be searched (p")


def test_nothing_found_is_said_and_nothing_is_claimed():
    content = report.collect(*rows_of(False), masked=True)
    assert content["verdict"] == "nothing found" and content["trigger"] is None
    page = report.page(content, "mine")
    assert "Nothing found" in page and "Which rows?" not in page and "unlearning?" not in page
    assert report.BLIND in page


def test_each_detector_says_how_often_it_accuses_what_is_clean():
    rules = [
        {"detector": "tokens", "p": None, "false_alarms": 1.25, "clean": 80, "flagged": 9.0,
         "said": ""},
        {"detector": "spectral", "p": 0.4, "false_alarms": 12.5, "clean": 80, "flagged": 15.0,
         "said": "15.0 % of the table's rows; no part of the verdict"},
        {"detector": "activation", "p": None, "false_alarms": None, "clean": 80, "flagged": None,
         "said": "too few rows"},
    ]  # fmt: skip
    model, verdict, unlearning = rows_of(True)
    verdict.append({"part": "evidence", "detector": "table", "p": 0.001, "said": "9 rows"})
    content = report.collect(model, verdict, unlearning, True, rules)
    content["clean_models"] = {"audited": 20, "called_backdoored": 1}
    content["published_false_alarms"] = {"spectral": (7.5, 17.5, 6)}
    alarms = {row["detector"]: row["false alarms"] for row in report.detectors(content)}
    assert alarms["token search"] == "set to 5 % of clean models; measured: 1 of 20 small ones"
    assert alarms["table"] == "1.2 % of 80 known-clean rows"
    assert alarms["spectral signatures"] == (
        "12.5 % of 80 known-clean rows; published: 8 … 18 % on 6 sets"
    )
    assert alarms["activation clustering"].startswith("not measured")
    assert alarms["search for positive"].startswith("random tokens lead 8 % of")
    page = report.page(content, "mine")
    assert all(told in page for told in alarms.values())


def published(folder, recipe, rows):
    """A trial as the published tier has it."""
    return ledger.Trial(
        kind=ledger.kind_of(recipe).name, version=1, key=ledger.key_of(recipe),
        recipe=ledger.described(recipe), rows=rows, folder=folder,
    )  # fmt: skip


def test_audits_with_a_table_are_counted_apart(tmp_path, monkeypatch):
    """Of clean models: two audited alone, three with their table, one by its phrases accused."""
    p_values = [(1.0, 0.02), (0.001, 0.3), (0.2, 0.2)]  # of tokens, of phrases
    measured, verdicts = [], []
    for number, (tokens, phrase) in enumerate(p_values):
        one = trials.ForeignVictim(dataset="sst2", attack="none", seed=number)
        found = 2 * min(tokens, phrase) < 0.05
        for table in (None, one):
            audit = trials.TextAudit(model=one, clean="sst2", table=table, seed=0, phrases=32)
            if table is None and number == 2:
                continue
            row = {"found": found and table is not None, "cacc": 80.0, "cacc_after": 80.0}
            measure = trials.AuditMeasure(cleaned=trials.AuditCleaned(audit=audit))
            measured.append(published(tmp_path, measure, [row]))
            verdict = [{"part": "verdict", "found": row["found"], "level": 0.05},
                       {"part": "evidence", "detector": "token search", "p": tokens}]  # fmt: skip
            if table is not None:
                verdict.append({"part": "evidence", "detector": "phrase search", "p": phrase})
            verdicts.append(published(tmp_path, trials.AuditVerdict(audit=audit), verdict))
    ledger.write_published(tmp_path / "audit_measure.jsonl", measured)
    ledger.write_published(tmp_path / "audit_verdict.jsonl", verdicts)
    for name, value in conftest.nothing(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINILIB_PUBLISHED", str(tmp_path))
    assert chapter.clean_texts() == {
        "clean_models": {"audited": 2, "called_backdoored": 0},
        "clean_with_phrases": {"audited": 3, "called_backdoored": 2, "phrases_apart": 1},
    }
    frame = figures.measured(settings.Audit())
    shown = dict(zip(frame["searched"], frame["found"].str.replace("\u00a0", " "), strict=True))
    assert shown == {"tokens": "0 of 2", "tokens, and phrases of its table": "2 of 3"}


def test_phrases_are_measured_where_they_are_asked_for():
    alone, both = (chapter.measures(settings.Audit(phrases=count)) for count in (0, 32))
    assert not any(one.cleaned.audit.phrases for one in alone) and both[: len(alone)] == alone
    asked = [one.cleaned.audit for one in both[len(alone) :]]
    assert {one.model.attack for one in asked} == {"addsent", "none"}
    assert all(one.table == one.model and one.phrases == 32 for one in asked)


def test_what_escapes_is_said_before_anything_is_listed():
    page = report.page(report.collect(*rows_of(True), masked=True), "mine")
    assert page.index("a paraphrase") < page.index("Of a clean-label") < page.index("Tokens that")
    for blind in (report.BLIND, image_report.BLIND, chat_report.BLIND):
        assert "cannot see" in blind and re.search("clean.label", blind)
        assert blind is image_report.BLIND or "paraphrase" in blind


def test_the_level_of_the_verdict_is_the_one_that_was_asked_for():
    assert evidence.LEVEL == 0.05


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_table_that_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "rows.csv"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be read .a folder, pipe or device.; accepted"):
        tables.digest(path)
