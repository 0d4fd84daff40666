"""Where the runs of a sweep are executed: on this machine, or on a Ray cluster.

An engine is a generator. It takes plans from an iterator one at a time, when it has room for one,
and yields an `Event` when a run starts and when it has ended. To close it is to stop its runs.
Neither engine decides what is run, when to stop or what to print: that is `minilib.sweep`.
"""

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from minilib import runner
from minilib.runs import UsageError

PATIENCE = 10.0  # seconds that stopped runs get to leave their records


@dataclasses.dataclass(frozen=True)
class Options:
    """How many runs at once, and on what.

    Attributes:
        workers: runs at a time; when None, one, or what the GPUs hold.
        runs_per_gpu: runs that share a GPU.
        warm: fork each kernel from a process that has done its imports (`minilib.warm`).
        address: of a Ray cluster; when None, Ray on this machine.
    """

    workers: int | None = None
    runs_per_gpu: int = 1
    warm: bool = True
    address: str | None = None


@dataclasses.dataclass(frozen=True)
class Event:
    """A run has started (no record yet) or ended; `worker` counts from 0."""

    worker: int
    job: runner.Plan
    record: dict | None = None


# ---------------------------------------------------------------- this machine


def gpus() -> list[str]:
    """Ids of the GPUs that may be used, found without touching them (no CUDA in this process)."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number in range(answer.count("GPU "))]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def desks(options: Options) -> list[dict[str, str]]:
    """What each worker adds to the environment of its runs: its GPU, its share of the cores."""
    found = gpus()
    count = options.workers or len(found) * options.runs_per_gpu or 1
    extra = [{} for _ in range(count)]
    for number, one in enumerate(extra):
        if found:
            one["CUDA_VISIBLE_DEVICES"] = found[number % len(found)]
        if count > 1 and "OMP_NUM_THREADS" not in os.environ:
            one["OMP_NUM_THREADS"] = str(max(1, cores() // count))
    return extra


def local(jobs: Iterable[runner.Plan], options: Options) -> Iterator[Event]:
    """A pool of worker processes here, each with one kernel at a time.

    A worker that dies takes only its own run with it: that run is recorded as lost, and another
    worker takes the place.
    """
    places = desks(options)
    context = _context(options.warm, places[0])
    jobs, staff = iter(jobs), {}  # number → (process, pipe, its job or None)
    more = True
    try:
        while True:
            for number, extra in enumerate(places):
                if not more or (number in staff and staff[number][2]):
                    continue
                job = next(jobs, None)
                if job is None:
                    more = False
                    break
                process, pipe, _ = staff.get(number) or _hire(context, extra, options.warm)
                staff[number] = process, pipe, job
                with contextlib.suppress(OSError):  # if it has died, waiting will tell
                    pipe.send(job)
                yield Event(number, job)
            busy = {number: desk for number, desk in staff.items() if desk[2]}
            if not busy:
                return
            multiprocessing.connection.wait([desk[1] for desk in busy.values()])
            for number, (process, pipe, job) in busy.items():
                if not pipe.poll():
                    continue
                answer = _receive(process, pipe)
                staff[number] = process, pipe, None
                if answer is None:
                    process.join()
                    why = f"WorkerDied: the worker ended with code {process.exitcode}"
                    answer = lost(job, why)
                    del staff[number]
                elif isinstance(answer, str):
                    raise UsageError(answer)
                yield Event(number, job, answer)
    finally:
        _dismiss(staff)


def lost(job: runner.Plan, why: str) -> dict:
    """Record that a run vanished with whatever was executing it."""
    return runner.keep(job, runner.blank(job) | {"error": why, "cause": "outside"})


def _context(warm: bool, extra: dict[str, str]):
    if warm:
        from minilib import warm as server

        return server.start(extra.get("OMP_NUM_THREADS"))
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["papermill", "minilib.engines"])
    return context


def _hire(context, extra: dict, warm: bool):
    """Start a worker: its process, this end of its pipe, no job yet."""
    from minilib.warm import launch

    here, there = context.Pipe()
    process = context.Process(target=_worker, args=(there, {**os.environ, **extra}, warm))
    launch(process) if warm else process.start()
    there.close()
    return process, here, None


def _worker(pipe, environ: dict[str, str], warm: bool) -> None:
    """Execute what comes through the pipe until it closes; a text for an answer is a refusal."""
    from minilib.warm import end_with_parent

    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the driver alone, which then stops us in good order
    end_with_parent()
    os.environ.clear()
    os.environ.update(environ)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):  # closed, or closed with an answer still in it
            return
        try:
            answer = runner.run(job, warm)
        except UsageError as error:
            answer = str(error)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            pipe.send(answer)


def _receive(process, pipe) -> dict | str | None:
    """A worker's answer, or None if it died instead of giving one."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _dismiss(staff: dict) -> None:
    """End all workers: idle ones at once, busy ones after they recorded that they were stopped."""
    for process, _, job in staff.values():
        if job:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    for _, pipe, job in staff.values():
        if job:
            with contextlib.suppress(OSError):
                pipe.poll(max(0.0, until - time.monotonic()))
        pipe.close()
    for process, _, _ in staff.values():
        process.join(1.0)
        if process.is_alive():
            process.kill()
            process.join()


