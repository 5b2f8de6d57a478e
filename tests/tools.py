"""Finds and installs the programs that tests run and a machine may lack.

    python -m tests.tools [--slow]

installs the missing ones by one call of apt-get, where this user may install, and prints the versions that are used. Otherwise it lists
the missing ones and the command that installs all of them; in CI (`CI=true`) it then fails. The tests' summary names what they skipped.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent
VENV_BIN = ROOT / ".venv" / "bin"
# Debian has some of the commands in folders that a user's PATH may lack.
FOLDERS = ("/usr/sbin", "/usr/lib/podman", str(VENV_BIN))


@dataclass(frozen=True)
class Tool:
    """Describes a program: its commands, of which one is enough, and its Debian package."""

    name: str
    commands: tuple[str, ...]
    package: str
    slow: bool = False
    version: str = "--version"

    def find(self) -> str | None:
        """Return the path of the first command that is on this machine."""
        path = os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS))
        return next(filter(None, (shutil.which(command, path=path) for command in self.commands)), None)

    def is_installed(self) -> bool:
        """Return whether apt-get has nothing to do."""
        return self.find() is not None

    def set_up(self) -> None:
        """Finish the installation after apt-get."""

    def describe(self) -> str:
        """Return its name, its path and the first line that it prints as its version."""
        path = self.find()
        assert path is not None
        printed = subprocess.run([path, self.version], capture_output=True, text=True, check=False).stdout
        return f"{self.name:<16}{path}: {printed.strip().partition(chr(10))[0]}"


class Redis(Tool):
    """Finds a Redis server. Debian's redis-server would start as a service; redis-tools has the same program under another name."""

    def set_up(self) -> None:
        same = shutil.which("redis-check-rdb")
        if same and not self.find():
            link = VENV_BIN / "redis-server"
            link.unlink(missing_ok=True)
            link.symlink_to(same)


class Prometheus(Tool):
    """Finds Prometheus or Alertmanager, which scripts/ensure_prometheus.sh unpacks into .venv. Installed, they would start as services."""

    def find(self) -> str | None:
        return self._ensure("--here")

    def is_installed(self) -> bool:
        return True

    def set_up(self) -> None:
        self._ensure()

    def _ensure(self, *options: str) -> str | None:
        command = [str(ROOT / "scripts" / "ensure_prometheus.sh"), *options]
        stderr = subprocess.DEVNULL if options else None
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
        return None if done.returncode else f"{done.stdout.strip()}/{self.commands[0]}"


class PythonHeaders(Tool):
    """Python's C headers, which compiled models include. Debian packages them apart from python3."""

    def find(self) -> str | None:
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        return str(header) if header.is_file() else None

    def describe(self) -> str:
        return f"{self.name:<16}{self.find()}"


# Without it, tests use the Valkey from a wheel, which lacks TLS: `load_tests.processes.find_redis`.
REDIS = Redis("Redis", ("redis-server", "valkey-server"), "redis-tools")
CHROMIUM = Tool("Chromium", ("chromium", "chromium-browser", "google-chrome"), "chromium")
CURL = Tool("curl", ("curl",), "curl")
PROMETHEUS = Prometheus("Prometheus", ("prometheus",), "prometheus")
ALERTMANAGER = Prometheus("Alertmanager", ("alertmanager",), "prometheus-alertmanager")
HAPROXY = Tool("HAProxy", ("haproxy",), "haproxy", version="-v")
KUSTOMIZE = Tool("Kustomize", ("kustomize",), "kustomize", version="version")
COMPOSE = Tool("Docker Compose", ("docker-compose",), "docker-compose", version="version")
COMPILER = Tool("g++", (os.environ.get("CXX", "g++"),), "g++")
PYTHON_HEADERS = PythonHeaders("Python.h", (), "python3-dev")
CONTAINER_TOOLS = tuple(
    Tool(command, (command,), command, slow=True)
    # runc, since crun refuses a machine where both versions of cgroups are mounted.
    for command in ("buildah", "mmdebstrap", "podman", "runc", "netavark")
)
TOOLS = (
    *(REDIS, CHROMIUM, CURL, PROMETHEUS, ALERTMANAGER, HAPROXY, KUSTOMIZE, COMPOSE, COMPILER, PYTHON_HEADERS),
    *CONTAINER_TOOLS,
)


def require(tool: Tool) -> str:
    """Return the tool's path; skip the test where it is missing, or fail it in CI."""
    return tool.find() or lacks(f"no {tool.name} here: {_command([tool])}")


def lacks(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI, where nothing may be missing."""
    if _in_ci():
        pytest.fail(reason)
    pytest.skip(reason)


def install_debian(packages: Sequence[str]) -> bool:
    """Install Debian packages in one call of apt-get; return whether all of them are installed."""
    done = subprocess.run([ROOT / "scripts" / "install_debian.sh", *packages], check=False)
    return done.returncode == 0


def prepare(tools: Sequence[Tool], install: Callable[[Sequence[str]], bool] = install_debian) -> bool:
    """Install missing programs and print all versions; return whether tests may begin."""
    packages = [tool.package for tool in tools if not tool.is_installed()]
    # One by one if some are unavailable, such as on another release of Debian.
    if packages and not install(packages):
        for package in packages:
            install([package])
    for tool in tools:
        tool.set_up()
    missing = [tool for tool in tools if not tool.find()]
    print("Programs that the tests use:")
    for tool in tools:
        if tool not in missing:
            print(f"  {tool.describe()}")
    if missing:
        print(_list_missing(missing))
    return not (missing and _in_ci())


def _list_missing(missing: Sequence[Tool]) -> str:
    what = "Missing, and CI=true asks for all" if _in_ci() else "Missing, so that tests will be skipped"
    names = ", ".join(tool.name for tool in missing)
    return f"{what}: {names}\nTo install them:\n  {_command(missing)}"


def _command(missing: Sequence[Tool]) -> str:
    return f"sudo apt-get install {' '.join(tool.package for tool in missing)}"


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools", description=__doc__)
    parser.add_argument("--slow", action="store_true", help="the tools of `make test-slow` as well")
    slow = parser.parse_args().slow
    return 0 if prepare([tool for tool in TOOLS if slow or not tool.slow]) else 1


if __name__ == "__main__":
    sys.exit(main())
