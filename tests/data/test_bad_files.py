"""Data files with one fault each: every one is refused, in one line that says what is accepted."""

import bad_files
import pytest

from minilib.data.files import DataError

BAD = bad_files.bad_files()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """An empty folder of data whose contents nobody has a checksum of."""
    monkeypatch.setenv("MINILIB_DATA", str(tmp_path))
    monkeypatch.setenv("MINILIB_ANY_DATA", "1")
    monkeypatch.setattr("minilib.ledger.unchecked", set())
    return tmp_path


def test_each_fault_is_named_once():
    assert len(BAD) >= 100 and len({one.fault for one in BAD}) == len(BAD)


@pytest.mark.parametrize("one", bad_files.good_files(), ids=lambda one: one.file)
def test_a_file_without_a_fault_is_read(mirror, one):
    (mirror / one.file).write_bytes(one.content)
    assert len(one.load())


@pytest.mark.parametrize("one", BAD, ids=lambda one: one.fault)
def test_a_file_with_a_fault_is_refused_in_one_line(mirror, one):
    (mirror / one.file).write_bytes(one.content)
    with pytest.raises(DataError) as refused:
        one.load()
    line = str(refused.value)
    assert line.isprintable() and len(line) <= 300
    assert "accepted: " in line or "found: " in line  # the splits that are there


def test_a_message_says_file_row_value_and_what_is_accepted(mirror):
    rows = [*bad_files.ROWS, "train,9,text,7"]
    (mirror / "sst2.csv.gz").write_bytes(bad_files.table(*rows))
    with pytest.raises(DataError) as refused:
        bad_files.load_text("sst2", "train")
    assert str(refused.value) == "sst2.csv.gz, row 5: label is '7'; accepted: 0, 1"
