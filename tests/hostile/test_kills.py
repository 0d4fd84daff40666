"""Kills at random moments and full disks: nothing is lost, made twice, or ends in a traceback.

Sweeps of the tests' toy chapter at `smoke` go on in one folder, two at once, while processes of
theirs are killed (`kill -9`) and the command is given again. Whatever was whole once must be there
at the end, the same: a trial or a run that is not is *lost*, one that was made anew is *doubled*.
Every night; single kills of each kind are in `tests/runs/test_sweep.py`.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import fixture_book
import psutil
import pytest
import toy_sweeps
from conftest import ROOT, nightly

from minilib import provenance

TESTS = ROOT / "tests"
CHAPTER = "07_swept"
# How often each is killed, and what its command line holds. The store is what is between the
# sweep and a local server that speaks S3, and is gone for a while; what it was given stays.
KILLS = {"driver": 16, "worker": 16, "kernel": 16, "store": 8, "Ray worker": 6}
HOLDS = {"worker": "spawn_main", "kernel": "ipykernel_launcher", "Ray worker": "ray::_sent"}
SEEDS = 6  # of a block: a finished sweep is followed by one of the next seeds
PROXY = """
import socket, sys, threading
def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    here, there = server.accept()[0], socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


class Place:
    """A book with the toy chapter, its ledger and its runs; sweeps are started in it."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, fixture_book.make_book(folder / "book")
        fixture_book.write_chapter(self.root, CHAPTER, toy_sweeps.BODY)
        with open(self.root / "presets" / "smoke.yml", "a") as presets:
            presets.write(f"{CHAPTER}: {{}}\n")
        (folder / "toy").mkdir()
        self.said = folder / "said"
        self.whole: dict[str, str] = {}  # file → when it was made
        path = (str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", ""))
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join(path), "TOY": str(folder / "toy"),
            "MINILIB_LEDGER": str(folder / "trials"), "MINILIB_CACHE": str(folder / "cache"),
            "MINILIB_PUBLISHED": "none", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen:
        """A command in the book, whose output joins that of the others."""
        command = [sys.executable, str(TESTS / "toy_driver.py"), *words]
        root = self.root if CHAPTER in words else ROOT
        with open(self.said, "ab") as said:
            return subprocess.Popen(command, cwd=root, env=self.env, stdout=said, stderr=said)

    def look(self) -> tuple[int, int]:
        """Remember what is whole; how much of what was is gone, and how much was made again."""
        made = {}
        paths = [*self.folder.glob("trials/*/*.json"),
                 *self.root.glob("runs/**/smoke/*/*/run.json")]  # fmt: skip
        for path in paths:
            record = provenance.read_json(path) or {}
            if record.get("status", "ok") == "ok":
                made[str(path)] = record.get("made") or record.get("finished")
        gone = sum(name not in made for name in self.whole)
        again = sum(made.get(name, when) != when for name, when in self.whole.items())
        self.whole |= made
        return gone, again

    def log(self, word: str) -> list[str]:
        """What the toys said after this word."""
        with suppress(FileNotFoundError):
            return re.findall(rf"^{word} (.*)$", (self.folder / "toy" / "log").read_text(), re.M)
        return []

    def running(self) -> list[psutil.Process]:
        """Processes of this place."""
        processes = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.environ().get("TOY") == self.env["TOY"] and one.pid != os.getpid():
                    processes.append(one)
        return processes


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def store(place: Place) -> Iterator[callable]:
    """A bucket behind a process that may be killed; gives what starts that process."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    own_port = free_port()
    place.env |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{own_port}", "AWS_ACCESS_KEY_ID": "x",
                  "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    place.bucket = s3fs.S3FileSystem(key="x", secret="x", endpoint_url=f"http://{host}:{port}")
    place.bucket.mkdir("runs")
    words = [sys.executable, "-c", PROXY, str(own_port), str(port)]
    try:
        yield lambda: subprocess.Popen(words, stderr=subprocess.DEVNULL)
    finally:
        server.stop()


