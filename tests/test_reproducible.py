"""Executing the chapters a second time, beginning with an empty cache, gives the same outputs."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

# nbval compares every output of every cell, figures included. Cells that print times or the
# identity of a run carry the tag `nbval-ignore-output`; elsewhere seconds are masked.
SANITIZE = r"""
[seconds]
regex: \d+(\.\d+)? ?s(econds)?\b
replace: TIME
"""


@pytest.fixture(scope="session")
def second_cache(tmp_path_factory):
    """Empty at first; of all workers, for chapters share victims, as in the first execution."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "second-cache"


@pytest.mark.parametrize(
    "chapter", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
)
def test_a_second_execution_gives_the_same_outputs(smoke_runs, second_cache, chapter, tmp_path):
    shutil.copy(smoke_runs[chapter], tmp_path / f"{chapter}.ipynb")
    (tmp_path / "sanitize.cfg").write_text(SANITIZE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
        + ["--nbval-current-env", "--nbval-cell-timeout", "600"]
        + ["--nbval-sanitize-with", "sanitize.cfg", f"{chapter}.ipynb"],
        cwd=tmp_path,
        # Bars would show: nbval's kernel looks like a notebook that somebody watches.
        env=os.environ | {"MINILIB_CACHE": str(second_cache), "TQDM_DISABLE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
