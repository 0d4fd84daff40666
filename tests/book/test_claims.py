"""The claims ledger: its language accepts nothing else, and its verdicts are what trials say."""

import ast
import contextlib
import json
import math
import re
import statistics
import subprocess
import sys
import types
from pathlib import Path

import ledger as pages  # the extension of the site in book/_ext
import numpy as np
import pandas as pd
import pytest
import yaml

from minilib import chapters, cli, ledger, provenance, settings
from minilib.book import claims, paper_tables, stats

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = claims.verdicts(ROOT)


def claim(test: str, void: str = "") -> claims.Claim:
    """A claim of chapter 03 with this expression."""
    return claims.Claim("x", "rga", "03_ga_rga", "It is so.", "Table 0", test, void=void)


DEFAULTS = {"alpha": 2.0, "methods": "ga,rga", "model": "minilm", "seed": 0}


def keyed(rows: list[dict], seed: int) -> list[dict]:
    """Rows, each of a trial of its own."""
    return [{"key": f"{seed}-{number}", **row} for number, row in enumerate(rows)]


@pytest.fixture
def publish(monkeypatch):
    """Publish rows by seed for a chapter at a preset and these parameters beside its own."""
    there = []

    def published(by_seed: dict[int, list[dict]], preset: str = "small", **params) -> None:
        there.append((preset, params, {s: keyed(rows, s) for s, rows in by_seed.items()}))
        claims._at.cache_clear()

    def rows(chapter, params, state):
        params = dict(params)
        found: dict[int, list[dict]] = {}
        for preset, own, by_seed in there:
            wanted = claims.preset_of(ROOT, chapter, preset) | own
            if all(params[name] == wanted[name] for name in params if name != "seed"):
                for seed, lines in by_seed.items():
                    found.setdefault(seed, []).extend(lines)
        return found

    monkeypatch.setattr(claims, "published_rows", rows)
    yield published
    claims._at.cache_clear()


@pytest.fixture
def decide(publish, monkeypatch):
    """Verdict on an expression, given GA's and RGA's numbers by seed."""
    own = {"small": DEFAULTS, "paper": DEFAULTS | {"model": "bert"}}
    monkeypatch.setattr(claims, "preset_of", lambda root, chapter, preset: own[preset])

    def decided(
        test: str, ga: list[float], rga: list[float], void: str = "", **more
    ) -> claims.Verdict:
        by_seed = {
            seed: [{"method": "ga", "epoch": 1, "pacc": 0.0},
                   {"method": "ga", "epoch": 2, "pacc": ga[seed]},
                   {"method": "rga", "epoch": 2, "pacc": rga[seed]}]
            for seed in range(len(ga))
        }  # fmt: skip
        publish(by_seed, **more)
        return claims.evaluate(claim(test, void), ROOT)

    return decided


LESS = 'at("pacc", method="ga") < at("pacc", method="rga")'


@pytest.mark.parametrize(
    "ga, rga, verdict",
    [
        ([1, 2, 3], [4, 5, 6], "holds"),
        ([4, 5, 6], [1, 2, 3], "fails"),
        ([1, 5, 3], [4, 2, 6], "undecided"),
        (
            [1, 50, 3],
            [2, 51, 4],
            "holds",
        ),  # seeds are paired: the spread between them does not matter
        ([1, 2, 3], [1, 2, 3], "undecided"),
        ([1], [4], "undecided"),  # one seed tells no spread
        ([1, 2], [4, 5], "undecided"),  # two fall on one side in one case of two
    ],
)
def test_an_interval_on_one_side_decides(decide, ga, rga, verdict):
    assert decide(LESS, ga, rga).verdict == verdict
    flipped = {"holds": "fails", "fails": "holds"}.get(verdict, verdict)
    assert decide(f"not {LESS}", ga, rga).verdict == flipped
    assert decide(LESS.replace("<", ">"), ga, rga).verdict == flipped


@pytest.mark.parametrize(
    "test, verdict",
    [
        ('change("pacc", 1, 2, method="ga") > 0.5', "holds"),
        ('at("pacc", method="ga", epoch=1) > -1', "holds"),
        ('spread("pacc", "method", "ga,rga") < 10', "holds"),
        ('highest("pacc", "method", "ga,rga") < 3', "fails"),
        ('lowest("pacc", "method", "ga,rga") < 4', "holds"),
        ('abs(at("pacc", method="ga") - at("pacc", method="rga")) < 2 * 2', "holds"),
        ('-at("pacc", method="ga") / 2 < 0', "holds"),
        ('at("pacc", method="ga") < 4 and at("pacc", method="rga") < 3', "fails"),
        ('at("pacc", method="ga") < 4 or at("pacc", method="rga") < 4', "holds"),
        ('at("pacc", method="ga") < 4 and at("pacc", method="npo") < 4', "not run"),
        ('at("pacc", method="ga") > 4 and at("pacc", method="npo") < 4', "fails"),
        ('at("pacc", method="ga", alpha=3) < 4', "not run"),
        ('at("nothing", method="ga") < 4', "not run"),
        ('at("pacc", method="ga") < 2 and at("pacc", method="ga") < 4', "undecided"),
    ],
)
def test_the_language(decide, test, verdict):
    found = decide(test, [1, 2, 3], [4, 5, 6])
    assert found.verdict == verdict
    assert bool(found.missing) == ("npo" in test or verdict == "not run")


