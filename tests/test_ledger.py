"""The ledger: keys, tiers, what is computed when, damage, two processes at once, publishing."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from toy_trials import (
    ToyData,
    ToyFailing,
    ToyMap,
    ToySlow,
    ToyUnlearning,
    ToyVictim,
    toy_unlearning,
)

from minilib import ledger, provenance

VICTIM = ToyVictim(data=ToyData())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty local tier, an empty published one, and a log of what was computed."""
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_PUBLISHED", str(tmp_path / "results"))
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("MINILIB_FRESH", raising=False)
    return tmp_path


def computed(home) -> list[str]:
    log = home / "log"
    return log.read_text().split() if log.is_file() else []


def ga(**changes):
    return ToyUnlearning(**{"victim": VICTIM, "method": "ga", **changes})


# ---------------------------------------------------------------- recipes and keys


def test_a_key_counts_what_is_off_its_default():
    assert ledger.described(ga()) == {
        "victim": {"is": "ToyVictim", "data": {"is": "ToyData"}},
        "method": "ga",
    }
    assert ledger.key_of(ga(seed=0)) == ledger.key_of(ga())
    assert ledger.key_of(ga(seed=1)) != ledger.key_of(ga())


def test_a_field_that_a_method_does_not_read_is_no_part_of_it():
    assert ledger.key_of(ga(alpha=3.0)) == ledger.key_of(ga())
    rga = ToyUnlearning(victim=VICTIM, method="rga", alpha=3)
    assert ledger.key_of(rga) != ledger.key_of(dataclasses.replace(rga, alpha=4))


def test_equal_values_written_differently_are_one_recipe():
    one = ToyVictim(data=ToyData(), lr=1)
    assert one == ToyVictim(data=ToyData(), lr=1.0) and isinstance(one.lr, float)


@pytest.mark.parametrize("value", [np.float32(1), {"a": 1}, object()])
def test_a_recipe_holds_plain_values(value):
    with pytest.raises(TypeError, match=r"ToyVictim\.lr is a .*; accepted"):
        ToyVictim(data=ToyData(), lr=value)


def test_a_new_version_of_a_victim_makes_what_is_done_to_it_new(monkeypatch):
    before = ledger.key_of(ga())
    kind = ledger._KIND_OF[ToyVictim]
    monkeypatch.setitem(ledger._KIND_OF, ToyVictim, dataclasses.replace(kind, version=2))
    ledger.key_of.cache_clear()
    assert ledger.key_of(ga()) != before
    ledger.key_of.cache_clear()


def test_a_version_needs_its_reasons():
    def nothing(one: ToyData) -> list: ...

    for version, why in ((2, {}), (1, {2: "x"}), (3, {3: "x"}), (0, {})):
        with pytest.raises(ValueError, match="needs a reason"):
            ledger.trial(version, why)(nothing)


def test_a_description_gives_the_recipe_back():
    for one in (ga(epochs=3, seed=2), ToyMap(victim=VICTIM, points=3)):
        assert ledger.restored(type(one), ledger.described(one)) == one
    assert ledger.restored(ToyUnlearning, {"gone": 1}) is None


def test_columns_are_flat_and_name_the_owner_where_names_meet():
    flat = ledger.columns(ga(epochs=7))
    assert flat["epochs"] == 7 and flat["victim_epochs"] == 3
    assert flat["dataset"] == "toy" and flat["victim"] == "ToyVictim"


# ---------------------------------------------------------------- computing and looking up


def test_what_is_there_is_not_computed_again(home):
    first = toy_unlearning(ga())
    again = ledger.run([ga(), ga(), ga(seed=1)])
    assert computed(home) == [first.key, again[1].key]
    assert [one.key for one in again] == [first.key, ledger.key_of(ga(seed=1))]
    assert first.data[0]["name"] == "toy" and first.env["cpus"] == os.cpu_count()
    assert again.rows[0]["method"] == "ga" and again.rows[0]["epoch"] == 1


