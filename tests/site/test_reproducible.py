"""The published chapters, executed again from the published trials, show what their pages show.

Nothing is trained and no data set is read. That the trials themselves come out the same is what the
golden numbers and `minilib verify` are for.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EVERY, ROOT, nightly

pytestmark = pytest.mark.slow

# nbval compares every output of every cell. Cells that print times or where trials were made carry
# the tag `nbval-ignore-output`; elsewhere seconds are masked, and how many trials came from where.
# Figures are drawn from numbers that are compared in tables; their pixels are the machine's.
SANITIZE = r"""
[seconds]
regex: \d+(\.\d+)? ?s(econds)?\b
replace: TIME
[trials]
regex: \d+ trials?: \d+ from the ledger, \d+ computed( in TIME)?(; made on [^\n]*)?
replace: TRIALS
[pixels]
regex: iVBORw0KGgo[A-Za-z0-9+/=\n]+
replace: PIXELS
"""


# By day one chapter, with pictures of every kind; each takes twenty seconds.
BY_DAY = "06_bi_bau"
# Loaded before anything else: jsonschema compiles a grammar of addresses as it is imported, for
# seconds, if JupyterLab has brought one, and nothing here reads it.
QUICK = 'import sys\nsys.modules.setdefault("rfc3987_syntax", None)\n'


@pytest.mark.parametrize(
    "chapter", [one if one == BY_DAY else pytest.param(one, marks=nightly) for one in EVERY]
)
def test_a_published_chapter_executed_again_shows_the_same(chapter, tmp_path):
    shutil.copy(ROOT / "book" / "_executed" / f"{chapter}.ipynb", tmp_path)
    (tmp_path / "sanitize.cfg").write_text(SANITIZE)
    (tmp_path / "quick.py").write_text(QUICK)
    own = {"MINILIB_LEDGER": str(tmp_path / "trials"), "MINILIB_CACHE": str(tmp_path / "cache")}
    # Bars, and what only somebody who watches is told, would show.
    own |= {"MINILIB_DATA": "/none", "TQDM_DISABLE": "1", "MINILIB_RUN": "{}"}
    paths = filter(None, [str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH")])
    own |= {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "quick", "-p", "no:cacheprovider", "--nbval"]
        + ["--nbval-current-env", "--nbval-cell-timeout", "600"]
        + ["--nbval-sanitize-with", "sanitize.cfg", f"{chapter}.ipynb"],
        cwd=tmp_path, env=os.environ | own, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert not list(Path(own["MINILIB_LEDGER"]).rglob("*.json")), "trials were computed"
    assert not Path(own["MINILIB_CACHE"]).exists(), "something was trained"
