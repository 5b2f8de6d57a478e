"""How vLLM is made to run a checkpoint: the same in the service, in the trainer and in Ray's engines.

Imports neither vLLM nor torch. Names and meanings: vLLM's `envs.py`, and
https://docs.vllm.ai/en/stable/getting_started/installation/cpu.html
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# Variables for vLLM's processes, to be set before it is imported. What an operator has set goes first.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_NO_USAGE_STATS": "1",
    # Never fork: the caller has threads (torch's among them), and a forked copy of them hangs.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

# Bytes up to which glibc keeps what was freed, where it would hand it back after each step, and have the kernel clear it for the next.
# The first is the most that older glibcs take. mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
_KEPT_MEMORY: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


def cpu_environment(threads: int, kv_cache_gib: int = 1, *, compiled: bool = False) -> dict[str, str]:
    """`ENVIRONMENT`, and what vLLM needs besides where there is no GPU. compiled: whether the model is, by torch.compile."""
    return {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": str(threads),
        # vLLM's own binding leaves one of two cores idle.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        **_KEPT_MEMORY,
        # torch warns of what is meant to be so (memory bound to the nodes that there are), on lines that are no JSON.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # The worker inside the engine core: as a third process, it makes the core spin on a shared queue.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # One function of the sampler is compiled even in eager mode: without a C++ compiler, the first step fails.
        **({} if compiled else {"TORCHDYNAMO_DISABLE": "1"}),
    }


def has_compiler() -> bool:
    """Whether a model can be compiled for processors here, which takes g++, or what CXX names."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def refuses_float32(folder: Path, capabilities: Mapping[str, object]) -> bool:
    """Whether vLLM needs bf16 or fp16 for this model here: its int8 kernel for AMX loads in float32, and fails at work.

    capabilities: what `torch.cpu.get_capabilities()` says of the processor.
    Source: vLLM 0.32, `csrc/cpu/sgl-kernels/gemm_int8.cpp`: "expect A to be bfloat16 or half".
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "quantization_config" in config and bool(capabilities.get("amx_int8"))
