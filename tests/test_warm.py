"""Warm kernels: as quick to start as a fork, and as clean as a new process."""

import json
import sys

import pytest
from fixture_book import make_book, write_chapter

from minilib import runner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

# What one run can do to its process and to what it imported.
SOIL = """\
import os, sys, random, signal, warnings
import decimal, numpy, pandas
os.environ["LEAKED"] = "1"
os.environ.pop("HOME", None)
os.chdir("/")
os.umask(0o077)
sys.path.insert(0, "/leaked")
sys.modules["leaked"] = os
random.seed(0), numpy.random.seed(0)
pandas.set_option("display.max_rows", 3)
numpy.leaked = numpy.seterr(all="raise")
decimal.getcontext().prec = 3
warnings.simplefilter("error")
import builtins; builtins.leaked = 1
import minilib; minilib.leaked = 1; minilib.hello = None
leaked = 1
"""
LOOK = """\
import os, sys, random, warnings, json
import decimal, numpy, pandas
import builtins, minilib
mask = os.umask(0o022); os.umask(mask)
print("SEEN " + json.dumps({
    "env": {k: v for k, v in os.environ.items()
            if not k.startswith(("MINILIB_RUN", "JPY_", "KERNEL_", "PYTEST_"))},
    "cwd": os.getcwd(), "umask": mask, "path": sys.path, "argv": sys.argv[:1],
    "module": "leaked" in sys.modules, "rows": pandas.get_option("display.max_rows"),
    "numpy": [hasattr(numpy, "leaked"), str(numpy.geterr())], "prec": decimal.getcontext().prec,
    "filters": warnings.filters[0][0], "builtin": hasattr(builtins, "leaked"),
    "minilib": [hasattr(minilib, "leaked"), minilib.hello is None, minilib.__file__],
    "variable": "leaked" in globals(), "main": sys.modules["__main__"].__name__,
    "transport": get_ipython().kernel.parent.transport,
    "session": os.getpid() == os.getsid(0) or "cold",
}))
print("DRAWN", random.random(), numpy.random.random())
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book")
    monkeypatch.chdir(root)
    return root


def output(seed: int, warm: bool) -> str:
    """What a run of chapter 01 printed."""
    job = runner.plan("01_fine", "smoke", {"seed": seed})
    record = runner.run(job, warm=warm)
    assert record["status"] == "ok", record["error"]
    cells = json.loads((job.folder / "notebook.ipynb").read_text())["cells"]
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", []))


def seen(text: str) -> dict:
    """What a run found, as printed by `LOOK`."""
    found = json.loads(next(line for line in text.splitlines() if line[:5] == "SEEN ")[5:])
    found.pop("session")
    return found


def test_nothing_leaks_from_run_to_run_and_a_warm_kernel_looks_like_a_cold_one(book):
    write_chapter(book, "01_fine", LOOK)
    before, cold = output(1, warm=True), output(2, warm=False)
    write_chapter(book, "01_fine", SOIL)
    output(3, warm=True)
    write_chapter(book, "01_fine", LOOK)
    after = output(4, warm=True)
    assert seen(before) == seen(after) == seen(cold)
    assert seen(cold)["transport"] == "ipc", "a port may be taken before it is bound"
    drawn = [text[text.index("DRAWN") :].split()[1:3] for text in (before, after, cold)]
    assert len({number for pair in drawn for number in pair}) == 6, "every run draws its own"


def test_an_edited_library_is_what_the_next_kernel_imports(book):
    (book / "minilib").mkdir()
    (book / "minilib" / "__init__.py").write_text("started = None\nVALUE = 1\n__version__ = '0'\n")
    (book / "minilib" / "runs.py").write_text(
        "import json, os\ndef record(chapter, params, metrics, data):\n"
        "    told = dict(params=params, metrics=metrics, data=data, env={}, seconds=1.0,"
        " peak_mib=1)\n"
        "    open(os.environ['MINILIB_RUN_DIR'] + '/part.json', 'w').write(json.dumps(told))\n"
    )
    write_chapter(book, "01_fine", "import minilib\nprint('value', minilib.VALUE)")
    assert "value 1" in output(1, warm=True)
    library = book / "minilib" / "__init__.py"
    library.write_text(library.read_text().replace("VALUE = 1", "VALUE = 22"))
    assert "value 22" in output(1, warm=True)


def test_exit_functions_and_children_are_seen_to(book):
    body = (
        "import atexit, subprocess\n"
        "atexit.register(lambda: open('left', 'w').write('yes'))\n"
        "print(subprocess.run(['echo', 'a child'], capture_output=True, text=True).stdout)"
    )
    write_chapter(book, "01_fine", body)
    assert "a child" in output(1, warm=True)
    assert (book / "left").read_text() == "yes"


TORCH = """\
import os, threading
loaded = "torch" in __import__("sys").modules
import torch
print("STATE", loaded, torch.cuda.is_initialized(), torch.get_num_threads(), torch.initial_seed())
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
layer = torch.nn.Linear(64, 64)
step = torch.optim.AdamW(layer.parameters())
for _ in range(3):
    step.zero_grad()
    layer(torch.randn(256, 64)).square().mean().backward()
    step.step()
print("LOSS", layer.weight.sum().item().hex(), torch.get_default_dtype())
"""


def test_torch_in_a_forked_kernel_computes_what_it_computes_elsewhere(book, tmp_path):
    """Parallel regions after the fork work, give the same numbers, and start from fresh state."""
    import os
    import subprocess
    from pathlib import Path

    write_chapter(book, "01_fine", TORCH)
    program = (
        # Without a guard: a forked process must not execute this file again.
        "import json, os, sys; sys.path.insert(0, 'TESTS')\n"
        "from minilib import warm; warm.start('1')\n"
        "from test_warm import output\n"
        "texts = []\n"
        "for seed, (threads, how) in enumerate([('1', True), *[('2', True)] * 2, ('2', False)]):\n"
        "    os.environ['OMP_NUM_THREADS'] = threads\n"
        "    texts.append(output(seed, how))\n"
        "print(json.dumps(texts))\n"
    )
    here = Path(__file__).resolve().parent
    (tmp_path / "program.py").write_text(program.replace("TESTS", str(here)))
    told = {"MINILIB_PRELOAD": "ipykernel.kernelapp torch threadpoolctl"}
    path = os.pathsep.join(filter(None, [str(here.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, **told, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout.splitlines()[-1])
    states = [text[text.index("STATE") :].splitlines()[0].split() for text in texts]
    assert [state[1] for state in states] == [*["True"] * 3, "False"], "the server imported torch"
    assert len({state[4] for state in states}) == 4, "every run is seeded anew"
    assert [state[2] for state in states] == ["False"] * 4, "a copy must not find CUDA initialised"
    assert [state[3] for state in states] == ["1", "2", "2", "2"], "threads are the run's own"
    losses = {text[text.index("LOSS") :].splitlines()[0] for text in texts[1:]}
    assert len(losses) == 1 and "float64" in losses.pop()