def test_a_shorter_run_is_read_from_a_longer_one_but_never_computed_from_it(home):
    toy_unlearning(ga(epochs=30))
    found = ledger.available([ga(epochs=10)])
    assert [len(one.rows) for one in found] == [30]
    assert ledger.missing([ga(epochs=10)]) == [ga(epochs=10)]


def test_other_seeds_and_settings_are_looked_up(home):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        alpha: float = 2.0
        seed: int = 0

    def plan(cfg):
        return [ToyUnlearning(victim=VICTIM, method="rga", alpha=cfg.alpha, seed=cfg.seed)]

    for seed, alpha in ((0, 2.0), (1, 2.0), (0, 3.0)):
        ledger.get(plan(Settings(alpha, seed))[0])
    assert len(ledger.over(plan, Settings())) == 2
    assert len(ledger.over(plan, Settings(), alpha=[1.0, 2.0, 3.0])) == 3
    assert len(computed(home)) == 3


def test_arrays_lie_beside_their_trial(home):
    one = ToyMap(victim=VICTIM)
    points = ledger.array(one, "points")
    assert points.shape == (8, 2) and (ledger.array(one, "points") == points).all()
    with pytest.raises(ValueError, match="256 KiB"):
        ledger.get(ToyMap(victim=VICTIM, points=200_000))


def test_arrays_that_a_published_trial_lacks_are_computed_here(home):
    one = ToyMap(victim=VICTIM)
    bare = dataclasses.replace(ledger.get(one), arrays=())
    ledger.write_published(home / "results" / "toy_map.jsonl", [bare])
    for path in (home / "trials" / "toy_map").glob("[!.]*.*"):
        path.unlink()
    assert ledger.get(one).tier == "published"
    assert ledger.array(one, "points").shape == (8, 2)


def test_a_failure_does_not_stop_the_others(home):
    recipes = [ToyFailing(number=n) for n in (-1, 1, -2, 2)]
    with pytest.raises(ledger.LedgerError, match="2 of 4 trials failed.*accepted: 0 or more"):
        ledger.run(recipes)
    assert ledger.missing(recipes) == [recipes[0], recipes[2]]


def test_a_frame_has_recipe_rows_and_environment(home):
    ledger.run([ga(seed=seed) for seed in (0, 1)])
    frame = ledger.frame("toy_unlearning", seed=[1], epoch=3)
    assert len(frame) == 1 and frame.loc[0, "pacc"] == pytest.approx(0.3 + 2 + 1 + 0.3)
    assert {"env_cpu", "victim_epochs", "current", "tier"} <= set(frame.columns)
    with pytest.raises(LookupError, match="no kind of trial"):
        ledger.frame("toy_nothing")


def test_a_trial_is_found_by_the_first_digits_of_its_key(home):
    key = toy_unlearning(ga()).key
    assert ledger.find(key[:8]).key == key
    for wrong in ("../../x", key[:3], "0" * 16):
        with pytest.raises(LookupError):
            ledger.find(wrong)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "\x00" * 40])
def test_a_damaged_file_is_named_put_aside_and_made_again(home, text):
    key = toy_unlearning(ga()).key
    path = home / "trials" / "toy_unlearning" / f"{key}.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match=f"{key} is damaged and made again"):
        assert toy_unlearning(ga()).key == key
    assert len(computed(home)) == 2 and path.with_suffix(".damaged").is_file()


def test_trials_under_each_others_keys_are_noticed(home):
    keys = [toy_unlearning(ga(seed=seed)).key for seed in (0, 1)]
    folder = home / "trials" / "toy_unlearning"
    texts = [(folder / f"{key}.json").read_text() for key in keys]
    for key, text in zip(keys, reversed(texts), strict=True):
        (folder / f"{key}.json").write_text(text)
    with pytest.warns(UserWarning, match="damaged"):
        assert toy_unlearning(ga()).rows[0]["pacc"] == pytest.approx(2.4)


