"""Runs the services of deploy/compose.yaml as processes of this machine, for machines without a container runtime.

Each has its own command, settings and mounted files. Folders and ports, which a container isolates, are mapped: a port to one free port
wherever it is written, so that two files that disagree on a port still disagree.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.processes import free_port
from tests.processes import ROOT, run
from tests.tools import VENV_BIN


def of_the_image(instruction: str) -> str:
    """Return what follows the instruction in the serving image's Dockerfile, on one line."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    [found] = re.findall(rf"^{instruction}\b(.*)$", dockerfile, re.MULTILINE)
    return str(found)


@dataclass(frozen=True)
class Running:
    """Holds the services' processes and the ports that they listen on."""

    ports: Mapping[str, int]
    processes: Mapping[str, "subprocess.Popen[bytes]"]
    folder: Path

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def is_healthy(self) -> bool:
        """Run the serving image's health check. Fails when a process has ended."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        assert not ended, [(self.folder / f"{name}.log").read_text(encoding="utf-8") for name in ended]
        python, *arguments = json.loads(of_the_image("HEALTHCHECK").partition("CMD")[2])
        check = run(VENV_BIN / python, *arguments, NOTEGRADE_PORT=str(self.ports["notegrade"]))
        return check.returncode == 0

    def stop(self, service: str, within_s: float) -> int:
        """Stop the service as a container is stopped, and return its exit code."""
        self.processes[service].send_signal(signal.SIGTERM)
        return self.processes[service].wait(within_s)


@contextmanager
def as_processes(
    services: Mapping[str, Any], programs: Mapping[str, Sequence[str]], ports: Mapping[str, int], folder: Path
) -> Iterator[Running]:
    """Run each program with the command of its service. `{port}` in a program is the service's port."""
    free = {name: free_port() for name in programs}
    moved = {str(ports[name]): str(free[name]) for name in programs}
    processes = {}
    with ExitStack() as running:
        for name, program in programs.items():
            folders = _mount(services[name].get("volumes", ()), folder / name, moved)
            words = [*program, *(_map(word, folders, moved) for word in services[name].get("command") or ())]
            given = services[name].get("environment") or {}
            settings = {key: _map(value, folders, moved) for key, value in given.items()}
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [word.replace("{port}", str(free[name])) for word in words],
                    env={"PATH": os.defpath, **settings},
                    stdout=log,
                    stderr=log,
                )
            processes[name] = running.enter_context(process)
            running.callback(process.kill)
        yield Running(free, processes, folder)


def _mount(volumes: Sequence[Mapping[str, Any]], folder: Path, moved: Mapping[str, str]) -> dict[str, str]:
    """Make the service's folders, with copies of mounted files; return them by their paths in the container."""
    folders = {}
    for volume in volumes:
        target = folder / volume["target"].strip("/")
        folders[volume["target"]] = str(target)
        if volume["type"] != "bind":
            target.mkdir(parents=True)
            continue
        shutil.copytree(volume["source"], target)
        for file in target.glob("*.yml"):
            file.write_text(_map(file.read_text(encoding="utf-8"), {}, moved), encoding="utf-8")
    return folders


def _map(text: str, folders: Mapping[str, str], moved: Mapping[str, str]) -> str:
    for inside, outside in folders.items():
        text = re.sub(rf"(^|(?<==)){re.escape(inside)}(?=/|$)", outside, text)
    return re.sub(r"(?<=:)\d{4}\b", lambda port: moved.get(port[0], port[0]), text)
