"""Sphinx extension: what a page owes its reader beyond its text.

Buttons beside a chapter's parameters (Colab, download, source), a card for who shares its address,
a site map, and repairs of what the builder's own extensions write: a script put in twice, which is
an error on every page; tables and figures wider than a phone, which must scroll inside themselves
and be reached by keyboard; roles of bibliography entries that screen readers no longer know.

The repository's address is found out here, by `tools/address.py`. Where there is none, or where the
notebooks' first cells do not install from it, there are no launch buttons: they would open what
cannot run. `` {launch}`01_attacks` `` is a chapter's button inside a page, or nothing;
`{repository}` says what the address is, or how to set it.
"""

import json
import re
import sys
from html import escape
from pathlib import Path
from xml.sax.saxutils import escape as xml

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError
from sphinx.util.docutils import SphinxDirective, SphinxRole

TOOLS = Path(__file__).resolve().parents[2] / "tools"
if str(TOOLS) not in sys.path:
    sys.path.insert(0, str(TOOLS))

import address  # noqa: E402

CHAPTERS = "notebooks/"
COLAB = "https://colab.research.google.com"
CARD = "_static/card.png"
# The theme makes what has this class reachable by keyboard whenever it is too wide for its place.
SCROLLS = "pst-scrollable-table-container"
TABLE = re.compile(rf'(<div class="{SCROLLS}"[^>]*>\s*)?<table.*?</table>', re.DOTALL)
PICTURE = re.compile(r'<img alt="[^"]*"[^>]* src="[^"]*_images/[^"]*\.png"[^>]*/?>')
PARAMETERS = '<section id="parameters">'  # whoever changes them opens the notebook
REFERENCE = "book/api/"
WORD = re.compile(r'<span class="pre">([^<]*)</span>')
DESCRIPTION = 200  # characters, about what a card shows


def launchable(root: Path, url: str) -> bool:
    """Whether the first cell of every chapter installs from this address."""
    pins = []
    for path in sorted((root / CHAPTERS).glob("*.ipynb")):
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            pins.append(address.carried(address.first_cell(notebook)))
        except (ValueError, KeyError):
            pins.append(None)
    return bool(pins) and all(pin and pin[0] == url for pin in pins)


def configure(app: Sphinx, config: Config) -> None:
    """`config-inited`: the repository's address for links and buttons, and the site's own."""
    root = Path(app.srcdir)
    try:
        url = address.repository(root)
    except address.AddressError as error:
        raise ConfigError(str(error)) from None
    options = dict(config.html_theme_options)
    for button in ("use_repository_button", "use_issues_button"):
        options[button] = url is not None
    options["repository_url"] = config.repository = url or ""
    options["repository_branch"] = config.repository_branch = address.branch(root)
    config.launches = url is not None and launchable(root, url)
    options["launch_buttons"] = {"colab_url": COLAB} if config.launches else {}
    config.html_theme_options = options
    if url and not config.html_baseurl:  # what GitHub Pages gives the site
        owner, name = url.split("/")[-2:]
        config.html_baseurl = f"https://{owner}.github.io/{name}/"


def in_colab(config: Config, page: str) -> str:
    """The address at which Colab opens a chapter."""
    path = f"{config.repository.partition('github.com/')[2]}/blob/{config.repository_branch}"
    return f"{COLAB}/github/{path}/{page}.ipynb"


def buttons(config: Config, page: str) -> str:
    """Links to a chapter's notebook, to run it, keep it, read it, and to its slides."""
    up = "../" * page.count("/")
    links = [f'<a class="launch" href="{up}_sources/{page}.ipynb" download>Download notebook</a>']
    if config.launches:
        links.insert(0, f'<a class="launch" href="{in_colab(config, page)}">Open in Colab</a>')
    if config.repository:
        file = f"{config.repository}/blob/{config.repository_branch}/{page}.ipynb"
        links.append(f'<a class="launch" href="{file}">Source on GitHub</a>')
    slides = f"{up}slides/{page.removeprefix(CHAPTERS)}.html"
    links.append(f'<a class="launch" href="{slides}">Slides of the pictures</a>')
    return f'<p class="launch-row">{" ".join(links)}</p>'


class Launch(SphinxRole):
    """A chapter's button inside a page; nothing where there is no address."""

    def run(self) -> tuple[list[nodes.Node], list]:
        if not self.config.launches:
            return [], []
        link = in_colab(self.config, CHAPTERS + self.text)
        words = f"Open {self.text[:2]} in Colab"
        return [nodes.reference("", words, refuri=link, classes=["launch"])], []


