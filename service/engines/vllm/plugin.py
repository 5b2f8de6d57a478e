"""A vLLM plugin that ends vLLM's processes with the service. vLLM loads it in each of its processes, see pyproject.toml."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_THREAD_NAME = "notegrade-parent-watch"


def end_with_parent() -> None:
    """End this process when its parent ends, and not before. Does nothing without a parent, or when called again.

    Without it, vLLM's engine core keeps running, with all its memory, when the service is killed. And Ctrl-C, which all
    processes of a terminal receive, would end the core while the service still answers requests.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if threading.current_thread() is threading.main_thread():  # other threads may not set a handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not any(thread.name == _THREAD_NAME for thread in threading.enumerate()):
        watch = threading.Thread(target=_end_after, args=[parent.sentinel], name=_THREAD_NAME, daemon=True)
        watch.start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    # Not sys.exit, which would end only this thread.
    os._exit(1)
