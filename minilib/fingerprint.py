"""Which code a chapter's numbers depend on, as a hash; with the parameters it identifies a run.

The hash covers the chapter's code cells and, of `minilib`, every top-level definition that they
lead to through imports, names and attributes of modules. Prose, and the library's docstrings and
comments, do not count, and a loader for a new data set or another chapter's settings leave the
runs of this one standing.
"""

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# What only starts, records, draws or publishes runs cannot change their numbers.
NOT_HASHED = {
    "fingerprint",
    "runs",
    "runner",
    "sweep",
    "cli",
    "publish",
    "plots",
    "figures",
    "tables",
    "engines",
    "places",
    "stats",
    "warm",
    "papers",
    "claims",
    "results",
}
# Code that looks names up at run time may reach anything.
DYNAMIC = {"globals", "import_module", "__import__", "eval", "exec"}
EVERYTHING = "*"  # in place of a name: all definitions of a module
CELLS = "minilib.__cells__"  # the notebook, as if it were a module of the package


def fingerprint(root: Path, chapter: str | None = None) -> str:
    """Hash a chapter's code, or the whole library where there is no such notebook; 16 hex digits.

    The bootstrap cell is left out: it installs `minilib` and carries the repository's address.
    """
    package = root / "minilib"  # what the kernel imports, if it is there
    package = package if package.is_dir() else PACKAGE
    notebook = root / "notebooks" / f"{chapter}.ipynb"
    files = [path.stat() for path in (*sorted(package.rglob("*.py")), notebook) if path.is_file()]
    # Reading all code takes a second; a sweep asks before each of its runs.
    return _hash(package, notebook, tuple((file.st_mtime_ns, file.st_size) for file in files))


