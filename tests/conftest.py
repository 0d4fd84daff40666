"""Shared by all tests: one thread per process, a cache of their own, one set of smoke runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from core_fixtures import own_cache, reviews, tiny, tiny_weights  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
# `tools/`, `bench/` and the site's extensions are not installed.
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "book" / "_ext")]


# Set before torch is imported, and inherited by what tests start: two threads add up in an order
# of their own, and what a small model has learnt, or says, can show it.
THREADS = "1"
os.environ["OMP_NUM_THREADS"] = THREADS
# Sweeps of toy chapters fork their kernels from a server that need not import PyTorch first.
os.environ.setdefault("MINILIB_PRELOAD", "ipykernel.kernelapp ipykernel.ipkernel papermill")


# The first makes the smoke runs, which takes minutes; the second needs them, so it comes last.
FIRST, LAST = "tests/test_book.py", "tests/test_reproducible.py"


def pytest_collection_modifyitems(items):
    """What others wait for begins, and what waits for it ends."""
    items.sort(key=lambda item: item.nodeid.startswith(LAST) - item.nodeid.startswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker takes a file at a time, for its tests share trained models; of `LAST` a test."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if nodeid.startswith(LAST) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _threads_stay():
    """A test that changed the number for those after it would be found out by them, not by it."""
    yield
    found, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), THREADS
    assert found == THREADS


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Models trained by tests go to a temporary folder, not to the user's cache."""
    before = os.environ.get("MINILIB_CACHE")
    os.environ["MINILIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["MINILIB_CACHE"]
    else:
        os.environ["MINILIB_CACHE"] = before


def minilib(*words: str) -> subprocess.CompletedProcess:
    """The command line, from the repository root, as a person would call it."""
    return subprocess.run(
        [sys.executable, "-m", "minilib.cli", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def smoke_runs() -> dict[str, Path]:
    """Every chapter executed at `smoke`, once a session: chapter → its executed notebook.

    They are the very runs that `make book` makes, in `runs/`; one that exists is not made again,
    for its id says that neither code nor parameters have changed.
    """
    # Two test runs may come here at the same time: one makes the runs, the other waits.
    (ROOT / "runs").mkdir(exist_ok=True)
    make = ("run", "--all", "--preset", "smoke")
    with filelock.FileLock(ROOT / "runs" / ".smoke.lock"):
        done = minilib(*make)
        assert done.returncode == 0, done.stdout + done.stderr
        found = latest()
        # `make book` may have made them, with as many threads as there are cores.
        if {threads(path) for path in found.values()} != {int(THREADS)}:
            done = minilib(*make, "--force")
            assert done.returncode == 0, done.stdout + done.stderr
            found = latest()
    return found


def latest() -> dict[str, Path]:
    """Chapter → the executed notebook of its newest run at `smoke`."""
    lines = minilib("latest", "--preset", "smoke").stdout.splitlines()
    return {chapter: ROOT / path for chapter, path in (line.split("\t") for line in lines)}


def threads(notebook: Path) -> int:
    """The number of threads that a run had."""
    record = json.loads((notebook.parent / "run.json").read_text(encoding="utf-8"))
    return record["env"]["threads"]
