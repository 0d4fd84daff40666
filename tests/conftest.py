"""Shared by all tests: one thread per process, a cache of their own, one set of smoke runs."""

import os
import subprocess
import sys
from pathlib import Path

import filelock
import hypothesis
import pytest
from core_fixtures import own_cache, reviews, tiny, tiny_weights  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
# `tools/`, `bench/` and the site's extensions are not installed.
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "book" / "_ext")]


# Set before torch is imported, and inherited by what tests start: two threads add up in an order
# of their own, and what a small model has learnt, or says, can show it.
THREADS = os.environ.get("MINILIB_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = THREADS
os.environ["OMP_WAIT_POLICY"] = "passive"  # one that waits takes no core from the others
# Containers often tell Python to keep no bytecode. Each of some hundred processes that tests start
# would then compile PyTorch and all that is around it anew, for several seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# jsonschema, which nbformat asks for, compiles a grammar of addresses as it is imported, for more
# than a second in each process, if JupyterLab has brought one. No check of a notebook reads it.
sys.modules.setdefault("rfc3987_syntax", None)


# UMAP is compiled anew by each process that uses it, for a quarter of a minute: one worker has all
# files that do.
TOGETHER = (
    "tests/test_golden.py", "tests/detection/test_detection.py",
    "tests/chapters/test_chapter_detection.py",
)  # fmt: skip
# The first executes a chapter from nothing, and golden numbers take longest of all files: these
# begin. The last is handed out test by test, so that the workers end together.
FIRST = ("tests/site/test_book.py", *TOGETHER)
LAST = "tests/site/test_reproducible.py"
# `make check` leaves out what builds pages or opens a browser, and what computes or executes much.
SITE = tuple(f"tests/site/test_{name}.py" for name in ("site", "book", "pages", "landing"))
SLOW = (
    "tests/test_golden.py", "tests/test_examples.py", "tests/test_package.py",
    "tests/test_registry.py::test_the_guides", "tests/runs/test_sweep.py",
    "tests/site/test_snippets.py", "tests/bench/test_bench.py", "tests/audit/test_command.py",
    "tests/test_cli.py::test_all_chapters", "tests/chapters/test_chapter_sande.py",
    "tests/chapters/test_chapter_clip.py::test_at_smoke",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """What others wait for begins, and what waits for it ends."""
    for item in items:
        if item.nodeid.startswith(SITE):
            item.add_marker(pytest.mark.site)
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: turn(item.nodeid))


def turn(nodeid: str) -> int:
    """Where a test stands: the files of FIRST in their order, then the others, LAST behind them."""
    first = [number for number, path in enumerate(FIRST) if nodeid.startswith(path)]
    return first[0] if first else len(FIRST) + nodeid.startswith(LAST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One more than cores, for many a test waits for a process; threads share the cores."""
    ours = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return max(1, (len(ours) + 1) // int(THREADS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker takes a file at a time, for its tests share trained models; of `LAST` a test."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            if nodeid.startswith(TOGETHER):
                return "together"
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
    """Models trained by tests go to a temporary folder of all workers, not to the user's cache."""
    before = os.environ.get("MINILIB_CACHE")
    os.environ["MINILIB_CACHE"] = str(of_all_workers(tmp_path_factory) / "cache")
    yield
    if before is None:
        del os.environ["MINILIB_CACHE"]
    else:
        os.environ["MINILIB_CACHE"] = before


def minilib(*words: str, **environ: str) -> subprocess.CompletedProcess:
    """The command line, from the repository root, as a person would call it."""
    return subprocess.run(
        [sys.executable, "-m", "minilib.cli", *words],
        cwd=ROOT,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def of_all_workers(tmp_path_factory) -> Path:
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def nothing(folder: Path) -> dict[str, str]:
    """Environment of a machine that has no trials and no victims yet; below `folder` it will."""
    own = {"MINILIB_LEDGER": folder / "trials", "MINILIB_CACHE": folder / "cache"}
    return {name: str(path) for name, path in own.items()} | {"MINILIB_PUBLISHED": "none"}


# Every night all chapters are executed at `smoke` from nothing, and a site is built of them; in
# between one of them is, made short, and golden numbers stand for what the others compute.
NIGHTLY = "MINILIB_NIGHTLY" in os.environ
nightly = pytest.mark.skipif(not NIGHTLY, reason="takes minutes; MINILIB_NIGHTLY=1 runs it")
SHORT = ("-p", "victim_epochs=2", "-p", "methods=ga,rga")  # of chapter 03
EVERY = tuple(sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
SMOKE = EVERY if NIGHTLY else ("03_ga_rga",)
# No test depends on the clock. By day CI draws the same examples each time, by night new ones.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ and not NIGHTLY, print_blob=True,
)  # fmt: skip
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def smoke_runs(tmp_path_factory) -> dict[str, Path]:
    """SMOKE's chapters executed at `smoke` from nothing, once a session: chapter → notebook."""
    folder = of_all_workers(tmp_path_factory) / "smoke"
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / ".lock"):  # one worker makes the runs, the others wait
        said = folder / "said"
        if not said.exists():
            common = ("--preset", "smoke", "--out", str(folder / "runs"))
            whole = ("run", "--all", *common, "--workers", "2")
            words = whole if NIGHTLY else ("run", *SMOKE, *common, *SHORT)
            done = minilib(*words, **nothing(folder))
            said.write_text(f"{done.returncode}\n{done.stdout}{done.stderr}")
    assert said.read_text().startswith("0\n"), said.read_text()
    return {path.parent.parent.name: path for path in folder.glob("runs/smoke/*/*/notebook.ipynb")}
