"""What a reader can copy from the book works: every fenced block, and every command in a sentence.

Commands that run or sweep a chapter are executed as they stand, in a stand-in of the repository
whose chapters consist of their parameter cell, the check of the parameters and a record: the
command line, the presets, the sweeps and the chapters' parameters are the real ones, and a run
takes a second. `make` is asked what it would do; the suite's workflow calls it for good.
"""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from test_repository import PROJECT, locked

from bench import __main__ as bench
from minilib import cli, settings

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"book/{p.name}" for p in (ROOT / "book").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^( *)(`{3,})(\w+)\n(.*?)^\1\2", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:minilib|make|python|pip|conda|pytest|source) [^`\n]+)`")
# The guide's file of methods from outside, and its command, are tests/test_registry.py's.
OUTSIDE = "from minilib.registry import"
# Not executed: they change the machine that reads them, or the name stands for the reader's own.
LEFT = {
    "source .venv/bin/activate",
    "export MINILIB_METHODS=my_methods.py",
    "minilib run 03_ga_rga --preset smoke -p attack=suffix -p methods=ga,half-ga",
    "pip install pre-commit && pre-commit install",
    "minilib COMMAND --help",
    "minilib sweep clean FILE",
    "minilib trials show KEY",
    "minilib sweep status FILE",
    "minilib sweep table FILE",
    "minilib trials diff KEY KEY",
    "minilib trials list text_unlearning dataset=sst2 --csv > rows.csv",
    "pip install optuna",  # a search of the reader's own: `test_cli` runs it with a stand-in
    "source <(minilib completion bash)",
}
BODY = """\
from minilib import ledger, settings
fields = settings.{made}.__dataclass_fields__
cfg = settings.{made}(**{{name: value for name, value in globals().items() if name in fields}})
ledger.colophon("{chapter}", cfg)
"""


def texts() -> dict[str, str]:
    """Page → its Markdown."""
    found = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        found[f"notebooks/{path.name}"] = "\n\n".join(prose)
    return found


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page, content) of each fenced block of a language."""
    return [(page, m[4]) for page, t in texts().items() for m in FENCE.finditer(t) if m[3] == kind]


def commands() -> list[str]:
    """Every command that a page shows, once, without its comment."""
    lines = [line for _, block in blocks("bash")
             for line in re.sub(r" *\\\n *", " ", block).splitlines()]  # fmt: skip
    lines += [line for text in texts().values() for line in INLINE.findall(text)]
    lines += re.findall(r"or: (minilib [^\n]*)", "\n".join(lines))
    return sorted({line.partition(" #")[0].strip() for line in lines} - LEFT - {""})


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A repository of chapters that only check their parameters and write a record."""
    root = tmp_path_factory.mktemp("stand-in")
    for name in ("presets", "sweeps"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("_out"))
    (root / "book" / "_executed").mkdir(parents=True)
    (root / "results").mkdir()
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "book" / "claims.yml", root / "book")
    shutil.copy(ROOT / "pyproject.toml", root)
    for path in NOTEBOOKS:
        book = json.loads(path.read_text(encoding="utf-8"))
        tagged = {t: c for c in book["cells"] for t in c["metadata"].get("tags", ())}
        made = settings.CHAPTERS[path.stem].__name__
        body = BODY.format(made=made, chapter=path.stem)
        last = {"cell_type": "code", "id": "last", "execution_count": None, "metadata": {}}
        book["cells"] = [tagged["parameters"], last | {"outputs": [], "source": body}]
        (root / "notebooks" / path.name).write_text(json.dumps(book), encoding="utf-8")
    return root


def call(words: list[str], where) -> None:
    """Run a command; its failure is the test's."""
    done = subprocess.run(words, cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-800:]}{done.stderr[-800:]}"


def minilib(words: list[str], where, monkeypatch, capsys) -> tuple[int, str]:
    """Exit code of the command line called here, and all that it said."""
    monkeypatch.chdir(where)
    capsys.readouterr()
    try:
        code = cli.main(words)
    except SystemExit as end:  # --help
        code = end.code
    return code, "".join(capsys.readouterr())


def declared(name: str) -> bool:
    """Whether something to be installed is ours, or named among what we ask for."""
    wanted = Requirement(name)
    if wanted.name == PROJECT["name"]:
        return wanted.extras <= set(PROJECT["optional-dependencies"])
    return wanted.name in locked("requirements.lock")


def test_there_are_commands_to_try():
    assert len(commands()) > 25
    shown = {line for text in texts().values() for line in INLINE.findall(text)}
    shown |= {line.partition(" #")[0].strip() for _, block in blocks("bash")
              for line in block.splitlines()}  # fmt: skip
    assert LEFT <= shown, "what is left out is not there"


@pytest.mark.parametrize("line", commands())
def test_a_command_does_what_it_says(line, stand_in, monkeypatch, capsys):
    words = shlex.split(line)
    if words[0] == "minilib":
        here = stand_in, monkeypatch, capsys
        if words[1:] in (["publish"], ["run"], ["sweep"], ["audit"]) or words[1] == "verify":
            # Named in a sentence, not called; and computing from nothing takes its time.
            words.append("--help")
        if words[1] == "publish" and len(words) > 3:  # a run to publish, as the guide makes it
            assert minilib(["run", *words[2:]], *here)[0] == 0
        if words[1] == "sweep" and words[2:] != ["--help"]:
            words.append("--dry-run")
        code, said = minilib(words[1:], *here)
        if "yours" in line:  # the reader's own method: refused by name until it is there
            assert code and "yours" in said
        elif words[1] == "audit" and len(words) > 3:  # of the reader's own files
            assert code == 2 and "usage" not in said
            files = ("MODEL", "rows.csv", "DIR", "prompts.jsonl")
            assert any(name in said for name in files), said
        elif words[1] == "doctor":  # 1 where there is something to fix, as data that is not there
            assert code in (0, 1)
        else:
            assert code == 0, said
    elif words[0] == "make":
        call(["make", "--dry-run", "--always-make", *words[1:]], ROOT)
    elif words[:2] == ["python", "-m"]:
        call([sys.executable, *words[1:], "--help"], ROOT)
        named = [word for word in words[3:] if not word.startswith("-")][:1]
        assert {*named} <= {*bench.NAMES, *bench.LONG}
    elif words[0] == "python":
        call([sys.executable, words[1], "--help"], ROOT)
    elif words[0] == "pytest":
        call([sys.executable, "-m", "pytest", "--collect-only", "-q", *words[1:]], ROOT)
    elif words[:2] == ["pip", "install"]:
        names = [word for word in words[2:] if not word.startswith("-")]
        assert names and all(map(declared, names)), line
    elif words[:3] == ["conda", "env", "create"]:
        assert yaml.safe_load((ROOT / words[-1]).read_text())["dependencies"]
    else:
        raise AssertionError(f"nobody knows how to try {line!r}; teach this test or add it to LEFT")


def test_every_language_of_a_block_is_tried():
    kinds = {m[3] for text in texts().values() for m in FENCE.finditer(text)}
    assert kinds <= {"bash", "yaml", "json", "python", "text"}


@pytest.mark.parametrize("page, block", blocks("yaml"))
def test_a_sweep_file_is_one(page, block, stand_in, monkeypatch, capsys):
    (stand_in / "shown.yml").write_text(block, encoding="utf-8")
    code, said = minilib(["sweep", "shown.yml", "--dry-run"], stand_in, monkeypatch, capsys)
    assert code == 0, said


@pytest.mark.parametrize("page, block", blocks("json"))
def test_a_record_is_shown_with_the_keys_of_records(page, block):
    records = list((ROOT / "results").glob("*/*.json"))
    assert set(json.loads(block)) <= set(json.loads(records[0].read_text(encoding="utf-8")))


CODE = {kind: [one for one in blocks("python")
               if one[0].startswith("notebooks/") == kind
               and OUTSIDE not in one[1] and "import optuna" not in one[1]]
        for kind in (True, False)}  # fmt: skip


@pytest.mark.parametrize("page, block", CODE[False])
def test_python_of_a_page_is_sketched_from_the_library(page, block):
    import minilib.trials.text

    sketched = [node.name for node in ast.parse(block).body]
    assert [name for name in sketched if not hasattr(minilib.trials.text, name)] == []


@pytest.mark.parametrize("page, block", CODE[True])
def test_python_runs_where_the_page_shows_it(page, block, own_cache):
    """With the names that the chapter's own cells have given by then, on a small scale."""
    from minilib import ledger
    from minilib.chapters import attacks as chapter

    cfg = settings.Attacks(dataset="toy-reviews", model="tiny", epochs=1, lr=2e-3)
    names = {"cfg": cfg, "chapter": chapter, "ledger": ledger}
    cells = json.loads((ROOT / page).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert all(re.search(rf"\b{name}\b", code) for name in names), "the chapter has these names"
    exec(block, names)
