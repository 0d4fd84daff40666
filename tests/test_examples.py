"""The examples: short, shown on a page, and what they print is what they promise."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from core_fixtures import SEED

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.trained
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_removes_the_backdoor_that_it_plants(path, tmp_path):
    # Outside the checkout's root, as a reader of the installed library would call it.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
         f"text = open({str(path)!r}).read().replace('seed=0', 'seed={SEED}'); "
         f"exec(compile(text, {path.name!r}, 'exec'))"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (
        float(re.search(r"(?:LFR|[^-]ASR) +([\d.]+) %", line)[1])
        for line in done.stdout.splitlines()
    )
    assert before >= 90 and after <= 30, done.stdout
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_stands_on_the_page(path):
    text = path.read_text(encoding="utf-8")
    lines = {line for node in ast.walk(ast.parse(text)) if hasattr(node, "lineno")
             for line in range(node.lineno, node.end_lineno + 1)}  # fmt: skip
    code = [line for number, line in enumerate(text.splitlines(), 1) if number in lines]
    assert sum(bool(line.strip()) and line.strip()[0] != "#" for line in code) <= 45
    page = (ROOT / "book" / "examples.md").read_text(encoding="utf-8")
    assert f"../examples/{path.name}" in page
