"""Sphinx extension: what surrounds a page's text in a book.

* `` {reading}`01_attacks` `` says how long a chapter takes to read; `{cite-book}` how to cite all.
* Every page ends with the book's version and with BibTeX that cites the page.
* The first use of a word of the glossary on a page links there, with its definition as a tooltip.
* The words that a chapter is about are entries of the index, and a search ranks chapters first.
* An address that leads nowhere shows a page of its own.
"""

import html
import json
import math
import re
import tomllib
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective, SphinxRole

GLOSSARY = "book/glossary"
CHAPTERS = "notebooks/"
WORDS_A_MINUTE, SECONDS_A_FIGURE = 180, 20
TIP = 220  # characters of a definition that a tooltip shows
# Pages without prose of ours, or where a link from each word would be in the way.
WITHOUT_TERMS = ("book/api", "book/bibliography", "book/changelog", GLOSSARY)
# Words that are common English, or that a chapter's own text explains at once.
PLAIN = {"backdoor", "trigger", "detection", "epoch", "poison", "poisoned row", "target class"}
# What a chapter is about: a search for it leads to the chapter before all other pages.
ABOUT = {
    "01_attacks": ("backdoor attack", "poisoning rate", "PACC"),
    "02_detection": ("detection of poisoned rows", "CUBE", "ONION"),
    "03_ga_rga": ("trigger shifting", "gradient ascent", "robust gradient ascent", "RGA", "NPO"),
    "04_btu": ("backdoor token unlearning", "BTU"),
    "05_sande": ("simulate and eliminate", "SANDE", "OSFT"),
    "06_bi_bau": ("blind inversion", "BI-BAU", "retuning attack"),
    "07_audit": ("audit",),
    "08_clip": ("CleanCLIP", "BadCLIP"),
}


# ---------------------------------------------------------------- how long a chapter is


def minutes(notebook: dict) -> int:
    """How long a chapter takes to read, in minutes, up to the next five: its prose and figures."""
    prose = [
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    ]
    figures = sum("figure" in cell["metadata"].get("mystnb", {}) for cell in notebook["cells"])
    words = sum(len(re.findall(r"\w{2,}", text)) for text in prose)
    exact = words / WORDS_A_MINUTE + figures * SECONDS_A_FIGURE / 60
    return 5 * math.ceil(exact / 5)


class Reading(SphinxRole):
    """`` {reading}`01_attacks` ``: the time to read a chapter."""

    def run(self) -> tuple[list[nodes.Node], list]:
        path = Path(self.env.srcdir, CHAPTERS, f"{self.text}.ipynb")
        self.env.note_dependency(str(path))
        time = minutes(json.loads(path.read_text(encoding="utf-8")))
        return [nodes.Text(f"To read: {time} minutes.")], []


# ---------------------------------------------------------------- citing, and the version


