"""Where a sweep's work is done: in processes of this machine, or on a Ray cluster.

Work is a recipe, whose trial is computed into the ledger, or a plan, whose notebook is executed. An
engine takes from a `Queue` as much as it has room for, and yields each piece with its `Outcome`. To
close it is to stop what it does. What is to be done, and what is said of it, is `runs.sweep`'s.
"""

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from minilib import ledger, provenance
from minilib.provenance import DISTRIBUTION, UsageError
from minilib.runs import execute

WINDOW = 500  # pieces of work among which the next is chosen


@dataclasses.dataclass(frozen=True)
class Options:
    """How much at once, and on what.

    Attributes:
        workers: pieces of work at a time; when None, one, or what the GPUs hold.
        per_gpu: how many share a GPU.
        address: of a Ray cluster; when None, Ray on this machine.
        time_limit: minutes after which a trial or a notebook has failed.
    """

    workers: int | None = None
    per_gpu: int = 1
    address: str | None = None
    time_limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a piece of work.

    Attributes:
        error: one line; None where all went well.
        cause: as ``execute.fault`` says it, or "lost" (gone with the process that had it), or
            "refused" (nothing else will go well either).
        seconds: on the clock. record, arrays: of a trial that another machine has computed.
    """

    error: str | None = None
    cause: str = ""
    seconds: float = 0.0
    record: dict | None = None
    arrays: bytes | None = None


# ---------------------------------------------------------------- what comes next


def name_of(work) -> str:
    """The key of a recipe, the id of a planned run."""
    return work.run_id if isinstance(work, execute.Plan) else ledger.key_of(work)


def label(work, names: Iterable[str] = ()) -> str:
    """What a line of output calls a run, or a trial, with the values of some names."""
    if isinstance(work, execute.Plan):
        values, head = work.params, f"{work.chapter} {work.preset} {work.run_id}"
    else:
        values = ledger.columns(work)
        head = f"{ledger.kind_of(work).name} {ledger.key_of(work)}"
    names = [name for name in dict.fromkeys(names) if name in values]
    return " ".join([head, *(f"{name}={values[name]}" for name in names)])


@functools.lru_cache(maxsize=65536)
def _victims(recipe) -> tuple[str, ...]:
    """Keys of the large things that a recipe's trial is computed from, innermost first."""
    keys: dict[str, None] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(item):
                keys |= dict.fromkeys(_victims(item))
                with contextlib.suppress(TypeError):  # data and triggers are of no kind
                    keys[ledger.key_of(item)] = None
    return tuple(keys)


def _needs(work) -> tuple[str, ...]:
    return () if isinstance(work, execute.Plan) else _victims(work)


class Queue:
    """Work that waits, handed out so that few workers wait for one that trains a victim.

    Trials on one victim come one after the other. A worker gets one whose victim it has just had,
    else one whose victim nobody is training, else any; what another sweep is at comes last.
    """

    def __init__(self, work: Iterable, until: float = math.inf):
        groups: dict[tuple, list] = {}
        for one in work:
            groups.setdefault(_needs(one), []).append(one)
        self.waiting = [one for group in groups.values() for one in group]
        self.until, self.stopped = until, ""  # why nothing more is handed out
        self.training: Counter = Counter()
        self.trained: set[str] = set()
        self.lost: list = []

    def take(self, last=None):
        """The next piece for a worker whose last one was ``last``; None where there is none."""
        if time.monotonic() > self.until:
            self.stopped = self.stopped or "time is up"
        if self.stopped or not self.waiting:
            return None

        def far(work) -> tuple[bool, bool]:
            waits = any(self.training[one] and one not in self.trained for one in _needs(work))
            return waits, _needs(work) != (last and _needs(last))

        candidates = sorted(self.waiting[:WINDOW], key=far)
        work = next((one for one in candidates if not busy(one)), candidates[0])
        self.waiting.remove(work)
        self.training.update(_needs(work))
        return work

    def over(self, work, outcome: Outcome) -> bool:
        """Note an outcome; False where the work was lost and is tried once more."""
        self.training.subtract(_needs(work))
        self.trained.update(_needs(work) if outcome.error is None else ())
        if outcome.cause != "lost" or work in self.lost:
            return True
        self.lost.append(work)
        self.waiting.insert(0, work)
        return False


