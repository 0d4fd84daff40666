"""Sweeps: planning without a kernel, then real ones, through everything that can go wrong."""

import contextlib
import functools
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import toy_sweeps as toy
from conftest import NIGHTLY, nightly
from fixture_book import make_book, write_chapter

from minilib import chapters, cli, ledger, provenance
from minilib.provenance import UsageError
from minilib.runs import engines, execute, storage, sweep

HERE = Path(toy.__file__).resolve().parent
DRIVER = [sys.executable, str(HERE / "toy_driver.py"), "sweep"]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with a toy chapter whose trials are toys, and a ledger of its own."""
    root = make_book(tmp_path / "book")
    write_chapter(root, toy.CHAPTER, toy.BODY)
    with open(root / "presets" / "smoke.yml", "a") as presets:
        presets.write(f"{toy.CHAPTER}: {{}}\n")
    (tmp_path / "toy").mkdir()
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
    monkeypatch.setenv("TOY", str(tmp_path / "toy"))
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_PUBLISHED", "none")
    monkeypatch.setitem(chapters.CHAPTERS, toy.CHAPTER, "toy_sweeps")
    monkeypatch.setitem(sys.modules, "minilib.chapters.toy_sweeps", toy)
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
    return subprocess.Popen(
        [*DRIVER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# On a busy machine ipykernel may find its own socket closed while it is shut down, and says so.
SHUT_DOWN = re.compile(r"ERROR:tornado\.general:.*?zmq\.error\.ZMQError: [^\n]*\n", re.DOTALL)


def swept(*words: str, code: int = 0) -> tuple[str, str]:
    """Standard output and error of a sweep of the toy chapter, whose exit code is as expected."""
    driver = start(toy.CHAPTER, "--preset", "smoke", *words)
    out, err = driver.communicate()
    assert driver.returncode == code, out + err
    return out, SHUT_DOWN.sub("", err)


def log(*words: str) -> list[str]:
    """What stands in the toys' log after these words."""
    head = " ".join(words) + " "
    file = Path(os.environ["TOY"], "log")
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.removeprefix(head) for line in lines if line.startswith(head)]


def kept() -> set[str]:
    """Keys of the trials in the local tier, each of which can be read whole."""
    files = sorted((ledger.local_folder() / "swept").glob("*.json"))
    assert all(ledger._local("swept", file.stem) for file in files)
    return {file.stem for file in files}


def wait(happened) -> None:
    """Wait until something is true."""
    while not happened():
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def stuck() -> list[int]:
    """Processes in which something waits for a file `go`."""
    return [int(path.name[3:]) for path in Path(os.environ["TOY"]).glob("pid*")]


def records(root: Path) -> list[dict]:
    """Records of the runs at `smoke`."""
    return [provenance.read_json(path) for path in root.glob("runs/smoke/*/*/run.json")]


# ---------------------------------------------------------------- what is run


@pytest.mark.parametrize(
    "text, runs",
    [
        ("zip: {alpha: [1, 2], seed: [3, 4]}", [(1, 3), (2, 4)]),
        ("grid: {alpha: [1, 2], seed: [3, 4]}", [(1, 3), (1, 4), (2, 3), (2, 4)]),
        ("zip: {alpha: [1, 2]}\nseeds: [3, 4]", [(1, 3), (2, 3), (1, 4), (2, 4)]),
        ("zip: {alpha: [1, 2]}\ngrid: {seed: [3, 4]}", [(1, 3), (1, 4), (2, 3), (2, 4)]),
        ("list: [{alpha: 1, seed: 3}, {alpha: 2}]", [(1, 3), (2, 0)]),
        ("base: {alpha: 5}\nseeds: [3]", [(5, 3)]),
        ("grid: {alpha: {range: [1, 2, 0.5]}}", [(1, 0), (1.5, 0), (2, 0)]),
        ("zip: {alpha: {log: [0.01, 1, 3]}, seed: {range: [4, 6]}}", [(0.01, 4), (0.1, 5), (1, 6)]),
        ("grid: {alpha: [1, 2]}\nsample: {runs: 9, seed: 0}", [(1, 0), (2, 0)]),
    ],
)
def test_what_a_sweep_varies(book, text, runs):
    planned = sweep.plan(write(text))
    assert [(job.params["alpha"], job.params["seed"]) for job in planned] == runs
    assert planned.size == len(runs)


def test_a_sample_is_drawn_from_the_whole_grid_and_is_the_same_again(book):
    text = "grid: {{alpha: {{range: [1, 900]}}, deep: [true, false]}}\nseeds: [0, 1]\n"
    file = write(text.format() + "sample: {runs: 20, seed: 5}")
    points = [(job.params["seed"], job.params["alpha"], job.params["deep"])
              for job in sweep.plan(file)]  # fmt: skip
    assert len(points) == len(set(points)) == 40
    assert [point[1:] for point in points[:20]] == [point[1:] for point in points[20:]]
    assert points == [(job.params["seed"], job.params["alpha"], job.params["deep"])
                      for job in sweep.plan(file)]  # fmt: skip
    grid = {"base": {}, "grid": {"a": [1, 2, 3], "b": "xy"}}
    every = [(1, "x"), (1, "y"), (2, "x"), (2, "y"), (3, "x"), (3, "y")]
    assert [tuple(point.values()) for point in sweep.combinations(grid)] == every


