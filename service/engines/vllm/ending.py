"""Work in threads that is waited for within a time: what hangs there must not keep the service from its exit."""

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
Urge = Callable[[BaseProcess], object]

# vLLM itself kills processes that don't end within 5 s.
ENDING_S = 10.0
# Importing it can take so long on a busy machine, and there is nothing yet to kill.
LOADING_S = 30.0
KILLED_S = 5.0
URGED_EVERY_S = 0.5


def in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Run the work like `asyncio.to_thread`, but in a daemon thread, for which the process does not wait when it exits."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # a thread can't be stopped: only its waiting can

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="notegrade-engine", daemon=True).start()
    return asyncio.wrap_future(outcome)


async def end_load(load: "asyncio.Future[Any]") -> None:
    """A thread can't be cancelled, but a load whose engine core has ended fails soon."""
    await _end(load, "load", LOADING_S, BaseProcess.terminate)


async def shut_down(shutdown: Callable[[], object]) -> None:
    """Call it in a thread and wait for it; where it fails, what it has not ended is killed. Raises nothing."""
    shutting_down = in_thread(shutdown)
    await _end(shutting_down, "shutdown", ENDING_S)
    if not shutting_down.cancelled() and (error := shutting_down.exception()):
        log_redacted(logger, "the engine failed to end: its processes are killed", error)
        for child in multiprocessing.active_children():  # or the exit of this process would wait for them
            child.kill()


async def _end(work: "asyncio.Future[Any]", what: str, within_s: float, urge: Urge | None = None) -> None:
    """Wait until it is done, urging this process's children now and then; after that time they are killed.

    What is not done KILLED_S later is left behind, and cancelled.
    """
    if await _is_done(work, within_s, urge):
        return
    logger.error("the engine does not end: its processes are killed", extra={"what": what})
    if not await _is_done(work, KILLED_S, BaseProcess.kill):
        logger.error("the engine does not end: left behind", extra={"what": what})
        work.cancel()
        await asyncio.wait({work})


async def _is_done(work: "asyncio.Future[Any]", within_s: float, urge: Urge | None) -> bool:
    last = time.monotonic() + within_s
    while not work.done() and time.monotonic() < last:
        if urge:
            for child in multiprocessing.active_children():
                urge(child)
        await asyncio.wait({work}, timeout=min(within_s, URGED_EVERY_S))
    return work.done()
