"""Builds images with buildah in a chroot and runs them with podman and docker's options: neither needs a daemon."""

import json
import os
import re
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.processes import ROOT

# The options in docs/deploy.md. podman's own read-only mode keeps more folders than /tmp writable, so it is off.
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:noexec,size=256m", "--tmpfs", "/dev/shm"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
_NOTHING = "0" * 16
UNPRIVILEGED = {"Uid": "10001", "Gid": "10001", "CapEff": _NOTHING, "CapBnd": _NOTHING, "NoNewPrivs": "1"}
BILL = "usr/share/notegrade/sbom.cdx.json"
_TOOL = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|cpp|clang|ld|as|make|pip|uv)[\d.-]*")
_LEFT = ("etc/pip.conf", "root/.cache", "root/.config", "tools", "wheels", "tmp/*", "var/lib/apt/lists/*")


class Containers:
    """Runs the tools with their own storage and temporary folder: `remove` leaves nothing on the machine."""

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
        # One thread, like every test: the threads of two tests would wait for each other.
        (self._folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["{_limit("nofile")}", "{_limit("nproc")}"]\n'
            'env = ["OMP_NUM_THREADS=1"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        )
        self._store_by("overlay")
        if self.tried("buildah", "info").returncode:  # for example, if the folder is on an overlay
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
        """Run the command and return its stdout and stderr. Fails unless it exits with 0."""
        done = self.tried(*command, **environment)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
        return done.stdout

    def build(self, target: str, **environment: str) -> str:
        """Build this target of the Makefile and return the image's name."""
        command = ("make", "--no-print-directory", target, "ARGS=--network host")
        written = self.run(*command, BUILDER="buildah", **environment)
        return written.splitlines()[-1].removeprefix("image: ")

    def files(self, image: str) -> Path:
        """Mount the image and return the folder with its files."""
        return Path(self.run("podman", "image", "mount", image).strip())

    def start(self, image: str, *options: str, command: Sequence[str] = ()) -> str:
        """Start a hardened container in the background and return its id."""
        return self.run("podman", "run", "--detach", *HARDENED, *options, image, *command).splitlines()[-1]

    def privileges(self, container: str) -> dict[str, str]:
        """Return the privileges of the container's first process; UNPRIVILEGED means none."""
        status = self.run("podman", "exec", container, "cat", "/proc/1/status")
        return dict(re.findall(r"^(Uid|Gid|CapEff|CapBnd|NoNewPrivs):\s+(\w+)", status, re.MULTILINE))

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


def changeable(files: Path) -> list[str]:
    """Return the image's files that a user other than root may change if the root file system is writable."""
    found = []
    for folder, _, names in os.walk(files):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            status = os.lstat(path)
            if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                continue
            everybody_s = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
            if status.st_uid != 0 or everybody_s:
                found.append(path)
    return found


def tools_and_leftovers(files: Path) -> list[Path]:
    """Return compilers and installers in an image, and files that its build left behind."""
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "opt/notegrade/.venv/bin")
    tools = [path for folder in folders for path in (files / folder).iterdir() if _TOOL.fullmatch(path.name)]
    return tools + [path for left in _LEFT for path in files.glob(left)]


def checked_against_times(files: Path, *sources: str) -> list[Path]:
    """Return the sources whose bytecode Python would check against them (all except PEP 552's unchecked hashes)."""
    unchecked = bytes((1, 0, 0, 0))
    found = []
    for source in sources:
        [path] = (files / "opt/notegrade").glob(source)
        compiled = [made.read_bytes()[4:8] for made in path.parent.glob(f"__pycache__/{path.stem}.*.pyc")]
        if compiled != [unchecked]:
            found.append(path)
    return found


def listed(bill: Path) -> set[tuple[str, str]]:
    """Return names and versions in a bill of materials."""
    whole = json.loads(bill.read_text(encoding="utf-8"))
    assert whole["bomFormat"] == "CycloneDX"
    assert whole["metadata"]["component"]["name"] == "notegrade"
    return {(canonicalize_name(found["name"]), found["version"]) for found in whole["components"]}


def installed(files: Path) -> set[tuple[str, str]]:
    """Return names and versions of all packages in an image, except Notegrade."""
    folders = [str(folder) for folder in files.glob("**/site-packages")]
    there = {(canonicalize_name(each.name), each.version) for each in distributions(path=folders)}
    return {(name, version) for name, version in there if name != "notegrade"}


def _limit(name: str) -> str:
    # This process's limit; the tools' default is higher than some machines allow.
    _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    return f"{name}={hard}:{hard}"
