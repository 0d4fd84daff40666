"""The reference page: complete, read from source, and never by importing the library."""

import ast
import re

import pytest
from conftest import ROOT

pytest.importorskip("sphinx")

import api

LISTED = [name for folder in api.FOLDERS for name in api.modules(ROOT, folder)]


def text(parts) -> str:
    return "\n".join(part.astext() for part in parts)


def test_every_module_is_listed_once():
    every = sorted((ROOT / "minilib").rglob("*.py"))
    named = [api.source(ROOT, name) for name in LISTED]
    assert len(named) == len(set(named))
    left = {p for p in every if api.public(ast.parse(p.read_text("utf-8")).body)} - set(named)
    assert left <= {ROOT / "minilib" / "__init__.py"}


def test_every_folder_has_its_page():
    pages = {path.stem for path in (ROOT / "book" / "api").glob("*.md")}
    folders = {path.parent.name for path in (ROOT / "minilib").glob("*/__init__.py")}
    assert pages == set(api.FOLDERS) == folders | {api.BASE}


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_module_says_what_it_is(name):
    tree = ast.parse(api.source(ROOT, name).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"minilib.{name} has no docstring"
    assert api.public(tree.body), f"minilib.{name} defines nothing public"


def test_signatures_are_those_of_the_source():
    tree = ast.parse(
        "class Row:\n    '''A row.'''\n    name: str\n    size: int = 3\n"
        "class Net:\n    def __init__(self, width: int, *, deep=False): pass\n"
        "def made(a, b: float = 1.0) -> dict: pass\n"
        "class Odd(ValueError): pass\n"
    )
    assert [api.signature(node) for node in tree.body] == [
        "(name: str, size: int = 3)",
        "(self, width: int, *, deep=False)",
        "(a, b: float=1.0) → dict",
        "",
    ]


def test_an_example_in_a_docstring_is_code_and_an_indented_list_is_not():
    parts = api.prose("What it is.\n\n    @recipe\n    class A: ...\n\nArgs:\n    a: one thing.")
    assert [type(part).__name__ for part in parts] == [
        "paragraph", "literal_block", "paragraph", "bullet_list"
    ]  # fmt: skip
    assert text(parts[1:2]) == "@recipe\nclass A: ..."


def test_public_is_what_has_no_underscore_and_says_what_it_does():
    tree = ast.parse("def _a():\n 'x'\ndef b():\n 'x'\ndef c(): pass\nD = 1\nclass E:\n 'x'\n")
    assert [node.name for node in api.public(tree.body)] == ["b", "E"]


def test_docstrings_keep_their_words_and_lose_their_marks():
    parts = api.prose(
        "Do ``x`` and `y` with *care*, 2 * 3.\n\nArgs:\n    a: first\n        line."
        "\n    b, c: the rest."
        "\n\nReturns:\n    A number\n    in nats.\n\nRaises:\n    ValueError: never."
    )
    assert text(parts).split("\n") == [
        "Do x and y with care, 2 * 3.", "Args", "a: first line.", "", "b, c: the rest.",
        "Returns: A number in nats.", "Raises", "ValueError: never.",
    ]  # fmt: skip


def test_the_extension_imports_nothing_of_the_library():
    source = (ROOT / "book" / "_ext" / "api.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (minilib|torch|numpy)", source, re.MULTILINE)
