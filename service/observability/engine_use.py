"""Measure the CPU time and memory of the engine's processes: Prometheus's client measures the service's own process only."""

import contextlib
import multiprocessing
from collections.abc import Iterator

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Families = tuple[CounterMetricFamily, GaugeMetricFamily]


class EngineUse(Collector):
    """Collects the CPU time and memory of the processes that this one started with `multiprocessing`, and of their children.

    vLLM starts its processes this way. They are read at each scrape, which takes about a millisecond; without any, both are 0. When a
    process ends, its CPU time leaves the sum, which Prometheus treats as a reset of the counter.
    """

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield both metrics without values."""
        yield from self._families()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield both metrics with their present values."""
        cpu, memory = self._families()
        cpu_s, resident_bytes = 0.0, 0
        for process in _processes():
            with contextlib.suppress(psutil.Error), process.oneshot():  # a process may end while it is read
                times = process.cpu_times()
                cpu_s += times.user + times.system
                resident_bytes += process.memory_info().rss
        cpu.add_metric((), cpu_s)
        memory.add_metric((), resident_bytes)
        yield from (cpu, memory)

    def _families(self) -> Families:
        return (
            CounterMetricFamily("notegrade_engine_cpu_seconds", "CPU time of the engine's processes"),
            GaugeMetricFamily(
                "notegrade_engine_resident_bytes",
                "Resident memory of the engine's processes; memory that they share counts for each",
            ),
        )


def _processes() -> Iterator[psutil.Process]:
    for child in multiprocessing.active_children():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(child.pid)
            yield process
            yield from process.children(recursive=True)
