"""A service as a process of its own, as its users start it."""

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from load_tests.client import parse_metrics

ROOT = Path(__file__).parent.parent.parent
# What recipes/tiny.toml once made: it writes traces in form, and is loaded in a moment.
TINY_STUDENT = Path(__file__).parent / "tiny_student"
START_TIMEOUT_S = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class ServiceProcess:
    """A running service, what it wrote, and the readiness it went through while it started."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    readiness: list[tuple[int, str]] = field(default_factory=list)

    def wait_for(self, *reasons: str) -> None:
        """Poll /readyz until it gives one of the reasons, noting each one on the way."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.readiness or self.readiness[-1][1] not in reasons:
            assert time.monotonic() < deadline, (
                f"not there in time: {self.readiness}\n{self.written()[-4000:]}"
            )
            assert self.process.poll() is None, f"it ended:\n{self.written()[-4000:]}"
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
        """Fails when it ends, or stays red."""
        self.wait_for("ok", "engine_lost", "probe_mismatch")
        assert self.readiness[-1] == (200, "ok"), f"{self.readiness}\n{self.written()[-4000:]}"

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, as written there."""
        return parse_metrics(httpx.get(f"{self.url}/metrics", timeout=30).text)

    def written(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the whole group; returns when all of it has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(60)


def start_service(log: Path, command: list[str], port: int, **environment: str) -> ServiceProcess:
    """Start the command in a process group of its own, its output in the log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # Several of them run at once: half of the usual memory for prefixes.
            env={"NOTEGRADE_ENGINE_KV_CACHE_GIB": "1", **os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return ServiceProcess(f"http://127.0.0.1:{port}", process, log)
