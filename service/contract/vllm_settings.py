"""The settings with which vLLM runs a checkpoint in the service, in the trainer and in Ray's engines.

This module imports neither vLLM nor torch. The variables are documented in vLLM's `envs.py`, and in
https://docs.vllm.ai/en/stable/getting_started/installation/cpu.html
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# Variables for vLLM's processes. Set them before vLLM is imported; values that an operator set have precedence.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_NO_USAGE_STATS": "1",
    # Never fork: the caller has threads, and a lock that one of them holds would stay locked in the fork.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

# glibc keeps freed memory up to these sizes. By default it returns it to the kernel after each step of the engine, and the
# kernel clears it for the next step. The first value is the largest that older versions of glibc accept.
# Source: mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
_KEPT_MEMORY: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}

# oneDNN compiles a kernel of 0.5 MiB for each number of tokens in a step, and keeps 1,024 of them by default. vLLM itself keeps
# those of the last 32 numbers. Measured by load_tests/kernel_memory.py, see docs/decisions/0028-memory.md.
# Source: https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
_KEPT_KERNELS: Final[Mapping[str, str]] = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def cpu_environment(threads: int, kv_cache_gib: int = 1, *, compiled: bool = False) -> dict[str, str]:
    """Return `ENVIRONMENT` and the variables for a machine without a GPU. `compiled`: whether torch.compile compiles the model."""
    return {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": str(threads),
        # With vLLM's own binding, one of two cores stays idle.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        **_KEPT_MEMORY,
        **_KEPT_KERNELS,
        # torch logs warnings about intended settings, such as memory bound to the existing nodes, on lines that are not JSON.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # The worker runs inside the engine core: in a third process, it makes the core spin on a shared queue.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # vLLM compiles one function of the sampler even in eager mode: without a C++ compiler, the first step would fail.
        **({} if compiled else {"TORCHDYNAMO_DISABLE": "1"}),
    }


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile needs on a CPU is installed: g++, or the one that CXX names."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def multiplies_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Return whether the processor has a unit for bfloat16 matrices; without one, bfloat16 is emulated and slower than float32.

    AMX is in Intel's servers since 2023, AVX512-BF16 also in AMD's since 2022. `capabilities` as for `refuses_float32`.
    """
    return any(capabilities.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def refuses_float32(folder: Path, capabilities: Mapping[str, object]) -> bool:
    """Return whether vLLM can't compute this model in float32: its int8 kernel for AMX loads it, and fails at the first step.

    `capabilities` is the result of `torch.cpu.get_capabilities()`.
    Source: vLLM 0.32, `csrc/cpu/sgl-kernels/gemm_int8.cpp`: "expect A to be bfloat16 or half".
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "quantization_config" in config and bool(capabilities.get("amx_int8"))
