"""The wheel and the source distribution: the library, the published trials, no more of the book."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string

import pytest
import toy_trials as toy
from conftest import ROOT
from test_repository import PROJECT

from minilib import ledger

pytest.importorskip("setuptools", minversion="77")

# Built through the same hooks that pip and `python -m build` call, in the environment at hand, so
# that no network is needed.
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools replaces the arguments
for make in (build_meta.build_sdist, build_meta.build_wheel):
    print(make(out))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Sdist and wheel, made from a copy of what a checkout has, so that nothing is left in it."""
    root = tmp_path_factory.mktemp("package") / "source"
    common = shutil.ignore_patterns(".*", "_build", "*.egg-info", "__pycache__", "_out")

    def keep_out(folder: str, names: list[str]) -> set[str]:
        return common(folder, names) | ({"runs"} if folder == str(ROOT) else set())

    shutil.copytree(ROOT, root, ignore=keep_out)
    # A trial with an array, whatever is published.
    before = {name: os.environ.get(name) for name in ("MINILIB_LEDGER", "MINILIB_PUBLISHED")}
    os.environ |= {"MINILIB_LEDGER": str(root.parent), "MINILIB_PUBLISHED": "none"}
    one = ledger.get(toy.ToyMap(victim=toy.ToyVictim(data=toy.ToyData())))
    ledger.publish([dataclasses.replace(one, commit="0123456789ab")], root / "results")
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    out = root.parent / "dist"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.suffix: path for path in out.iterdir()}


@pytest.fixture(scope="module")
def wheel(built):
    """Name → content of each file of the wheel."""
    with zipfile.ZipFile(built[".whl"]) as file:
        return {name: file.read(name) for name in file.namelist()}


def library() -> set[str]:
    """What of the library a checkout holds."""
    found = [p for kind in ("py", "csv", "yml") for p in (ROOT / "minilib").rglob(f"*.{kind}")]
    return {path.relative_to(ROOT).as_posix() for path in found}


def trials() -> dict[str, bytes]:
    """Name in the wheel → content of the published trials of a checkout."""
    found = [*(ROOT / "results").glob("*.jsonl"), *(ROOT / "results").glob("*/*.npz")]
    names = {path: path.relative_to(ROOT / "results").as_posix() for path in found}
    return {f"minilib/published/{name}": path.read_bytes() for path, name in names.items()}


def test_the_wheel_holds_the_library_and_the_published_trials_and_nothing_else(wheel):
    toys = {name for name in wheel if name.startswith("minilib/published/toy_map")}
    assert len(toys) == 2
    inside = {name for name in wheel if ".dist-info/" not in name} - toys
    assert inside == library() | trials().keys()
    for name in library():
        assert wheel[name] == (ROOT / name).read_bytes()
    for name, content in trials().items():
        assert wheel[name] == content


def test_an_installed_book_reads_the_published_trials(built, tmp_path):
    """As on a hosted machine: no checkout, nothing computed before."""
    with zipfile.ZipFile(built[".whl"]) as file:
        file.extractall(tmp_path / "site")
    program = (
        "import toy_trials as toy\nfrom minilib import ledger\n"
        "one = ledger.look(toy.ToyMap(victim=toy.ToyVictim(data=toy.ToyData())))\n"
        "print(ledger.__file__, one.tier, one.rows[0]['count'], one.array('points').shape)"
    )
    given = {k: v for k, v in os.environ.items() if k not in ("MINILIB_PUBLISHED", "TOY_LOG")}
    given |= {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT / "tests")]),
              "MINILIB_LEDGER": str(tmp_path / "trials")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    place = tmp_path / "site" / "minilib" / "ledger.py"
    assert done.stdout.split("\n")[0] == f"{place} published 8 (8, 2)"


def test_the_wheel_brings_its_command_and_its_licence(wheel):
    (info,) = {name.partition("/")[0] for name in wheel if ".dist-info/" in name}
    entries = wheel[f"{info}/entry_points.txt"].decode()
    assert "minilib = minilib.cli:main" in entries
    assert f"{info}/licenses/LICENSE" in wheel


def test_its_description_can_be_shown(wheel):
    """What `twine check` asks: a description that is there, of a type that the index renders."""
    (name,) = (name for name in wheel if name.endswith("/METADATA"))
    told = message_from_string(wheel[name].decode())
    assert told["Name"] == PROJECT["name"] and told["Version"] == PROJECT["version"]
    assert told["Description-Content-Type"].startswith("text/markdown")
    assert told["License-Expression"] == "Apache-2.0"
    assert told.get_payload().startswith("# ")


def test_the_source_distribution_is_what_the_wheel_is_made_from(built):
    with tarfile.open(built[".gz"]) as file:
        names = {name.partition("/")[2] for name in file.getnames() if name.count("/")}
    assert library() <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders <= {"minilib", "backdoor_minilib.egg-info", "results"}