def version(root: Path) -> str:
    """The version of the book and its library."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["version"]


def bibtex(config: Config, title: str = "", page: str = "") -> str:
    """BibTeX that cites the book, or one page of it."""
    given = config.bibtex_of_book
    where = f"{config.html_baseurl}{page}.html" if page and config.html_baseurl else given["url"]
    key = re.sub(r"\W+", "", page.rpartition("/")[2]) if page else "book"
    fields = {
        "author": f"{{{given['author']}}}",
        "title": f"{title}. In: {given['title']}" if title else given["title"],
        "year": given["year"],
        "note": f"Version {given['version']}",
        "url": where,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{minilib_{key},", *lines, "}"])


class CiteBook(SphinxDirective):
    """`{cite-book}`: BibTeX of the whole book."""

    def run(self) -> list[nodes.Node]:
        """As a block of code, which has a button that copies it."""
        text = bibtex(self.config)
        return [nodes.literal_block(text, text, language="bibtex")]


def configure(app: Sphinx, config: Config) -> None:
    """`config-inited`: what is cited, and how a search ranks."""
    root = Path(app.srcdir)
    cff = root / "CITATION.cff"
    about = yaml.safe_load(cff.read_text(encoding="utf-8")) if cff.is_file() else {}
    config.bibtex_of_book = {
        "author": about.get("authors", [{}])[0].get("name", config.author),
        "title": about.get("title", config.project),
        "year": re.sub(r"\D", "", str(config.copyright))[:4],
        "version": version(root),
        "url": config.repository,
    }
    config.html_search_scorer = str(root / "book" / "_static" / "scorer.js")


def finish(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """`html-page-context`: the version and the citation at the end of a page."""
    if doctree is None or not context.get("body"):
        return
    title = html.unescape(re.sub("<[^>]+>", "", context.get("title", ""))).strip()
    cited = html.escape(bibtex(app.config, title, page))
    context["body"] += (
        '<div class="page-foot"><details><summary>Cite this page</summary>'
        f'<pre tabindex="0">{cited}</pre></details>'
        f"<span>Version {html.escape(app.config.bibtex_of_book['version'])}</span></div>"
    )


# ---------------------------------------------------------------- words of the glossary


def definitions(app: Sphinx) -> dict[str, tuple[str, str]]:
    """Term → its anchor and the beginning of its definition."""
    found: dict[str, tuple[str, str]] = {}
    if GLOSSARY not in app.env.found_docs:
        return found
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        term, definition = item.children[0], item.children[-1]
        text = " ".join(definition.astext().split())
        tip = text if len(text) <= TIP else text[:TIP].rpartition(" ")[0] + " …"
        if term.get("ids"):
            found[term.astext()] = term["ids"][0], tip
    return found


def prose_of(doctree: nodes.document) -> list[nodes.Text]:
    """Texts in paragraphs that are neither links, code, headings, captions nor outputs."""
    skipped = (
        nodes.reference, nodes.literal, nodes.title, nodes.caption, nodes.literal_block, nodes.math,
        nodes.raw, addnodes.pending_xref, nodes.table, nodes.term, nodes.strong,
    )  # fmt: skip
    texts = []
    for paragraph in doctree.findall(nodes.paragraph):
        for text in paragraph.findall(nodes.Text):
            node = text.parent
            while node is not None and not isinstance(node, (*skipped, nodes.document)):
                node = node.parent
            if node is None or isinstance(node, nodes.document):
                texts.append(text)
    return texts


def link_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """`doctree-resolved`: link the first use of each word of the glossary."""
    if docname.startswith(WITHOUT_TERMS) or app.builder.format != "html":
        return
    if not hasattr(app, "glossary_terms"):
        app.glossary_terms = definitions(app)
    left = {term: place for term, place in app.glossary_terms.items() if term not in PLAIN}
    if not left:
        return
    up = app.builder.get_relative_uri(docname, GLOSSARY)
    for text in prose_of(doctree):
        words = sorted(left, key=len, reverse=True)
        pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})(?![\w-])")
        rest, made = str(text), []
        while match := pattern.search(rest):
            term = match[1]
            if term not in left:  # used a moment ago in this very text
                made.append(nodes.Text(rest[: match.end()]))
                rest = rest[match.end() :]
                continue
            anchor, tip = left.pop(term)
            made.append(nodes.Text(rest[: match.start()]))
            link = nodes.reference(
                "", term, refuri=f"{up}#{anchor}", internal=True, classes=["term"], reftitle=tip
            )
            made.append(link)
            rest = rest[match.end() :]
        if made:
            text.parent.replace(text, [*made, nodes.Text(rest)])


def index_words(app: Sphinx, doctree: nodes.document) -> None:
    """`doctree-read`: entries of the index for what a chapter is about."""
    name = app.env.docname
    words = ABOUT.get(name.removeprefix(CHAPTERS), ()) if name.startswith(CHAPTERS) else ()
    section = next(iter(doctree.findall(nodes.section)), None)
    if not words or section is None:
        return
    target = f"index-{name.removeprefix(CHAPTERS)}"
    entries = [("single", word, target, "main", None) for word in words]
    node = addnodes.index(entries=entries)
    node["inline"] = False
    section.insert(1, [node, nodes.target("", "", ids=[target])])


# ---------------------------------------------------------------- an address that leads nowhere

MISSING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>There is no such page</title><meta name="robots" content="noindex">
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1.1rem/1.6 system-ui, sans-serif; }}
  main {{ max-width: 36rem; margin: 15vh auto; padding: 0 1rem; }}
</style></head><body><main>
<h1>There is no such page</h1>
<p>Perhaps it has moved: the book was laid out anew. Look for it here.</p>
<ul>
{items}
</ul>
</main></body></html>
"""


def missing_page(app: Sphinx, error: Exception | None) -> None:
    """`build-finished`: 404.html, with whole addresses where the site knows its own."""
    if error or app.builder.name != "html":
        return
    base = app.config.html_baseurl
    places = {
        "The beginning": "index.html", "Search": "search.html",
        "The papers' claims": "book/claims.html", "Glossary": "book/glossary.html",
    }  # fmt: skip
    items = "\n".join(
        f'  <li><a href="{html.escape(base + place)}">{name}</a></li>'
        for name, place in places.items()
    )
    Path(app.outdir, "404.html").write_text(MISSING.format(items=items), encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.add_config_value("bibtex_of_book", {}, "html", dict)
    app.add_role("reading", Reading())
    app.add_directive("cite-book", CiteBook)
    app.connect("config-inited", configure, priority=600)  # after the address was found out
    app.connect("doctree-read", index_words)
    app.connect("doctree-resolved", link_terms, priority=900)
    app.connect("html-page-context", finish, priority=950)  # after tables and figures were mended
    app.connect("build-finished", missing_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