@pytest.mark.parametrize("void, empty", [
    ('at("pacc", method="ga") < 4', True),
    ('at("pacc", method="ga") < 4 and at("pacc", method="rga") > 3', True),
    ('at("pacc", method="ga") < 3', False),  # not in the last seed
    ('at("pacc", method="ga") < 4 and at("pacc", method="rga") < 3', False),
    ('at("pacc", method="npo") < 4', False),  # not run
])  # fmt: skip
def test_a_claim_that_is_decided_by_runs_without_effect_is_empty(decide, void, empty):
    found = decide(LESS, [1, 2, 3], [4, 5, 6], void=void)
    assert found.verdict == ("empty" if empty else "holds")


@pytest.mark.parametrize("void", ["not at('pacc') < 1", "at('pacc') < 1 or 1 < 2"])
def test_a_void_is_a_comparison(decide, void):
    with pytest.raises(claims.ClaimError, match="accepted: comparisons, joined by `and`"):
        decide(LESS, [1, 2, 3], [4, 5, 6], void=void)


@pytest.mark.parametrize("divisor", ["{at}", "({at} - {at})", "(1 / (1 / {at}))"])
def test_a_quotient_by_a_measured_zero_is_no_number(decide, divisor):
    at = 'at("pacc", method="ga")'
    verdict = decide(f"1 / {divisor.format(at=at)} > 0", [0, 0, 0], [1, 1, 1])
    assert verdict.verdict == "not run" and "whose divisor is not 0" in verdict.missing


GOOD = "[{id: a, paper: rga, chapter: 03_ga_rga, claim: So., where: Table 1, test: 1 < 2%s}]"


