"""The house: what may import what, and nothing twice. Drawn, it has no arrow up, and no circle."""

import ast
import re
import tokenize
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from conftest import ROOT

from minilib.book import drawings

LIBRARY = ROOT / "minilib"
# From the bottom to the top, as the book draws it: each may use what stands before it.
ORDER = tuple(chain.from_iterable(drawings.FLOORS))


def modules(library: Path) -> dict[str, Path]:
    """Name without the package → file."""
    names = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def in_words(node: ast.AST) -> str | None:
    """What a text or a chain of attributes says, if it may be a module: "minilib.a.b:c" is a.b.c"""
    said = node.value if isinstance(node, ast.Constant) else None
    said = ast.unparse(node) if isinstance(node, ast.Attribute) else said
    if isinstance(said, str) and re.fullmatch(r"minilib(\.\w+)+(:\w+)?", said):
        return said.removeprefix("minilib.").replace(":", ".")
    return None


def imports(library: Path) -> dict[str, set[str]]:
    """Module → modules of the package that it imports or names anywhere, functions included."""
    known, uses = modules(library), defaultdict(set)
    for name, path in known.items():
        here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                said = {alias.name.removeprefix("minilib.") for alias in node.names}
                uses[name] |= said & known.keys()
                continue
            if said := in_words(node):
                while said and said not in known:
                    said = said.rpartition(".")[0]
                uses[name].add(said)
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "minilib":
                base = node.module.split(".")[1:]
            else:
                continue
            base = ".".join(filter(None, base))
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                uses[name].add(inner if inner in known else base)
    return {name: {one for one in uses[name] if one and one != name} for name in known}


def upward(uses: dict[str, set[str]]) -> list[str]:
    """Imports of what stands above, and of one chapter by another."""
    floor = {name: number for number, name in enumerate(ORDER)}
    found = []
    for name in filter(None, uses):
        own = name.partition(".")[0]
        for one in uses[name]:
            other = one.partition(".")[0]
            if floor[other] > floor[own]:
                found.append(f"{name} → {one}")
            if name.startswith("chapters.") and one.startswith("chapters."):
                found.append(f"{name} → {one}")
    return sorted(found)


def test_every_folder_and_module_has_its_floor():
    assert {name.partition(".")[0] for name in modules(LIBRARY)} - {""} == set(ORDER)


def test_no_import_runs_back_up():
    assert upward(imports(LIBRARY)) == []


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(imports(LIBRARY)).prepare()


def test_the_package_itself_gives_away_nothing_from_above():
    """`from minilib import x` may be anything that `minilib/__init__.py` has."""
    assert imports(LIBRARY)[""] == {"provenance"}


def test_modules_are_imported_by_names_that_are_made_only_where_a_name_is_looked_up():
    makers = {
        name for name, path in modules(LIBRARY).items()
        if re.search(r"\b(import_module|__import__)\b", path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert makers == {"registry", "chapters", "cli"}


def test_the_library_imports_nothing_of_the_repository():
    for path in modules(LIBRARY).values():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (notebooks|tests|tools|bench)\b", text, re.M), path


@pytest.mark.parametrize("module, line, found", [
    ("metrics/rates.py", "from ..unlearning import btu", "metrics.rates → unlearning"),
    ("metrics/rates.py", "def f():\n    from minilib.book import plots",
     "metrics.rates → book.plots"),
    ("metrics/rates.py", "import minilib\nx = minilib.book.plots.draw",
     "metrics.rates → book.plots"),
    ("metrics/rates.py", "register('a', 'b', 'minilib.book.plots:draw')",
     "metrics.rates → book.plots"),
    ("chapters/btu.py", "from . import sande", "chapters.btu → chapters.sande"),
    ("chapters/btu.py", "from .sande import rows", "chapters.btu → chapters.sande"),
])  # fmt: skip
def test_a_wrong_import_is_found(tmp_path, module, line, found):
    for name in ("metrics", "unlearning", "book", "chapters"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("book/plots.py", "chapters/sande.py"):
        (tmp_path / name).touch()
    (tmp_path / module).write_text(line)
    assert found in upward(imports(tmp_path))


def test_a_circle_is_found(tmp_path):
    (tmp_path / "ledger.py").write_text("from . import names")
    (tmp_path / "names.py").write_text("def f():\n    from .ledger import run")
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path)).prepare()


# ---------------------------------------------------------------- nothing twice

LONGEST = 9  # lines that may be alike in two places, such as imports


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Number and words of each line: any number, any text, no comments, no lone brackets."""
    lines = defaultdict(list)
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.NAME, tokenize.OP):
                lines[token.start[0]].append(token.string)
            elif token.type in (tokenize.NUMBER, tokenize.STRING):
                lines[token.start[0]].append("…")
    return [(at, " ".join(words)) for at, words in lines.items() if set(words) - set("()[]{},…")]


def twice(library: Path) -> list[str]:
    """Places with more than ``LONGEST`` lines one after another that stand elsewhere, too."""
    first, found = {}, []
    for name, path in modules(library).items():
        lines = code_lines(path)
        for start in range(len(lines) - LONGEST):
            part = tuple(words for _, words in lines[start : start + LONGEST + 1])
            other, at, line = first.setdefault(part, (name, start, lines[start][0]))
            if other != name or start > at + LONGEST:  # a list of texts is like itself, moved
                found.append(f"{name}, line {lines[start][0]}: {other}, line {line}")
    return found


def test_no_ten_lines_of_the_library_stand_twice():
    assert twice(LIBRARY) == []


def test_what_stands_twice_is_found(tmp_path):
    fields = "".join(f"    field_{n}: float = {{}}\n" for n in range(LONGEST + 1))
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / f"{name}.py").write_text(f"class {name}:\n{fields.replace('{}', str(value))}")
    assert twice(tmp_path) == ["b, line 2: a, line 2"]


# ---------------------------------------------------------------- other systems


def test_nothing_asks_after_a_process_by_a_signal_or_imports_what_windows_lacks():
    """`os.kill(pid, 0)` tells on Linux whether a process is there; on Windows it sends CTRL-C."""
    lacking = {"fcntl", "grp", "pwd", "termios", "resource", "pty"}
    sources = [*LIBRARY.rglob("*.py"), *(ROOT / "tools").glob("*.py"),
               *(ROOT / "book" / "_ext").glob("*.py")]  # fmt: skip
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not calls & {"os.kill", "os.killpg", "os.fork", "os.geteuid"}, path
        for node in tree.body:  # inside a function it may be caught
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(one.name for one in node.names)}
                assert not names & lacking, path
