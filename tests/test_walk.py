"""The walks that the book describes: each stop is there, and a default is a number in one place."""

import ast
import dataclasses
import re

import pytest
from conftest import ROOT

from minilib import settings
from minilib.trials import chat, text
from minilib.trials.clip import ClipDefence
from minilib.trials.images import ImageDefence
from minilib.unlearning import BiBauSettings, gradient_ascent

STOP = re.compile(r"^\d+\. `([\w/.]+)`: `(\w+)`", re.M)
PAGE = (ROOT / "book" / "architecture.md").read_text(encoding="utf-8")


def walk(title: str) -> list[tuple[str, str]]:
    """(file, name) of the stops behind a sentence of the page."""
    return STOP.findall(PAGE.partition(title)[2].partition("\n\n")[2].partition("\n\n")[0])


def source(file: str, name: str) -> str:
    """What stands under a name at the top of a module; of another file, the lines that have it."""
    content = (ROOT / file).read_text(encoding="utf-8")
    if not file.endswith(".py"):
        return "\n".join(line for line in content.splitlines() if name in line)
    (node,) = (n for n in ast.parse(content).body if getattr(n, "name", "") == name)
    return ast.get_source_segment(content, node)


def test_alpha_goes_from_the_notebook_to_its_weight_in_six_stops():
    stops = walk("RGA's $\\alpha$, from the cell")
    assert 4 <= len(stops) <= 6 and stops[0][0].endswith(".ipynb")
    assert stops[-1] == ("minilib/unlearning/gradient_ascent.py", "rga_weight")
    for stop in stops:  # the recipe is handed on whole
        assert ("alpha" in source(*stop)) != (stop[1] == "text_unlearned"), stop
    assert "gradient_ascent.unlearn(" in source(*stops[3])


@pytest.mark.parametrize("name", ["alpha", "beta", "npo_beta"])
def test_a_default_of_gradient_ascent_is_a_number_in_one_place(name):
    default = getattr(settings.AscentSettings, name)
    kinds = {settings.AscentSettings, gradient_ascent.UnlearnSettings, text.TextUnlearning}
    kinds |= {settings.GaRga, settings.Sande, chat.ChatRemoval}
    fields = {kind: {f.name: f for f in dataclasses.fields(kind)} for kind in kinds}
    named = "drift" if name == "beta" else name  # in chapter 05
    for kind, known in fields.items():
        field = known.get(named if kind in (settings.Sande, chat.ChatRemoval) else name)
        found = getattr(field.default, "default", field.default)
        assert found == default, kind
    stated = []
    for kind in kinds:
        file = kind.__module__.replace(".", "/") + ".py"
        for node in ast.walk(ast.parse(source(file, kind.__name__))):
            if isinstance(node, ast.AnnAssign) and node.target.id in (name, named):
                numbers = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
                stated += [kind.__name__] * (numbers[:1] == [default])
    assert stated == ["AscentSettings"]


def test_a_default_of_bi_baus_terms_is_a_number_in_one_place():
    kinds = (settings.BiBauTerms, settings.BiBau, settings.Clip, BiBauSettings, ImageDefence,
             ClipDefence)  # fmt: skip
    terms = {field.name: field.default for field in dataclasses.fields(settings.BiBauTerms)}
    others = {}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            default = getattr(field.default, "default", field.default)
            if default != terms.get(field.name, default):
                others[kind.__name__, field.name] = default
        file = kind.__module__.replace(".", "/") + ".py"
        for node in ast.walk(ast.parse(source(file, kind.__name__))):
            if isinstance(node, ast.AnnAssign) and node.target.id in terms:
                numbers = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
                assert (numbers[:1] == [terms[node.target.id]]) == (kind is kinds[0]), kind
    assert others == {("BiBauSettings", "ewc"): 0.1}  # where the Fisher is divided by its largest


def test_an_image_attack_goes_from_a_preset_to_a_table_in_eight_files():
    stops = walk("The attack `blended`, from a preset")
    files = [file for file, _ in stops]
    assert 6 <= len(files) <= 8 and len(set(files)) == len(files)
    assert "blended" in source(*stops[0]) and files[-1].startswith("minilib/book/figures/")
    text_of = {name: source(file, name) for file, name in stops}
    assert "image_scenario" in text_of["case_of"] and "victims" in text_of["start"]
    assert "make_image_trigger" in text_of["image_scenario"]
    assert "BlendTrigger" in source("minilib/attacks/images/poisoning.py", "make_image_trigger")
    assert "image_rates" in source("minilib/trials/images.py", "image_measure")
