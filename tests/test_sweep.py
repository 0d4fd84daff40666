"""Sweeps: planning without a kernel, then real ones, through everything that can go wrong."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from fixture_book import PARAMETERS, RECORD, edit, make_book, write_chapter

from minilib import cli, engines, places, runner, runs, sweep

REPOSITORY = Path(__file__).resolve().parents[1]
WARM = sys.platform == "linux"  # how runs are made here where nothing hangs on it
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book")
    monkeypatch.chdir(root)
    return root


def call(capsys, line: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    capsys.readouterr()
    code = cli.main(line.split())
    return code, *capsys.readouterr()


def write(text: str, chapter: str = "01_fine") -> Path:
    """A sweep file of a chapter at `smoke` in the working directory."""
    file = Path("s.yml")
    file.write_text(f"chapter: {chapter}\npreset: smoke\n{text}\n")
    return file


def start(*words: str) -> subprocess.Popen:
    """A sweep as a process of its own, which a test may kill."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "minilib.cli", "sweep", *words],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(happened, seconds: float = 600) -> None:
    """Wait until something is true; a test that waits in vain fails."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def records(root: Path) -> dict[int, dict]:
    """seed → record of the smoke runs of the only chapter that ran."""
    found = map(runs.read_record, root.glob("runs/smoke/*/*/run.json"))
    return {item["params"]["seed"]: item for item in found if item}


# ---------------------------------------------------------------- what is run


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("zip: {alpha: [1, 2], seed: [3, 4]}", [(1, 3), (2, 4)]),
        ("grid: {alpha: [1, 2], seed: [3, 4]}", [(1, 3), (1, 4), (2, 3), (2, 4)]),
        ("zip: {alpha: [1, 2]}\nseeds: [3, 4]", [(1, 3), (2, 3), (1, 4), (2, 4)]),
        ("zip: {alpha: [1, 2]}\ngrid: {seed: [3, 4]}", [(1, 3), (1, 4), (2, 3), (2, 4)]),
        ("list: [{alpha: 1, seed: 3}, {alpha: 2}]", [(1, 3), (2, 0)]),
        ("base: {alpha: 5}\nseeds: [3]", [(5, 3)]),
    ],
)
def test_what_a_sweep_varies(book, text, wanted):
    planned = sweep.plan(write(text))
    assert [(job.params["alpha"], job.params["seed"]) for job in planned] == wanted
    assert planned.size == len(wanted)


@pytest.mark.parametrize(
    "text, says",
    [
        ("zip: {alpha: [1, 2], seed: [1]}", "of one length, not alpha: 2, seed: 1"),
        ("zip: {}", "zip must map"),
        ("zip: {alpha: [1]}\nlist: [{alpha: 1}]", "a zip or a list, not both"),
        ("zip: {alpha: [1]}\ngrid: {alpha: [1]}", "alpha is varied in two places"),
        ("grid: {seed: [1]}\nseeds: [1]", "seed is varied in two places"),
        ("list: [{alpha: 1}, {seed: 1}]\nseeds: [1]", "seed is varied in two places"),
        ("grid: {alpha: 3}", "at least one value"),
        ("list: {alpha: 1}", "list must hold"),
        ("grid: {seed: [0, x]}", "seed must be an int, not 'x'"),
    ],
)
def test_a_bad_sweep_is_refused(book, text, says):
    with pytest.raises(runs.UsageError, match=re.escape(says)):
        sweep.plan(write(text))


@pytest.mark.parametrize(
    "line, says",
    [
        ("s.yml --only beta=1", "no parameter 'beta'; it has alpha"),
        ("s.yml --only alpha", "--only takes NAME=VALUE, not 'alpha'"),
        ("s.yml --only seed=x", "seed must be an int, not 'x'"),
        ("s.yml --only seed=7", "no run of s.yml matches seed=7"),
        ("s.yml --workers 0", "--workers must be above 0, not 0"),
        ("s.yml --max-hours -1", "--max-hours must be above 0, not -1"),
        ("look s.yml", "sweep takes status, table or clean and a file"),
        ("none.yml", "cannot read the sweep none.yml"),
        ("s.yml --out nowhere://x", "cannot reach nowhere://x"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_and_2(book, capsys, monkeypatch, line, says):
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("a kernel was about to start"))
    write("seeds: [0, 1]")
    code, out, err = call(capsys, f"sweep {line}")
    assert (code, out) == (2, "") and err.count("\n") == 1 and says in err


def test_a_chapter_that_does_not_exist_is_refused(book, capsys):
    write("seeds: [0]", chapter="09_none")
    code, _, err = call(capsys, "sweep s.yml")
    assert code == 2 and "no chapter '09_none'" in err


def test_only_selects_values_of_the_parameters_type(book):
    file = write("grid: {alpha: [1, 2, 3], deep: [true, false]}")
    planned = sweep.plan(file, only=["alpha=1", "alpha=3.0", "deep=yes"])
    assert [job.params["alpha"] for job in planned] == [1.0, 3.0]
    assert planned.size == 2 and planned.varied == ("alpha",)


def test_planning_many_runs_keeps_a_hash_of_each_and_no_more(book):
    def peak(count: int) -> int:
        file = write(f"grid: {{alpha: {list(range(count // 10))}}}\nseeds: {list(range(10))}")
        tracemalloc.start()
        assert sweep.plan(file).size == count
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # imports
    few, many = peak(500), peak(4_500)
    assert (many - few) / 4_000 < 400, "bytes a planned run"


@pytest.mark.parametrize(
    "trained, says",
    [
        # Their seconds may be those of reading the cache.
        (0, "at least 2 min on 2 workers by 2 earlier runs, plus what they found in the cache"),
        (1, "about 2 min to 4 min on 2 workers by 2 earlier runs, 1 of which trained something"),
    ],
)
def test_an_estimate_comes_from_earlier_runs_most_like_these(book, capsys, trained, says):
    place = book / "results" / "01_fine"
    for number, (alpha, seconds) in enumerate([(5.0, 60.0), (5.0, 120.0), (9.0, 1.0)]):
        params = {"alpha": alpha, "seed": 100 + number, "deep": False, "method": "rga"}
        record = {"run_id": str(number), "status": "ok", "preset": "smoke", "params": params}
        record |= {"computed": trained} if number else {}
        runs.write_json(place / f"{number}.json", {**record, "seconds": seconds})
    write("base: {alpha: 5}\nseeds: [0, 1, 2, 3]")
    code, out, _ = call(capsys, "sweep s.yml --dry-run --workers 2")
    assert code == 0 and not (book / "runs").exists()
    assert f"4 runs, 0 exist, 0 failed, 4 missing; {says}\n" in out


# ---------------------------------------------------------------- running


def test_two_workers_make_each_run_once_and_one_table(book, capsys):
    write("grid: {alpha: [1, 3]}\nseeds: [0, 1]")
    code, out, err = call(capsys, "sweep s.yml --workers 2")
    assert code == 0, err
    assert "4 ok, 0 failed, 0 skipped" in out and out.count(": ok in") == 4
    frame = pd.read_parquet(book / "runs" / "sweeps" / "s.parquet")
    assert sorted(frame["cacc"]) == [81.0, 82.0, 83.0, 84.0] and frame["run_id"].nunique() == 4
    assert "81.50 ± 0.71 (2)" in out and "runs/sweeps/s.parquet" in out

    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "4 exist" in out and "0 ok, 0 failed, 4 skipped" in out
    code, out, _ = call(capsys, "sweep table s.yml --only alpha=3")
    assert code == 0 and "83.50 ± 0.71 (2)" in out and "81.50" not in out
    code, out, _ = call(capsys, "sweep status s.yml --only alpha=3")
    assert code == 0 and "2 runs, 2 exist, 0 failed, 0 missing" in out


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_line_for_each_worker_and_a_total(book, monkeypatch):
    write("seeds: [0, 1, 2]")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main("sweep s.yml --workers 2".split()) == 0
    pictures = terminal.getvalue().split("\x1b[3A\x1b[J")  # each replaces three lines
    assert len(pictures) > 3
    first = pictures[-1].splitlines()
    assert [line.partition(":")[0] for line in first] == ["worker 0", "worker 1", "total"]
    assert "total: 3 of 3 done, 0 failed" in pictures[-1] and "idle" in pictures[-1]
    assert any(
        re.search(r"worker 0: \[./3\] .*running …\nworker 1: \[./3\] .*running …\n", picture)
        for picture in pictures
    )


def test_a_published_run_is_there_unless_it_is_wanted_here(book, capsys):
    write("seeds: [0, 1]")
    assert call(capsys, "sweep s.yml --only seed=0")[0] == 0
    (made,) = book.glob("runs/smoke/01_fine/*/run.json")
    (book / "results" / "01_fine").mkdir(parents=True)
    made.rename(book / "results" / "01_fine" / f"{made.parent.name}.json")
    shutil.rmtree(book / "runs")  # a fresh clone

    code, out, _ = call(capsys, "sweep s.yml --dry-run")
    assert "2 runs, 0 exist, 1 published (--here makes them too), 0 failed, 1 missing" in out
    assert "seed=0: published" in out and "seed=1: to run" in out
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "1 ok, 0 failed, 1 skipped" in out and list(records(book)) == [1]
    assert sorted(pd.read_parquet("runs/sweeps/s.parquet")["cacc"]) == [80.1, 81.1]
    code, out, _ = call(capsys, "sweep s.yml --here")
    assert code == 0 and "1 ok, 0 failed, 1 skipped" in out and sorted(records(book)) == [0, 1]


def test_a_failure_is_final_until_asked_again(book, capsys):
    write("seeds: [1, 2]", chapter="02_fails")
    assert call(capsys, "sweep s.yml")[0] == 1
    assert records(book)[1]["cause"] == "chapter"
    code, out, err = call(capsys, "sweep s.yml")
    assert code == 1 and "0 ok, 1 failed, 1 skipped" in out and "--retry-failed" in err
    code, out, _ = call(capsys, "sweep status s.yml")
    assert code == 0 and "ZeroDivisionError" in out and "1 failed" in out
    code, out, err = call(capsys, "sweep s.yml --retry-failed")
    assert code == 1 and "[1/2]" in err and "ZeroDivisionError" in err

    code, out, _ = call(capsys, "sweep clean s.yml --dry-run")
    assert "1 folder would be removed" in out and len(records(book)) == 2
    code, out, _ = call(capsys, "sweep clean s.yml")
    assert code == 0 and "1 folder removed" in out and list(records(book)) == [2]


def test_time_that_is_up_starts_no_run(book, capsys):
    write("seeds: [1, 2]")
    code, out, err = call(capsys, "sweep s.yml --max-hours 1e-9")
    assert code == 3 and "time is up; 2 runs are missing; go on with: minilib sweep s.yml" in err
    assert not (book / "runs").exists()


def test_runs_on_gpus_get_one_each_and_cores_are_shared(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert engines.desks(engines.Options(runs_per_gpu=2)) == [
        {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"} for gpu in ("0", "3", "0", "3")
    ]
    assert len(engines.desks(engines.Options(workers=3))) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert engines.desks(engines.Options()) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert engines.desks(engines.Options(workers=2)) == [{}, {}]


def test_the_environment_of_a_worker_reaches_its_kernel(book, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    body = "import os\nprint('gpu', os.environ['CUDA_VISIBLE_DEVICES'], 'of', seed)"
    write_chapter(book, "01_fine", body)
    write("seeds: [0, 1]")
    assert call(capsys, "sweep s.yml")[0] == 0
    texts = [path.read_text() for path in book.glob("runs/smoke/*/*/notebook.ipynb")]
    assert {re.search(r"gpu (\d) of", text)[1] for text in texts} == {"5", "7"}


# ---------------------------------------------------------------- faults

ONCE = "import os\nfirst = not os.path.exists('once')\nopen('once', 'a').close()\n"


def test_a_killed_kernel_is_lost_and_made_again(book, capsys):
    write_chapter(book, "01_fine", ONCE + "if first and seed == 1:\n    os.kill(os.getpid(), 9)")
    write("seeds: [1, 0]")
    code, out, err = call(capsys, "sweep s.yml")
    assert code == 1 and "1 ok, 1 failed" in out and "DeadKernelError" in err
    assert records(book)[1]["cause"] == "outside"
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "1 exist, 0 failed, 1 missing" in out and "1 ok, 0 failed, 1 sk" in out


KILL_WORKER = (
    ONCE + "if first and seed == 1:\n"
    "    open('pid', 'w').write(str(os.getpid()))\n"
    "    os.kill(int(os.environ['MINILIB_RUN_DIR'].rpartition('-')[2]), 9)\n"
    "    import time\n    time.sleep(600)"
)


@LINUX
def test_a_killed_worker_takes_its_kernel_and_one_run_with_it(book, capsys):
    write_chapter(book, "01_fine", KILL_WORKER)
    write("seeds: [1, 0, 2]")
    code, out, err = call(capsys, "sweep s.yml --workers 1")
    assert code == 1 and "2 ok, 1 failed" in out and "WorkerDied: the worker ended" in err
    wait(lambda: gone(int((book / "pid").read_text())))
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "1 ok, 0 failed, 2 skipped" in out
    assert len(pd.read_parquet(book / "runs" / "sweeps" / "s.parquet")) == 3
    assert not list(book.rglob(".part-*"))


STUCK = (
    "import os, time\nopen(f'pid{seed}', 'w').write(str(os.getpid()))\n"
    "if seed and not os.path.exists('go'):\n    time.sleep(600)"
)


def pids(book: Path, *seeds: int) -> list[int]:
    """Processes of the kernels of these runs, once they are there."""
    files = [book / f"pid{seed}" for seed in seeds]
    wait(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


@LINUX
@pytest.mark.parametrize("how", ["", "--cold"])
def test_a_killed_driver_leaves_nothing_running_and_loses_only_what_ran(book, capsys, how):
    write_chapter(book, "01_fine", STUCK)
    write("seeds: [0, 1, 2]")
    driver = start("s.yml", "--workers", "2", *how.split())
    kernels = pids(book, 1, 2)
    driver.kill()
    driver.communicate()
    wait(lambda: all(map(gone, kernels)))
    assert list(records(book)) == [0]
    (book / "go").touch()
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "2 ok, 0 failed, 1 skipped" in out
    assert not list(book.rglob(".part-*"))


@LINUX
def test_an_interrupted_pool_stops_its_runs_and_says_how_to_go_on(book):
    write_chapter(book, "01_fine", STUCK)
    write("seeds: [0, 1, 2]")
    driver = start("s.yml", "--workers", "2", "--only", "seed=1", "--only", "seed=2")
    kernels = pids(book, 1, 2)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 130
    again = "minilib sweep s.yml --only seed=1 --only seed=2 --workers 2"
    assert f"stopped after 0 of 2; go on with: {again}" in err
    wait(lambda: all(map(gone, kernels)))
    assert {seed: item["status"] for seed, item in records(book).items()} == {
        1: "interrupted",
        2: "interrupted",
    }


def test_what_was_cut_off_is_made_again_and_counted_once(book, capsys):
    write("seeds: [0, 1, 2]")
    assert call(capsys, "sweep s.yml")[0] == 0
    first, second, _ = (job.folder for job in sweep.plan(Path("s.yml")))
    for path in (first / "run.json", second / "notebook.ipynb"):
        path.write_bytes(path.read_bytes()[:200])
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "2 ok, 0 failed, 1 skipped" in out
    assert sorted(pd.read_parquet("runs/sweeps/s.parquet")["cacc"]) == [80.1, 81.1, 82.1]
    assert len(runs.records(chapter="01_fine")) == 3


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_fails_the_run_and_leaves_no_half_of_a_record(book, monkeypatch):
    job = runner.plan("01_fine", "smoke")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        made = runner.run(job, WARM)
    assert (made["status"], made["cause"]) == ("failed", "outside")
    assert runner.FULL in made["error"] and job.done() is None
    names = sorted(path.name for path in job.folder.iterdir())
    assert names in ([], ["notebook.ipynb"])
    assert runner.run(job, WARM)["status"] == "ok"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few hundred kilobytes, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_sweep_stops_at_a_full_disk_and_goes_on_when_there_is_room(book, capsys, small_disk):
    write("seeds: [0, 1, 2, 3, 4]")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 236 * 1024)
    code, out, err = call(capsys, f"sweep s.yml --out {small_disk}")
    assert code == 1 and "the disk is full" in err and "go on with: minilib sweep s.yml" in err
    assert re.search("[0-4] ok, 1 failed", out)
    ballast.unlink()
    code, out, _ = call(capsys, f"sweep s.yml --out {small_disk}")
    assert code == 0 and "0 failed" in out
    assert len(list(small_disk.glob("smoke/*/*/run.json"))) == 5


@pytest.mark.parametrize("micro", ["12", "0"])
def test_memory_that_runs_out_is_tried_once_in_smaller_pieces(book, capsys, micro):
    parameters = PARAMETERS + f"batch_size: int = 16\nmicro_batch: int = {micro}\n"
    path = write_chapter(
        book,
        "01_fine",
        "if (micro_batch or batch_size) > 8:\n    raise MemoryError('too many rows')",
        parameters,
    )
    edit(
        path,
        4,
        RECORD.replace("CHAPTER", "'01_fine'").replace(
            "method=method)", "method=method, batch_size=batch_size, micro_batch=micro_batch)"
        ),
    )
    write("seeds: [0, 1]")
    code, out, err = call(capsys, "sweep s.yml")
    half = 6 if micro == "12" else 8
    assert code == 0 and out.count(f", micro_batch={half} |") == 2, err
    for made in records(book).values():
        assert made["params"]["micro_batch"] == int(micro), "a run is what was asked for"
        assert made["retried"] == {"because": "MemoryError: too many rows", "micro_batch": half}
    assert "2 exist" in call(capsys, "sweep s.yml --dry-run")[1]


def test_memory_that_runs_out_is_a_failure_where_the_batch_would_have_to_change(book, capsys):
    write_chapter(book, "01_fine", "raise RuntimeError('CUDA out of memory. Tried to …')")
    write("seeds: [0, 1]")
    code, out, err = call(capsys, "sweep s.yml")
    assert code == 1 and "2 failed" in out and "out of memory" in err
    assert records(book)[0]["cause"] == "memory" and "retried" not in records(book)[0]
    assert "2 failed" in call(capsys, "sweep s.yml")[1]


VICTIM = """\
import os, time
from minilib import cache
def train():
    with open('trained', 'a') as file:
        file.write(f'{seed} ')
    if not os.path.exists('once'):
        open('once', 'w').close()
        os.kill(os.getpid(), 9)
    time.sleep(0.5)
    return {'loss': 0.5}
