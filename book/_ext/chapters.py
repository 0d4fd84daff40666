"""Sphinx extension: what makes a chapter's page a page of a book.

Tables have captions and numbers, and fold. A code cell names its table as it would name a figure,
in its metadata, with a name that begins with ``tab-``; prose that holds a table made by another
directive wraps it in ``numbered-table``. With the class ``folded`` a table is closed at first: the
figure beside it shows the same.

    "mystnb": {"figure": {"name": "tab-methods", "caption": "…", "classes": "folded"}}

A side study is a section whose label begins with ``side-``. Its heading and first paragraph, which
says what was found, stay in the main line; all else of it folds.

Chapters are numbered by the table of contents (``numbered`` in `_toc.yml`). Here a page's title
gets the number too, for the browser's tab and for search.
"""

from itertools import takewhile

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

TABLE, SIDE = "tab-", "side-"


class numbered_table(nodes.General, nodes.Element):
    """A caption, and whatever shows the table."""


class table_caption(nodes.Part, nodes.TextElement):
    """The caption of a `numbered_table`; pressing it folds the table."""


class fold(nodes.General, nodes.Element):
    """Content that opens on demand; ``summary`` says what it holds."""


def caption_of(node: numbered_table) -> str:
    """The text of a table's caption, by which it is known where it has no number."""
    return next(iter(node.findall(table_caption))).astext()


class NumberedTable(SphinxDirective):
    """``{numbered-table} CAPTION`` around anything that makes a table."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {"name": directives.unchanged_required, "class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        if not self.options.get("name", "").startswith(TABLE):
            raise self.error(f"a table's name begins with {TABLE!r}: {self.options.get('name')!r}")
        words, messages = self.parse_inline(self.arguments[0])
        box = numbered_table("", table_caption("", "", *words))
        box["classes"] = self.options.get("class", [])
        self.add_name(box)
        box += self.parse_content_to_nodes()
        return [box, *messages]


class TablesOfCells(SphinxTransform):
    """Make a numbered table of each figure whose name says that it is one."""

    default_priority = 400  # after labels found their places, before the domains read them

    def apply(self, **kwargs) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if not any(name.startswith(TABLE) for name in figure["names"]):
                continue
            captions = [one for one in figure.children if isinstance(one, nodes.caption)]
            words = captions[0].children if captions else []
            box = numbered_table("", table_caption("", "", *words), **figure.attributes)
            box.source, box.line = figure.source, figure.line
            box += [one for one in figure.children if not isinstance(one, nodes.caption)]
            figure.replace_self(box)
            for name in box["ids"]:
                self.document.ids[name] = box


class SideStudies(SphinxTransform):
    """Fold a side study but for its heading, its first paragraph and the sections within it."""

    default_priority = 410

    def apply(self, **kwargs) -> None:
        for section in list(self.document.findall(nodes.section)):
            if not any(name.startswith(SIDE) for name in section["names"]):
                continue
            first = next(
                (k for k, one in enumerate(section) if isinstance(one, nodes.paragraph)), None
            )
            if first is None:
                continue
            hidden = list(
                takewhile(lambda one: not isinstance(one, nodes.section), section[first + 1 :])
            )
            if hidden:
                box = fold("", *hidden, summary=f"Show this side study{contents(hidden)}")
                section[first + 1 : first + 1 + len(hidden)] = [box]


def contents(hidden: list[nodes.Node]) -> str:
    """How many figures and tables some nodes hold, in brackets; nothing where they hold none."""
    counts = [
        (sum(1 for one in hidden for _ in one.findall(kind)), name)
        for kind, name in ((nodes.figure, "figure"), (numbered_table, "table"))
    ]
    words = [f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count]
    return f" ({', '.join(words)})" if words else ""


def visit_table(self, node: numbered_table) -> None:
    """Open the box; closed at first where it is ``folded``."""
    state = "" if "folded" in node["classes"] else " open"
    classes = " ".join(["table-box", *node["classes"]])
    self.body.append(f'<details class="{classes}" id="{node["ids"][0]}"{state}>\n')


def depart_details(self, node: nodes.Element) -> None:
    """Close a box."""
    self.body.append("</details>\n")


def visit_caption(self, node: table_caption) -> None:
    """The caption is what one presses."""
    self.body.append("<summary>")
    self.add_fignumber(node.parent)
    self.body.append('<span class="caption-text">')


def depart_caption(self, node: table_caption) -> None:
    """End of the caption."""
    self.body.append("</span></summary>\n")


def visit_fold(self, node: fold) -> None:
    """A side study, closed."""
    summary = self.encode(node["summary"])
    self.body.append(f'<details class="side-study"><summary>{summary}</summary>\n')


def number_titles(app: Sphinx, env: BuildEnvironment) -> None:
    """`env-updated`: put a chapter's number before the title that tabs and search results show."""
    for docname, title in env.titles.items():
        number = env.toc_secnumbers.get(docname, {}).get("")
        if number:
            numbered = title.deepcopy()
            numbered.insert(0, nodes.Text(f"{'.'.join(map(str, number))}. "))
            env.longtitles[docname] = numbered


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.add_enumerable_node(numbered_table, "table", caption_of, html=(visit_table, depart_details))
    app.add_node(table_caption, html=(visit_caption, depart_caption))
    app.add_node(fold, html=(visit_fold, depart_details))
    app.add_directive("numbered-table", NumberedTable)
    app.add_transform(TablesOfCells)
    app.add_transform(SideStudies)
    app.connect("env-updated", number_titles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
