"""Every key of the settings is called something on a page, and one thing alone."""

import subprocess
import sys
from typing import get_args

import pytest

from minilib import names, settings

LISTS = {
    "method": (
        *settings.METHODS, *settings.TOKEN_METHODS, *settings.REMOVALS, *settings.ASCENTS,
        *settings.IMAGE_DEFENCES, *settings.CLIP_DEFENCES,
    ),
    "attack": (
        *settings.ATTACKS, *settings.IMAGE_TRIGGERS, *settings.TRIGGERS, *settings.CLIP_ATTACKS,
    ),
    "detector": settings.DETECTOR_NAMES,
    "data set": (
        *get_args(settings.TEXT_SETS), *get_args(settings.CHAT_SETS), *settings.QUESTIONS,
        *get_args(settings.IMAGE_SETS),
    ),
    "model": ("minilm", "tiny", "distilbert", "bert", *get_args(settings.IMAGE_VICTIMS)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_every_value_of_the_settings_has_a_label(kind):
    assert {key: getattr(names.NAMES.get(key), "kind", None) for key in LISTS[kind]} == (
        dict.fromkeys(LISTS[kind], kind)
    )


def test_a_defence_of_chapter_04_has_a_label():
    assert all(key in names.NAMES for key in settings.DEFENCES)


def test_no_key_has_two_labels():
    keys = [key for labels in names.LABELS_BY_KIND.values() for key in labels]
    assert len(keys) == len(set(keys))
    assert set(names.COLOURS) <= set(keys)


def test_a_key_without_a_name_stands_for_itself():
    assert (names.label("rga"), names.label("Zorblax/7B")) == ("RGA", "Zorblax/7B")
    assert names.colour("Zorblax/7B", "0.3") == "0.3"


def test_methods_of_one_chapter_have_colours_of_their_own():
    for keys in (settings.METHODS, settings.REMOVALS, ("acc", "asr", "r_asr", "q_asr")):
        colours = [names.colour(key) for key in keys]
        assert None not in colours and len(set(colours)) == len(keys)


def test_a_colour_with_a_meaning_is_of_nothing_else():
    taken = {*names.MEANINGS.values(), *names.VERDICTS.values()} - set(names.UNLEARNED)
    for key in LISTS["method"]:
        meaning = names.STANDS_FOR.get(key)
        assert (
            names.colour(key) == names.MEANINGS[meaning]
            if meaning
            else (names.colour(key) not in taken)
        ), key


def test_labels_need_no_library():
    told = "import sys, minilib.names; print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
