"""Starts a real Redis or Valkey server for a test."""

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from load_tests.processes import free_port


class RedisServer:
    """Runs one server process on a free port of 127.0.0.1. It starts empty each time, unless it has a folder for its data.

    A `with` block starts it and kills it at the end: there is nothing to save, and SIGTERM would wait for its next tick.
    """

    def __init__(
        self,
        binary: str,
        *,
        password: str | None = None,
        folder: Path | None = None,
        tls: tuple[Path, Path] | None = None,
        port: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        """Choose a free port, if none is given. `tls` is the file of the server's key and certificates, and its authority's file; TLS is then required.

        `options` are more of the server's own.
        """
        self._binary = binary
        self._tls = tls
        self.options = options or {}
        self._folder = folder
        self._password = password
        self._process: subprocess.Popen[str] | None = None
        self.port = port or free_port()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        login = f":{self._password}@" if self._password else ""
        return f"{'rediss' if self._tls else 'redis'}://{login}127.0.0.1:{self.port}/0"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Return once the server accepts connections."""
        self._process = subprocess.Popen(
            [self._binary, *self._options()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        log = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            log.append(line)
            if "Ready to accept connections" in line:
                return
        raise RuntimeError(f"{self._binary} did not start:\n{''.join(log)}")

    def _options(self) -> list[str]:
        options: dict[str, object] = {"bind": "127.0.0.1", "save": "", "port": 0 if self._tls else self.port}
        options["appendonly"] = "yes" if self._folder else "no"
        if self._folder:
            options["dir"] = self._folder
        if self._tls:
            key, authority = self._tls
            options |= {"tls-port": self.port, "tls-auth-clients": "no", "tls-ca-cert-file": authority}
            options |= {"tls-key-file": key, "tls-cert-file": key}
        if self._password:
            options["requirepass"] = self._password
        options |= self.options
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def stop(self) -> None:
        """Stop the server cleanly. Does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server, as in a crash."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Suspend the server: it keeps every connection and stops answering, like a hung host."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with self._process as process:  # closes its pipe and waits
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a paused process can't act on SIGTERM
        self._process = None
