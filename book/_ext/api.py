"""Sphinx extension: the reference of `minilib`, read from its source and never imported.

The site is built where neither PyTorch nor NumPy is installed, so signatures and docstrings come
from the syntax tree. `{api} data` lists the public functions and classes of a folder's modules,
each under an anchor such as `minilib.data.text.load_text`; `{api} base` those of the modules that
lie in no folder; `{api-folders}` all folders and their modules, each with its first line. What is
public: a name without an underscore, defined at the top of the module, with a docstring. Docstrings
are plain text with backticks, and with sections such as `Args:`.
"""

import ast
import re
import textwrap
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

INLINE = re.compile(r"``(?P<a>.+?)``|`(?P<b>[^`]+)`|(?<!\w)\*(?P<c>[^*\s][^*]*)\*(?!\w)", re.DOTALL)
SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Source): *(.*)", re.DOTALL)


def source(root: Path, module: str) -> Path:
    """The file of a module of `minilib`, named without the package."""
    path = root / "minilib" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def inline(text: str) -> list[nodes.Node]:
    """Text with backticks as code and *stars* as emphasis."""
    found, at = [], 0
    for match in INLINE.finditer(text):
        found.append(nodes.Text(text[at : match.start()]))
        code = match["a"] or match["b"]
        found.append(nodes.literal("", code) if code else nodes.emphasis("", match["c"]))
        at = match.end()
    return [*found, nodes.Text(text[at:])]


def is_code(block: str) -> bool:
    """Whether a paragraph of a docstring is an example: indented, and Python."""
    if not all(line.startswith("    ") for line in block.splitlines()):
        return False
    try:
        return bool(ast.parse(textwrap.dedent(block)).body)
    except SyntaxError:
        return False


def prose(text: str) -> list[nodes.Node]:
    """A docstring's paragraphs; `Args:` and the like head an indented part, one item per name."""
    found = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if is_code(block):
            code = textwrap.dedent(block)
            found.append(nodes.literal_block(code, code, language="python"))
            continue
        section = SECTION.match(block)
        if not section or section[1] == "Source":
            found.append(nodes.paragraph("", "", *inline(" ".join(block.split()))))
            continue
        head = nodes.strong("", section[1])
        if section[1] == "Returns":
            told = inline(" ".join(section[2].split()))
            found.append(nodes.paragraph("", "", head, nodes.Text(": "), *told))
            continue
        found.append(nodes.paragraph("", "", head))
        items = nodes.bullet_list()
        lines = [line for line in section[2].splitlines() if line.strip()]
        least = min((len(line) - len(line.lstrip()) for line in lines), default=0)
        # A new item starts at the least indentation; deeper lines go on with it.
        for item in re.split(rf"\n(?=[ ]{{{least}}}\S)", "\n".join(lines)):
            name, colon, rest = " ".join(item.split()).partition(": ")
            named = colon and re.fullmatch(r"[\w ,.`*]+", name)
            told = [nodes.literal("", name.replace("`", "")), nodes.Text(": "), *inline(rest)]
            told = told if named else inline(name + colon + rest)
            items += nodes.list_item("", nodes.paragraph("", "", *told))
        found.append(items)
    return found


def signature(node: ast.AST) -> str:
    """What stands behind the name: arguments and result, or a class's fields."""
    if isinstance(node, ast.ClassDef):
        makers = [n for n in node.body if getattr(n, "name", "") == "__init__"]
        if makers:
            return f"({ast.unparse(makers[0].args)})"
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        return f"({', '.join(ast.unparse(n) for n in fields)})" if fields else ""
    result = f" → {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){result}"


def public(body: list[ast.stmt]) -> list[ast.AST]:
    """The definitions that a reader may call."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [
        node
        for node in body
        if isinstance(node, kinds) and node.name[0] != "_" and ast.get_docstring(node)
    ]


# Modules that lie in no folder, under a name of their own.
BASE = "base"
FOLDERS = (
    BASE, "data", "models", "training", "attacks", "victims", "metrics", "detection", "unlearning",
    "audit", "trials", "chapters", "book", "runs",
)  # fmt: skip


def modules(root: Path, folder: str) -> list[str]:
    """The modules of a folder that define something public, named without the package."""
    base = root / "minilib"
    files = base.glob("*.py") if folder == BASE else (base / folder).rglob("*.py")
    found = []
    for path in sorted(files):
        if public(ast.parse(path.read_text(encoding="utf-8")).body):
            parts = path.relative_to(base).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in found if name]


def first_line(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(told.partition("\n\n")[0].split())


class Folders(SphinxDirective):
    """`{api-folders}`: each folder with its modules, in the order in which they use each other."""

    def run(self) -> list[nodes.Node]:
        """A list of lists."""
        root, whole = Path(self.env.srcdir), nodes.bullet_list()
        for folder in FOLDERS:
            about = "foundations" if folder == BASE else first_line(source(root, folder))
            link = nodes.reference("", "", nodes.literal("", folder), refuri=f"api/{folder}.html")
            inner = nodes.bullet_list()
            for name in modules(root, folder):
                self.env.note_dependency(str(source(root, name)))
                told = [nodes.Text(": "), *inline(first_line(source(root, name)))]
                place = f"api/{folder}.html#module-minilib.{name}"
                mark = nodes.reference("", "", nodes.literal("", name), refuri=place)
                inner += nodes.list_item("", nodes.paragraph("", "", mark, *told))
            head = nodes.paragraph("", "", link, nodes.Text(": "), *inline(about))
            whole += nodes.list_item("", head, inner)
        return [whole]


class Api(SphinxDirective):
    """`{api} FOLDER`: one section per module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The sections."""
        root = Path(self.env.srcdir)
        return [self.module(name) for name in modules(root, self.arguments[0])]

    def module(self, name: str) -> nodes.Node:
        """A module: its docstring, then what it defines."""
        path = source(Path(self.env.srcdir), name)
        section = nodes.section(ids=[f"module-minilib.{name}"], names=[f"minilib.{name}"])
        section += nodes.title("", "", nodes.literal("", f"minilib.{name}"))
        try:
            self.env.note_dependency(str(path))
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError) as error:
            logger.warning("%s", error, location=self.get_location(), type="api")
            return section
        section += prose(ast.get_docstring(tree) or "")
        section += [self.entry(node, f"minilib.{name}") for node in public(tree.body)]
        return section

    def entry(self, node: ast.AST, owner: str) -> nodes.Node:
        """One function or class, with a class's documented methods inside."""
        full = f"{owner}.{node.name}"
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        head = addnodes.desc_signature("", "", ids=[full])
        head += addnodes.desc_annotation("", "class " if kind == "class" else "")
        head += addnodes.desc_name("", node.name)
        marks = [ast.unparse(mark) for mark in node.decorator_list]
        given = "" if "property" in marks else signature(node)
        head += nodes.Text(re.sub(r"^\((self|cls)(, |(?=\)))", "(", given))  # not `cls: type`
        body = addnodes.desc_content("", *prose(ast.get_docstring(node)))
        body += [self.entry(n, full) for n in public(node.body) if kind == "class"]
        self.env.get_domain("py").note_object(full, kind, full, location=head)
        return addnodes.desc("", head, body, domain="py", objtype=kind, classes=["py", kind])


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.add_directive("api", Api)
    app.add_directive("api-folders", Folders)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
