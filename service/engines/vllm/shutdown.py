"""Waits for vLLM's blocking calls with a timeout: one that hangs must not keep the service from exiting."""

import asyncio
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from service.observability.redaction import log_redacted

logger = logging.getLogger(__name__)

T = TypeVar("T")
Signal = Callable[[BaseProcess], object]

# vLLM itself kills processes that do not end within 5 s.
SHUTDOWN_TIMEOUT_S = 10.0
# Importing vLLM can take this long on a busy machine, and until then there is no process to kill.
LOAD_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 5.0
SIGNAL_INTERVAL_S = 0.5


def run_in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Return the future result of `work`, like `asyncio.to_thread`, from a thread that the process's exit does not wait for."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # a thread can't be cancelled, only the wait for it

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="notegrade-engine", daemon=True).start()
    return asyncio.wrap_future(outcome)


async def stop_load(load: "asyncio.Future[Any]") -> None:
    """Make a running load fail: its thread can't be cancelled, but it fails soon after its engine core is terminated."""
    await _wait_or_abandon(load, "load", LOAD_TIMEOUT_S, BaseProcess.terminate)


async def shut_down(shutdown: Callable[[], object]) -> None:
    """Call `shutdown` in a thread and wait for it. If it fails, kill this process's children. Raises nothing."""
    shutting_down = run_in_thread(shutdown)
    await _wait_or_abandon(shutting_down, "shutdown", SHUTDOWN_TIMEOUT_S)
    if not shutting_down.cancelled() and (error := shutting_down.exception()):
        log_redacted(logger, "the engine's shutdown failed: its processes are killed", error)
        for child in multiprocessing.active_children():  # or the exit of this process would wait for them
            child.kill()


async def _wait_or_abandon(
    work: "asyncio.Future[Any]", name: str, timeout_s: float, send: Signal | None = None
) -> None:
    """Wait for the work, and kill this process's children after the timeout. If that does not help, cancel the wait."""
    if await _wait(work, timeout_s, send):
        return
    logger.error("the engine did not end in time: its processes are killed", extra={"step": name})
    if not await _wait(work, KILL_TIMEOUT_S, BaseProcess.kill):
        logger.error(
            "the engine did not end after its processes were killed: abandoned", extra={"step": name}
        )
        work.cancel()
        await asyncio.wait({work})


async def _wait(work: "asyncio.Future[Any]", timeout_s: float, send: Signal | None) -> bool:
    """Return whether the work ended in time; until then, send the signal to this process's children again and again."""
    end = time.monotonic() + timeout_s
    while not work.done() and time.monotonic() < end:
        if send:
            for child in multiprocessing.active_children():
                send(child)
        await asyncio.wait({work}, timeout=min(timeout_s, SIGNAL_INTERVAL_S))
    return work.done()
