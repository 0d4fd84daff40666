"""Sphinx extension: equations from files of the site itself.

Sphinx asks a content network for MathJax on every page. Here it comes from a wheel that the lock
names, so that the site reads without a network and nobody is told who reads it. The wheel
`sphinx-mathjax-offline` carries MathJax 3.2.2; its own extension copies all 24 MB of it. This one
copies the one script that a page loads and its fonts, under 2 MB.
"""

import shutil
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPT = "tex-chtml-full.js"  # TeX in, HTML and CSS out, with every TeX extension inside
FONTS = "output/chtml/fonts/woff-v2"


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


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.connect("config-inited", point)
    app.connect("builder-inited", copy)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
