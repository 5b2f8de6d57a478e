"""Restarts a service on the same port when it has ended, as a supervisor does."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from load_tests.processes import find_engine_core
from tests.end_to_end.service_process import SERVE, ServiceProcess, start_service

# Short, but long enough for a busy machine.
ENGINE_HANG_S, ENGINE_LOST_EXIT_S = 15, 10


@dataclass
class Supervised:
    """Supervises a service. Call `running` for the current, ready process; the port stays the same."""

    port: int
    folder: Path
    environment: dict[str, str]
    started: list[ServiceProcess] = field(default_factory=list)

    def running(self) -> ServiceProcess:
        """Return the running service, and start it first if it has ended."""
        if not self.started or self.started[-1].process.poll() is not None:
            log = self.folder / f"log-{len(self.started)}"
            self.started.append(start_service(log, SERVE, self.port, **self.environment))
            self.started[-1].wait_until_ready()
        return self.started[-1]

    def kill(self) -> None:
        """Kill every process that was started, including children whose service has already ended."""
        for service in self.started:
            with contextlib.suppress(ProcessLookupError):  # the whole group has ended
                os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait(30)


def engine_core(service: ServiceProcess) -> psutil.Process:
    """Return vLLM's engine-core process."""
    return find_engine_core(service.process.pid)


def exit_code(service: ServiceProcess, within_s: float) -> int:
    """Wait for the service to end, and return its exit code. Fails after `within_s`."""
    try:
        return service.process.wait(within_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(
            f"the service did not end in {within_s} s:\n{service.written()[-4000:]}"
        ) from None


def readiness(service: ServiceProcess) -> tuple[int, str]:
    """Return the status and the reason of /readyz."""
    response = httpx.get(f"{service.url}/readyz", timeout=30)
    return response.status_code, response.json()["reason"]