@pytest.mark.parametrize("text, says", [
    ("", "claims.yml is empty; accepted: a list of claims"),
    ("[]", "claims.yml is empty"),
    ("id: a", "accepted: a list"),
    ("- 3", "claim 1 is a int; accepted: a mapping"),
    ("- {id: a}", "a: it lacks paper, chapter, claim, where, test"),
    ("- {paper: a}", "claim 1: it lacks id"),
    (GOOD % ", tset: 1", "a: unknown entry 'tset'; known are id, paper"),
    (GOOD % ", finding: [1]", "a: finding is a list; accepted: a text"),
    (GOOD % ", void: ", "a: void is empty; accepted: a text"),
    (GOOD % ", test: 3 < 4", "'test' stands twice"),
    (GOOD.replace("03_ga_rga", "09_x") % "", "a: chapter is '09_x'; accepted: 01_attacks"),
    (GOOD.replace("1 < 2", "not 1") % "", "a: 'not 1': 1 compares nothing"),
    (GOOD % ", void: 1", "a: '1': 1 compares nothing"),
    ("[" * 1000, "more than 20 levels"),
    ("- a: [", "claims.yml is not YAML"),
    (GOOD % "" + "\n---\n[]", "another document"),
    ((GOOD[1:-1] % "").join(["- ", "\n- "]) + GOOD[1:-1] % "", "a stands twice"),
])  # fmt: skip
def test_a_ledger_that_cannot_be_read_is_one_line(tmp_path, text, says, monkeypatch, capsys):
    (tmp_path / "book").mkdir()
    (tmp_path / claims.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(claims.ClaimError) as refused:
        claims.read(tmp_path)
    assert says in str(refused.value)
    assert len(str(refused.value)) <= 300 and "\n" not in str(refused.value)
    monkeypatch.setattr(provenance, "find_root", lambda: tmp_path)
    assert cli.main(["claims"]) == 2
    assert says in capsys.readouterr().err


def test_other_parameters_are_those_of_the_preset(decide):
    assert decide(LESS, [1, 2, 3], [4, 5, 6], alpha=3.0).verdict == "not run"
    assert decide(f"{LESS.replace(')', ', alpha=3)')}", [], []).verdict == "holds"


def test_the_largest_scale_that_has_the_numbers_decides(decide):
    found = decide(LESS, [1, 2, 3], [4, 5, 6])
    assert found.scale == "small, minilm, seeds 0, 1, 2, 6 trials"
    assert found.trials == {f"{seed}-{number}" for seed in range(3) for number in (1, 2)}
    found = decide(LESS, [4, 5, 6], [1, 2, 3], preset="paper")
    assert (found.verdict, found.scale) == ("fails", "paper, bert, seeds 0, 1, 2, 6 trials")


def test_a_trial_that_no_seed_enters_counts_once(monkeypatch):
    row = {"key": "one", "pacc": 1.0}
    monkeypatch.setattr(claims, "published_rows", lambda *_: {0: [row], 1: [row]})
    assert claims.Numbers("x", DEFAULTS, "small").at("pacc") == {0: 1.0}


def test_a_preset_that_is_another_in_all_but_name_decides_nothing():
    assert list(claims.scales(ROOT, "03_ga_rga")) == ["small"]
    assert list(claims.scales(ROOT, "06_bi_bau")) == ["paper", "small"]


@pytest.mark.parametrize(
    "test",
    [
        "__import__('os').system('true') < 1",
        "at('pacc').__class__ < 1",
        "open('x') < 1",
        "(lambda: 1)() < 1",
        "[1][0] < 2",
        "pacc < 1",
        "at('pacc')",
        "1 < at('pacc') < 2",
        "at('pacc') == 1",
        "at('pacc', **{'epoch': 1}) < 1",
        "f'{1}' < 1",
        "at(",
        "",
        "not 1",
        "-at('pacc')",
        "-(at('pacc') > 1)",
        "(at('pacc') > 1) + 1 > 0",
        "not at('pacc') < (1 > 0)",
        "'a' < 1",
        "True < 1",
        "1j < 1",
        "at(at) < 1",
        "at(('pacc',)) < 1",
        "at('pacc') // 2 < 1",
        "at('pacc') ** 2 < 1",
        "(" * 5000 + "1" + ")" * 5000 + " < 1",
        "-" * 100000 + "1 < 1",
        "1 <\0 2",
        "1 / 0 < 1",
        "at('pacc') / (2 - 2) < 1",
        "1 < 2 / (1 / (3 - 3))",
        "1e999 < 2",
        "9" * 5000 + " < 1",
        "1" + " + 1" * 900 + " < 1",
        "not " * 50 + "1 < 2",
        "1 < 2 and " * 500 + "1 < 2",
    ],
)
def test_nothing_else_is_an_expression(test):
    with pytest.raises(claims.ClaimError, match="^x: ") as refused:
        claims.check(claim(test))
    assert len(str(refused.value)) <= 300 and "\n" not in str(refused.value)


@pytest.mark.parametrize("test", ["at() < 1", "at('pacc', 1, 2, 3) < 1", "abs('x') < 1"])
def test_what_cannot_be_computed_is_one_line(decide, test):
    with pytest.raises(claims.ClaimError, match="^x: "):
        decide(test, [1, 2, 3], [4, 5, 6])


# ---------------------------------------------------------------- published trials


@pytest.fixture
def ledger_of(tmp_path, monkeypatch):
    """Publish trials of chapter 03 for some settings: what to put into each, by kind."""
    from minilib.chapters import ga_rga

    folder = tmp_path / "results"
    monkeypatch.setenv("MINILIB_PUBLISHED", str(folder))
    monkeypatch.setenv("MINILIB_VERDICTS", str(tmp_path / "trials"))

    def published(value: float, version: int = 1, folder: Path = folder, **params) -> None:
        cfg = settings.validate("03_ga_rga", params)
        by_kind: dict[str, list] = {}
        for one in ga_rga.trials(cfg):
            kind, recipe = ledger.kind_of(one), ledger.described(one)
            row = {"pacc": value, "epoch": 3, "epochs": 3}
            made = ledger.Trial(
                kind=kind.name, version=version, recipe=recipe, rows=[row],
                key=ledger._hashed(kind.name, version, recipe),
            )  # fmt: skip
            by_kind.setdefault(kind.name, []).append(made)
        for kind, new in by_kind.items():
            old = [one for one in ledger._published(kind).values()]
            ledger.write_published(folder / f"{kind}.jsonl", [*old, *new])

    return published


def numbers() -> claims.Numbers:
    return claims.Numbers("03_ga_rga", claims.preset_of(ROOT, "03_ga_rga", "small"), "small")


def test_trials_are_found_one_by_one_whatever_a_run_left_out(ledger_of):
    ledger_of(1.0, methods="ga", epochs=10)  # another length, and a method alone
    ledger_of(2.0, methods="rga-code", seed=1)  # one that the preset does not name
    assert numbers().at("pacc", method="ga") == {0: 1.0}
    assert numbers().at("pacc", method="rga-code") == {1: 2.0}
    assert numbers().at("pacc", method="poisoned") == {0: 1.0, 1: 2.0}
    assert numbers().at("pacc", method="poisoned", seed=1) == {1: 2.0}
    with pytest.raises(claims.Missing, match="PACC of GA, α = 3, SOS"):
        numbers().at("pacc", method="ga", alpha=3, attack="sos")
    with pytest.raises(settings.SettingsError, match="attack is 'x'"):
        numbers().at("pacc", attack="x")


def test_neither_local_trials_nor_old_versions_decide(ledger_of, tmp_path):
    ledger_of(1.0, version=2, methods="ga")  # of another version than today's
    local = tmp_path / "other"
    ledger_of(2.0, methods="ga", folder=local)
    for path in local.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            target = tmp_path / "trials" / path.stem / f"{json.loads(line)['key']}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(line)
    cfg = settings.validate("03_ga_rga", {"methods": "ga"})
    assert len(ledger.available(chapters.chapter("03_ga_rga").trials(cfg))) == 3  # local ones
    assert numbers().rows() == {}
    assert claims.evaluate(claim(LESS), ROOT).missing == "no trial of this chapter is published"


def test_what_is_published_later_is_read(ledger_of):
    ledger_of(1.0, methods="ga")
    assert numbers().at("pacc", method="ga") == {0: 1.0}
    ledger_of(4.0, methods="ga", seed=7)
    assert numbers().at("pacc", method="ga") == {0: 1.0, 7: 4.0}


def test_lists_of_names_are_widest_where_each_is_something_of_its_own():
    wide = settings.widest(settings.validate("04_btu", {"methods": "pn,btu"}))
    assert wide.methods.split(",")[:2] == ["pn", "btu"] and "recover" in wide.methods
    assert set(settings.DEFENCES) - set(wide.defences.split(",")) == {"none"}
    assert wide.rounds == "1,2,3"
    sande = settings.validate("05_sande", {"pairs": "bob", "questions": "mmlu"})
    assert (settings.widest(sande).pairs, settings.widest(sande).questions) == ("bob", "mmlu")


def test_lines_about_verification(ledger_of, tmp_path):
    assert "Made from 1 published trial, none of them verified yet." in paper_tables.made_from(
        ["a"]
    )
    line = {"key": "a", "kind": "k", "when": "2026-01-02T00:00:00Z", "deviations": {"acc": 0.0}}
    log = tmp_path / "results" / "verified.jsonl"
    log.parent.mkdir()
    log.write_text(json.dumps(line) + "\n")
    assert "all of them verified, last on 2026-01-02: all equal." in paper_tables.made_from(["a"])
    later = line | {"when": "2026-02-01T00:00:00Z", "deviations": {"lfr": 0.25, "acc": 0.1}}
    log.write_text("\n".join(map(json.dumps, (later, line))))
    text = paper_tables.made_from(["a", "b"])
    assert "2 published trials, 1 of them verified, last on 2026-02-01: the largest" in text
    assert "largest deviation is 0.25 (LFR)" in text


# ---------------------------------------------------------------- this book's ledger


def test_the_ledger_covers_the_four_papers():
    counts = [sum(one.paper == paper for one, _ in VERDICTS) for paper in
              ("rga", "btu", "sande", "bibau")]  # fmt: skip
    assert counts == [12, 21, 11, 18]
    for one, _ in VERDICTS:
        assert re.match(r"(Tables?|Figures?|Section) [\w,. ]+$", one.where), one
        assert one.claim.endswith((".", ")")) and len(one.claim) > 40


def test_claims_ask_for_parameters_and_methods_that_chapters_have():
    for one, _ in VERDICTS:
        known = settings.CHAPTERS[one.chapter]
        for node in ast.walk(claims.check(one)):
            if isinstance(node, ast.keyword) and node.arg in known.__dataclass_fields__:
                value = ast.literal_eval(node.value)
                settings.validate(one.chapter, {node.arg: value})


class Rows:
    """A chapter's rows at a preset, by pandas and Python's own `eval`.

    Trials are read line by line from `results/*.jsonl`, and found by key, else by what is not free
    in their recipe.
    """

    lines = [
        json.loads(line)
        for path in sorted(ledger.published_folder().glob("*.jsonl"))
        if path.stem in ledger.KINDS
        for line in path.read_text(encoding="utf-8").splitlines()
    ]

    def __init__(self, chapter: str, preset: str):
        given = yaml.safe_load((ROOT / "presets" / f"{preset}.yml").read_text())[chapter] or {}
        self.chapter, self.fixed = chapter, given
        self.names = settings.CHAPTERS[chapter].__dataclass_fields__
        self.seeds = range(6)
        self.frames: dict[tuple, pd.DataFrame] = {}
        self.by_key = {line["key"]: line for line in self.lines}
        self.alike: dict[tuple, list] = {}
        for line in self.lines:
            self.alike.setdefault(self._bare(line["kind"], line["recipe"]), []).append(line)

    def _bare(self, kind: str, recipe: dict) -> tuple:
        free = getattr(ledger.KINDS[kind].recipe, "free", ())
        bare = {name: value for name, value in recipe.items() if name not in free}
        return kind, json.dumps(bare, sort_keys=True)

    def _line(self, one) -> dict | None:
        if ledger.key_of(one) in self.by_key:
            return self.by_key[ledger.key_of(one)]
        bare = self._bare(ledger.kind_of(one).name, ledger.described(one))
        return max(self.alike.get(bare, ()), key=lambda line: len(line["rows"]), default=None)

    def frame(self, **params) -> pd.DataFrame:
        """The rows of one seed at these settings."""
        key = tuple(sorted(params.items()))
        if key not in self.frames:
            module = chapters.chapter(self.chapter)
            cfg = settings.widest(settings.validate(self.chapter, {**self.fixed, **params}))
            lines = {line["key"]: line for line in map(self._line, module.trials(cfg)) if line}
            trials = [ledger._read_trial(line, "published", ROOT) for line in lines.values()]
            self.frames[key] = pd.DataFrame(module.rows(ledger.Results(trials)))
        return self.frames[key]

    def at(self, metric, **where) -> float:
        texts = {name for name in where if self.names.get(name) and self.names[name].type == "str"}
        where |= {name: f"{where[name]:g}" for name in texts if isinstance(where[name], float)}
        part = self.frame(seed=self.seed, **{n: v for n, v in where.items() if n in self.names})
        wanted = {name: value for name, value in where.items() if name not in self.names}
        if not {metric, *wanted} <= set(part):
            raise IndexError(metric)  # not there for this seed
        for name, value in wanted.items():
            part = part[part[name] == value]
        return part.dropna(subset=[metric])[metric].iloc[-1]  # or none of the rows has it

    def over(self, metric, name, values, **where) -> list[float]:
        return [self.at(metric, **where, **{name: claims.typed(one)}) for one in values.split(",")]

    def value(self, node, seed) -> float:
        self.seed = seed
        calls = {
            "at": self.at,
            "change": lambda m, a, b, **w: self.at(m, epoch=b, **w) - self.at(m, epoch=a, **w),
            "highest": lambda *a, **w: max(self.over(*a, **w)),
            "lowest": lambda *a, **w: min(self.over(*a, **w)),
            "mean": lambda *a, **w: statistics.fmean(self.over(*a, **w)),
            "spread": lambda *a, **w: max(self.over(*a, **w)) - min(self.over(*a, **w)),
            "abs": abs,
        }
        return eval(compile(ast.Expression(node), "claim", "eval"), calls)

    def verdict(self, compare, least: int = 3) -> str:
        """Of one comparison. Up to three seeds the interval is from the lowest to the highest."""
        gaps = []
        for seed in self.seeds:
            with contextlib.suppress(IndexError):
                sides = [self.value(node, seed) for node in (compare.left, *compare.comparators)]
                gaps.append(sides[1] - sides[0])
        gaps = [-gap for gap in gaps] if isinstance(compare.ops[0], ast.Gt) else gaps
        assert len(gaps) <= 3
        if len(gaps) < least:
            return "undecided" if gaps else "not run"
        return "holds" if min(gaps) > 0 else "fails" if max(gaps) < 0 else "undecided"


def test_rank_correlation_and_its_interval_over_groups():
    from scipy.stats import spearmanr

    source = np.random.default_rng(0)
    for _ in range(20):
        x, y = source.integers(0, 6, (2, 15))  # ties
        assert stats.rank_correlation(zip(x, y, strict=True)) == pytest.approx(
            spearmanr(x, y).statistic
        )
    assert stats.ranks([3, 1, 3, 2]) == [3.5, 1, 3.5, 2]
    assert math.isnan(stats.rank_correlation([(1, 2), (1, 3)]))
    assert math.isnan(stats.rank_correlation([])) and math.isnan(stats.rank_correlation([(1, 2)]))
    rising, falling = [(1, 1), (2, 2), (3, 3)], [(1, 3), (2, 2), (3, 1)]
    assert stats.rank_interval([rising] * 6) == (1, 1)
    # Whole groups are drawn: six alike out of two kinds happen, and the interval is wide.
    low, high = stats.rank_interval([rising] * 3 + [falling] * 3)
    assert low <= -0.6 and high >= 0.6
    assert math.isnan(stats.rank_interval([rising])[0])
    still = [(1, 1), (2, 1)]
    assert stats.rank_interval([rising, still])[0] == 0, "a draw without variation says nothing"
    assert math.isnan(stats.rank_interval([still, still])[0])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 11])
