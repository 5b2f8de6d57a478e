"""Measures the resources of a server: CPU time and memory of its processes, and computed tokens."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from safetensors import safe_open

from load_tests.client import new_session, read_metrics

SAMPLE_EVERY_S = 0.25
# vLLM's counters of all prompt tokens, and of those served by its prefix cache.
# Source: vLLM 0.32, v1/metrics/loggers.py; prometheus_client appends `_total`.
PROMPT_TOKENS, CACHED_TOKENS = "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total"
# Notegrade's counter of scored pairs by source; pairs not from the engine were cached or coalesced.
SCORED_PAIRS = "notegrade_pair_source_total"
# Not counted: embeddings are looked up, and lm_head is multiplied at the last position only.
_NOT_MULTIPLIED = ("embed_tokens", "lm_head")


class ProcessTree:
    """A process and its descendants, without daemons that left the tree."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        """List the living processes, parents before children; empty once the root has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Sum user and system time of all processes, including children that have ended and were waited for."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def rss_mib(self) -> float:
        """Sum the resident memory; shared memory counts for each process."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20


@dataclass(slots=True)
class Usage:
    """CPU time of the server and of the load generator, and the server's peak memory."""

    cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    peak_rss_mib: float = 0.0


@asynccontextmanager
async def watch(tree: ProcessTree) -> AsyncIterator[Usage]:
    """Measure usage during a block; the figures are complete at its end."""
    usage = Usage()

    async def sample() -> None:
        while True:
            usage.peak_rss_mib = max(usage.peak_rss_mib, tree.rss_mib())
            await asyncio.sleep(SAMPLE_EVERY_S)

    server_s, client_s = tree.cpu_seconds(), time.process_time()
    sampling = asyncio.create_task(sample())
    try:
        yield usage
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling
        usage.cpu_s = tree.cpu_seconds() - server_s
        usage.client_cpu_s = time.process_time() - client_s


async def read_work(url: str) -> tuple[float, float] | None:
    """Read the prompt tokens that vLLM computed, and the pairs that needed no engine, since the server's start.

    A server without a pair cache has no such pairs. Returns None for a server without vLLM's counters.
    """
    try:
        async with new_session(timeout_s=10) as session:
            samples = await read_metrics(session, url)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    if not any(sample.startswith(CACHED_TOKENS) for sample in samples):
        return None

    def total(name: str, without: str = "nothing") -> float:
        return sum(
            value
            for sample, value in samples.items()
            if sample.partition("{")[0] == name and without not in sample
        )

    return total(PROMPT_TOKENS) - total(CACHED_TOKENS), total(SCORED_PAIRS, without='source="engine"')


def count_multiplied_parameters(checkpoint: Path) -> int:
    """Count the parameters that each token is multiplied by: all but embedding and lm_head."""
    count = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            # safetensors' file is no mapping: it can't be iterated.
            names = [name for name in file.keys() if not any(part in name for part in _NOT_MULTIPLIED)]  # noqa: SIM118
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return count
