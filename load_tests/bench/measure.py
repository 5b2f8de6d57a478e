"""What a drive takes of the machine: CPU time and memory of a process tree, tokens computed, share of the peak."""

import asyncio
import contextlib
import json
import math
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import psutil

from load_tests.client import read_metrics

SAMPLE_EVERY_S = 0.25
# vLLM's counters of prompt tokens: all that were asked for, and those that its prefix cache saved.
# Source: vLLM 0.32, v1/metrics/loggers.py; prometheus_client appends `_total`.
PROMPT_TOKENS, CACHED_TOKENS = "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total"
# Notegrade's counter of scored pairs; those that no engine scored were known, or being scored for somebody else.
SCORED_PAIRS = "notegrade_pair_source_total"
_BY_ENGINE = 'source="engine"'
# They are looked up for every token, and not multiplied by: lm_head works on the last position alone.
_NOT_MULTIPLIED = ("embed_tokens", "lm_head")


class ProcessTree:
    """A process and all that it has started. Those that left the tree (daemons) are not seen."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        """Those that live now, parents before their children; empty once the root has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """User and system time of all of them, children that ended and were waited for included."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def rss_mib(self) -> float:
        """Resident memory together; what processes share counts for each."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20


@dataclass(slots=True)
class Usage:
    """Of a server while it was watched: CPU seconds, of the load generator too; highest memory of all samples in MiB."""

    cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    peak_rss_mib: float = 0.0


@dataclass
class Watch:
    """`async with Watch(tree) as usage`: usage is filled in when the block ends."""

    tree: ProcessTree
    usage: Usage = field(default_factory=Usage)

    async def __aenter__(self) -> Usage:
        self._before = self.tree.cpu_seconds(), time.process_time()
        self._sampling = asyncio.create_task(self._sample())
        return self.usage

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sampling
        self.usage.cpu_s = self.tree.cpu_seconds() - self._before[0]
        self.usage.client_cpu_s = time.process_time() - self._before[1]

    async def _sample(self) -> None:
        while True:
            self.usage.peak_rss_mib = max(self.usage.peak_rss_mib, self.tree.rss_mib())
            await asyncio.sleep(SAMPLE_EVERY_S)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Counts since a server started; subtract an earlier reading.

    Attributes:
        asked, cached: tokens that the engine was asked for, and those of them that its prefix cache saved.
        known: pairs that needed no engine; 0 where the server has no cache of pairs.
    """

    asked: float
    cached: float
    known: float = 0.0

    def __sub__(self, earlier: Self) -> "PromptTokens":
        return PromptTokens(
            self.asked - earlier.asked, self.cached - earlier.cached, self.known - earlier.known
        )

    @property
    def computed(self) -> float:
        """Those that went through the model."""
        return self.asked - self.cached


async def read_prompt_tokens(url: str) -> PromptTokens | None:
    """What vLLM counted, over all its engines; None where the server isn't vLLM or doesn't tell."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            samples = await read_metrics(session, url)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None

    def total(name: str) -> float | None:
        found = [value for sample, value in samples.items() if sample.partition("{")[0] == name]
        return sum(found) if found else None

    asked, cached = total(PROMPT_TOKENS), total(CACHED_TOKENS)
    known = sum(
        value
        for name, value in samples.items()
        if name.startswith(SCORED_PAIRS + "{") and _BY_ENGINE not in name
    )
    return None if asked is None or cached is None else PromptTokens(asked, cached, known)


def count_multiplied_parameters(checkpoint: Path) -> int:
    """Parameters that each token is multiplied by: all but the embedding and lm_head, read off the safetensors headers."""
    shapes = (shape for path in checkpoint.glob("*.safetensors") for shape in _matrix_shapes(path))
    return sum(math.prod(shape) for shape in shapes)


def _matrix_shapes(path: Path) -> Iterator[list[int]]:
    # Eight bytes of length, then that much JSON. Source: the safetensors format.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__" and not any(part in name for part in _NOT_MULTIPLIED):
            yield tensor["shape"]


def share_of_peak(parameters: int, tokens_per_pair: float, pairs_per_s: float, peak_gflops: float) -> float:
    """Of the machine's GEMM peak: two operations a parameter and token. Attention, lm_head and the sampler are left out."""
    return 2 * parameters * tokens_per_pair * pairs_per_s / (peak_gflops * 1e9)
