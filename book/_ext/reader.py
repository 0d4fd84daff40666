"""Sphinx extension: what a page owes its reader beyond its text.

Buttons under a chapter's title (Colab, download, source), a card for who shares its address, a site
map, and repairs of what the builder's own extensions write: a script put in twice, which is an
error on every page; tables and figures wider than a phone, which must scroll inside themselves and
be reached by keyboard; roles of bibliography entries that screen readers no longer know.
"""

import re
from html import escape
from pathlib import Path
from xml.sax.saxutils import escape as xml

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

CHAPTERS = "notebooks/"
CARD = "_static/card.png"
# The theme makes what has this class reachable by keyboard whenever it is too wide for its place.
SCROLLS = "pst-scrollable-table-container"
TABLE = re.compile(rf'(<div class="{SCROLLS}"[^>]*>\s*)?<table.*?</table>', re.DOTALL)
PICTURE = re.compile(r'<img alt="[^"]*"[^>]* src="[^"]*_images/[^"]*\.png"[^>]*/?>')
REFERENCE = "book/api"
WORD = re.compile(r'<span class="pre">([^<]*)</span>')
DESCRIPTION = 200  # characters, about what a card shows


def address(config: Config) -> tuple[str, str, str]:
    """The repository's address, its branch, and the address that GitHub Pages gives the site."""
    url = config.html_theme_options["repository_url"].rstrip("/")
    branch = config.html_theme_options["repository_branch"]
    owner, name = url.split("/")[-2:]
    return url, branch, f"https://{owner}.github.io/{name}/"


def configure(app: Sphinx, config: Config) -> None:
    """`config-inited`: the site's own address, unless the configuration has one."""
    config.html_baseurl = config.html_baseurl or address(config)[2]


def buttons(config: Config, page: str) -> str:
    """Links to a chapter's notebook: run it, keep it, read it."""
    url, branch, _ = address(config)
    colab = config.html_theme_options["launch_buttons"]["colab_url"]
    path = f"{url.partition('github.com/')[2]}/blob/{branch}/{page}.ipynb"
    up = "../" * page.count("/")
    return (
        '<p class="launch-row">'
        f'<a class="launch" href="{colab}/github/{path}">Open in Colab</a> '
        f'<a class="launch" href="{up}_sources/{page}.ipynb" download>Download notebook</a> '
        f'<a class="launch" href="{url}/blob/{branch}/{page}.ipynb">Source on GitHub</a></p>'
    )


def repair(body: str) -> str:
    """A page's HTML with tables and figures that scroll and with roles that are understood."""
    body = TABLE.sub(
        lambda m: m[0] if m[1] else f'<div class="{SCROLLS}">{m[0]}</div>',
        body,
    )
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
        "og:url": f"{base}{page}.html",
        "og:image": base + (figure[1] if figure else CARD),
    }
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
    if page == REFERENCE:
        # A frame around each word of code, against line breaks that this page wants: half its size.
        body = WORD.sub(r"\1", body)
    if page.startswith(CHAPTERS):
        body = body.replace("</h1>", "</h1>\n" + buttons(app.config, page), 1)
    context["body"] = body


def site_map(app: Sphinx, error: Exception | None) -> None:
    """`build-finished`: every page's address, for search engines."""
    if error or app.builder.name != "html":
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
    app.connect("config-inited", configure)
    app.connect("html-page-context", finish, priority=900)
    app.connect("build-finished", site_map)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
