"""What the engine's processes use of the machine: Prometheus's client tells that of the service's own process alone."""

import contextlib
import multiprocessing
from collections.abc import Iterator

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Families = tuple[CounterMetricFamily, GaugeMetricFamily]


class EngineUse(Collector):
    """CPU time and memory of all processes below this one that it started with `multiprocessing`, as vLLM starts its own.

    Read at each scrape, which takes about a millisecond; 0 where there are none. When one ends its CPU time is gone from the sum: to
    Prometheus a counter that began anew.
    """

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Both, without values."""
        yield from self._families()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Both, as they are now."""
        cpu, memory = self._families()
        cpu_s, resident_bytes = 0.0, 0
        for process in _processes():
            with contextlib.suppress(psutil.Error), process.oneshot():  # it may end while one looks
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
                "Memory that the engine's processes have; what they share counts for each",
            ),
        )


def _processes() -> Iterator[psutil.Process]:
    for child in multiprocessing.active_children():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(child.pid)
            yield process
            yield from process.children(recursive=True)