def busy(work) -> bool:
    """Whether somebody is at it."""
    if isinstance(work, execute.Plan):
        return ledger.held(work.folder.parent, work.run_id)
    return ledger.held(ledger.local_folder() / ledger.kind_of(work).name, ledger.key_of(work))


# ---------------------------------------------------------------- one piece of work


def perform(work, time_limit: float | None = None) -> Outcome:
    """Compute a trial into the ledger, or execute a notebook: here, and only if nobody has.

    time_limit: minutes after which it has failed by itself.
    """
    start_time, outcome = time.monotonic(), Outcome()
    try:
        if isinstance(work, execute.Plan):
            record = execute.run(work, again=False, time_limit=time_limit)
            if record["status"] != "ok":
                cause = "refused" if execute.FULL in record["error"] else record.get("cause")
                outcome = Outcome(execute.why(work, record), cause or "outside")
        else:
            with contextlib.ExitStack() as stack:
                if time_limit:
                    stack.enter_context(execute.signals_interrupt(time_limit))
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("error", "trial .* is not kept")  # it is lost
                ledger.get(work)
    except Exception as error:
        outcome = failure(error)
    return dataclasses.replace(outcome, seconds=time.monotonic() - start_time)


def failure(error: Exception) -> Outcome:
    """An exception as an outcome: what it was, in one line, and its cause."""
    line = provenance.one_line(error)
    if isinstance(error, UsageError | UserWarning) or execute.FULL in line:
        return Outcome(line, "refused")  # nothing can be kept, or no notebook started
    return Outcome(*execute.fault(error))


def _kept_up(queue: Queue, places: int, submit: Callable[[int, object], Future]) -> Iterator[tuple]:
    """Keep as many pieces of work going as there are places; yield each with its outcome."""
    futures: dict[Future, tuple] = {}
    idle_places, last_work = list(range(places)), {}
    while True:
        while idle_places and (work := queue.take(last_work.get(idle_places[0]))) is not None:
            place = idle_places.pop(0)
            last_work[place] = work
            futures[submit(place, work)] = place, work, execute.oom_kills()
        if not futures:
            return
        for future in wait(futures, return_when=FIRST_COMPLETED).done:
            place, work, kills_before = futures.pop(future)
            idle_places.insert(0, place)
            try:
                outcome = future.result()
            except Exception as error:  # of whatever had it, and not of the work
                line, cause = execute.fault(error, kills_before)
                outcome = Outcome(line, cause if cause == "memory" else "lost")
            if queue.over(work, outcome):
                yield work, outcome


# ---------------------------------------------------------------- this machine