def test_a_forged_line_of_the_published_tier_is_left_out(home):
    one = toy_unlearning(ga())
    forged = one.record() | {"key": "../../../etc/x"}
    path = home / "results" / "toy_unlearning.jsonl"
    path.parent.mkdir()
    good = json.dumps(toy_unlearning(ga(seed=1)).record())
    wrong = [
        *(one.record() | change for change in ({"env": 3}, {"commit": 3}, {"data": [3]},
                                               {"made": 3}, {"rows": 3}, {"arrays": 3})),
        forged,
    ]  # fmt: skip
    lines = [
        *map(json.dumps, wrong),
        "not json",
        good.replace(": 1", ": NaN"),
        "[" * 100_000,
        "[]",
        "null",
        good,
    ]
    path.write_bytes(b"\xff\xfe\n" + "\n".join(lines).encode())
    with pytest.warns(UserWarning, match="is left out"):
        assert len(ledger._published("toy_unlearning")) == 1


def test_a_full_disk_takes_the_file_and_not_the_number(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(provenance, "write_bytes", full)
    with pytest.warns(UserWarning, match="not kept: No space left"):
        assert toy_unlearning(ga()).rows
    assert len(ledger.run([ga()])) == 1 and len(computed(home)) == 1, "nor is it computed again"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_one_clear_line(home):
    (home / "trials").mkdir()
    (home / "trials").chmod(0o500)
    with pytest.raises(ledger.LedgerError, match="set MINILIB_LEDGER"):
        toy_unlearning(ga())


def test_a_path_that_is_no_folder_is_one_clear_line(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("MINILIB_LEDGER", str(home / "file"))
    with pytest.raises(ledger.LedgerError, match="set MINILIB_LEDGER"):
        toy_unlearning(ga())


# ---------------------------------------------------------------- many processes


def _compute_all(numbers):
    for number in numbers:
        ledger.get(ToySlow(number=number))


def test_two_processes_compute_nothing_twice(home):
    start = multiprocessing.get_context("spawn").Process
    orders = [range(6), reversed(range(6)), range(6)]
    jobs = [start(target=_compute_all, args=(list(order),)) for order in orders]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert len(computed(home)) == 6 == len(set(computed(home)))


# ---------------------------------------------------------------- publishing


@pytest.fixture
def clean_tree(monkeypatch):
    monkeypatch.setattr(provenance, "git_commit", lambda root=None: "0123456789ab")


def test_a_published_trial_stands_until_it_is_replaced(home, clean_tree):
    one = toy_unlearning(ga())
    assert [t.key for t in ledger.publish([one], home / "results")] == [one.key]
    assert ledger.look(ga()).tier == "published"
    other = dataclasses.replace(one, rows=[{"epoch": 1, "pacc": 0.0}])
    assert ledger.publish([other], home / "results") == []
    assert ledger.look(ga()).rows == one.rows
    ledger.publish([other], home / "results", replace=True)
    assert ledger.look(ga()).rows == other.rows


def test_lines_are_sorted_and_whole(home, clean_tree):
    trials = [toy_unlearning(ga(seed=seed)) for seed in (2, 0, 1)]
    ledger.publish(trials, home / "results")
    lines = (home / "results" / "toy_unlearning.jsonl").read_text().splitlines()
    recipes = [json.dumps(json.loads(line)["recipe"], sort_keys=True) for line in lines]
    assert recipes == sorted(recipes) and len(lines) == 3


def test_arrays_are_published_beside(home, clean_tree):
    one = ledger.get(ToyMap(victim=VICTIM))
    ledger.publish([one], home / "results")
    for path in (home / "trials" / "toy_map").glob("[!.]*.*"):
        path.unlink()
    assert ledger.array(ToyMap(victim=VICTIM), "points").shape == (8, 2)
    assert len(computed(home)) == 1


def test_what_publication_refuses(home, monkeypatch):
    one = toy_unlearning(ga())
    refusals = {
        "not committed": {"commit": "0123456789ab+dirty"},
        "outside a checkout": {"commit": None},
        "not what their name stands for": {
            "commit": "0" * 12, "data": ({"name": "x", "checked": False},)
        },
        "older version": {"commit": "0" * 12, "recipe": {"gone": 1}},
    }  # fmt: skip
    for reason, changes in refusals.items():
        with pytest.raises(ledger.LedgerError, match=reason):
            ledger.publish([dataclasses.replace(one, **changes)], home / "results")
    assert not (home / "results").exists()


def test_an_older_version_is_shown_and_marked(home, clean_tree, monkeypatch):
    one = toy_unlearning(ga())
    ledger.publish([one], home / "results")
    kind = dataclasses.replace(ledger.KINDS["toy_unlearning"], version=2)
    monkeypatch.setitem(ledger.KINDS, "toy_unlearning", kind)
    monkeypatch.setitem(ledger._KIND_OF, ToyUnlearning, kind)
    ledger.key_of.cache_clear()
    assert ledger.look(ga()) is None
    (old,) = ledger.available([ga()])
    assert old.key == one.key and not old.current
    new = toy_unlearning(ga())
    ledger.publish([new], home / "results")
    assert len(ledger._published("toy_unlearning")) == 1
    ledger.key_of.cache_clear()


# ---------------------------------------------------------------- editing


def test_who_edits_a_kernel_is_told(home, monkeypatch):
    one = toy_unlearning(ga())
    files = ("minilib/unlearning/btu.py", "minilib/training/text.py")
    monkeypatch.setattr(provenance, "changed_since", lambda commit: files)
    monkeypatch.setattr(provenance, "proven", lambda: False)
    (line,) = ledger.edited([one])
    assert "1 of these trials" in line and ", ".join(files) in line
    monkeypatch.setattr(provenance, "proven", lambda: True)
    assert ledger.edited([one]) == [], "the golden numbers are those of this code"
    monkeypatch.setattr(provenance, "proven", lambda: False)
    monkeypatch.setattr(provenance, "changed_since", lambda commit: ())
    assert ledger.edited([one]) == []


def test_code_is_proven_until_it_changes(tmp_path, monkeypatch):
    package = tmp_path / "minilib"
    for name in ("training", "book"):
        (package / name).mkdir(parents=True)
        (package / name / "x.py").write_text("a = 1")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert not provenance.proven()
    path = tmp_path / provenance.PROVEN
    path.parent.mkdir(parents=True)
    path.write_text(f"{provenance.code_of()}  # words\n")
    assert provenance.proven()
    (package / "book" / "x.py").write_text("a = 2")
    assert provenance.proven(), "what shows numbers does not decide them"
    (package / "training" / "x.py").write_text("a = 2")
    assert not provenance.proven()


def test_what_shows_numbers_does_not_decide_them():
    for name in (
        "minilib/book/plots.py",
        "minilib/chapters/btu.py",
        "minilib/runs/sweep.py",
        "minilib/audit/report.py",
        "a.py",
    ):
        assert not provenance.decides_numbers(name)
    for name in (
        "minilib/unlearning/btu.py",
        "minilib/trials/text.py",
        "minilib/metrics/chat.py",
        "minilib/audit/text.py",
        "minilib/audit/images.py",
    ):
        assert provenance.decides_numbers(name)


def test_fresh_trials_stand_beside_the_old_ones(home, monkeypatch):
    toy_unlearning(ga())
    monkeypatch.setenv("MINILIB_FRESH", "toy_unlearning")
    toy_unlearning(ga())
    toy_unlearning(ga())
    assert len(computed(home)) == 2
    assert (home / "trials" / "fresh" / "toy_unlearning").is_dir()


# ---------------------------------------------------------------- light


def test_recipes_chapters_and_ledger_import_nothing_heavy():
    code = (
        "import sys; from minilib import ledger, trials, chapters\n"
        "for name in chapters.CHAPTERS: chapters.chapter(name)\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
