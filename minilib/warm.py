"""Warm kernels: the kernel of a run is forked from a process that has imported PyTorch and friends.

A fresh kernel spends most of a short run importing. Here one server process (Python's own
`multiprocessing.forkserver`) imports once and does nothing else: it computes nothing, starts no
threads and never touches a GPU, so that a copy of it is as good as new. Each kernel is such a
copy, is given the environment, folder and search path of its run, and imports `minilib` itself,
which the server never keeps. jupyter_client's kernel provisioners are the way in.
"""

import atexit
import contextlib
import functools
import gc
import importlib.util
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import types
import uuid
import weakref
from importlib.metadata import EntryPoint
from multiprocessing import forkserver

import zmq
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "minilib-warm"
# What a kernel imports by the time it is idle, and what chapters import, down to the parts that are
# otherwise loaded at first use. A name that is not installed is passed over.
KERNEL = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.debugger",
    "IPython.core.completer",
    "IPython.core.completerlib",
    "IPython.core.oinspect",
    "IPython.core.pylabtools",
    "IPython.extensions.storemagic",
    "encodings.latin_1",
    "psutil",
    "sqlite3",
    "tabulate",
    "tornado.platform.asyncio",
    "tornado.queues",
    "xmlrpc.server",
)
PRELOAD = (
    *KERNEL,
    "numpy",
    "pandas",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.cluster",
    "threadpoolctl",
    "matplotlib.pyplot",
    "matplotlib_inline.config",
    "seaborn",
    "plotly.graph_objects",
    "pydantic.dataclasses",
    "pydantic.plugin._loader",
    "yaml",
    "filelock",
    "papermill",
    "nbclient",
    "safetensors.torch",
    "torch",
    "torch.nn.utils",
    "torch.optim",
    "tokenizers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "minilib.settings",  # not kept, but with it pydantic has looked for its plugins
    "minilib.warm",  # last: what a forked process runs first
)


