"""The papers' tables as typed into ``minilib/book/papers``: complete, and consistent in themselves.

The numbers were read from a text in which some cells had lost their brackets (``90.571.88`` for
90.57 ± 1.88), so every identity that ties two cells together is checked here. What the paper itself
breaks is listed by name.
"""

from collections import Counter
from itertools import product

import pytest

from minilib.book.paper_tables import paper_values

KEY = ("table", "model", "dataset", "attack", "method", "epochs", "alpha", "metric")
MODELS = ("BERT", "DistilBert", "Llama2")
DATASETS = ("sst2", "hsol", "agnews")
ATTACKS = ("badnets", "addsent", "hiddenkiller")
# Share of the non-target classes in the test set.
NON_TARGET = {"sst2": 912 / 1821, "hsol": 1243 / 2485, "agnews": 0.75}
ROUNDING = 0.02


@pytest.fixture(scope="module")
def cells() -> dict[tuple, dict]:
    rows = paper_values("rga")
    table = {tuple(row[k] for k in KEY): row for row in rows}
    assert len(table) == len(rows), "a cell stands twice"
    return table


def value(cells, key, metric):
    return cells[(*key[:-1], metric)]["mean"]


def retrained(cells, key) -> float:
    """PACC of ReTrain for the model, data set and attack of a cell."""
    table = key[0] if key[0] in "278" else "2"
    return cells[(table, *key[1:4], "retrain", "", "", "pacc")]["mean"]


def test_every_cell_of_the_tables_is_there(cells):
    unlearned = 3 * 3 * 3 * (3 + 3 * 4)  # ReTrain has three metrics, GA, NPO and RGA have four
    count = {"2": unlearned, "7": unlearned, "8": unlearned}
    count |= {"3": 9 * 4 * 4, "4": 27 * 3, "5": 27 * 3, "6": 9 * 2 * 4, "9": 9 * 2}
    assert Counter(key[0] for key in cells) == count
    assert {key[1] for key in cells} == set(MODELS)
    assert {key[2] for key in cells} == set(DATASETS)
    assert {key[3] for key in cells} == set(ATTACKS)
    for table, model, dataset, attack in product("278", MODELS, DATASETS, ATTACKS):
        here = [key for key in cells if key[:4] == (table, model, dataset, attack)]
        assert Counter(key[4] for key in here) == {"retrain": 3, "ga": 4, "npo": 4, "rga": 4}


def test_values_are_in_range_and_spreads_stand_where_the_paper_gives_them(cells):
    for key, row in cells.items():
        single = key[0] in "39"  # Table 3 is one run, Table 9 an average without a spread
        assert (row["std"] is None) == single, key
        if key[0] == "9":
            assert row["mean"] == int(row["mean"]) and 30 < row["mean"] < 500, key
        else:
            top = 1 if key[0] == "5" else 100  # Table 5 is in shares, all others in percent
            assert 0 <= row["mean"] <= top, key
            # Three values in [0, top] spread by at most top/√3.
            assert single or 0 <= row["std"] <= 0.58 * top, key


def test_cells_known_by_heart(cells):
    def cell(*key):
        return cells[key]["mean"], cells[key]["std"]

    npo = ("2", "BERT", "sst2", "badnets", "npo", "30", "")
    assert cell(*npo, "cacc") == (90.57, 1.88)
    npo = ("2", "DistilBert", "agnews", "badnets", "npo", "30", "")
    assert cell(*npo, "cacc") == (89.60, 0.80)
    llama = ("2", "Llama2", "sst2", "hiddenkiller", "rga", "30", "2")
    assert cell(*llama, "dpacc") == (20.39, 13.19)
    assert cell("9", "Llama2", "sst2", "badnets", "retrain", "", "", "seconds") == (403, None)


def test_retrain_is_the_same_in_tables_2_7_and_8_and_its_cacc_in_all_attacks(cells):
    for key, row in cells.items():
        if key[4] == "retrain" and key[0] != "9":
            for table in "278":
                other = cells[(table, *key[1:])]
                assert (other["mean"], other["std"]) == (row["mean"], row["std"])
            if key[-1] == "cacc":
                assert cells[(*key[:3], "badnets", *key[4:])]["mean"] == row["mean"]


def test_table_6_repeats_rga_at_ten_epochs_from_table_7(cells):
    repeated = [key for key in cells if key[0] == "6" and key[4] == "rga"]
    assert len(repeated) == 36
    for key in repeated:
        here, there = cells[key], cells[("7", *key[1:])]
        assert (here["mean"], here["std"]) == (there["mean"], there["std"]), key