class Repository(SphinxDirective):
    """What the repository's address is, or how to set it."""

    def run(self) -> list[nodes.Node]:
        url, launches = self.config.repository, self.config.launches
        if not url:
            text = (
                "This copy of the book does not know the address of its repository, so it has no "
                "buttons that open a chapter in Colab. " + address.HOW
            )
        elif not launches:
            text = (
                f"The repository is {url}, but the notebooks' first cells do not install from "
                "there, so no button opens them in Colab. Run `make sync`, and commit."
            )
        else:
            text = f"The repository is {url}. Notebooks are opened from its branch " + (
                f"`{self.config.repository_branch}`; the first cell of each installs the library "
                "from one commit or tag of it."
            )
        return self.parse_text_to_nodes(text)


def table(match: re.Match) -> str:
    """A table that scrolls inside itself, in which a number and its spread stay on one line."""
    whole = match[0].replace(" ± ", "\u00a0±\u00a0")
    return whole if match[1] else f'<div class="{SCROLLS}">{whole}</div>'


def repair(body: str) -> str:
    """A page's HTML with tables and figures that scroll and with roles that are understood."""
    body = TABLE.sub(table, body)
    body = PICTURE.sub(lambda m: f'<div class="{SCROLLS} figure-scroll">{m[0]}</div>', body)
    body = body.replace(' role="doc-biblioentry"', "")
    return body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def scripts(files: list) -> list:
    """Scripts without repetitions, and without Thebe's, for which no page has a button."""
    kept, seen = [], set()
    for script in files:
        inline = getattr(script, "attributes", {}).get("body", "")
        key = (str(getattr(script, "filename", script)), inline)
        if key not in seen and "thebe" not in "".join(key).lower():
            kept.append(script)
        seen.add(key)
    return kept


def description(doctree: nodes.document) -> str:
    """The first words of a page, cut at a word."""
    text = next((" ".join(p.astext().split()) for p in doctree.findall(nodes.paragraph)), "")
    if len(text) <= DESCRIPTION:
        return text
    return text[:DESCRIPTION].rpartition(" ")[0] + " …"


def card(app: Sphinx, page: str, title: str, body: str, doctree: nodes.document) -> str:
    """Tags that a service reads to show a link to this page: a chapter by its first figure."""
    base = app.config.html_baseurl
    figure = re.search(r'src="(?:\.\./)*(_images/[^"]+\.png)"', body)
    said = description(doctree)
    tags = {
        "og:type": "article",
        "og:site_name": app.config.html_title or app.config.project,
        "og:title": title,
        "og:description": said,
    }
    if base:  # both are whole addresses, or not there
        tags["og:url"] = f"{base}{page}.html"
        tags["og:image"] = base + (figure[1] if figure else CARD)
    lines = [f'<meta property="{name}" content="{escape(text)}" />' for name, text in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image" />')
    lines.append(f'<meta name="description" content="{escape(said)}" />')
    return "\n".join(lines)


def finish(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """`html-page-context`: all of it, after the other extensions have had their say."""
    context["script_files"] = scripts(context.get("script_files", []))
    body = context.get("body")
    if doctree is None or not body:
        return
    title = re.sub("<[^>]+>", "", context.get("title", ""))
    context["metatags"] = context.get("metatags", "") + card(app, page, title, body, doctree)
    body = repair(body)
    if page.startswith(REFERENCE):
        # A frame around each word of code, against line breaks that this page wants: half its size.
        body = WORD.sub(r"\1", body)
    if page.startswith(CHAPTERS):
        place = PARAMETERS if PARAMETERS in body else "</h1>"
        body = body.replace(place, place + "\n" + buttons(app.config, page), 1)
    context["body"] = body


def site_map(app: Sphinx, error: Exception | None) -> None:
    """`build-finished`: every page's address, for search engines."""
    if error or app.builder.name != "html" or not app.config.html_baseurl:
        return
    pages = sorted(page for page in app.env.found_docs if page != "index")
    found = [f"<url><loc>{xml(f'{app.config.html_baseurl}{p}.html')}</loc></url>" for p in pages]
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">',
        *found,
        "</urlset>",
    ]
    Path(app.outdir, "sitemap.xml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    # Found out by `configure`; another address makes every page anew.
    app.add_config_value("repository", "", "env", str)
    app.add_config_value("repository_branch", "", "env", str)
    app.add_config_value("launches", False, "env", bool)
    app.add_role("launch", Launch())
    app.add_directive("repository", Repository)
    app.connect("config-inited", configure)
    app.connect("html-page-context", finish, priority=900)
    app.connect("build-finished", site_map)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
