"""Sphinx extension: each chapter's pictures as slides for teaching, in `slides/<chapter>.html`.

They are taken from the chapter's page as it is built, so nothing is kept twice: one figure a
screen, its section as the title, and its caption, which says what to see. Arrow keys, space, Home
and End move; a printer makes a sheet of each. Without JavaScript the page scrolls.
"""

import re
from html import escape
from pathlib import Path

from sphinx.application import Sphinx

CHAPTERS = "notebooks/"
PART = re.compile(r"<h[23]>(?P<title>.*?)</h[23]>|<figure(?P<figure>.*?)</figure>", re.DOTALL)
CAPTION = re.compile(r"<figcaption>(.*?)</figcaption>", re.DOTALL)
NAME = re.compile(r'id="(fig-[^"]+)"')
LINK = re.compile(r'<a class="headerlink".*?</a>|</?a\b[^>]*>|</?p>', re.DOTALL)
MATH = '<script defer src="../_static/mathjax/tex-chtml-full.js"></script>'

PAGE = """<!doctype html>
<html lang="en" data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title}: slides</title>
<link rel="icon" href="../_static/favicon.svg"><link rel="stylesheet" href="../_static/book.css">
<link rel="stylesheet" href="../_static/components.css">
<link rel="stylesheet" href="../_static/slides.css">
<script src="../_static/slides.js"></script>{math}
</head><body class="bd-content"><main class="bd-article">
<section><h1>{title}</h1><p>{count} of the chapter. Keys: arrows, space, Home, End.
A printer makes a sheet of each.</p><p><a href="../{page}.html">To the chapter</a></p></section>
{slides}
</main></body></html>
"""
SLIDE = """<section aria-label="{number} of {count}"><h2>{title}</h2>
<figure class="{classes}">{picture}</figure>
<p>{caption}</p>
<p class="place"><a href="../{page}.html#{name}">in the chapter</a> · {number}/{count}</p>
</section>"""


def figures(body: str) -> list[dict[str, str]]:
    """The numbered figures of a page's HTML: name, picture, caption, classes, and their section."""
    found, title = [], ""
    for part in PART.finditer(body):
        if part["title"] is not None:
            title = LINK.sub("", part["title"])
            continue
        head, _, inside = part["figure"].partition(">")
        name, caption = NAME.search(part["figure"]), CAPTION.search(inside)
        if name and caption:
            classes = re.search(r'class="([^"]*)"', head)
            found.append({
                "name": name[1], "title": title, "caption": LINK.sub("", caption[1]).strip(),
                "picture": CAPTION.sub("", inside).replace(' loading="lazy"', ""),
                "classes": classes[1] if classes else "",
            })  # fmt: skip
    return found


def slides(page: str, title: str, body: str) -> str:
    """The whole page of slides of a chapter's page."""
    found = figures(body)
    shown = "\n".join(
        SLIDE.format(number=number, count=len(found), page=page, **one)
        for number, one in enumerate(found, 1)
    )
    count = f"{len(found)} picture{'s' * (len(found) != 1)}"
    math = MATH if 'class="math' in shown else ""
    return PAGE.format(title=escape(title), count=count, page=page, slides=shown, math=math)


def finish(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """`html-page-context`: after all else has been done to a chapter's page, write its slides."""
    if doctree is None or not page.startswith(CHAPTERS) or app.builder.name != "html":
        return
    title = re.sub("<[^>]+>", "", context.get("title", ""))
    path = Path(app.outdir, "slides", f"{page.removeprefix(CHAPTERS)}.html")
    path.parent.mkdir(exist_ok=True)
    path.write_text(slides(page, title, context["body"]), encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.connect("html-page-context", finish, priority=990)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
