"""The ledger: its language accepts nothing else, and its verdicts are what the records say."""

import ast
import contextlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
import yaml

from minilib import claims, cli, results, runs, settings, stats

ROOT = Path(__file__).resolve().parents[1]
LEDGER = claims.ledger(ROOT)


def claim(test: str) -> claims.Claim:
    """A claim of chapter 03 with this expression."""
    return claims.Claim("x", "rga", "03_ga_rga", "It is so.", "Table 0", test)


def record(seed: int, rows: list[dict], preset: str = "small", **params) -> dict:
    """A published run of a chapter that has three parameters."""
    params = {"alpha": 2.0, "methods": "ga", "model": "minilm", "seed": seed, **params}
    return {
        "run_id": f"{preset}{seed}{params}",
        "preset": preset,
        "params": params,
        "metrics": rows,
    }


DEFAULTS = {"alpha": 2.0, "methods": "ga,rga", "model": "minilm", "seed": 0}


@pytest.fixture
def decide(monkeypatch):
    """Verdict on an expression, given GA's and RGA's numbers by seed."""
    monkeypatch.setattr(claims, "defaults", lambda *_: DEFAULTS)

    def decided(test: str, ga: list[float], rga: list[float], **more) -> claims.Verdict:
        records = [
            record(seed, [{"method": "ga", "epoch": 1, "pacc": 0.0},
                          {"method": "ga", "epoch": 2, "pacc": ga[seed]},
                          {"method": "rga", "epoch": 2, "pacc": rga[seed]}], **more)
            for seed in range(len(ga))
        ]  # fmt: skip
        return claims.evaluate(claim(test), ROOT, records)

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


def test_other_parameters_are_those_of_the_preset(decide):
    assert decide(LESS, [1, 2, 3], [4, 5, 6], alpha=3.0).verdict == "not run"
    assert decide(LESS, [1, 2, 3], [4, 5, 6], methods="ga").verdict == "holds"  # says which rows
    found = decide(LESS, [1, 2, 3], [4, 5, 6], preset="paper")
    assert found.scale == "paper, minilm, seeds 0, 1, 2"


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
    ],
)
def test_nothing_else_is_an_expression(test):
    with pytest.raises(claims.ClaimError, match="^x: "):
        claims.check(claim(test))


# ---------------------------------------------------------------- this book's ledger


def test_the_ledger_covers_the_four_papers():
    counts = [sum(one.paper == paper for one, _ in LEDGER) for paper in
              ("rga", "btu", "sande", "bibau")]  # fmt: skip
    assert counts == [12, 12, 10, 12]
    for one, _ in LEDGER:
        assert re.match(r"(Tables?|Figures?|Section) [\w,. ]+$", one.where), one
        assert one.claim.endswith((".", ")")) and len(one.claim) > 40


def test_claims_ask_for_parameters_and_methods_that_chapters_have():
    for one, _ in LEDGER:
        known = settings.CHAPTERS.get(one.chapter)
        if known is None:
            continue
        for node in ast.walk(claims.check(one)):
            if isinstance(node, ast.keyword) and node.arg in known.__dataclass_fields__:
                value = ast.literal_eval(node.value)
                settings.validate(one.chapter, {node.arg: value})


class Rows:
    """Look-ups of one chapter's published rows for one seed, by pandas and Python's own `eval`."""

    def __init__(self, chapter: str, preset: str):
        files = (ROOT / "results" / chapter).glob("*.json")
        items = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        rows = [
            {**settings.CHAPTERS[chapter]().__dict__, **item["params"], **row,
             "_run": item["run_id"], "_rows": len(item["metrics"])}
            for item in items if item["preset"] == preset
            for row in item["metrics"]
        ]  # fmt: skip
        given = yaml.safe_load((ROOT / "presets" / f"{preset}.yml").read_text())[chapter] or {}
        fixed = {**settings.CHAPTERS[chapter]().__dict__, **given}
        self.fixed = {name: fixed[name] for name in fixed.keys() - claims.FREE[chapter] - {"seed"}}
        self.frame = pd.DataFrame(rows)
        self.seeds = sorted(self.frame["seed"].unique())

    def at(self, metric, **where) -> float:
        part = self.frame[self.frame["seed"] == self.seed]
        for name, value in {**self.fixed, **where}.items():
            part = part[part[name] == value]
        order = [name for name in ("_rows", "_run", "epoch") if name in part]
        part = part.dropna(subset=[metric]).sort_values(order)
        return part[metric].iloc[-1]  # IndexError: not there for this seed

    def over(self, metric, name, values, **where) -> list[float]:
        return [self.at(metric, **where, **{name: claims.typed(one)}) for one in values.split(",")]

    def value(self, node, seed) -> float:
        self.seed = seed
        calls = {
            "at": self.at,
            "change": lambda m, a, b, **w: self.at(m, epoch=b, **w) - self.at(m, epoch=a, **w),
            "highest": lambda *a, **w: max(self.over(*a, **w)),
            "lowest": lambda *a, **w: min(self.over(*a, **w)),
            "spread": lambda *a, **w: max(self.over(*a, **w)) - min(self.over(*a, **w)),
            "abs": abs,
        }
        return eval(compile(ast.Expression(node), "claim", "eval"), calls)

    def verdict(self, compare) -> str:
        """Of one comparison. Up to three seeds the interval is from the lowest to the highest."""
        gaps = []
        for seed in self.seeds:
            with contextlib.suppress(IndexError):
                sides = [self.value(node, seed) for node in (compare.left, *compare.comparators)]
                gaps.append(sides[1] - sides[0])
        gaps = [-gap for gap in gaps] if isinstance(compare.ops[0], ast.Gt) else gaps
        assert len(gaps) <= 3
        if len(gaps) < 2:
            return "undecided" if gaps else "not run"
        return "holds" if min(gaps) > 0 else "fails" if max(gaps) < 0 else "undecided"


