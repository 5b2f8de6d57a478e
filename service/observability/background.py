"""Keeps background tasks running, and ends them: a bug in one turn of the work is logged and does not end the task."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from service.observability.redaction import log_redacted

logger = logging.getLogger(__name__)


async def run_forever(
    name: str,
    step: Callable[[], Awaitable[object]],
    *,
    every_s: float = 0.0,
    pause_s: float = 1.0,
    log_texts: bool = False,
) -> None:
    """Repeat `step` until the task that runs this is cancelled.

    Args:
        name: identifies the task in the log.
        every_s: wait between two steps.
        pause_s: shortest wait after a step that raised, so that a step that always raises does not flood the log.
        log_texts: whether the log may hold the exception's text, which may quote a query or a note.
    """
    while True:
        wait_s = every_s
        try:
            await step()
        except Exception as error:
            log_redacted(logger, f"{name} failed unexpectedly and continues", error, log_texts=log_texts)
            wait_s = max(every_s, pause_s)
        await asyncio.sleep(wait_s)


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel the tasks, and wait until each of them has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