def start(threads: str | None = None) -> multiprocessing.context.BaseContext:
    """Start the server if there is none yet, without waiting for its imports; return its context.

    threads: OMP_NUM_THREADS that most kernels will have; libraries read it when they are imported.

    MINILIB_PRELOAD names other modules to import than `PRELOAD`. Processes of the context are
    forked from the server. Their descendants share it, and it ends when the last of them has.
    """
    context = multiprocessing.get_context("forkserver")
    server = forkserver._forkserver
    if server._forkserver_pid is None and server._forkserver_address is not None:
        # This process came out of the server and knows its address; Python would start another.
        server.ensure_running = lambda: None
        return context
    wanted = os.environ.get("MINILIB_PRELOAD")
    names = PRELOAD if wanted is None else (*wanted.split(), *PRELOAD[-1:])
    context.set_forkserver_preload(list(names))
    # Asking the driver, not the CUDA runtime, whether there is a GPU: a process that has asked the
    # runtime can no longer be forked. matplotlib reads its backend when it is imported, and the
    # debugger says then, on the user's terminal, what it may not see.
    told = {
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    if threads:
        told["OMP_NUM_THREADS"] = threads
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def launch(job: multiprocessing.process.BaseProcess) -> None:
    """Start a process that is not told what this one's main module is.

    Python would have it execute that file again: a kernel has no use for the script that asks for
    it, and a script without a guard would start all over.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        job.start()
    finally:
        sys.modules["__main__"] = main


class Named(AsyncKernelManager):
    """A kernel manager whose kernels are reached by name.

    By default five ports are looked up that are free, and bound a second later by the kernel. On a
    machine where much is starting, another process may have one of them by then. A name in Linux's
    abstract namespace cannot be taken, and leaves no file behind.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.transport, self.ip = "ipc", f"@minilib-{uuid.uuid4().hex}"


def running() -> bool:
    """Whether this process has a server already."""
    return forkserver._forkserver._forkserver_address is not None


class Client(AsyncKernelClient):
    """Waits for a new kernel no longer than it takes."""

    def _create_connected_socket(self, *args, **kwargs):
        """Knock every few milliseconds; ZeroMQ lets more than a tenth of a second pass."""
        self.context.setsockopt(zmq.RECONNECT_IVL, 5)
        return super()._create_connected_socket(*args, **kwargs)

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        """Ask for the kernel's description until it answers and its output channel works.

        jupyter_client's own method then listens for 0.2 s to be sure that nothing follows; the
        kernel's report that it is idle again says the same at once.
        """
        until = time.monotonic() + (timeout or math.inf)
        while time.monotonic() < until:
            asked = self.kernel_info()
            with contextlib.suppress(queue.Empty):
                answer = await self.get_shell_msg(timeout=1)
                while answer["parent_header"].get("msg_id") != asked:
                    answer = await self.get_shell_msg(timeout=1)
                self._handle_kernel_info_reply(answer)
                while not _is_idle(await self.get_iopub_msg(timeout=0.2), asked):
                    pass
                return
            if self.parent is not None and not await self.parent.is_alive():
                raise RuntimeError("the kernel died while it started")
        raise RuntimeError(f"the kernel did not answer in {timeout} s")


def _is_idle(message: dict, asked: str) -> bool:
    state = message["content"].get("execution_state")
    return message["parent_header"].get("msg_id") == asked and state == "idle"


class Manager(Named):
    """A kernel manager whose kernels are forked from the server."""

    def __init__(self, **kwargs):
        super().__init__(client_class=f"{__name__}.Client", **kwargs)
        factory = KernelProvisionerFactory.instance(parent=self.parent)
        # Also where minilib, and so its entry point, is not installed.
        point = EntryPoint(NAME, f"{__name__}:Provisioner", KernelProvisionerFactory.GROUP_NAME)
        factory.provisioners[NAME] = point

    @property
    def kernel_spec(self):
        """The installed kernel's, started by this module's provisioner."""
        spec = super().kernel_spec
        if spec is not None:
            spec.metadata = {**spec.metadata, "kernel_provisioner": {"provisioner_name": NAME}}
        return spec

    async def _async_wait(self, pollinterval: float = 0.1) -> None:
        """A forked kernel is gone in a few milliseconds; a tenth of a second would be long."""
        await super()._async_wait(pollinterval=min(pollinterval, 0.01))


class Provisioner(LocalProvisioner):
    """Starts a kernel by forking it from the server."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        """Fork instead of executing `cmd`, which only lends its arguments."""
        place = str(kwargs.get("cwd") or os.getcwd())
        environ = dict(kwargs["env"])
        arguments = cmd[cmd.index("-m") + 2 :] if "-m" in cmd else cmd[1:]
        job = start().Process(
            target=_kernel, args=(arguments, environ, place, search_path(environ)), daemon=False
        )
        launch(job)
        self.process = _Popen(job)
        self.pid = self.pgid = job.pid  # it makes a group of its own
        return self.connection_info


class _Popen:
    """What jupyter_client asks of a `subprocess.Popen`, for a process of `multiprocessing`."""

    stdin = stdout = stderr = None

    def __init__(self, job):
        self.job, self.pid = job, job.pid

    def poll(self) -> int | None:
        return self.job.exitcode

    def wait(self) -> int:
        self.job.join()
        return self.job.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.job.kill()

    def terminate(self) -> None:
        self.job.terminate()


@functools.cache
def _bare_path() -> tuple[str, ...]:
    """`sys.path` of a fresh interpreter of this environment, without its first entry."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = "import json, sys; print(json.dumps(sys.path[1:]))"
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, check=True
    )
    return tuple(json.loads(answer.stdout))


def search_path(environ: dict) -> list[str]:
    """`sys.path` that a fresh kernel would have in this environment."""
    named = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return list(dict.fromkeys([*named, *_bare_path()]))


def _kernel(arguments: list[str], environ: dict, place: str, path: list[str]) -> None:
    """Become the kernel of one run; runs in the forked process."""
    gc.freeze()  # what was imported stays: do not walk, and so copy, all of it again and again
    with contextlib.suppress(OSError):
        os.setsid()
    before = os.environ.get("OMP_NUM_THREADS", "")
    environ.pop("JPY_PARENT_PID", None)  # its parent is the server; see end_with_parent
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(place)
    sys.path[:] = path
    launcher = importlib.util.find_spec("ipykernel_launcher")
    sys.argv = [launcher.origin, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    _fresh_state(before)
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=arguments)
    atexit._run_exitfuncs()  # multiprocessing would leave without them


def _fresh_state(before: str) -> None:
    """Undo what a copy shares with its siblings and a fresh process would not.

    before: OMP_NUM_THREADS of the server.
    """
    for one in list(getattr(weakref.finalize, "_registry", ())):
        one.atexit = False  # of what was imported: nothing that the end of a process has to undo
    for name in [name for name in sys.modules if name.split(".")[0] in ("minilib", "__mp_main__")]:
        del sys.modules[name]
    if "numpy" in sys.modules:  # Python's own generator is seeded anew by every fork
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and threads != before and "torch" in sys.modules:
        # OpenMP read its variables when the server loaded it.
        sys.modules["torch"].set_num_threads(int(threads))
        import threadpoolctl

        threadpoolctl.threadpool_limits(int(threads))


def end_with_parent() -> None:
    """End this process when the one that asked for it is gone, be it by `kill -9`."""
    parent = multiprocessing.parent_process()

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