def gpus() -> list[str]:
    """Ids of the GPUs that may be used, found without touching them (no CUDA in this process)."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        return [device.strip() for device in devices.split(",") if device.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number in range(answer.count("GPU "))]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environments(options: Options) -> list[dict[str, str]]:
    """What each worker adds to its environment: its GPU, its share of the cores."""
    cards = gpus()
    count = options.workers or len(cards) * options.per_gpu or 1
    variables = execute.few_cpu_kernels() | {"TQDM_DISABLE": "1"}
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, cores() // count))
    if not cards:
        return [variables] * count
    return [variables | {"CUDA_VISIBLE_DEVICES": cards[n % len(cards)]} for n in range(count)]


def local(queue: Queue, options: Options) -> Iterator[tuple[object, Outcome]]:
    """Spawned processes, each a pool of its own: one that is killed takes one trial with it."""
    context, pools = multiprocessing.get_context("spawn"), {}
    older_children = multiprocessing.active_children()
    worker_envs = environments(options)

    def submit(place: int, work) -> Future:
        with contextlib.suppress(KeyError, BrokenProcessPool):
            return pools[place].submit(perform, work, options.time_limit)
        pools[place] = ProcessPoolExecutor(1, context, _begin, (worker_envs[place],))
        return pools[place].submit(perform, work, options.time_limit)

    try:
        yield from _kept_up(queue, len(worker_envs), submit)
    finally:
        for process in multiprocessing.active_children():
            if process not in older_children:  # at a notebook it leaves a record first
                process.terminate()
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)


def _begin(extra: dict[str, str]) -> None:
    """What a worker does first."""

    def end_with_parent() -> None:  # be that by `kill -9`
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    os.environ.update(extra)
    provenance.warn_in_lines()
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the driver alone, which then stops us in good order
    threading.Thread(target=end_with_parent, daemon=True).start()


# ---------------------------------------------------------------- a cluster


def ray(queue: Queue, options: Options) -> Iterator[tuple[object, Outcome]]:
    """Each trial is a task of Ray, which finds a place for it; what it computes is kept here.

    The package must be installed on every node, or stand at the same path there.
    """
    # Ray gives its workers the lowest priority but four; here trials are what the machine is for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray as cluster
    except ImportError:
        remedy = f"pip install '{DISTRIBUTION}[cluster]', from this book's repository"
        raise UsageError(f"the engine ray needs Ray, which is not installed: {remedy}") from None
    path = [str(provenance.PACKAGE.parent), os.environ.get("PYTHONPATH")]
    variables = {name: value for name, value in os.environ.items()
                 if name.startswith(("MINILIB_", "HF_", "OMP_"))}  # fmt: skip
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if options.address:
        _answers(options.address)
    try:
        cluster.init(
            address=options.address, ignore_reinit_error=True, include_dashboard=False,
            log_to_driver=False, runtime_env={"env_vars": variables},
        )  # fmt: skip
    except Exception as error:  # it has many; a machine that is too busy is one
        raise UsageError(f"Ray could not be started: {' '.join(str(error).split())}") from None
    resources = cluster.cluster_resources()
    cpus, cards = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    count = options.workers or cards * options.per_gpu or cpus
    share = {"num_gpus": 1 / options.per_gpu} if cards else {}
    task = cluster.remote(max_retries=0, num_cpus=max(1, cpus // count), **share)(_sent)
    tasks = {}  # place → the last one there

    def submit(place: int, work) -> Future:
        tasks[place] = task.remote(work, options.time_limit)
        return tasks[place].future()

    try:
        for work, outcome in _kept_up(queue, count, submit):
            try:
                if outcome.record is not None and ledger.look(work) is None:
                    ledger.accept(outcome.record, outcome.arrays)
            except Exception as error:
                outcome = dataclasses.replace(failure(error), cause="outside")
            yield work, outcome
    finally:
        for reference in tasks.values():
            cluster.cancel(reference, force=True)
        cluster.shutdown()


JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""


def _answers(address: str, seconds: float = 10, join_seconds: float = 120) -> None:
    """Raise UsageError where no cluster answers at HOST:PORT, ray://HOST:PORT or "auto".

    Ray itself waits for minutes, or for ever where somebody else answers; so a process that can be
    ended joins first.
    """
    try:
        if match := re.fullmatch(r"(?:ray://)?(\[?[^/\s]+?\]?):(\d{1,5})", address):
            socket.create_connection((match[1].strip("[]"), int(match[2])), seconds).close()
        words = [sys.executable, "-c", JOIN, address]
        joined = subprocess.run(words, capture_output=True, text=True, timeout=join_seconds)
    except (OSError, OverflowError) as error:
        raise UsageError(f"nobody answers at --address {address}: {error}") from None
    except subprocess.TimeoutExpired:
        reason = f"no cluster answers at --address {address} within {join_seconds:g} s"
        raise UsageError(reason) from None
    if joined.returncode:
        lines = joined.stderr.strip().splitlines() or [f"ended with code {joined.returncode}"]
        raise UsageError(f"Ray could not be started at --address {address}: {lines[-1]}")


def _sent(recipe, time_limit: float | None = None) -> Outcome:
    """Compute one trial in a process of Ray's, and send it home."""
    outcome = perform(recipe, time_limit)
    trial = ledger.look(recipe)
    if outcome.error is not None or trial is None:
        return outcome
    arrays = (trial.folder / f"{trial.key}.npz").read_bytes() if trial.arrays else None
    return dataclasses.replace(outcome, record=trial.record(), arrays=arrays)


ENGINES = {"local": local, "ray": ray}
