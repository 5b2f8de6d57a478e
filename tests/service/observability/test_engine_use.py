import multiprocessing
import subprocess
import sys
import time

import pytest
from prometheus_client import CollectorRegistry

from service.observability.engine_use import EngineUse
from tests.waiting import wait_until

MIB = 2**20


def work(told: "multiprocessing.connection.Connection") -> None:
    """Take memory, start another one that takes time, and tell how much both took."""
    kept = b"x" * (200 * MIB)
    spend = "import time; sum(range(10**7)); print(time.process_time(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", spend], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as below:
        assert below.stdout
        told.send((len(kept), time.process_time() + float(below.stdout.readline())))
        told.recv()
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


def test_processes_count_with_those_that_they_start_until_they_end(registry: CollectorRegistry) -> None:
    before = value(registry, "cpu_seconds_total"), value(registry, "resident_bytes")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=[there])
    process.start()
    try:
        taken_bytes, taken_s = here.recv()
        assert value(registry, "resident_bytes") - before[1] > taken_bytes
        # Counted in hundredths of a second, for each of them.
        assert value(registry, "cpu_seconds_total") - before[0] > taken_s - 0.05
    finally:
        here.send("enough")
        process.join(30)
    wait_until(lambda: value(registry, "resident_bytes") - before[1] < 100 * MIB)


def test_without_an_engine_there_is_nothing_to_count() -> None:
    """In a process of its own: another test's may be below this one."""
    code = "from service.observability.engine_use import EngineUse; print([s.value for f in EngineUse().collect() for s in f.samples])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[0.0, 0]\n"