@pytest.mark.parametrize(
    "text, says",
    [
        ("zip: {alpha: [1, 2], seed: [1]}", "of one length, not {'alpha': 2, 'seed': 1}"),
        ("zip: {}", "zip: Dictionary should have at least 1 item"),
        ("zip: {alpha: [1]}\nlist: [{alpha: 1}]", "a grid and a zip, or a list, not both"),
        ("zip: {alpha: [1]}\ngrid: {alpha: [1]}", "alpha is varied in two places"),
        ("grid: {seed: [1]}\nseeds: [1]", "seed is varied in two places"),
        ("list: [{alpha: 1}, {seed: 1}]\nseeds: [1]", "seed is varied in two places"),
        (
            "grid: {alpha: 3}",
            "grid.alpha: 3 is no list; accepted: [1, 2], or {range: [first, last]",
        ),
        ("grid: {alpha: []}", "grid.alpha: List should have at least 1 item"),
        ("list: {alpha: 1}", "list: Input should be a valid list"),
        ("base: 3", "base: Input should be a valid dictionary"),
        ("gird: {alpha: [1]}", "gird: Extra inputs are not permitted"),
        ("grid: {seed: [0, x]}", "seed must be an int, not 'x'"),
        ("grid: {alpha: [1, 1.0]}", "two runs are equal"),
        ("grid: {alpha: {range: [1]}}", "grid.alpha: range is [1]; accepted: [first, last]"),
        ("grid: {alpha: {range: [1, 2, 0]}}", "which names no value, or too many"),
        ("grid: {alpha: {range: [0, 1000000000]}}", "which names no value, or too many"),
        ("grid: {alpha: {log: [0, 1, 3]}}", "which names no value, or too many"),
        (
            "grid: {alpha: {log: [1, .inf, 3]}}",
            "accepted: [first, last, count]",
        ),
        ("sample: {runs: 0, seed: 0}", "sample.runs: Input should be greater than"),
        ("grid: {alpha: {range: [1, 999]}, seed: {range: [1, 999]}}", "a sweep of 998001 runs"),
    ],
)
def test_a_bad_sweep_is_refused(book, text, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        sweep.plan(write(text))


def test_a_file_that_names_no_chapter_is_refused(book):
    Path("s.yml").write_text("grid: {alpha: [1]}\n")
    with pytest.raises(UsageError, match="s.yml: chapter: Field required"):
        sweep.plan("s.yml")


@pytest.mark.parametrize(
    "line, says",
    [
        ("s.yml --only beta=1", "no parameter 'beta'; parameters are alpha"),
        ("s.yml --only alpha", "--only takes NAME=VALUE, not 'alpha'"),
        ("s.yml --only seed=x", "seed must be an int, not 'x'"),
        ("s.yml --only seed=7", "no run of s.yml matches seed=7"),
        ("s.yml --workers 0", "--workers must be above 0, not 0"),
        ("s.yml --max-hours -1", "--max-hours must be above 0, not -1"),
        ("s.yml --seeds 3-1", "seeds must be like 0-9 or 0,2,5-7, each named once, not '3-1'"),
        ("s.yml -p seed=1", "seed is varied in two places"),
        ("look s.yml", "sweep takes status, table or clean and a file"),
        ("none.yml", "cannot read none.yml"),
        ("01_fine --seeds 0-1", "01_fine is no sweep file (*.yml); a chapter needs a --preset"),
        ("09_none --preset smoke", "no chapter '09_none'"),
        ("s.yml --out nowhere://x", "cannot reach nowhere://x"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_and_2(book, capsys, monkeypatch, line, says):
    monkeypatch.setattr(engines, "perform", lambda *_: pytest.fail("something was about to start"))
    write("seeds: [0, 1]")
    code, out, err = call(capsys, f"sweep {line}")
    assert (code, out) == (2, "") and err.count("\n") == 1 and says in err


def test_nobody_answering_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for text in (address, f"ray://{address}"):
            with pytest.raises(UsageError, match=f"nobody answers at --address {text}"):
                engines._answers(text)


@pytest.mark.parametrize(
    "does, says",
    [
        ("while True: pass", "no cluster answers at --address auto within 2 s"),
        (
            "raise ConnectionError('no\\nnode')",
            "could not be started at --address auto: no node",
        ),
        ("print('joined')", None),
    ],
)
def test_a_cluster_is_joined_by_a_process_that_can_be_ended(tmp_path, monkeypatch, does, says):
    (tmp_path / "ray.py").write_text(f"def init(**_):\n    {does}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    expected = pytest.raises(UsageError, match=says) if says else contextlib.nullcontext()
    with expected:
        engines._answers("auto", join_seconds=2 if says and "within" in says else 600)


def test_a_trial_that_takes_too_long_has_failed_by_itself(book, monkeypatch):
    monkeypatch.setattr(ledger, "get", lambda one: time.sleep(3600))
    outcome = engines.perform(some(1, 1)[0], time_limit=0.001)
    assert outcome.cause == "itself" and "longer than --time-limit 0.001 min" in outcome.error


def test_status_is_told_to_programs(book, capsys):
    code, out, err = call(capsys, f"sweep status {toy.CHAPTER} --preset smoke --seeds 0-1 --json")
    told = json.loads(out)
    assert code == 0 and (told["runs"], told["trials"]) == (2, 6) and len(told["missing"]) == 6
    assert "6 missing" in err


@pytest.mark.parametrize(
    "text, seeds",
    [("0-3", [0, 1, 2, 3]), ("7", [7]), ("0,2, 5-7", [0, 2, 5, 6, 7]), ("4-4", [4])],
)
def test_seeds_as_a_person_writes_them(text, seeds):
    assert sweep.seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "0,0", "0-3,2", "1.5", "0-9-12"])
def test_seeds_that_are_none(text):
    with pytest.raises(UsageError, match="seeds must be like"):
        sweep.seeds_of(text)


def test_seeds_and_a_preset_come_before_those_of_the_file(book):
    shutil.copy("presets/smoke.yml", "presets/small.yml")
    planned = sweep.plan(write("grid: {alpha: [1, 2]}\nseeds: [5]"), seeds="0-1", preset="small")
    assert [job.params["seed"] for job in planned] == [0, 0, 1, 1]
    assert {job.preset for job in planned} == {"small"}


def test_a_chapter_can_be_swept_without_a_file(book):
    planned = sweep.plan("01_fine", preset="smoke", base={"alpha": "3"}, seeds="0-9")
    assert (planned.size, planned.varied) == (10, ("seed",))
    assert {job.params["alpha"] for job in planned} == {3.0}
    assert sweep.plan("notebooks/01_fine.ipynb", preset="smoke").size == 1


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


# ---------------------------------------------------------------- what comes next


def victims(*works) -> list[tuple[int, int]]:
    return [(work.victim.seed, work.number) for work in works]


def some(seeds: int, each: int) -> list[toy.Swept]:
    """Trials in the order of their numbers, so that victims take turns."""
    return [toy.Swept(victim=toy.SweptVictim(seed=seed), number=number)
            for number in range(each) for seed in range(seeds)]  # fmt: skip


def test_a_worker_stays_with_its_victim_and_others_take_another(book):
    queue = engines.Queue(some(3, 3))
    first, second = queue.take(), queue.take()
    assert victims(first, second) == [(0, 0), (1, 0)]  # nobody waits for the first's victim
    queue.over(first, engines.Outcome())
    third = queue.take(first)
    assert victims(third) == [(0, 1)]
    assert victims(queue.take(), queue.take(), queue.take()) == [(0, 2), (2, 0), (1, 1)]


def test_where_all_wait_for_one_victim_work_is_handed_out_all_the_same(book):
    queue = engines.Queue(some(1, 3))
    assert victims(queue.take(), queue.take(), queue.take()) == [(0, 0), (0, 1), (0, 2)]
    assert queue.take() is None


def test_what_another_process_is_at_comes_last(book):
    work = some(1, 3)
    with ledger.locked(ledger.local_folder() / "swept", ledger.key_of(work[0])):
        assert engines.busy(work[0]) and not engines.busy(work[1])
        queue = engines.Queue(work)
        assert victims(queue.take(), queue.take(), queue.take()) == [(0, 1), (0, 2), (0, 0)]
    assert not engines.busy(work[0])


def test_lost_work_is_tried_once_more_and_at_once(book):
    queue = engines.Queue(some(2, 2))
    lost = engines.Outcome("killed", "lost")
    work = queue.take()
    assert queue.over(work, lost) is False and queue.take() == work
    assert queue.over(work, lost) is True and queue.take() != work


def test_time_that_is_up_hands_out_nothing(book):
    queue = engines.Queue(some(1, 1), until=0.0)
    assert queue.take() is None and queue.stopped == "time is up"


def test_trials_on_gpus_get_one_each_and_cores_are_shared(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    names = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"

    def found(**options) -> list[tuple]:
        every = engines.environments(engines.Options(**options))
        return [tuple(one.get(name) for name in names) for one in every]

    assert found(per_gpu=2) == [("0", "2"), ("3", "2"), ("0", "2"), ("3", "2")]
    assert len(found(workers=3)) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert found() == [(None, None)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert found(workers=2) == [(None, None), (None, None)]


# ---------------------------------------------------------------- what is said


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def fed(outcomes: list[engines.Outcome], stderr, monkeypatch) -> tuple[set, str, engines.Queue]:
    """What is said of an engine whose trials come to this; the queue, too."""
    queue = engines.Queue(some(1, len(outcomes)))

    def engine(queue, options):
        for outcome in outcomes:
            if (work := queue.take()) is None:
                return
            yield work, outcome

    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", out)
    done = sweep.feed(engine, queue, engines.Options(), lambda work: f"trial {work.number}")
    return done, out.getvalue(), queue


OK = engines.Outcome()
BAD = engines.Outcome("ValueError: odd", "itself")


def test_a_terminal_shows_a_bar_and_what_failed(book, monkeypatch):
    terminal = Terminal()
    done, out, _ = fed([OK, BAD, OK], terminal, monkeypatch)
    assert len(done) == 2 and out == ""
    text = terminal.getvalue()
    assert "3/3" in text and "1 failed" in text
    assert re.search(r"trial 1: ValueError: odd; its recipe: \{.*\} \| 2 of 3, 1 failed", text)


def test_a_log_has_a_line_for_each_trial(book, monkeypatch):
    done, out, _ = fed([OK, BAD, OK], io.StringIO(), monkeypatch)
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["trial 0", "trial 2"]
    assert re.fullmatch(r"trial 0: ok in 0 s \| 1 of 3, 0 failed, \d+ s left", lines[0])


@pytest.mark.parametrize("cause", ["outside", "lost"])
def test_five_in_a_row_that_the_machine_failed_are_enough(book, monkeypatch, cause):
    outcomes = [BAD, *[engines.Outcome("gone", cause)] * 9]
    done, _, queue = fed(outcomes, io.StringIO(), monkeypatch)
    assert done == set() and queue.stopped == "5 failed in a row, and not by themselves"
    assert len(queue.waiting) == 4


def test_what_stops_everything_stops_it(book, monkeypatch):
    refused = engines.Outcome("there is no Jupyter kernel", "refused")
    *_, queue = fed([OK, refused, OK], io.StringIO(), monkeypatch)
    assert queue.stopped == "there is no Jupyter kernel" and len(queue.waiting) == 1


def test_an_estimate_comes_from_trials_of_the_same_kind(book, capsys):
    def timed(one, seconds: float) -> None:
        ledger.get(one)
        path = ledger.local_folder() / "swept" / f"{ledger.key_of(one)}.json"
        provenance.write_json(path, provenance.read_json(path) | {"seconds": seconds})

    victim = toy.SweptVictim(seed=9)
    line = f"sweep status {toy.CHAPTER} --preset smoke --seeds 0-1"
    _, out, _ = call(capsys, line)
    assert "6 missing; no trial in the ledger tells how long 6 of them take\n" in out
    for number, seconds in enumerate((60.0, 120.0)):  # the same but for seeds
        timed(toy.Swept(victim=victim, number=number), seconds)
    timed(toy.Swept(victim=victim, number=7), 600.0)  # 120 s is the median of all
    assert not toy.said("begin")
    _, out, _ = call(capsys, line + " --workers 2")
    assert "2 runs, 0 executed; 6 trials: 0 in the ledger, 0 failed, 6 missing; " in out
    assert "; about 5 min on 2 workers\n" in out  # twice 60, 120 and 120
    assert out.count(": to do") == 8 and log("notebook") == []


def test_an_estimate_is_not_of_other_data(book):
    """A toy sweep was told hours, which its kind takes of real data."""
    from toy_trials import ToyData, ToyUnlearning, ToyVictim

    def of(dataset: str, alpha: float) -> ToyUnlearning:
        victim = ToyVictim(data=ToyData(dataset=dataset))
        return ToyUnlearning(victim=victim, method="rga", alpha=alpha)

    known = of("real", 1.0)
    ledger.get(known)
    path = ledger.local_folder() / "toy_unlearning" / f"{ledger.key_of(known)}.json"
    provenance.write_json(path, provenance.read_json(path) | {"seconds": 3600.0})
    assert sweep.estimate([of("real", 2.0), of("toy", 1.0), of("toy", 2.0)]) == (3600.0, 2)


# ---------------------------------------------------------------- running


def test_trials_are_computed_once_and_read_by_the_notebooks(book):
    out, err = swept("--seeds", "0-1", "--workers", "2", "-p", "alpha=3")
    assert out.count(": ok in") == 8 and err == ""
    assert "6 trials computed, 0 lacking; 2 notebooks executed, 0 lacking" in out
    assert sorted(log("notebook")) == ["0", "1"] and len(log("begin")) == len(kept()) == 6
    assert sorted(log("victim")) == ["0", "1"]
    assert [record["computed"] for record in records(book)] == [0, 0]
    assert out.count("85.50 ± 0.71 (2)") == 3  # the last epoch's, over seeds
    frame = pd.read_parquet(book / "runs" / "sweeps" / f"{toy.CHAPTER}.parquet")
    assert len(frame) == 12 and frame["key"].nunique() == 6

    out, _ = swept("--seeds", "0-2", "--workers", "2", "-p", "alpha=3", "--no-notebooks")
    assert "3 runs, 2 executed; 9 trials: 6 in the ledger, 0 failed, 3 missing; about" in out
    assert "3 trials computed, 0 lacking; 0 notebooks executed" in out
    assert len(log("begin")) == 9 and len(log("notebook")) == 2


def test_a_file_is_swept_and_its_table_can_be_had_again(book, capsys):
    write("grid: {alpha: [1, 3]}\nseeds: [0, 1]", chapter=toy.CHAPTER)
    for job in sweep.plan("s.yml"):
        for one in job.recipes():
            ledger.get(one)
    code, out, _ = call(capsys, "sweep table s.yml --only alpha=3")
    assert code == 0 and "85.50 ± 0.71 (2)" in out and "83.50" not in out
    assert "table of 6 trials: runs/sweeps/s.parquet" in out
    _, out, _ = call(capsys, "sweep table s.yml")
    assert "83.50 ± 0.71 (2)" in out and re.search(r"alpha +number", out)
    code, out, _ = call(capsys, "sweep s.yml --dry-run")
    assert code == 0 and out.count(": to do") == 4 and not list(book.glob("runs/smoke"))
    assert "4 runs, 0 executed; 12 trials: 12 in the ledger, 0 failed, 0 missing\n" in out


def test_a_trial_that_fails_is_told_with_its_recipe_and_final_until_asked_again(book):
    words = "--seeds", "0-1", "-p", "method=fails", "--workers", "2"
    out, err = swept(*words, code=1)
    assert out.count(": ok in") == 4 and err.count("\n") == 2
    (line,) = [line for line in err.splitlines() if '"seed": 0' in line]
    assert "swept " in line and "ValueError: the number is odd; accepted: even ones;" in line
    assert json.loads(re.search(r"its recipe: (\{.*\}) \|", line)[1])["number"] == 1
    assert "4 trials computed, 2 lacking; 0 notebooks executed, 2 lacking" in out
    out, err = swept(*words, code=1)
    assert "4 in the ledger, 2 failed, 0 missing" in out and "--retry-failed" in err
    assert len(log("begin")) == 6
    (Path(os.environ["TOY"]) / "mended").touch()
    out, err = swept(*words, "--retry-failed", "--no-notebooks")
    assert "2 trials computed, 0 lacking" in out and err == "" and len(kept()) == 6
    assert not list(ledger.local_folder().rglob("*.failed"))


def test_clean_forgets_failures_and_remains(book, capsys):
    line = f"sweep clean {toy.CHAPTER} --preset smoke -p method=fails"
    swept("-p", "method=fails", code=1)
    (job,) = sweep.plan(toy.CHAPTER, preset="smoke", base={"method": "fails"})
    left = execute.blank(job) | {"status": "interrupted", "error": "stopped by a signal"}
    provenance.write_json(job.folder / "run.json", left)
    assert "1 failed trial, 1 folder would be removed" in call(capsys, f"{line} --dry-run")[1]
    assert "1 failed trial, 1 folder removed" in call(capsys, line)[1]
    assert "0 failed trials, 0 folders removed" in call(capsys, line)[1]
    status = line.replace("clean", "status")
    assert "2 in the ledger, 0 failed, 1 missing" in call(capsys, status)[1]


STATUS = f"sweep status {toy.CHAPTER} --preset smoke -p method="


def test_memory_that_runs_out_is_named(book, capsys):
    out, err = swept("-p", "method=memory", code=1)
    assert "out of memory, fewer --workers leave more to each: CUDA out of memory" in err
    assert "2 trials computed, 1 lacking" in out and "batch" not in err
    out = call(capsys, f"{STATUS}memory")[1]
    assert ": out of memory, fewer --workers" in out and "1 failed, 0 missing" in out


@pytest.fixture
def little_memory():
    """What a process calls to have 600 MiB with its children, where memory can be limited."""
    group = Path(f"/sys/fs/cgroup/memory/minilib-{os.getpid()}")
    try:
        group.mkdir()
        for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            (group / name).write_text(str(600 * 2**20))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("memory cannot be limited here")
    yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    while left := (group / "cgroup.procs").read_text().split():
        for pid in map(int, left):  # of a sweep that did not end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    group.rmdir()


@pytest.mark.parametrize("method", ["eats", pytest.param("eats in the notebook", marks=nightly)])
def test_what_the_system_kills_where_memory_runs_out_is_named_and_final(
    book, little_memory, method
):
    words = [*DRIVER, toy.CHAPTER, "--preset", "smoke", "-p", f"method={method}"]
    first, again = (
        subprocess.run(words, preexec_fn=little_memory, capture_output=True, text=True)
        for _ in range(2)
    )
    assert first.returncode == again.returncode == 1, first.stdout + first.stderr
    assert "memory ran out" in first.stderr and "Traceback" not in first.stderr
    planned = sweep.plan(toy.CHAPTER, preset="smoke", base={"method": method})
    assert sweep.survey(planned).final and "memory ran out" not in again.stderr
    assert len(log("begin")) == 3 and len(kept()) == 2 + (method != "eats")
    assert log("notebook") == ["0"] * (method != "eats")


def test_work_goes_on_without_what_windows_lacks(book, monkeypatch):
    def sends_ctrl_c(pid, number):
        raise AssertionError(f"os.kill({pid}, {number})")

    monkeypatch.setattr(os, "kill", sends_ctrl_c)
    for owner, names in ((os, ("setsid", "sched_getaffinity", "ttyname")),
                         (signal, ("SIGALRM", "setitimer"))):  # fmt: skip
        for name in names:
            monkeypatch.delattr(owner, name)
    monkeypatch.setitem(sys.modules, "resource", None)
    work = some(1, 2)
    with ledger.locked(ledger.local_folder() / "swept", ledger.key_of(work[0])):
        assert engines.busy(work[0])
    assert engines.perform(work[0], time_limit=1.0).error is None
    assert ledger.look(work[0]).peak_mib is None and engines.cores() >= 1
    assert execute.oom_kills() >= 0 and engines.environments(engines.Options(workers=2))


def test_a_missing_data_set_is_no_fault_of_the_trial(book, capsys):
    assert "DataError: no sst2; set MINILIB_DATA" in swept("-p", "method=no-data", code=1)[1]
    out = call(capsys, f"{STATUS}no-data")[1]  # counted as the sweep counted it
    assert "1 failed, 0 missing; 1 of those that failed did not by themselves" in out
    planned = sweep.plan(toy.CHAPTER, preset="smoke", base={"method": "no-data"})
    assert len(sweep.survey(planned).todo(retry_failed=False)[0]) == 1


def test_a_notebook_that_fails_is_told_and_final(book, capsys):
    out, err = swept("-p", "method=fails-in-the-notebook", code=1)
    assert "3 trials computed, 0 lacking; 0 notebooks executed, 1 lacking" in out
    assert "ZeroDivisionError: division by zero (cell 3); see runs/smoke/" in err
    assert (
        ": ZeroDivisionError: division by zero\n"
        in call(capsys, f"{STATUS}fails-in-the-notebook")[1]
    )
    planned = sweep.plan(toy.CHAPTER, preset="smoke", base={"method": "fails-in-the-notebook"})
    assert sweep.survey(planned).todo(retry_failed=False) == ([], []) and log("notebook") == ["0"]


# ---------------------------------------------------------------- faults


def test_a_killed_worker_loses_nothing(book):
    out, err = swept("--seeds", "0-1", "-p", "method=killed once", "--no-notebooks")
    assert "6 trials computed, 0 lacking" in out and err == ""
    assert Counter(Counter(log("begin")).values()) == {1: 4, 2: 2}


def test_a_trial_whose_worker_is_always_killed_is_tried_twice_and_named(book):
    words = "-p", "method=killed", "--workers", "2", "--no-notebooks"
    out, err = swept(*words, code=1)
    assert "2 trials computed, 1 lacking" in out and err.count("\n") == 1
    assert "its process was killed, as the system does where memory runs out; its recipe" in err
    assert max(Counter(log("begin")).values()) == 2
    swept(*words, code=1)  # not its own fault, so another call tries again
    assert max(Counter(log("begin")).values()) == 4 and len(log("begin")) == 6


def test_random_kills_lose_nothing_and_compute_nothing_twice(book):
    draw, kills, block, driver = random.Random(0), 0, 0, None

    def begin() -> subprocess.Popen:
        return subprocess.Popen(
            [*DRIVER, toy.CHAPTER, "--preset", "smoke", "--seeds", f"0-{10 * block + 9}",
             "-p", "deep=yes", "--workers", "2", "--no-notebooks"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    while kills < (50 if NIGHTLY else 6):
        if driver is None:
            driver, before = begin(), len(log("begin"))
            if draw.random() < 0.8:  # else it may be killed before it has begun
                wait(lambda: len(log("begin")) > before or driver.poll() is not None)  # noqa: B023
        time.sleep(draw.random() / 2)
        if driver.poll() is not None:
            assert driver.returncode in (0, 1)
            block, driver = block + (driver.returncode == 0), None
            continue
        workers = psutil.Process(driver.pid).children(recursive=True)
        victim = draw.choice([driver.pid, *(one.pid for one in workers)])
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            kills += 1
        if victim == driver.pid:
            driver.wait()
            driver = None
    if driver is not None:
        driver.wait()
    assert begin().wait() == 0
    planned = sweep.plan(
        toy.CHAPTER, preset="smoke", base={"deep": "yes"}, seeds=f"0-{10 * block + 9}"
    )
    assert kept() == {ledger.key_of(one) for job in planned for one in job.recipes()}
    assert log("twice") == log("together") == []
    # What was computed to its end and kept was not begun again; a kill may fall between the two.
    assert len(log("end")) - len(kept()) <= kills


def test_two_sweeps_at_once_share_the_work(book):
    words = toy.CHAPTER, "--preset", "smoke", "--seeds", "0-1", "-p", "deep=yes", "--workers", "2"
    both = [start(*words), start(*words)]
    for driver in both:
        out, err = driver.communicate()
        assert driver.returncode == 0, out + err
        assert "0 lacking; 2 notebooks executed, 0 lacking" in out
    assert len(kept()) == len(log("begin")) == len(log("end")) == 6
    assert sorted(log("victim")) == sorted(log("notebook")) == ["0", "1"]


def test_a_killed_driver_leaves_nothing_running(book):
    driver = start(toy.CHAPTER, "--preset", "smoke", "-p", "method=slow", "--workers", "3")
    wait(stuck)
    driver.kill()
    driver.communicate()
    wait(lambda: all(map(gone, stuck())))
    Path(os.environ["TOY"], "go").touch()
    swept("-p", "method=slow", "--no-notebooks")
    assert len(kept()) == 3 and log("twice") == []


@pytest.mark.parametrize("method", ["slow", pytest.param("slow notebook", marks=nightly)])
def test_an_interrupted_sweep_stops_and_goes_on(book, method):
    driver = start(toy.CHAPTER, "--preset", "smoke", "-p", f"method={method}", "--workers", "2")
    wait(stuck)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate()
    assert driver.returncode == 130, err
    assert "stopped; what is done stays done, and the same command goes on\n" in err
    wait(lambda: all(map(gone, stuck())))
    assert [item["status"] for item in records(book)] == ["interrupted"] * ("notebook" in method)
    assert not list(book.rglob(".part-*"))
    Path(os.environ["TOY"], "go").touch()
    out, _ = swept("-p", f"method={method}", "--workers", "2")
    assert "1 notebook executed, 0 lacking" in out
    assert len(kept()) == 3 and log("twice") == log("together") == []


def test_time_that_is_up_begins_nothing(book):
    _, err = swept("--max-hours", "1e-9", code=3)
    assert "time is up; the same command goes on" in err
    assert log("begin") == [] and not kept()


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_stops_the_sweep_in_one_line(book, monkeypatch):
    work = toy.Swept(victim=toy.SweptVictim(seed=0), number=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = engines.perform(work)
    assert outcome.cause == "refused" and "\n" not in outcome.error
    assert outcome.error.endswith("is not kept: No space left on device")
    assert not kept() and engines.perform(work).error is None and kept()


def test_a_folder_that_cannot_be_written_stops_the_sweep_in_one_line(book, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "file" / "trials"))
    out, err = swept("--seeds", "0-3", code=1)
    first, last = err.splitlines()
    assert "trials cannot be kept in" in first and "set MINILIB_LEDGER to a folder" in first
    assert last.endswith("; the same command goes on") and log("begin") == []


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


def test_a_sweep_goes_on_when_there_is_room_again(book, monkeypatch, small_disk):
    monkeypatch.setenv("MINILIB_LEDGER", str(small_disk))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 240 * 1024)
    words = "--seeds", "0-4", "--no-notebooks"
    _, err = swept(*words, code=1)
    assert err.splitlines()[-1].endswith("No space left on device; the same command goes on")
    ballast.unlink()
    swept(*words)
    assert len(kept()) == 15 and log("twice") == []


# ---------------------------------------------------------------- other places


def test_runs_kept_elsewhere_are_found_again_without_the_local_copy(book, capsys, tmp_path):
    url = f"file://{tmp_path}/bucket"
    swept("--out", url, "--seeds", "0")
    there = tmp_path / "bucket" / "smoke" / toy.CHAPTER
    (folder,) = there.iterdir()
    assert {path.name for path in folder.iterdir()} == {"notebook.ipynb", "run.json"}
    assert (tmp_path / "bucket" / "sweeps" / f"{toy.CHAPTER}.parquet").is_file()
    shutil.rmtree(book / "runs")  # another machine
    line = f"sweep status {toy.CHAPTER} --preset smoke --seeds 0-1 --out {url}"
    assert "2 runs, 1 executed; 6 trials: 3 in the ledger" in call(capsys, line)[1]


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


@nightly  # by day a folder stands for the bucket
def test_runs_kept_in_a_bucket_are_found_again(book, capsys, bucket):
    import s3fs

    swept("--out", bucket)
    names = {path.rpartition("/")[2] for path in s3fs.S3FileSystem().find("runs/book")}
    assert names == {"notebook.ipynb", "run.json", f"{toy.CHAPTER}.parquet"}
    shutil.rmtree(book / "runs")
    line = f"sweep status {toy.CHAPTER} --preset smoke --out {bucket}"
    assert "1 run, 1 executed" in call(capsys, line)[1]


def test_a_run_is_kept_where_its_store_does_not_answer_and_sent_later(book, monkeypatch, tmp_path):
    url = f"file://{tmp_path}/bucket"
    job = execute.plan("01_fine", "smoke", out=url)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "push", full)
        with pytest.warns(UserWarning, match="and not sent: .*No space left"):
            assert execute.run(job)["status"] == "ok"
        with pytest.raises(UsageError, match="cannot reach"):
            execute.plan("01_fine", "smoke", out=url)
    assert job.done() and not (tmp_path / "bucket").exists()
    assert execute.plan("01_fine", "smoke", out=url).done()
    there = tmp_path / "bucket" / "smoke" / "01_fine" / job.run_id
    assert {path.name for path in there.iterdir()} == {"notebook.ipynb", "run.json"}

    # What became of it there counts, and not what was fetched once.
    note = provenance.read_json(there / "run.json")
    provenance.write_json(there / "run.json", note | {"status": "failed", "error": "x"})
    assert execute.plan("01_fine", "smoke", out=url).record()["status"] == "failed"
    shutil.rmtree(there)
    assert execute.plan("01_fine", "smoke", out=url).record() is None


def test_a_store_leads_nowhere_but_into_its_mirror(tmp_path):
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("0123456789ab", "../../../../x", "..", "0123456789ab/../../y"):
        system.store[f"/bucket/smoke/01_fine/{name}/run.json"] = system.open(
            "/other", "wb"
        )  # a key is any text
    storage.pull("memory://bucket", tmp_path / "book", "smoke", "01_fine")
    (only,) = tmp_path.rglob("run.json")
    assert only.parent.name == "0123456789ab"
    system.store.clear()


@pytest.mark.parametrize("out", ["s3://", "s3:/x", "s3:///x", "gs://?", "file:///"])
def test_half_a_url_is_no_folder(out):
    with pytest.raises(UsageError, match="accepted: a folder, or a URL as s3://bucket/runs"):
        storage.place(out)


@pytest.mark.parametrize("out", ["runs", "a:b", "/x/y", "s3://b", "file:///x", "memory://b/c"])
def test_a_folder_and_a_whole_url_are(out):
    assert str(storage.place(out)) == out


def test_a_place_is_tried_before_anything_is_computed(book, capsys, tmp_path):
    (tmp_path / "file").touch()
    for line in (f"run 01_fine --preset smoke --out {tmp_path}/file/runs",
                 f"sweep {toy.CHAPTER} --preset smoke --out {tmp_path}/file/runs"):  # fmt: skip
        code, _, err = call(capsys, line)
        assert code == 2 and "runs cannot be kept in" in err and err.count("\n") == 1
    assert log("begin") == []


@pytest.mark.parametrize(
    "change", [{"status": 3}, {"keys": []}, {"keys": {"../x": []}}, {"keys": {"swept": ["../x"]}},
               {"error": 1}, {"run_id": "../../x"}, {"params": None}]
)  # fmt: skip
def test_a_record_that_is_none_is_put_aside(book, change):
    job = execute.plan("01_fine", "smoke")
    record = execute.blank(job) | {"status": "ok"} | change
    provenance.write_json(job.folder / "run.json", record)
    with pytest.warns(UserWarning, match="is no record of this run, and put aside"):
        assert job.record() is None
    assert (job.folder / "run.damaged").exists() and job.record() is None


# ---------------------------------------------------------------- Ray


def test_a_trial_of_another_machine_is_kept_here(book):
    one = toy.Swept(victim=toy.SweptVictim(seed=0), number=0)
    outcome = engines._sent(one)
    shutil.rmtree(ledger.local_folder())  # it was made elsewhere
    made = ledger.accept(outcome.record, outcome.arrays)
    assert ledger.look(one).rows == made.rows and list(made.array("curve")) == [0, 1, 2]
    with pytest.raises(ValueError, match="without its arrays"):
        ledger.accept(outcome.record, None)
    with pytest.raises(ValueError, match="not that of its recipe"):
        ledger.accept(outcome.record | {"key": "0" * 16}, outcome.arrays)


def test_without_ray_the_command_says_how_to_get_it(book, capsys):
    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    write("seeds: [0, 1]", chapter=toy.CHAPTER)
    code, _, err = call(capsys, "sweep s.yml --engine ray")
    assert code == 2 and "pip install 'backdoor-minilib[cluster]'" in err and err.count("\n") == 1


class Cluster:
    """As much of Ray as the engine asks for, in threads; its nodes have a ledger of their own."""

    def __init__(self, pool, nodes: Path):
        self.pool, self.nodes, self.over = pool, nodes, False
        self.init = self.cancel = lambda *_, **__: None
        self.cluster_resources = lambda: {"CPU": 4.0}

    def remote(self, **share):
        assert share == {"max_retries": 0, "num_cpus": 4}
        return lambda function: SimpleNamespace(remote=functools.partial(self.task, function))

    def task(self, function, work, time_limit):
        def there():
            once = Path(os.environ["TOY"], f"{ledger.key_of(work)}.once")
            if work.does == "killed" or (work.does == "killed once" and not once.exists()):
                once.touch()  # the toy itself would end this process
                raise OSError("the worker died")
            kept, os.environ["MINILIB_LEDGER"] = os.environ["MINILIB_LEDGER"], str(self.nodes)
            try:
                return function(work)
            finally:
                os.environ["MINILIB_LEDGER"] = kept

        job = self.pool.submit(there)
        return SimpleNamespace(future=lambda: job)

    def shutdown(self):
        self.over = True


def test_what_a_cluster_computes_is_kept_here_and_what_it_loses_is_tried_again(
    book, monkeypatch, tmp_path
):
    does = ("rga", "killed once", "fails", "killed", "rga")
    work = [toy.Swept(victim=toy.SweptVictim(seed=0), number=number, does=one)
            for number, one in enumerate(does)]  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        cluster = Cluster(pool, tmp_path / "nodes")
        monkeypatch.setitem(sys.modules, "ray", cluster)
        done = list(engines.ray(engines.Queue(work), engines.Options(workers=1)))
    causes = {one.does: outcome.cause for one, outcome in done}
    assert causes == {"rga": "", "killed once": "", "fails": "itself", "killed": "lost"}
    assert [one.does for one, _ in done][:2] == ["rga", "killed once"] and len(done) == 5
    assert kept() == {ledger.key_of(work[number]) for number in (0, 1, 4)} and cluster.over
    assert list(ledger.look(work[4]).array("curve")) == [0, 1, 2]


def test_a_cluster_that_does_not_start_is_one_line(book, monkeypatch):
    def init(**_):
        raise Exception("the node\ntimed out")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(UsageError, match="Ray could not be started: the node timed out"):
        list(engines.ray(engines.Queue(some(1, 1)), engines.Options()))


def test_the_same_sweep_through_ray(book):
    pytest.importorskip("ray")
    out, _ = swept("--seeds", "0-1", "--engine", "ray", "--workers", "2")
    assert "6 trials computed, 0 lacking; 2 notebooks executed" in out
    assert len(kept()) == 6 and [record["computed"] for record in records(book)] == [0, 0]


def test_a_sweep_through_ray_goes_past_lost_and_failed_trials(book):
    pytest.importorskip("ray")
    words = "--engine", "ray", "--workers", "1", "--no-notebooks"
    assert "3 trials computed" in swept("-p", "method=killed once", *words)[0]
    assert "ValueError: the number is odd" in swept("-p", "method=fails", *words, code=1)[1]
    assert "WorkerCrashedError" in swept("-p", "method=killed", *words, code=1)[1]