def test_the_chance_of_a_mean_is_that_of_students_t(count):
    import numpy as np
    from scipy.stats import ttest_1samp

    for shift in (0.0, 0.3, 4.0):
        values = np.random.default_rng(count).normal(shift, 1.0, count)
        assert stats.chance(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=1e-12)
    assert stats.chance([3.0] * count) == 0 and stats.chance([0.0] * count) == 1
    assert str(stats.chance([1.0])) == "nan"


def test_holms_correction_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


def test_the_chance_of_a_claim_is_that_of_the_part_that_decides(decide):
    near, far, short = (2.0, 2.5, 3.0), (40.0, 41.0, 42.0), (1.0, 1.2, 1.1)
    p = {name: stats.chance(values) for name, values in (("near", near), ("far", far))}
    both = 'at("pacc", method="ga") > 0 and at("pacc", method="rga") > 0'
    assert decide(both, near, far).chance == pytest.approx(max(p.values())), "all must be so"
    either = both.replace("and", "or")
    assert decide(either, near, far).chance == pytest.approx(2 * min(p.values()))
    fails = decide(both.replace(">", "<"), near, far)
    assert fails.verdict == "fails" and fails.chance == pytest.approx(2 * min(p.values()))
    assert decide(f"not ({both})", near, far).chance == pytest.approx(max(p.values()))
    assert decide(LESS, short, (0.0, 9.0, 1.0)).chance is None, "nothing is decided"