@functools.lru_cache(maxsize=64)
def _hash(package: Path, notebook: Path, state: tuple) -> str:
    """The hash of the files in this `state`, which only tells whether they have changed since."""
    library, cells, roots = Library.read(package), [], None
    if notebook.is_file():
        cells = [
            "".join(cell["source"]).strip()
            for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code" and "bootstrap" not in cell["metadata"].get("tags", [])
        ]
        # A magic is dropped, and what it is applied to stays.
        code = re.sub(r"(?m)^\s*[%!]+\s*\w*[ \t]*", "", "\n".join(cells))
        try:
            library.modules[CELLS] = _pieces(ast.parse(code), "minilib")
            roots = {(CELLS, EVERYTHING)}
        except SyntaxError:
            pass  # some shell command: what the cells lead to is unknown
    parts = [*cells, *library.reachable(roots)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@dataclass
class Piece:
    """One top-level statement of a module; imports are taken one name at a time."""

    tree: ast.stmt
    names: set[str]  # which it binds
    package: str  # where its relative imports start
    runs: bool = False  # it does something when its module is imported
    origin: tuple[str, str] | None = None  # of an import: module and name in it, "" for the module


class Library:
    """The definitions of a package, and which of them lead to which."""

    def __init__(self, modules: dict[str, list[Piece]]):
        self.modules = modules

    @classmethod
    def read(cls, package: Path, within: Iterable[str] = ()) -> "Library":
        """Parse a package, or of its modules only those ``within``: `train`, `attacks.text`."""
        wanted = {f"minilib.{module}" for module in within}
        modules = {}
        for path in sorted(package.rglob("*.py")):
            inner = path.relative_to(package).with_suffix("").parts
            name = ".".join(part for part in ("minilib", *inner) if part != "__init__")
            if inner[0] not in NOT_HASHED and (not wanted or name in wanted):
                tree = _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
                is_package = inner[-1] == "__init__"
                modules[name] = _pieces(tree, name if is_package else name.rpartition(".")[0])
        return cls(modules)

    def reachable(self, roots: Iterable[tuple[str, str]] | None) -> list[str]:
        """Source of the definitions that ``roots``, (module, name), lead to; of all for None.

        `ast.unparse` drops comments and layout, and unlike `ast.dump` hardly differs between
        Pythons.
        """
        if roots is None:
            roots = [(module, EVERYTHING) for module in self.modules]
        todo, seen, kept = list(roots), set(), set()
        while todo:
            module, name = target = todo.pop()
            if target in seen or module not in self.modules:
                continue
            seen.add(target)
            # Importing a module imports its parents first.
            todo.append((module.rpartition(".")[0], ""))
            for number, piece in enumerate(self.modules[module]):
                if piece.origin:
                    todo.append((self._module(piece.origin), ""))
                wanted = piece.runs or name in piece.names or name == EVERYTHING
                if wanted and (module, number) not in kept:
                    kept.add((module, number))
                    todo += self._leads_to(module, piece)
        return [
            f"{module}: {ast.unparse(piece.tree)}"
            for module, pieces in self.modules.items()
            for number, piece in enumerate(pieces)
            if (module, number) in kept and module != CELLS
        ]

    def _leads_to(self, module: str, piece: Piece) -> Iterator[tuple[str, str]]:
        """Yield (module, name) of the definitions that a piece of code names."""
        if piece.origin:
            if piece.origin[1] == EVERYTHING:
                yield piece.origin
            return  # else what is imported is followed from where it is used
        local = {}
        for node in ast.walk(piece.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for imported in _imports(node, piece.package):
                    yield self._module(imported.origin), ""
                    local |= {name: imported.origin for name in imported.names}
        for chain in _chains(piece.tree):
            if chain[0] in DYNAMIC or chain[-1] == "import_module":
                yield from ((other, EVERYTHING) for other in self.modules)
            elif chain[0] in local:
                yield from self._follow(local[chain[0]], chain[1:])
            else:
                yield from self._follow((module, chain[0]), chain[1:])
        if piece.runs:  # `try: import …` in a module's body: whoever uses the name comes by here
            for origin in local.values():
                yield from self._follow(origin, [])

    def _follow(self, thing: tuple[str, str], rest: list[str], depth: int = 0):
        """Yield the definitions passed on the way from a dotted name to what it stands for."""
        module, name = thing
        bound = [piece for piece in self.modules.get(module, ()) if name in piece.names]
        if bound or name == EVERYTHING:
            yield thing
        for piece in bound:
            if piece.origin and depth < 20:  # imports may run in a circle
                yield from self._follow(piece.origin, rest, depth + 1)
        inner = self._module(thing)
        if not bound and inner in self.modules and (not name or inner != module):
            # A module that is handed on as a value may be asked for anything.
            yield from self._follow((inner, rest[0] if rest else EVERYTHING), rest[1:], depth)

    def _module(self, thing: tuple[str, str]) -> str:
        module, name = thing
        return f"{module}.{name}" if f"{module}.{name}" in self.modules else module


def _pieces(tree: ast.Module, package: str) -> list[Piece]:
    found = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += _imports(node, package)
            continue
        if isinstance(node, ast.Pass):
            continue
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        plain = isinstance(node, (ast.Assign, ast.AnnAssign)) and all(
            isinstance(part, (ast.Name, ast.Tuple, ast.Load, ast.Store))
            for target in targets
            for part in ast.walk(target)
        )
        if hasattr(node, "name"):
            found.append(Piece(node, {node.name}, package))
        else:
            found.append(Piece(node, _stored(node), package, runs=not plain))
    return found


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> list[Piece]:
    found = []
    for alias in node.names:
        if isinstance(node, ast.Import):
            tree = ast.Import([alias])
            name = alias.asname or alias.name.partition(".")[0]
            origin = (alias.name if alias.asname else name, "")
        else:
            tree = ast.ImportFrom(node.module, [alias], node.level)
            name = alias.asname or alias.name
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = (".".join(filter(None, [above, node.module])), alias.name)
        found.append(Piece(tree, {name} - {"*"}, package, runs=name == "*", origin=origin))
    return found


def _stored(tree: ast.AST) -> set[str]:
    """Every name that a statement may bind in its module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names


def _chains(tree: ast.AST) -> Iterator[list[str]]:
    """Yield each name in a piece of code with the attributes asked of it: [`a`, `b`] for `a.b`."""
    if isinstance(tree, ast.Name):
        yield [tree.id]
        return
    if isinstance(tree, ast.Attribute):
        chain, inner = [tree.attr], tree.value
        while isinstance(inner, ast.Attribute):
            chain, inner = [inner.attr, *chain], inner.value
        if isinstance(inner, ast.Name):
            yield [inner.id, *chain]
            return
    for child in ast.iter_child_nodes(tree):
        yield from _chains(child)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree
