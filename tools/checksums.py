"""Write `minilib/data/checksums.yml`: what each data set's name stands for, as digests of its rows.

    MINILIB_DATA=… python tools/checksums.py

Sets that cannot be had on this machine keep the digests that the file has for them. A digest that
changes means that a name stands for something else from now on: give that a name of its own.
"""

import os
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["MINILIB_ANY_DATA"] = "1"

from minilib.data import chat as chat_data  # noqa: E402
from minilib.data import choices, images, sources  # noqa: E402
from minilib.data import text as text_data  # noqa: E402

FILE = ROOT / "minilib" / "data" / "checksums.yml"
HEAD = "# What each data set's name stands for: digests of its rows, made by tools/checksums.py.\n"


def every():
    """Each (loader, name, splits) that the library knows."""
    for name in text_data.TEXT_CLASSES:
        yield text_data.load_text, name, text_data.SPLITS
    for name in (*images.DIGITS_ROWS, *images.MIRROR_IMAGES, *images.HUB_IMAGES):
        yield images.load_images, name, ("train", "test")
    for name in (*chat_data.MIRROR_CHAT, *chat_data.TOYS):
        yield chat_data.load_chat, name, ("train", "test")
    for name in choices.CHOICES:
        yield lambda name, split: choices.load_choices(name), name, ("test",)


def main() -> None:
    """Write the file and say what changed."""
    known = yaml.safe_load(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for load, name, splits in every():
        for split in splits:
            try:
                digest = load(name, split).sha256
            except sources.DataError as error:
                print(f"{name}/{split} is left as it is: {error}")
                continue
            before = known.setdefault(name, {}).get(split)
            known[name][split] = digest
            if before != digest:
                print(f"{name}/{split}: {before or 'new'} → {digest}")
    FILE.write_text(HEAD + yaml.safe_dump(known, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    main()
