"""Images and containers without a daemon: built by buildah in a chroot, run by podman with docker's own options."""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# Its command, and the Debian package that has it.
TOOLS = {
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "podman": "podman",
    "runc": "runc",  # crun refuses a machine where both versions of cgroups are mounted
    "/usr/lib/podman/netavark": "netavark",
}


class Containers:
    """Tools with a storage and a folder for temporary files of their own: `remove` leaves nothing on the machine."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="notegrade-image-"))
        self._environment = {
            **os.environ,
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_CONF": str(self._folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._folder / "storage.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
            "TMPDIR": str(self._folder / "tmp"),
        }
        (self._folder / "tmp").mkdir()
        (self._folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["{_limit("nofile")}", "{_limit("nproc")}"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        )
        self._store_by("overlay")
        if self.tried("buildah", "info").returncode:  # on an overlay already, say
            self._store_by("vfs")

    def _store_by(self, driver: str) -> None:
        (self._folder / "storage.conf").write_text(
            f'[storage]\ndriver = "{driver}"\n'
            f'graphroot = "{self._folder}/images"\nrunroot = "{self._folder}/run"\n'
        )

    def tried(self, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def run(self, *command: str, **environment: str) -> str:
        """What the command wrote, on stdout and stderr; fails unless it exits with 0."""
        done = self.tried(*command, **environment)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
        return done.stdout

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        [found] = json.loads(self.run("podman", kind, "inspect", name))
        return dict(found)

    def remove(self) -> None:
        self.run("podman", "rm", "--all", "--force", "--time", "0")
        self.run("podman", "image", "unmount", "--all", "--force")
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in reversed([point for point in mounted if point.startswith(f"{self._folder}/")]):
            self.run("umount", point)
        shutil.rmtree(self._folder)


def missing_packages() -> list[str]:
    """The Debian packages whose tools are not here."""
    return [package for tool, package in TOOLS.items() if shutil.which(tool) is None]


def _limit(name: str) -> str:
    # What this process may have; the tools' own default is more than some machines allow.
    _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    return f"{name}={hard}:{hard}"
