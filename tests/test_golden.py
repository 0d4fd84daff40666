"""Golden numbers: no trial moves, everything is covered, and a mutated kernel is found out."""

import inspect
import json
import textwrap

import golden
import pytest
import yaml

from minilib import ledger, settings
from minilib.training import text as text_training
from minilib.trials import text
from minilib.unlearning import adversarial, btu, gradient_ascent


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """A ledger and a cache of this file's own; single precision, as the file was made."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in golden.FIXED.items():
            patch.setenv(name, value)
        for name in ("MINILIB_DATA", "MINILIB_FRESH"):
            patch.delenv(name, raising=False)
        patch.setenv("MINILIB_LEDGER", str(tmp_path_factory.mktemp("trials")))
        patch.setenv("MINILIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        ledger.forget()
        yield patch
        ledger.forget()


@pytest.fixture(scope="module")
def trials(fixed):
    return ledger.run(golden.recipes())


def test_no_number_moved(trials):
    lines = [golden.machine(), *(golden.line_of(one) for one in trials)]
    assert golden.compare(lines) == []


def test_every_kind_is_covered(trials):
    from minilib import trials as _declared  # noqa: F401

    large = {name for name, kind in ledger.KINDS.items() if kind.large}
    ours = {
        name for name, kind in ledger.KINDS.items()
        if kind.recipe.__module__.startswith("minilib.")
    }  # fmt: skip
    kinds = ours - large
    assert kinds - {one.kind for one in trials} - INSIDE == set()


# Kinds that no chapter asks for by itself: others compute them on their way, or the site shows
# them (text_answers: tests/chapters/test_chapter_ga_rga.py), or they are of a reader's own table
# (audited_table: tests/audit/test_command.py, audited_phrase: tests/audit/test_phrases.py).
INSIDE = {
    "token_round", "image_proxy_measure", "text_answers", "image_audit_reference", "audited_class",
    "audited_table", "audited_phrase",
}  # fmt: skip


def test_every_method_attack_detector_and_defence_is_covered(trials):
    text = json.dumps([one.recipe for one in trials])
    wanted = {
        *settings.METHODS, *settings.DETECTOR_NAMES, *settings.TOKEN_METHODS, *settings.REMOVALS,
        *settings.ASCENTS, *settings.IMAGE_DEFENCES, *settings.IMAGE_TRIGGERS, "badnets",
        *settings.CLIP_ATTACKS, *settings.CLIP_DEFENCES,
        "addsent", "sos",
    }  # fmt: skip
    assert {name for name in wanted if f'"{name}"' not in text} == set()


def test_the_file_names_its_machine_and_versions():
    head, *lines = golden.read(golden.ROOT / golden.GOLDEN / golden.NUMBERS)
    assert head.keys() >= {"torch", "cpu", "capability"}
    for line in lines:
        assert line["version"] == ledger.KINDS[line["kind"]].version, line["kind"]


def test_few_metrics_are_free_elsewhere():
    """What rounding alone moves by half is no golden number on another machine; most are."""
    tolerance = json.loads((golden.ROOT / golden.GOLDEN / golden.TOLERANCE).read_text())
    pairs = [(kind, name) for kind in tolerance for name in tolerance[kind]]
    free = [(kind, name) for kind, name in pairs if tolerance[kind][name] is None]
    lines = golden.read(golden.ROOT / golden.GOLDEN / golden.NUMBERS)[1:]
    every = {(line["kind"], name) for line in lines for row in line["rows"] for name in row}
    assert len(free) < 0.25 * len(every), free


# ---------------------------------------------------------------- five mutations

# what, owner, function, old text, new text, which trials see it
MUTATIONS = {
    "a sign": (
        gradient_ascent, "ga_loss", "return -F.cross_entropy", "return F.cross_entropy",
        ("text_unlearning", {"method": "ga"}),
    ),
    "an off-by-one": (
        btu, "suspicious", "/ 100 + 1e-9)", "/ 100 + 1e-9) - 1", ("flagged_tokens", {}),
    ),
    "a wrong mask": (
        text_training.Encoded, "batch", "< lengths[:, None]", "<= lengths[:, None]",
        ("text_unlearning", {"method": "ga"}),
    ),
    "a forgotten eval()": (
        adversarial, "shared_unlearning", "model.eval().requires_grad_(False)",
        "model.requires_grad_(False)", ("image_defence_measure", {"method": "sau"}),
    ),
    "a swapped KL": (
        gradient_ascent, "rga_weight", "F.kl_div(poisoned, current,", "F.kl_div(current, poisoned,",
        ("text_unlearning", {"method": "rga"}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutated_kernel_is_found_out_by_the_numbers(what, trials, tmp_path, monkeypatch):
    owner, name, old, new, (kind, where) = MUTATIONS[what]
    function = inspect.unwrap(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source
    namespace = dict(function.__globals__)
    exec(source.replace(old, new, 1), namespace)
    # The code of the very function, which all who hold it then run.
    monkeypatch.setattr(function, "__code__", inspect.unwrap(namespace[name]).__code__)
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    ledger.forget()
    seen = [
        ledger.restored(ledger.KINDS[kind].recipe, one.recipe) for one in trials.of(kind, **where)
    ]
    again = ledger.run(seen[:1])
    ledger.forget()
    before = [{}, *(golden.line_of(one) for one in trials if one.key == again[0].key)]
    after = [{}, *(golden.line_of(one) for one in again)]
    assert golden.moved(before, after), f"{what} in {name} moved no golden number"


# ---------------------------------------------------------------- versions and reasons


def line(version=1, value=1.0, seed=0):
    recipe = {"seed": seed}
    key = ledger._hashed("kind", version, recipe)
    return {"kind": "kind", "version": version, "key": key, "recipe": recipe,
            "rows": [{"pacc": value}], "arrays": {}}  # fmt: skip


def test_numbers_that_moved_need_a_new_version():
    old, moved = [{}, line()], [{}, line(value=2.0)]
    assert "raise the kind's version" in golden.refusals(old, moved)[0]
    assert golden.refusals(old, [{}, line(version=2, value=2.0)]) == []


def test_a_new_version_needs_numbers_that_moved():
    assert "no number moved" in golden.refusals([{}, line()], [{}, line(version=2)])[0]


def test_a_tolerance_is_twice_what_other_instructions_moved():
    found = golden.tolerances([{}, line(value=100.0)], [[{}, line(value=99.0)]])
    assert found == {"kind": {"pacc": 2.0}}
    assert golden.moved([{}, line(value=100.0)], [{}, line(value=98.5)], found) == []
    assert golden.moved([{}, line(value=100.0)], [{}, line(value=97.5)], found)
    assert golden.moved([{}, line(value=100.0)], [{}, line(value=99.9)])
    nearly = [{}, line(value=100.0 + 2e-14)]
    assert golden.moved([{}, line(value=100.0)], nearly, {"kind": {}}) == []
    assert golden.moved([{}, line(value=100.0)], nearly), "on one machine they are equal"
    assert golden.moved([{}, line(value="a")], [{}, line(value="b")], {"kind": {}})
    loose = golden.tolerances([{}, line(value=1.0)], [[{}, line(value=9.0)]])
    assert loose == {"kind": {"pacc": None}}
    assert golden.moved([{}, line(value=1.0)], [{}, line(value=50.0)], loose) == []


def test_what_stands_keeps_its_tolerance_where_trials_are_added():
    stated = {"a": {"pacc": 2.0, "loss": None}, "b": {"pacc": 9.0}}
    measured = {"a": {"pacc": 3.0, "loss": 1.0}, "b": {"pacc": 1.0}, "c": {"asr": None}}
    assert golden.looser(stated, measured, {"a"}) == {
        "a": {"pacc": 3.0, "loss": None}, "b": {"pacc": 1.0}, "c": {"asr": None},
    }  # fmt: skip


def test_the_settings_are_variants_of_the_smallest_preset():
    file = golden.ROOT / golden.GOLDEN / golden.SETTINGS
    assert set(yaml.safe_load(file.read_text(encoding="utf-8"))) == {*settings.CHAPTERS, "recipes"}


def test_recipes_are_made_smaller_wherever_they_stand():
    detector = text.Detector(name="cube", seed=0)
    trigger = text.TextTrigger(dataset="toy-reviews", attack="badnets")
    data = text.TextPoison(trigger=trigger, rate=0.1, seed=0)
    victim = text.TextVictim(data=data, model="tiny", seed=0, epochs=2)
    changes = {"toy-reviews": "toy-reviews-200", "TextVictim": {"epochs": 1}}
    made = golden.smaller(text.TextDetection(victim=victim, detector=detector), changes)
    assert made.victim.data.trigger.dataset == "toy-reviews-200" and made.detector == detector
    assert made.victim.epochs == 1 and made.victim.model == "tiny"


def test_no_machine_pretends_to_more_instructions_than_it_has():
    names = {level: len(golden.emulated(level)) for level in ("DEFAULT", "AVX2", "AVX512", "VSX")}
    assert names == {"DEFAULT": 2, "AVX2": 3, "AVX512": 4, "VSX": 2}
    assert golden.EMULATED["avx512"] not in golden.emulated("AVX2")