def test_delta_pacc_is_never_below_the_difference_of_the_means(cells):
    """ΔPACC is a mean of |differences|, so at least |difference of means| (Jensen)."""
    below = set()
    for key, row in cells.items():
        if key[-1] == "dpacc" and key[0] != "3":
            difference = abs(retrained(cells, key) - value(cells, key, "pacc"))
            if row["mean"] < difference - ROUNDING:
                below.add(key)
    # The paper repeats here the 29.46 ± 11.37 of 20 epochs (Table 8); its own PACC says 35.55.
    assert below == {("2", "DistilBert", "sst2", "addsent", "npo", "30", "", "dpacc")}


def test_delta_pacc_equals_the_difference_where_no_run_is_better_than_retrain(cells):
    """Far from ReTrain (3 points and 3 spreads) all runs lie on one side, and equality holds."""
    checked = 0
    for key, row in cells.items():
        if key[-1] != "dpacc" or key[0] == "3" or row["mean"] < max(3, 3 * row["std"]):
            continue
        difference = abs(retrained(cells, key) - value(cells, key, "pacc"))
        assert row["mean"] == pytest.approx(difference, abs=ROUNDING), key
        checked += 1
    assert checked >= 50


def test_table_3_is_one_run_against_its_own_retrained_model(cells):
    """|PACC - PACC_ReTrain| with one PACC_ReTrain per row, which is not the mean of Table 2."""
    for dataset, attack in product(DATASETS, ATTACKS):
        implied = []
        for alpha in "1234":
            key = ("3", "Llama2", dataset, attack, "rga", "10", alpha, "dpacc")
            implied.append(value(cells, key, "pacc") + cells[key]["mean"])
        usual = Counter(round(v, 2) for v in implied).most_common(1)[0][0]
        wrong = [a for a, v in zip("1234", implied, strict=True) if abs(v - usual) > ROUNDING]
        # HSOL / AddSent / α = 2 says 7.30 where its neighbours imply 7.20: a misprint.
        assert wrong == (["2"] if (dataset, attack) == ("hsol", "addsent") else []), wrong


def test_pacc_lies_where_lfr_puts_it(cells):
    """π0(1 - LFR) ≤ PACC ≤ π0(1 - LFR) + π1, in every cell.

    For two classes this is the identity PACC = π0(1 - LFR0) + π1(1 - LFR1) with the other class's
    rate unknown. On AG News the lower bound follows only if LFR counts *every* error on non-target
    rows, as the released code does; the paper's words (non-target → target) would not imply it.
    """
    pairs = [key for key in cells if key[-1] == "pacc"]
    assert len(pairs) == 3 * 108 + 36 + 27 + 18
    for key in pairs:
        share = NON_TARGET[key[2]]
        low = share * (100 - value(cells, key, "lfr"))
        assert low - ROUNDING <= cells[key]["mean"] <= low + 100 * (1 - share) + ROUNDING, key


def test_collapse_and_poisoned_values_are_the_known_integers(cells):
    for key, row in cells.items():
        if key[-1] != "lfr" or row["std"] != 0 or row["mean"] not in (0, 100):
            continue
        if key[2] == "agnews" and row["mean"] == 0:
            continue
        shifted = row["mean"] == 0
        known = {
            "sst2": 912 / 1821 if shifted else 909 / 1821,
            "hsol": 1243 / 2485 if shifted else 1242 / 2485,
            "agnews": 0.25,
        }
        pacc = value(cells, key, "pacc")
        if not shifted or cells[(*key[:-1], "pacc")]["std"] == 0:
            assert pacc == pytest.approx(100 * known[key[2]], abs=0.006), key


def test_rga_epochs_cost_about_a_tenth_of_retraining(cells):
    for dataset, attack in product(DATASETS, ATTACKS):
        key = ("9", "Llama2", dataset, attack)
        retrain = cells[(*key, "retrain", "", "", "seconds")]["mean"]
        rga = cells[(*key, "rga", "", "2", "seconds")]["mean"]
        assert 6 < retrain / rga < 11


def test_paper_values_selects_and_refuses():
    rows = paper_values("rga", table="2", model="BERT", dataset="sst2", attack="badnets")
    assert len(rows) == 15 and all(row["paper"] == "rga" for row in rows)
    assert paper_values("rga", table="99") == []
    with pytest.raises(ValueError, match=r"no column 'colour'; accepted: paper, table, model"):
        paper_values("rga", colour="blue")


# ---------------------------------------------------------------------------------- BTU

BTU_KEY = (
    "table", "model", "dataset", "attack", "method", "alpha", "rounds", "triggers", "metric",
)  # fmt: skip
BTU_ATTACKS = {"badnets", "addsent", "stylebkd", "hiddenkiller", "sos"}


