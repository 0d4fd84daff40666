"""The chapters as views: which trials a chapter shows, and how its rows are called.

One file per chapter, named as its notebook. Each has ``Settings``, ``trials(cfg)`` (the recipes of
all that the chapter's notebook computes) and ``rows(results)`` (their rows, labelled). None imports
anything heavy: claims and the papers' tables ask them where the site is built. What draws is in
``minilib.book.figures``.
"""

from __future__ import annotations

from importlib import import_module

CHAPTERS = {
    "01_attacks": "attacks",
    "02_detection": "detection",
    "03_ga_rga": "ga_rga",
    "04_btu": "btu",
    "05_sande": "sande",
    "06_bi_bau": "bi_bau",
    "07_audit": "audit",
    "08_clip": "clip",
}


def chapter(name: str):
    """The module of a chapter, by its notebook's name. Raises LookupError."""
    if name not in CHAPTERS:
        raise LookupError(f"no chapter {name!r}; chapters are {', '.join(CHAPTERS)}")
    return import_module(f"minilib.chapters.{CHAPTERS[name]}")
