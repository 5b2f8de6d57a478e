import multiprocessing
import subprocess
import sys
import time

import pytest
from prometheus_client import CollectorRegistry

from service.observability.engine_use import EngineUse
from tests.waiting import wait_until

MIB = 2**20


def work(pipe: "multiprocessing.connection.Connection") -> None:
    """Use memory, start a child that uses CPU time, and send how much both used."""
    kept = b"x" * (200 * MIB)
    spend = "import time; sum(range(10**7)); print(time.process_time(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", spend], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as below:
        assert below.stdout
        pipe.send((len(kept), time.process_time() + float(below.stdout.readline())))
        pipe.recv()
        below.communicate(b"\n")


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(EngineUse())
    return registry


def value(registry: CollectorRegistry, name: str) -> float:
    found = registry.get_sample_value(f"notegrade_engine_{name}")
    assert found is not None
    return found


def test_processes_and_their_children_count_until_they_end(registry: CollectorRegistry) -> None:
    before = value(registry, "cpu_seconds_total"), value(registry, "resident_bytes")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=[there])
    process.start()
    try:
        taken_bytes, taken_s = here.recv()
        assert value(registry, "resident_bytes") - before[1] > taken_bytes
        # The system counts hundredths of a second for each process.
        assert value(registry, "cpu_seconds_total") - before[0] > taken_s - 0.05
    finally:
        here.send("enough")
        process.join(30)
    wait_until(lambda: value(registry, "resident_bytes") - before[1] < 100 * MIB)


def test_without_an_engine_both_metrics_are_0() -> None:
    """In a separate process, because other tests may have started children of this one."""
    code = "from service.observability.engine_use import EngineUse; print([s.value for f in EngineUse().collect() for s in f.samples])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[0.0, 0]\n"