# ---------------------------------------------------------------- a cluster


def ray(jobs: Iterable[runner.Plan], options: Options) -> Iterator[Event]:
    """Each run is a task of Ray, which finds a place for it and tries again if a node is lost.

    The repository must stand at the same path on every node (a shared file system, an image), and
    `--out` must be a place that every node reaches.
    """
    # Ray gives its workers the lowest priority but four; here runs are what the machine is for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray as cluster
    except ImportError:
        mend = "pip install 'minilib[cluster]'"
        raise UsageError(f"the engine ray needs Ray, which is not installed: {mend}") from None
    path = os.pathsep.join([str(runner.PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    cluster.init(
        address=options.address,
        ignore_reinit_error=True,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path.rstrip(os.pathsep)}},
    )
    have = cluster.cluster_resources()
    places = int(have.get("GPU", 0)) * options.runs_per_gpu or int(have.get("CPU", 1))
    count = options.workers or places
    needs = {"num_cpus": max(1, int(have.get("CPU", 1)) // count)}
    if have.get("GPU"):
        needs["num_gpus"] = 1 / options.runs_per_gpu
    task = cluster.remote(max_retries=2, **needs)(_task)
    names = [name for name in os.environ if name.startswith(("MINILIB_", "HF_", "OMP_"))]
    environ = {name: os.environ[name] for name in names}
    jobs, pending, free = iter(jobs), {}, list(range(count))[::-1]
    try:
        while True:
            while free and (job := next(jobs, None)) is not None:
                number = free.pop()
                pending[task.remote(job, environ, options.warm)] = number, job
                yield Event(number, job)
            if not pending:
                return
            (ready,), _ = cluster.wait(list(pending), num_returns=1)
            number, job = pending.pop(ready)
            try:
                answer = cluster.get(ready)
            except cluster.exceptions.RayError as error:
                name = type(error).__name__
                answer = lost(job, f"{name}: {str(error).strip().splitlines()[-1]}")
            if isinstance(answer, str):
                raise UsageError(answer)
            free.append(number)
            yield Event(number, job, answer)
    finally:
        for reference in pending:
            cluster.cancel(reference)  # raises KeyboardInterrupt there
        if pending:
            cluster.wait(list(pending), num_returns=len(pending), timeout=PATIENCE)
        cluster.shutdown()


def _task(job: runner.Plan, environ: dict[str, str], warm: bool) -> dict | str:
    """One run in a process of Ray's; an answer that is a text is a refusal."""
    os.environ.update(environ)
    try:
        return runner.run(job, warm)
    except UsageError as error:
        return str(error)


ENGINES = {"local": local, "ray": ray}