def test_the_correction_is_for_all_claims_whichever_are_shown():
    part = claims.verdicts(ROOT, "04_btu")
    every = dict((one.id, verdict) for one, verdict in VERDICTS)
    assert part and all(every[one.id] == verdict for one, verdict in part)
    count = sum(v.verdict in ("holds", "fails", "undecided") for _, v in VERDICTS)
    smallest = min(v.chance for _, v in VERDICTS if v.chance)
    (same,) = {v.holm for _, v in VERDICTS if v.chance == smallest}
    zeros = sum(v.chance == 0 for _, v in VERDICTS)
    assert same == pytest.approx((count - zeros) * smallest)
    assert all((v.holm is None) == (v.verdict not in ("holds", "fails")) for _, v in VERDICTS)


def test_every_verdict_follows_from_the_published_trials():
    """Recomputed here by other means, comparison by comparison, straight from the files."""
    checked, by_scale = 0, {}
    for one, verdict in VERDICTS:
        if verdict.verdict == "not run":
            assert verdict.missing
            continue
        tree = ast.parse(one.test, mode="eval").body
        assert isinstance(tree, ast.Compare) or isinstance(tree.op, ast.And), one.id
        compares = tree.values if isinstance(tree, ast.BoolOp) else [tree]
        scale = (one.chapter, verdict.scale.partition(",")[0])
        rows = by_scale[scale] = by_scale.get(scale) or Rows(*scale)
        words = [rows.verdict(compare) for compare in compares]
        order = ("fails", "not run", "undecided", "holds")  # of what `and` joins the first decides
        if verdict.verdict == "empty":  # nothing was changed: each side of `void`, seed by seed
            void = ast.parse(one.void, mode="eval").body
            compares = void.values if isinstance(void, ast.BoolOp) else [void]
            assert all(rows.verdict(compare, least=1) == "holds" for compare in compares), one.id
        else:
            assert verdict.verdict == min(words, key=order.index), one.id
        checked += 1
    assert checked >= 11