cache.cached_json('victims', {'victim': 1}, train)
"""


def test_runs_that_need_the_same_victim_train_it_once(book, capsys, monkeypatch, tmp_path):
    """The second waits, also when the first is killed while it trains."""
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "victims"))
    write_chapter(book, "01_fine", VICTIM)
    monkeypatch.setenv("MINILIB_PRELOAD", os.environ["MINILIB_PRELOAD"] + " torch")
    write("seeds: [0, 1, 2]")
    driver = start("s.yml", "--workers", "3")  # with a server of its own: the cache needs PyTorch
    out, err = driver.communicate()
    assert driver.returncode == 1 and "2 ok, 1 failed" in out, err
    assert len((book / "trained").read_text().split()) == 2
    assert out.count(", 1 result new in the cache") == 1
    assert sorted(item.get("computed", -1) for item in records(book).values()) == [-1, 0, 1]
    (note,) = (tmp_path / "victims").rglob("*.json")
    note.write_text(note.read_text()[:20])  # and cut off what the other left
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 0 and "1 ok, 0 failed, 2 skipped" in out
    assert len((book / "trained").read_text().split()) == 3


# ---------------------------------------------------------------- other places


def test_runs_kept_elsewhere_are_found_again_without_the_local_copy(book, capsys, tmp_path):
    url = f"file://{tmp_path}/bucket"
    write("seeds: [0, 1]")
    code, out, err = call(capsys, f"sweep s.yml --out {url} --only seed=0")
    assert code == 0, err
    there = tmp_path / "bucket" / "smoke" / "01_fine"
    (folder,) = there.iterdir()
    assert {path.name for path in folder.iterdir()} == {"notebook.ipynb", "run.json"}
    assert (tmp_path / "bucket" / "sweeps" / "s.parquet").is_file()

    shutil.rmtree(book / "runs")  # another machine
    code, out, _ = call(capsys, f"sweep s.yml --out {url}")
    assert code == 0 and "2 runs, 1 exist" in out and "1 ok, 0 failed, 1 skipped" in out
    assert len(list(there.glob("*/run.json"))) == 2
    code, _, err = call(capsys, f"publish --preset smoke 01_fine --out {url}")
    assert code == 2 and "publish reads a folder" in err


@pytest.fixture
def bucket(monkeypatch):
    """The URL of an empty bucket on a local server that speaks S3."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("runs")
    yield "s3://runs/book"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_runs_kept_in_a_bucket_are_found_again(book, capsys, bucket):
    import s3fs

    write("seeds: [0, 1]")
    code, out, err = call(capsys, f"sweep s.yml --workers 2 --out {bucket} --only seed=0")
    assert code == 0, err
    names = {path.rpartition("/")[2] for path in s3fs.S3FileSystem().find("runs/book")}
    assert names == {"notebook.ipynb", "run.json", "s.parquet"}
    shutil.rmtree(book / "runs")
    code, out, err = call(capsys, f"sweep s.yml --out {bucket}")
    assert code == 0 and "1 exist" in out and "1 ok, 0 failed, 1 skipped" in out, err