def of_role(drivers: list[subprocess.Popen], who: str) -> list[psutil.Process]:
    """The processes among which the next to be killed is drawn."""
    found = []
    for driver in drivers:
        with suppress(psutil.Error):
            process = psutil.Process(driver.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if who == "driver":
                found.append(process)
                continue
            for child in process.children(recursive=True):
                with suppress(psutil.Error):
                    if HOLDS[who] in " ".join(child.cmdline()):
                        found.append(child)
    return found


def campaign(place: Place, who: str, kills: int, begin=None) -> dict:
    """Kill one kind of process so often; what became of the work. begin: starts the store."""
    source = random.Random(f"0 {who}")
    engine = {"Ray worker": ["--engine", "ray", "--no-notebooks"],
              "store": ["--out", "s3://runs/book"]}.get(who, [])  # fmt: skip
    many = 1 if engine else 2  # sweeps at once
    killed, block, drivers = 0, 0, []
    proxy = begin() if begin else None
    lost = doubled = 0

    def sweep(last: int) -> subprocess.Popen:
        return place.start("sweep", CHAPTER, "--preset", "smoke", "--seeds", f"0-{last}", "-p",
                           "deep=yes", "--workers", "2", *engine)  # fmt: skip

    while killed < kills:
        block += any(driver.poll() == 0 for driver in drivers)
        drivers = [one for one in drivers if one.poll() is None]
        drivers += [sweep(SEEDS * (block + 1) - 1) for _ in range(many - len(drivers))]
        time.sleep(source.random() * (4 if who in ("driver", "store") else 1))
        victims = [psutil.Process(proxy.pid)] if proxy else of_role(drivers, who)
        if not victims:
            continue
        source.choice(victims).kill()
        killed += 1
        if proxy:  # it is away for a while
            proxy.wait()
            time.sleep(source.random() * 4)
            proxy = begin()
        gone, again = place.look()
        lost, doubled = lost + gone, doubled + again
    for driver in drivers:
        driver.wait()
    codes = [sweep(SEEDS * (block + 1) - 1).wait()]
    gone, again = place.look()
    seeds = SEEDS * (block + 1)
    said = place.said.read_text(errors="replace")
    trials = len(list(place.folder.glob("trials/swept/*.json")))
    runs = [one for one in place.whole if "runs" in Path(one).parts]
    sent = len(place.bucket.glob("runs/book/smoke/*/*/run.json")) if begin else len(runs)
    if proxy:
        proxy.kill()
    wanted_runs = 0 if "--no-notebooks" in engine else seeds
    until = time.monotonic() + 600  # for a busy machine
    while place.running() and time.monotonic() < until:
        time.sleep(0.2)
    return {
        "kills": killed,
        "trials": trials,
        "runs": len(runs),
        "computed to the end and not kept": len(place.log("end")) - trials,
        "lost": lost + gone + 3 * seeds - trials + 2 * wanted_runs - len(runs) - sent,
        "doubled": doubled + again + len(place.log("twice")) + len(place.log("together")),
        "damaged": len(list(place.folder.rglob("*.damaged"))),
        "tracebacks": said.count("Traceback (most recent"),
        "left running": len(place.running()),
        "the last sweep's exit code": codes[0],
    }


# ---------------------------------------------------------------- full disks


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own for a folder. Raises OSError where none can be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        raise OSError("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def full(place: Place, what: str, keep: int = 20_000) -> dict:
    """A sweep whose runs, trials or victims lie on a disk with ``keep`` bytes left, then with room.

    Toy victims fill no cache: there the sweep is one of chapter 03's trials.
    """
    folder = {"runs": place.root / "runs"}.get(what, place.folder / what)
    with small_disk(folder, "8m"):
        ballast = folder / "ballast"
        ballast.write_bytes(b"\0" * (shutil.disk_usage(folder).free - keep))
        chapter, *more = ("03_ga_rga", "--no-notebooks") if what == "cache" else (CHAPTER,)
        words = ("sweep", chapter, "--preset", "smoke", "--workers", "2", *more)
        words = (*words, "--seeds", "0" if what == "cache" else "0-4")
        codes = [place.start(*words).wait()]
        place.look()
        before, said = len(place.whole), place.said.read_text(errors="replace")
        ballast.unlink()
        codes.append(place.start(*words).wait())
        gone, again = place.look()
    lines = [line for line in said.splitlines() if "No space left" in line]
    return {
        "whole on the full disk": before, "whole at the end": len(place.whole),
        "lost": gone, "doubled": again + len(place.log("twice")),
        "lines that name the disk": len(lines), "the first": lines[:1],
        "tracebacks": place.said.read_text(errors="replace").count("Traceback (most recent"),
        "exit codes": codes,
    }  # fmt: skip


# ---------------------------------------------------------------- every night


def keep(kind: str, name: str, found: dict) -> None:
    """Write down what came of something, into the file that MINILIB_RECORD names."""
    if path := os.environ.get("MINILIB_RECORD"):
        whole = provenance.read_json(Path(path)) or {}
        conditions = {"commit": provenance.git_commit(), "env": provenance.environment()}
        whole[kind] = whole.get(kind, {}) | {name: found | conditions}
        provenance.write_json(Path(path), whole)


@nightly
@pytest.mark.parametrize("who", KILLS)
def test_kills(who, tmp_path):
    if who == "Ray worker":
        pytest.importorskip("ray")
    place, kills = Place(tmp_path), KILLS[who] if "MINILIB_RECORD" in os.environ else 4
    with store(place) if who == "store" else nullcontext() as begin:
        found = campaign(place, who, kills, begin)
    keep("kills", who, found)
    faults = ("lost", "doubled", "damaged", "tracebacks", "left running",
              "the last sweep's exit code")  # fmt: skip
    assert [found[name] for name in faults] == [0] * len(faults), found
    assert found["kills"] == kills >= found["computed to the end and not kept"]


@nightly
@pytest.mark.parametrize("what", ["runs", "trials", "cache"])
def test_full_disks(what, tmp_path):
    try:
        found = full(Place(tmp_path), what)
    except OSError as error:
        pytest.skip(str(error))
    keep("full disks", what, found)
    assert found["lost"] == found["doubled"] == found["tracebacks"] == 0, found
    assert found["exit codes"][-1] == 0 and found["lines that name the disk"] >= 1
