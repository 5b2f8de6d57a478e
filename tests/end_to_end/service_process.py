"""Starts the service as a process, with the command that users run."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from load_tests.client import parse_metrics
from load_tests.processes import free_port
from tests.processes import ROOT

# A student of recipes/tiny.toml: it writes well-formed traces, and it loads quickly.
TINY_STUDENT = Path(__file__).parent / "tiny_student"
START_TIMEOUT_S = 240
# Commands that start a service; {port} is replaced.
SERVE = (".venv/bin/notegrade", "serve", "--port", "{port}")
MAKE_SERVE = ("make", "serve", "PORT={port}")


@dataclass
class ServiceProcess:
    """Holds a running service with its log, and the readiness states it had while it started. A `with` block interrupts it at the end."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    readiness: list[tuple[int, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.interrupt()

    def wait_for(self, *reasons: str) -> None:
        """Poll /readyz until it gives one of the reasons, and record each state."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.readiness or self.readiness[-1][1] not in reasons:
            assert time.monotonic() < deadline, (
                f"not ready in time: {self.readiness}\n{self.written()[-4000:]}"
            )
            assert self.process.poll() is None, f"the service ended:\n{self.written()[-4000:]}"
            try:
                response = httpx.get(f"{self.url}/readyz", timeout=10)
            except httpx.TransportError:
                pass
            else:
                state = (response.status_code, response.json()["reason"])
                if state not in self.readiness:
                    self.readiness.append(state)
            time.sleep(0.2)

    def wait_until_ready(self) -> None:
        """Wait until the service is ready. Fails when it ends, or can't become ready."""
        self.wait_for("ok", "engine_lost", "probe_mismatch")
        assert self.readiness[-1] == (200, "ok"), f"{self.readiness}\n{self.written()[-4000:]}"

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics by its name and labels, as /metrics spells them."""
        return parse_metrics(httpx.get(f"{self.url}/metrics", timeout=30).text)

    def written(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def interrupt(self) -> None:
        """Send SIGINT to the whole process group, as Ctrl-C does, and wait for the service to end."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(60)


def start_service(
    log: Path, command: Sequence[str] = SERVE, port: int | None = None, /, **environment: str
) -> ServiceProcess:
    """Start the command in a new process group, on a free port unless one is given, with its output in the log."""
    port = port or free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in command],
            cwd=ROOT,
            # Several services run at once: each gets half of the default memory for prefixes.
            env={"NOTEGRADE_ENGINE_KV_CACHE_GIB": "1", **os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return ServiceProcess(f"http://127.0.0.1:{port}", process, log)
