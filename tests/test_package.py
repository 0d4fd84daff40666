"""The wheel and the source distribution: all of the library and nothing of the book."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string

import pytest
from conftest import ROOT
from test_repository import PROJECT

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
    keep_out = shutil.ignore_patterns(".*", "_build", "runs", "*.egg-info", "__pycache__", "_out")
    shutil.copytree(ROOT, root, ignore=keep_out)
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
    found = [*(ROOT / "minilib").rglob("*.py"), *(ROOT / "minilib").rglob("*.csv")]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_holds_the_whole_library_and_nothing_else(wheel):
    assert {name for name in wheel if ".dist-info/" not in name} == library()
    for name in library():
        assert wheel[name] == (ROOT / name).read_bytes()


def test_the_wheel_brings_its_command_and_its_licence(wheel):
    (info,) = {name.partition("/")[0] for name in wheel if ".dist-info/" in name}
    entries = wheel[f"{info}/entry_points.txt"].decode()
    assert "minilib = minilib.cli:main" in entries and "minilib.warm:Provisioner" in entries
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
    assert folders <= {"minilib", "minilib.egg-info"}
