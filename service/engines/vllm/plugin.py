"""A vLLM plugin, which vLLM loads in each of its processes after it imported itself, see pyproject.toml."""

import atexit
import faulthandler
import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_THREAD_NAME = "notegrade-parent-watch"


def prepare_process() -> None:
    """Make this process start and exit faster, end with its parent, and tell what it dies of.

    Does nothing without a parent, or when called again.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _THREAD_NAME for thread in threading.enumerate()):
        return
    # vLLM reports a core that died of a signal as "see stack trace (above)": this prints that stack.
    faulthandler.enable(all_threads=False)
    _allow_amx()
    _end_with_parent(parent.sentinel)
    skip_modules_in_collections()


def _allow_amx() -> None:
    """Ask Linux to let this process use the tiles of AMX. Does nothing on other processors.

    vLLM's attention uses them without asking, which is an illegal instruction until oneDNN has asked: for a small model,
    whose products never reach oneDNN, that is never. Source: https://docs.kernel.org/arch/x86/xstate.html
    """
    import torch  # vLLM has imported it

    torch.cpu._init_amx()  # not public, but torch has no other way, and its own compiler calls it too


def skip_modules_in_collections() -> None:
    """Enable the garbage collector, which never visits the objects that exist now, not even at the process's exit.

    vLLM's modules make a million objects, which live as long as the process. Python's last collection takes two seconds for
    them. vLLM freezes its objects before it exits, too, on ROCm.
    """
    gc.freeze()
    gc.enable()
    atexit.register(_exit_without_collection)


def _exit_without_collection() -> None:
    gc.freeze()
    # After the last handler, triton's C++ code would report the frozen objects as leaks, in plain text between JSON lines.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_with_parent(sentinel: int) -> None:
    """End this process when its parent ends, and not before.

    Without it, vLLM's engine core keeps running, with all its memory, when the service is killed. And Ctrl-C, which all
    processes of a terminal receive, would end the core while the service still answers requests.
    """
    if threading.current_thread() is threading.main_thread():  # other threads may not set a handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=[sentinel], name=_THREAD_NAME, daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    # Not sys.exit, which would end only this thread.
    os._exit(1)