def test_a_place_that_cannot_be_written_fails_the_run(book, monkeypatch, tmp_path):
    job = runner.plan("01_fine", "smoke", out=f"file://{tmp_path}/bucket")
    monkeypatch.setattr(places, "push", full)
    made = runner.run(job, WARM)
    assert (made["status"], made["cause"]) == ("failed", "outside")
    assert runner.plan("01_fine", "smoke", out=f"file://{tmp_path}/bucket").done() is None


# ---------------------------------------------------------------- Ray


def test_without_ray_the_command_says_how_to_get_it(book, capsys):
    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    write("seeds: [0, 1]")
    code, _, err = call(capsys, "sweep s.yml --engine ray")
    assert code == 2 and "minilib[cluster]" in err and err.count("\n") == 1


def test_the_same_sweep_through_ray(book, capsys):
    pytest.importorskip("ray")
    write("grid: {alpha: [1, 3]}\nseeds: [0, 1]")
    code, out, err = call(capsys, "sweep s.yml --engine ray --workers 2")
    assert code == 0, err
    assert "4 ok, 0 failed, 0 skipped" in out
    assert "4 exist" in call(capsys, "sweep s.yml --engine ray")[1]


def test_a_sweep_through_ray_goes_past_a_lost_run(book, capsys):
    pytest.importorskip("ray")
    write_chapter(book, "01_fine", ONCE + "if first and seed == 1:\n    os.kill(os.getpid(), 9)")
    write("seeds: [1, 0]")
    assert call(capsys, "sweep s.yml --engine ray --workers 1")[0] == 1
    assert "1 ok, 0 failed, 1 sk" in call(capsys, "sweep s.yml --engine ray")[1]


def test_the_entry_point_of_warm_kernels_is_declared():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["jupyter_client.kernel_provisioners"]
    assert points == {"minilib-warm": "minilib.warm:Provisioner"}
    assert json.dumps(project["optional-dependencies"]["cluster"]).count("ray") == 1


@LINUX
def test_workers_and_kernels_come_from_one_server(book):
    body = "import os\nopen(f'parent{seed}', 'w').write(str(os.getppid()))"
    write_chapter(book, "01_fine", body)
    write("seeds: [0, 1, 2, 3]")
    driver = start("s.yml", "--workers", "2")
    out, err = driver.communicate()
    assert driver.returncode == 0, out + err
    assert len({path.read_text() for path in book.glob("parent*")}) == 1
