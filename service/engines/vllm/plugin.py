"""What vLLM lacks, in each of its processes: it loads these itself, by the entry points in pyproject.toml."""

import importlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process with the one that started it, where there is one, and not before it; it may be called again.

    vLLM itself leaves the engine core running, with all its memory, when the process that serves is killed. And on Ctrl-C, which
    reaches all processes of a terminal, its core ends at once, while the one that serves still answers what it has taken.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if threading.current_thread() is threading.main_thread():  # elsewhere it may not be set
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not any(thread.name == _NAME for thread in threading.enumerate()):
        threading.Thread(target=_end_after, args=[parent.sentinel], name=_NAME, daemon=True).start()


def load_compiled() -> None:
    """Let vLLM load what it compiled for a CPU at an earlier start: seconds, where compiling takes a minute.

    vLLM 0.32 (`compilation/decorators.py`) has what it loads `finalize_loading`, as functions of its own backend must. On a CPU it
    compiles by torch's, whose functions are whole as they are loaded, and lack the method: it then compiles anew at each start.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return  # nothing is compiled here, and the import takes a while
    types = importlib.import_module("torch._dynamo.aot_compile_types")
    loaded = types.BundledAOTAutogradSerializableCallable
    if not hasattr(loaded, "finalize_loading"):
        loaded.finalize_loading = _be_whole


_NAME = "notegrade-parent-watch"


def _be_whole(_loaded: object, _vllm_config: object) -> None:
    pass


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    # Not sys.exit: this is no main thread, and there is nobody left to clean up for.
    os._exit(1)
