"""Which code a chapter's numbers depend on, as a hash; with the parameters it identifies a run.

The hash covers the chapter's code cells and, of `minilib`, every top-level definition that they can
reach. Prose, and the library's docstrings and comments, do not count. A definition is reached when
its name occurs in code that is reached already, whichever module it stands in. That keeps too much
rather than too little, and yet a loader for a new data set or another chapter's settings leave the
runs of this one standing.
"""

import ast
import functools
import hashlib
import json
import re
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
ANYTHING = "*"  # stands among the names used for such code, and for `import *`


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
    cells, names = [], {ANYTHING}
    if notebook.is_file():
        cells = [
            "".join(cell["source"]).strip()
            for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code" and "bootstrap" not in cell["metadata"].get("tags", [])
        ]
        text = "\n".join(cells)
        names = set(re.findall(r"\w+", text)) | {"hello"}
        if re.search(rf"(?<![.\w])(getattr|{'|'.join(DYNAMIC)})\(", text):
            names.add(ANYTHING)
    parts = [*cells, *reachable(package, names)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def reachable(package: Path, names: set[str], within: tuple[str, ...] = ()) -> list[str]:
    """Source of the definitions of `package` that `names` lead to; all of them for ANYTHING.

    `within` names the only modules to look in (`train`, `attacks.text`); all of them if empty.
    `ast.unparse` drops comments and layout, and unlike `ast.dump` hardly differs between Pythons.
    """
    wanted = {f"minilib.{module}" for module in within}
    pieces = [
        (module, *piece)
        for module, tree in _modules(package)
        if module in wanted or not wanted
        for piece in _pieces(tree)
    ]
    kept: set[int] = set()
    live: set[str] = set()  # modules of which a definition is reached: only their imports count
    while ANYTHING not in names:
        new = {
            number
            for number, (module, bound, _, _, imports) in enumerate(pieces)
            if number not in kept
            # A bare statement (an `if`, a call) runs when its module is imported.
            and (bound & names if bound else module.rpartition(".")[2] in names | {"minilib"})
            and (module in live or not imports)
        }
        live |= {pieces[number][0] for number in new}
        if not new:
            break
        kept |= new
        names = names.union(*(pieces[number][3] for number in new))
    return [
        f"{module}: {source}"
        for number, (module, _, source, _, _) in enumerate(pieces)
        if ANYTHING in names or number in kept
    ]


def _modules(package: Path) -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(package.rglob("*.py")):
        inner = path.relative_to(package).with_suffix("").parts
        if inner[0] not in NOT_HASHED:
            name = ".".join(part for part in ("minilib", *inner) if part != "__init__")
            found.append((name, _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))))
    return found


def _pieces(tree: ast.Module) -> list[tuple[set[str], str, set[str], bool]]:
    """(names bound, source, names used, is an import) of each top-level statement.

    Imports are taken one name at a time.
    """
    found = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                used = {*alias.name.split("."), *(getattr(node, "module", "") or "").split(".")}
                origin = ast.unparse(node).partition(" import ")[0]
                source = f"{origin}import {alias.name} as {bound}"
                found.append(({bound} - {"*"}, source, used, True))
            continue
        bound = {node.name} if hasattr(node, "name") else set()
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound = {
                part.id
                for target in targets
                for part in ast.walk(target)
                if isinstance(part, ast.Name)
            }
        found.append((bound, ast.unparse(node), _used(node), False))
    return found


def _used(tree: ast.AST) -> set[str]:
    """Every name, attribute and imported name in a piece of code, and every text: it may be one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names |= {node.id, *([ANYTHING] if node.id in DYNAMIC else [])}
        elif isinstance(node, ast.Attribute):
            names |= {node.attr, *([ANYTHING] if node.attr == "import_module" else [])}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {part for alias in node.names for part in alias.name.split(".")}
            names |= set((getattr(node, "module", "") or "").split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            # An object's own attribute cannot be a definition of a module; a computed one may be.
            if ast.unparse(node.args[0]) != "self" and not isinstance(node.args[1], ast.Constant):
                names.add(ANYTHING)
    return names


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree
