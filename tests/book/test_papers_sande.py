"""SANDE's tables as typed into ``minilib/book/papers``: complete, and consistent in themselves.

Tables 2, 4, 6 and 7 print each value with its change from the baseline, so that every cell can be
checked against two others. What the paper itself breaks is listed by name.
"""

from collections import Counter

import pytest

from minilib.book.paper_tables import paper_values

KEY = ("table", "model", "dataset", "domain", "pairs", "parrot_position", "method", "metric")


@pytest.fixture(scope="module")
def cells() -> dict[tuple, dict]:
    rows = paper_values("sande")
    table = {tuple(row[k] for k in KEY): row for row in rows}
    assert len(table) == len(rows), "a cell stands twice"
    return table


def test_every_cell_of_the_tables_is_there(cells):
    assert Counter(key[0] for key in cells) == {
        "1": 8 * 4, "2": 8 * 4 * 3, "3": 8 * 4, "4": 8 * 4 * 3, "5": 4 * 4, "6": 2 * 5 * 4,
        "7": 4 * 4 * 3,
    }  # fmt: skip
    assert all(0 <= row["mean"] <= 100 and row["std"] is None for row in cells.values())


def test_each_printed_change_is_the_difference_from_the_baseline(cells):
    wrong, checked = {}, 0
    for key, row in cells.items():
        if row["change"]:
            table = "4" if key[0] == "6" else key[0]  # Table 6 starts from Table 4's victim
            start = cells[(table, *key[1:5], "2", "none", key[7])]["mean"]
            checked += 1
            if abs(row["mean"] - start - float(row["change"])) > 0.005:
                wrong[key[0], key[5], key[6], key[7]] = round(row["mean"] - start, 2)
    assert checked == 7 * 12 * 2 + 40 - 10 + 3 * 12
    # Misprints: the paper says -9.77 and +6.75.
    assert wrong == {
        ("4", "2", "sande-p", "arc_challenge"): -9.47,
        ("6", "15", "sande", "arc_challenge"): 6.74,
    }


def test_tables_repeat_each_other_where_they_must(cells):
    """The baseline and DPO know no domain; Table 6 at position 2 is a column of Tables 3 and 4."""
    repeated = 0
    for key, row in cells.items():
        if key[0] in "12" and key[6] in ("none", "dpo"):
            table = {"1": "3", "2": "4"}[key[0]]
            assert cells[(table, *key[1:3], "out", *key[4:])]["mean"] == row["mean"], key
            repeated += 1
        if key[0] == "6" and key[5] == "2":
            table = "3" if key[7] == "asr" else "4"
            assert cells[(table, *key[1:])]["mean"] == row["mean"], key
            repeated += 1
    assert repeated == 8 + 24 + 8


def test_cells_known_by_heart(cells):
    nad = ("Qwen1.5", "alpaca", "out", "year", "2", "nad", "asr")
    assert cells[("3", *nad)]["mean"] == 97.02
    sft = ("Llama2", "alpaca", "out", "year", "2", "sft", "arc_easy")
    assert cells[("4", *sft)]["mean"] == 75.46 and cells[("4", *sft)]["change"] == "16.37"