def test_every_verdict_follows_from_the_committed_records():
    """Recomputed here by other means, comparison by comparison, straight from the JSON files."""
    checked = 0
    for one, verdict in LEDGER:
        if verdict.verdict == "not run":
            assert verdict.missing
            continue
        tree = ast.parse(one.test, mode="eval").body
        assert isinstance(tree, ast.Compare) or isinstance(tree.op, ast.And), one.id
        compares = tree.values if isinstance(tree, ast.BoolOp) else [tree]
        rows = Rows(one.chapter, verdict.scale.partition(",")[0])
        words = [rows.verdict(compare) for compare in compares]
        order = ("fails", "not run", "undecided", "holds")  # of what `and` joins the first decides
        assert verdict.verdict == min(words, key=order.index), one.id
        checked += 1
    assert checked >= 11


def test_a_failing_claim_has_a_finding_that_shows_its_numbers():
    for one, verdict in LEDGER:
        if verdict.verdict == "fails":
            assert len(one.finding) > 100 and "{shown}" in one.finding, one.id
        # Numbers come from records; a finding that types one would not follow them.
        assert not re.search(r"\d+\.\d", one.finding), one.id


def test_the_page_shows_every_claim_and_the_findings_of_those_that_fail():
    from ledger import table_of_claims

    text = table_of_claims(LEDGER)
    assert all(f'id="claim-{one.id}"' in text for one, _ in LEDGER)
    fails = [one for one, verdict in LEDGER if verdict.verdict == "fails"]
    assert text.count('class="finding"') == len(fails) and "{shown}" not in text
    shown = {verdict.verdict for _, verdict in LEDGER}
    assert all(f'class="{word.replace(" ", "-")}"' in text for word in shown)


