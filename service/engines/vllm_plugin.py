"""Ends vLLM's processes with the one that started them. vLLM loads it in each, by the entry point in pyproject.toml.

vLLM itself leaves the engine core running, with all its memory, when the process that serves is killed.
"""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Watch the process that started this one, where there is one; it may be called again."""
    parent = multiprocessing.parent_process()
    if parent is not None and not any(thread.name == _NAME for thread in threading.enumerate()):
        threading.Thread(target=_end_after, args=[parent.sentinel], name=_NAME, daemon=True).start()


_NAME = "notegrade-parent-watch"


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    # Not sys.exit: this is no main thread, and there is nobody left to clean up for.
    os._exit(1)
