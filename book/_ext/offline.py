"""Sphinx extension: equations and interactive figures from files of the site itself.

Sphinx asks a content network for MathJax on every page, and so does a Plotly figure for its script.
Here both come from wheels that the lock names, so that the site reads without a network and nobody
is told who reads it. The wheel `sphinx-mathjax-offline` carries MathJax 3.2.2; its own extension
copies all 24 MB of it. This one copies the one script that a page loads and its fonts, under 2 MB.
Plotly's script (5 MB, or 1.5 as servers send it) is loaded by the pages that have such a figure.
"""

import re
import shutil
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPT = "tex-chtml-full.js"  # TeX in, HTML and CSS out, with every TeX extension inside
FONTS = "output/chtml/fonts/woff-v2"
PLOTLY = "plotly/plotly.min.js"
PLOTLY_ELSEWHERE = re.compile(
    r'<script[^>]*\bsrc="https://cdn\.plot\.ly/plotly-[^"]*"[^>]*></script>'
)


def point(app: Sphinx, config: Config) -> None:
    """`config-inited`: name the script in the site's own static folder."""
    config.mathjax_path = f"mathjax/{SCRIPT}"


def copy(app: Sphinx) -> None:
    """`builder-inited`: put MathJax and its fonts there."""
    if app.builder.format != "html":
        return
    wheel = metadata.distribution("sphinx-mathjax-offline")
    source = Path(wheel.locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir, "_static", "mathjax")
    (target / FONTS).mkdir(parents=True, exist_ok=True)
    shutil.copy2(source / SCRIPT, target / SCRIPT)
    for font in (source / FONTS).glob("*.woff"):
        shutil.copy2(font, target / FONTS / font.name)


def plotly(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """`html-page-context`: load Plotly from the site where a notebook asks a network for it."""
    body = context.get("body") or ""
    if not PLOTLY_ELSEWHERE.search(body):
        return
    target = Path(app.outdir, "_static", PLOTLY)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        wheel = metadata.distribution("plotly")
        shutil.copy2(wheel.locate_file("plotly/package_data/plotly.min.js"), target)
    address = context["pathto"](f"_static/{PLOTLY}", 1)
    context["body"] = PLOTLY_ELSEWHERE.sub(f'<script src="{address}"></script>', body)


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.connect("config-inited", point)
    app.connect("builder-inited", copy)
    app.connect("html-page-context", plotly)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