def test_the_command(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(["claims"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(LEDGER) + 1 and "not run" in lines[-1]
    assert cli.main(["claims", "03_ga_rga"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 13
    assert cli.main(["claims", "nothing"]) == 2
    assert "no claim of 'nothing'" in capsys.readouterr().err


def test_ledger_and_tables_need_neither_numpy_nor_pandas():
    program = (
        "import sys\nfrom pathlib import Path\nfrom minilib import claims, results\n"
        f"root = Path({str(ROOT)!r})\n"
        "assert claims.ledger(root) and results.render(root, results.read(root)[0])\n"
        "heavy = {'torch', 'numpy', 'pandas', 'papermill', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the papers' tables beside ours


def test_every_cell_of_the_paper_is_shown_beside_ours_or_as_missing():
    table = next(one for one in results.read(ROOT) if one.id == "rga-2")
    cells, filled = results.tally(ROOT, table)
    assert cells == 9 * 15 and filled >= 15
    text = results.render(ROOT, table)
    assert text.count("not run") == cells - filled
    assert sum(text.count(f'class="gap-{word}"') for word in ("near", "off", "far")) == filled
    assert text.count('class="block"') == 9
    assert "91.32<br><small>± 0.79</small>" in text  # the paper's


def test_a_chapter_shows_the_lines_of_a_table_that_a_run_has_filled():
    for table in results.read(ROOT):
        said = results.render(ROOT, table, missing=False)
        filled = [
            line
            for line in results.lines(ROOT, table)
            if any(sample for _, sample in line["cells"].values())
        ]
        blocks = said.count('class="block"')
        assert said.count("<tr>") == 2 + len(filled) + blocks, table.id
        assert ("gap-" in said) == bool(filled)


def test_an_unknown_table_is_named():
    import ledger

    page = types.SimpleNamespace(arguments=["rga-0"])
    with pytest.raises(ValueError, match="no table 'rga-0'; accepted: rga-"):
        ledger.PaperTables.made(page, ROOT)


def test_our_cells_are_means_over_the_committed_seeds():
    table = next(one for one in results.read(ROOT) if one.id == "rga-2")
    key = {"dataset": "sst2", "attack": "badnets", "method": "ga"}
    (line,) = (one for one in results.lines(ROOT, table) if one["key"] == key)
    _, sample = line["cells"]["pacc"]
    wanted = {}
    for path in (ROOT / "results" / "03_ga_rga").glob("*.json"):
        item = json.loads(path.read_text(encoding="utf-8"))
        told = {"epochs": 30, "methods": "ga,npo,dga,rga", "mask": "oracle"}
        if told.items() <= item["params"].items():
            (row,) = (r for r in item["metrics"] if (r["method"], r["epoch"]) == ("ga", 30))
            wanted[item["params"]["seed"]] = row["pacc"]
    assert sample == wanted


def test_what_defences_leave_is_a_mean_over_seeds_with_a_word_for_it(monkeypatch):
    def item(seed, rows):
        rows = [{"part": "main", "attack": "badnets", **row} for row in rows]
        return {
            "run_id": str(seed), "preset": "small", "metrics": rows,
            "params": claims.defaults(ROOT, "06_bi_bau", "small") | {"seed": seed},
        }  # fmt: skip

    def row(method, acc, asr, r_asr):
        return {"method": method, "acc": acc, "asr": asr, "r_asr": r_asr}

    victim = {"method": "none", "acc": 80.0, "asr": 100.0}
    rows = [victim, row("ft", 79, 10, 90), row("sau", 70, 4, 6), row("pam", 63.9, 1, 1)]
    rows += [row("ep", 75, 20, 3), {**row("at", 60, 3, 4), "part": "sets"}]
    rows += [{**row("ft", 1, 1, 1), "part": "proxy"}]  # says nothing of the victim
    records = [item(0, rows), item(1, [victim, row("ft", 77, 30, 70), row("sau", 70, 4, 30)])]
    # A run of one more attack adds a column; at other parameters it adds nothing.
    more = item(0, [{**victim, "attack": "sig"}, {**row("ft", 78, 1, 2), "attack": "sig"}])
    weak = {"attack": "adap-patch"}
    weak = item(0, [{**victim, "asr": 16.0, **weak}, {**row("ft", 78, 1, 2), **weak}])
    other = item(2, [victim, row("ft", 1, 1, 1)])
    other["params"]["width"] = 1.0
    monkeypatch.setattr(claims, "committed", lambda root, chapter: [*records, more, weak, other])
    found = results.outcomes(ROOT, "06_bi_bau")
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
    text = results.render_outcomes(ROOT, "06_bi_bau")
    assert (
        '<td class="fails">20.0 ± 14.1 → 80.0 ± 14.1<br><small>CA 78.0 ± 1.4, n = 2</small>' in text
    )
    assert "<small>CA 70.0 ± 0.0, gone with 1 of 2 seeds</small>" in text
    assert "<td>–</td>" in text and text.count("<tr>") == 1 + len(found)
    assert "no colour: without a defence" in text
    # Runs at other parameters have a table of their own.
    wide = results.outcomes(ROOT, "06_bi_bau", width="1")
    assert list(wide) == ["none", "ft"] and wide["ft"]["badnets"]["acc"]["mean"] == 1
    text = results.render_outcomes(ROOT, "06_bi_bau", {"width": "1"})
    assert "each attack, width = 1" in text and text.count("<tr>") == 3
    # Several stand beside each other; one attack or one seed can be asked for.
    beside = ({"attack": "badnets", "seed": "1"}, {"width": "1"})
    text = results.render_outcomes(ROOT, "06_bi_bau", *beside)
    assert re.findall(r"<th>BadNets<br><small>(.*?)</small>", text) == ["seed = 1", "width = 1"]
    assert '<td class="fails">30.0 → 70.0<br><small>CA 77.0, n = 1</small></td>' in text
    assert "SAU" not in text and "<td>–</td>" not in text and text.count("<tr>") == 3
    with pytest.raises(ValueError, match="no published record .* has {'attack': 'x', 'ewc': '7'}"):
        results.outcomes(ROOT, "06_bi_bau", attack="x", ewc="7")
    with pytest.raises(ValueError, match="no published record of '06_bi_bau' has {'ewc': '7'}"):
        results.outcomes(ROOT, "06_bi_bau", ewc="7")
    with pytest.raises(ValueError, match="no published record of '03_ga_rga'"):
        monkeypatch.setattr(claims, "committed", lambda root, chapter: [])
        results.outcomes(ROOT, "03_ga_rga")


def test_missing_cells_name_a_sweep_that_holds_them(monkeypatch):
    from minilib import sweep

    monkeypatch.chdir(ROOT)
    for table in results.read(ROOT):
        for command in results.missing(ROOT, table):
            words = command.split()
            assert words[:2] == ["minilib", "sweep"]
            assert sweep.plan(Path(words[2]), only=words[4::2]).size >= 1


@pytest.mark.parametrize(
    "table",
    [table for table in results.read(ROOT) if table.chapter == "06_bi_bau"],
    ids=lambda table: table.id,
)
def test_the_sweep_of_a_table_runs_its_missing_attacks_and_methods(table, monkeypatch):
    """In that chapter they are rows of a run, which no ``--only`` can ask for."""
    from minilib import sweep

    monkeypatch.chdir(ROOT)
    rows = set()
    for job in sweep.plan(Path(table.sweep)):
        attacks, methods = (job.params[name].split(",") for name in ("attacks", "methods"))
        rows |= {(attack, method) for attack in attacks for method in ("none", *methods)}
        rows |= {(attacks[0], name) for name in ("at", "at-a", "at-b")}
    for line in results.lines(ROOT, table):
        if not all(sample for _, sample in line["cells"].values()):
            assert (line["key"]["attack"], line["key"]["method"]) in rows


def test_committed_sweeps_can_be_planned(monkeypatch):
    from minilib import sweep

    monkeypatch.chdir(ROOT)
    for file in sorted((ROOT / "sweeps").glob("*.yml")):
        assert sweep.plan(file).size >= 1


def test_the_bench_of_sweeps_is_shown_with_its_conditions(tmp_path, monkeypatch):
    import ledger

    from bench import sweep as bench

    monkeypatch.setattr(sys, "argv", ["bench", "plan", "--planned", "50", "--out", str(tmp_path)])
    bench.main()
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert set(found) == {"plan"} and found["plan"]["runs planned"] == 50
    text = ledger._part("planning", {"": found["plan"]})
    assert "<td>runs planned</td><td>50</td>" in text and "load average" in text
    here = {"runs": 2000, "load average": [1, 2, 3], "env": found["plan"]["env"]}
    text = ledger._part("runs", {"local engine": here, "Ray": here | {"runs": 1999}})
    assert "<td>runs</td><td>2,000</td><td>1,999</td>" in text and "1 / 2 / 3" in text
    for name, part in json.loads((ROOT / "bench" / "results" / "sweep.json").read_text()).items():
        assert name in bench.PARTS and part["env"]["cpus"] and len(part["load average"]) == 3


# ---------------------------------------------------------------- statistics


def test_one_average_serves_all_tables():
    import numpy as np

    from minilib import tables

    values = [3.0, 1.0, 2.5, 7.0]
    found = stats.summary(iter(values))
    assert (found["mean"], found["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found["n"] == 4 and all(type(found[name]) is float for name in ("mean", "std"))
    assert tables.spread(pd.Series(values)) == stats.text(found, count=False) == "3.38 ± 2.56"
    frame = pd.DataFrame({"method": ["a"] * 4 + ["b"], "cacc": [*values, 5.0]})
    table = runs.summary(frame, ["method"], ["cacc"])["cacc"]
    assert table.loc["a"].to_dict() == pytest.approx(found)
    assert (
        table.loc["b", "n"] == 1 and np.isnan(table.loc["b", ["std", "low", "high"]].tolist()).all()
    )
    assert list(runs.shown(runs.summary(frame, ["method"], ["cacc"]))["cacc"]) == [
        "3.38 ± 2.56 (4)",
        "5.00 (1)",
    ]


def test_bootstrap_intervals():
    assert stats.interval([1.0, 2.0, 4.0]) == (1.0, 4.0), "three values: from smallest to largest"
    low, high = stats.interval([float(n) for n in range(50)])
    assert 18 < low < 24.5 < high < 31 and stats.interval([float(n) for n in range(50)]) == (
        low,
        high,
    )
    assert all(map(lambda v: v != v, stats.interval([1.0])))


def test_pages_made_from_records_are_read_again_when_there_are_more_of_them(tmp_path):
    import types

    import ledger

    (tmp_path / "results" / "03_ga_rga").mkdir(parents=True)
    first = tmp_path / "results" / "03_ga_rga" / "a.json"
    first.write_text("{}")
    about = {"page": {"records": ledger.records(tmp_path)}, "other": {}}
    env = types.SimpleNamespace(srcdir=str(tmp_path), metadata=about)
    assert ledger.with_new_records(None, env, set(), set(), set()) == []
    first.with_name("b.json").write_text("{}")
    assert ledger.with_new_records(None, env, set(), set(), set()) == ["page"]
    assert ledger.records(tmp_path) == ["results/03_ga_rga/a.json", "results/03_ga_rga/b.json"]