@pytest.fixture(scope="module")
def btu() -> dict[tuple, float]:
    """The BTU paper's ACC and ASR, here cacc and lfr as in the rest of the book."""
    rows = paper_values("btu")
    table = {tuple(row[k] for k in BTU_KEY): row["mean"] for row in rows}
    assert len(table) == len(rows), "a cell stands twice"
    assert all(row["std"] is None for row in rows), "the paper gives no spreads"
    return table


def cell(btu, table, attack, method="btu", metric="lfr", dataset="sst2", **other):
    where = {"alpha": "", "rounds": "", "triggers": ""} | other
    return btu[(table, "BERT", dataset, attack, method, *where.values(), metric)]


def test_every_cell_of_the_btu_tables_is_there(btu):
    assert Counter(key[0] for key in btu) == {
        "1": 3 * 11 * 4 * 2,
        "2": 3 * 2 * 2,
        "3": 9 * 2,
        "4": 4 * 2 * 2,
        "5": 5 * 2 * 2,
        "6": 6 * 2 * 2,
        "9": 4 * 2 * 2,
        "10": 6 * 2 * 2,
        "11": 4 * 2 * 2,
    }
    assert {key[3] for key in btu} == BTU_ATTACKS
    assert {key[2] for key in btu} == {"sst2", "olid", "agnews", "imdb"}
    for metric in ("cacc", "lfr"):
        assert sum(key[-1] == metric for key in btu) == len(btu) // 2
    assert all(0 <= value <= 100 for value in btu.values())


def test_btu_cells_known_by_heart(btu):
    assert cell(btu, "1", "badnets") == 5.97 and cell(btu, "1", "badnets", metric="cacc") == 90.37
    assert cell(btu, "1", "addsent", "cube", dataset="agnews") == 2.71
    assert cell(btu, "4", "hiddenkiller", alpha="0.1") == 15.96
    assert cell(btu, "5", "addsent", "pr-1") == 99.88
    assert cell(btu, "6", "badnets", rounds="1,1,2,3", metric="cacc") == 89.36
    assert cell(btu, "10", "badnets", "layer-3", metric="cacc") == 50.85
    assert cell(btu, "3", "sos") == 7.18


def test_what_the_btu_paper_says_of_its_tables(btu):
    """Sentences of the text that a table can contradict."""
    for dataset in ("sst2", "olid", "agnews"):  # "below 10 % across all three datasets"
        assert all(cell(btu, "1", a, dataset=dataset) < 10 for a in ("badnets", "addsent"))
        for attack in ("addsent",):  # "the ACC of Add-Sent is higher than that of Add-Word"
            higher = cell(btu, "1", attack, metric="cacc", dataset=dataset)
            lower = cell(btu, "1", "badnets", metric="cacc", dataset=dataset)
            assert (higher > lower) == (dataset != "agnews"), "not so on AG News"
    low = {key[4]: value for key, value in btu.items() if key[0] == "3" and key[-1] == "lfr"}
    assert min(low, key=low.get) == "btu"
    # Raising α lowers accuracy, and on Synbkd the success rate.
    accuracy = [cell(btu, "4", "addsent", alpha=a, metric="cacc") for a in ("0.03", "0.05", "0.1")]
    assert accuracy == sorted(accuracy, reverse=True)
    modes = ("all2one-3", "all2one-5", "all2all-2")
    words, sentences = (
        sum(cell(btu, "9", attack, triggers=mode) for mode in modes) / 3
        for attack in ("badnets", "addsent")
    )
    assert sentences == pytest.approx(15.57, abs=0.006)
    assert words == pytest.approx(6.96, abs=0.006), "the text says 6.69: two digits change places"


def test_cells_of_the_btu_paper_that_repeat_or_disagree(btu):
    """The same setting is quoted in several tables; here is how far they agree."""
    for metric, values in (("cacc", (90.69, 90.96, 90.67)), ("lfr", (5.50, 4.84, 5.50))):
        here = (
            cell(btu, "1", "addsent", metric=metric),
            cell(btu, "4", "addsent", alpha="0.05", metric=metric),
            cell(btu, "5", "addsent", metric=metric),
        )
        assert here == values
    same = [
        key
        for key in btu
        if key[0] == "1" and key[4] == "rap" and btu[key] == btu[(*key[:4], "strip", *key[5:])]
    ]
    # RAP and STRIP share whole pairs of cells, which two defences hardly do by chance.
    assert {(key[2], key[3]) for key in same} >= {("sst2", "addsent"), ("sst2", "stylebkd")}