def test_a_failing_claim_has_a_finding_that_shows_its_numbers():
    for one, verdict in VERDICTS:
        if verdict.verdict == "fails":
            assert len(one.finding) > 100 and "{shown}" in one.finding, one.id
        # Numbers come from trials; a finding that types one would not follow them.
        assert not re.search(r"\d+\.\d", one.finding), one.id


def test_the_page_shows_every_claim_and_the_findings_of_those_that_fail():
    text = pages.table_of_claims(VERDICTS)
    assert all(f'id="claim-{one.id}"' in text for one, _ in VERDICTS)
    fails = [one for one, verdict in VERDICTS if verdict.verdict == "fails"]
    assert text.count('class="finding"') == len(fails) and "{shown}" not in text
    shown = {verdict.verdict for _, verdict in VERDICTS}
    assert all(f'class="{word.replace(" ", "-")}"' in text for word in shown)


def test_the_command(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(["claims"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(VERDICTS) + 2 and "not run" in lines[-2]
    assert lines[-1] == claims.told(VERDICTS)
    assert cli.main(["claims", "03_ga_rga"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 14
    assert cli.main(["claims", "nothing"]) == 2
    assert "no claim of 'nothing'" in capsys.readouterr().err


def test_ledger_and_tables_need_neither_numpy_nor_pandas():
    program = (
        "import sys\nfrom pathlib import Path\n"
        "sys.modules |= dict.fromkeys(('torch', 'numpy', 'pandas', 'papermill'))  # not to be had\n"
        "from minilib.book import claims, paper_tables\n"
        f"root = Path({str(ROOT)!r})\n"
        "assert claims.verdicts(root) and paper_tables.render(root, paper_tables.read(root)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the papers' tables beside ours


def test_every_cell_of_the_paper_is_shown_beside_ours_or_as_missing():
    table = next(one for one in paper_tables.read(ROOT) if one.id == "rga-2")
    cells, filled = paper_tables.tally(ROOT, table)
    assert cells == 9 * 15 and filled >= 15
    text = paper_tables.render(ROOT, table)
    assert text.count("not run") == cells - filled
    assert sum(text.count(f'class="gap-{word}"') for word in ("near", "off", "far")) == filled
    assert text.count('class="block"') == 9
    assert "91.32<br><small>± 0.79</small>" in text  # the paper's


def test_a_chapter_shows_the_lines_of_a_table_that_a_trial_has_filled():
    for table in paper_tables.read(ROOT):
        said = paper_tables.render(ROOT, table, missing=False)
        filled = [
            line
            for line in paper_tables.lines(ROOT, table)
            if any(sample for _, sample in line["cells"].values())
        ]
        blocks = said.count('class="block"')
        assert said.count("<tr>") == 2 + len(filled) + blocks, table.id
        assert ("gap-" in said) == bool(filled)


def test_an_unknown_table_is_named():
    page = types.SimpleNamespace(arguments=["rga-0"])
    with pytest.raises(ValueError, match="no table 'rga-0'; accepted: rga-"):
        pages.PaperTables.made(page, ROOT)


def test_our_cells_are_means_over_the_published_seeds():
    table = next(one for one in paper_tables.read(ROOT) if one.id == "rga-2")
    key = {"dataset": "sst2", "attack": "badnets", "method": "ga"}
    (line,) = (one for one in paper_tables.lines(ROOT, table) if one["key"] == key)
    _, sample = line["cells"]["pacc"]
    wanted = {}
    for text in (ledger.published_folder() / "text_unlearning.jsonl").read_text().splitlines():
        one = json.loads(text)
        # All that is off its default: every epoch is tested that the preset names.
        plain = {n: v for n, v in one["recipe"].items() if n not in ("victim", "seed")}
        asked = {"method": "ga", "eval_epochs": [1, 2, 4, 6, 8, 10, 15, 20, 25]}
        if plain == asked and one["recipe"]["victim"]["data"]["rate"] == 0.1:
            trigger = one["recipe"]["victim"]["data"]["trigger"]
            if trigger == {"is": "TextTrigger", "dataset": "sst2", "attack": "badnets"}:
                (row,) = (row for row in one["rows"] if row["epoch"] == 30)
                wanted[one["recipe"]["seed"]] = row["pacc"]
    assert sample == wanted and len(wanted) >= 3


def test_what_defences_leave_is_a_mean_over_seeds_with_a_word_for_it(publish):
    def row(method, acc, asr, r_asr=None, **more):
        told = {"part": "main", "attack": "badnets", "method": method, "acc": acc, "asr": asr}
        return told | ({} if r_asr is None else {"r_asr": r_asr}) | more

    victim = row("none", 80.0, 100.0)
    rows = [victim, row("ft", 79, 10, 90), row("sau", 70, 4, 6), row("pam", 63.9, 1, 1)]
    rows += [row("ep", 75, 20, 3), row("at", 60, 3, 4, part="sets")]
    rows += [row("ft", 1, 1, 1, part="proxy")]  # says nothing of the victim
    rows += [row("none", 80.0, 100.0, attack="sig"), row("ft", 78, 1, 2, attack="sig")]
    weak = {"attack": "adap-patch"}
    rows += [row("none", 80.0, 16.0, **weak), row("ft", 78, 1, 2, **weak)]
    publish({0: rows, 1: [victim, row("ft", 77, 30, 70), row("sau", 70, 4, 30)]})
    publish({2: [victim, row("ft", 1, 1, 1)]}, width=1.0)  # of which the others know nothing
    found = paper_tables.outcomes(ROOT, "06_bi_bau")
    cell = found["ft"]["badnets"]
    assert [cell[metric]["mean"] for metric in ("acc", "asr", "r_asr")] == [78, 20, 80]
    assert cell["n"] == 2
    words = {method: cells["badnets"].get("outcome") for method, cells in found.items()}
    fails = dict.fromkeys(("ft", "pam", "ep", "at"), "fails")
    assert words == fails | {"none": None, "sau": "undecided"}
    # A defence is as good as with its worst seed, whatever the mean says.
    assert (found["sau"]["badnets"]["gone"], found["sau"]["badnets"]["n"]) == (1, 2)
    assert found["ft"]["sig"]["outcome"] == "holds" and "sig" not in found["sau"]
    assert "outcome" not in found["ft"]["adap-patch"]  # the attack did not take
    text = paper_tables.render_outcomes(ROOT, "06_bi_bau")
    assert (
        '<td class="fails">20.0 ± 14.1<br>→ 80.0 ± 14.1<br><small>CA 78.0 ± 1.4<br>n = 2</small>'
        in text
    )
    assert "<small>CA 70.0 ± 0.0<br>gone with 1 of 2 seeds</small>" in text
    assert "<td>–</td>" in text and text.count("<tr>") == 1 + len(found)
    assert "no colour: without a defence" in text
    assert "Made from 13 published trials" in text
    # Trials at other parameters have a table of their own.
    wide = paper_tables.outcomes(ROOT, "06_bi_bau", width="1")
    assert list(wide) == ["none", "ft"] and wide["ft"]["badnets"]["acc"]["mean"] == 1
    text = paper_tables.render_outcomes(ROOT, "06_bi_bau", {"width": "1"})
    assert "each attack, width = 1" in text and text.count("<tr>") == 3
    # Several stand beside each other; one attack or one seed can be asked for.
    beside = ({"attack": "badnets", "seed": "1"}, {"width": "1"})
    text = paper_tables.render_outcomes(ROOT, "06_bi_bau", *beside)
    assert re.findall(r"<th>BadNets<br><small>(.*?)</small>", text) == ["seed = 1", "width = 1"]
    assert '<td class="fails">30.0<br>→ 70.0<br><small>CA 77.0<br>n = 1</small></td>' in text
    some = paper_tables.outcomes(ROOT, "06_bi_bau", methods="sau")
    assert list(some) == ["none", "sau", "at"]
    assert "SAU" not in text and "<td>–</td>" not in text and text.count("<tr>") == 3
    with pytest.raises(ValueError, match="no published trial .* has {'attack': 'x', 'ewc': '7'}"):
        paper_tables.outcomes(ROOT, "06_bi_bau", attack="x", ewc="7")


def test_a_defence_of_a_victim_that_was_not_measured_has_no_word(publish):
    left = {"part": "main", "attack": "sig", "method": "ft", "acc": 70.0, "asr": 3.0, "r_asr": 4.0}
    publish({0: [left]})
    cell = paper_tables.outcomes(ROOT, "06_bi_bau")["ft"]["sig"]
    assert cell["asr"]["mean"] == 3.0 and "outcome" not in cell
    assert "<td>3.0<br>" in paper_tables.render_outcomes(ROOT, "06_bi_bau")


def test_without_trials_there_is_no_outcome_and_no_verdict(monkeypatch):
    monkeypatch.setenv("MINILIB_PUBLISHED", "none")
    with pytest.raises(ValueError, match="no published trial of '03_ga_rga' has {}"):
        paper_tables.outcomes(ROOT, "03_ga_rga")
    assert {verdict.verdict for _, verdict in claims.verdicts(ROOT)} == {"not run"}


def test_missing_cells_name_a_sweep_that_holds_them(monkeypatch):
    from minilib.runs import sweep

    monkeypatch.chdir(ROOT)
    for table in paper_tables.read(ROOT):
        for command in paper_tables.missing(ROOT, table):
            words = command.split()
            assert words[:2] == ["minilib", "sweep"]
            assert sweep.plan(Path(words[2]), only=words[4::2]).size >= 1


@pytest.mark.parametrize(
    "table",
    [table for table in paper_tables.read(ROOT) if table.chapter == "06_bi_bau"],
    ids=lambda table: table.id,
)
def test_the_sweep_of_a_table_runs_its_missing_attacks_and_methods(table, monkeypatch):
    """In that chapter they are rows of a run, which no ``--only`` can ask for."""
    from minilib.runs import sweep

    monkeypatch.chdir(ROOT)
    rows = set()
    for job in sweep.plan(Path(table.sweep)):
        attacks, methods = (job.params[name].split(",") for name in ("attacks", "methods"))
        rows |= {(attack, method) for attack in attacks for method in ("none", *methods)}
        rows |= {(attacks[0], name) for name in ("at", "at-a", "at-b")}
    for line in paper_tables.lines(ROOT, table):
        if not all(sample for _, sample in line["cells"].values()):
            assert (line["key"]["attack"], line["key"]["method"]) in rows


def test_committed_sweeps_can_be_planned(monkeypatch):
    from minilib.runs import sweep

    monkeypatch.chdir(ROOT)
    for file in sorted((ROOT / "sweeps").glob("*.yml")):
        assert sweep.plan(file).size >= 1


def test_the_bench_of_sweeps_is_shown_with_its_conditions():
    from bench import sweep, timing

    found = sweep.records(timing.Options(quick=True))
    assert set(found) == {"plan", "local"} and found["plan"]["runs planned"] == 50
    assert found["local"]["trials"] == 10
    text = pages._part("planning", {"": found["plan"]})
    assert "<td>runs planned</td><td>50</td>" in text and "load average" in text
    here = {"runs": 2000, "load average": [1, 2, 3], "env": found["plan"]["env"]}
    text = pages._part("runs", {"local engine": here, "Ray": here | {"runs": 1999}})
    assert "<td>runs</td><td>2,000</td><td>1,999</td>" in text and "1 / 2 / 3" in text
    published = ROOT / "bench" / "results" / "sweep.json"
    for name, part in json.loads(published.read_text()).items() if published.is_file() else ():
        assert (
            name in ("plan", "local", "ray", "notebook")
            and part["env"]["cpus"]
            and len(part["load average"]) == 3
        )


# ---------------------------------------------------------------- statistics


def test_one_average_serves_all_tables():
    import numpy as np

    from minilib.book import tables

    values = [3.0, 1.0, 2.5, 7.0]
    found = stats.summary(iter(values))
    assert (found["mean"], found["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found["n"] == 4 and all(type(found[name]) is float for name in ("mean", "std"))
    assert tables.spread(pd.Series(values)) == stats.text(found, count=False) == "3.38 ± 2.56"
    assert stats.text(found) == "3.38 ± 2.56 (4)" and stats.text(stats.summary([5.0])) == "5.00 (1)"


def test_bootstrap_intervals():
    assert stats.interval([1.0, 2.0, 4.0]) == (1.0, 4.0), "three values: from smallest to largest"
    low, high = stats.interval([float(n) for n in range(50)])
    assert 18 < low < 24.5 < high < 31 and stats.interval([float(n) for n in range(50)]) == (
        low,
        high,
    )
    assert all(map(lambda v: v != v, stats.interval([1.0])))


def test_pages_are_read_again_when_there_are_more_files_of_trials(tmp_path):
    (tmp_path / "results").mkdir()
    first = tmp_path / "results" / "a.jsonl"
    first.write_text("{}")
    about = {"page": {"ledger": pages.ledger_files(tmp_path)}, "other": {}}
    env = types.SimpleNamespace(srcdir=str(tmp_path), metadata=about)
    assert pages.with_new_files(None, env, set(), set(), set()) == []
    first.with_name("b.jsonl").write_text("{}")
    assert pages.with_new_files(None, env, set(), set(), set()) == ["page"]
    assert pages.ledger_files(tmp_path) == ["results/a.jsonl", "results/b.jsonl"]
