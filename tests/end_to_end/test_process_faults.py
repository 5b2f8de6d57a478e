"""A real service survives faults: its checkpoint folder changes, the disk is full, the clock jumps, file descriptors run out."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from safetensors.torch import load_file, save_file

from load_tests.processes import free_port
from service.contract.checkpoint import Checkpoint
from tests.end_to_end.service_process import SERVE, TINY_STUDENT, ServiceProcess, start_service
from tests.processes import run
from tests.redis_server import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(900)]

NOTES = [{"id": str(number), "body": f"{number} quiet cafes with light and sockets"} for number in range(3)]
DAY_S = 86_400


def score(client: httpx.Client, query: str = "quiet cafes") -> list[float]:
    response = client.post("/score", json={"query": query, "notes": NOTES, "deadline_ms": 60_000})
    assert response.status_code == 200, response.text
    return [result["score"] for result in response.json()["results"]]


class Clock:
    """Moves the wall clock of a service. The monotonic clock continues, as when somebody sets the time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.touch()
        self.jump(0)
        hook = Path(__file__).with_name("leaping_clock")
        self.environment = {"PYTHONPATH": str(hook), "LEAPING_CLOCK": str(file)}

    def jump(self, seconds: int) -> None:
        """Set the clock to the real time plus `seconds`."""
        # Overwritten in one write: the service keeps the file open and reads it all the time.
        with self._file.open("r+b", buffering=0) as file:
            file.write(f"{seconds:32d}".encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy a checkpoint's folder, so that tests may damage it."""
    copy = tmp_path_factory.mktemp("faults") / "checkpoint"
    shutil.copytree(TINY_STUDENT, copy)
    return copy


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def service(folder: Path, clock: Clock, redis_binary: str) -> Iterator[ServiceProcess]:
    settings = {
        "NOTEGRADE_CHECKPOINT": str(folder),
        "NOTEGRADE_LOCAL_CACHE_PAIRS": "1",
        "NOTEGRADE_ENGINE_DTYPE": "float32",
    }
    log = folder.parent / "log"
    with (
        RedisServer(redis_binary) as redis,
        start_service(log, NOTEGRADE_REDIS_URL=redis.url, **clock.environment, **settings) as service,
    ):
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="module")
def bare(clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Start a service without Redis. Every write to its log fails with "no space left on device", including the first one."""
    environment = {
        **clock.environment,
        "NOTEGRADE_CHECKPOINT": str(TINY_STUDENT),
        "NOTEGRADE_DRAIN_DELAY_S": "0",
        "PYTHONUNBUFFERED": "",  # as for most users: a machine that sets it would hide a buffered stderr
    }
    command = ["bash", "-c", f"exec {' '.join(SERVE)} >/dev/full 2>&1"]
    with start_service(tmp_path_factory.mktemp("bare") / "log", command, **environment) as service:
        service.wait_until_ready()
        yield service


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=90) as client:
        yield client


# --- the clock ----------------------------------------------------------------------------------------------------


@pytest.fixture
def jumping(clock: Clock) -> Iterator[Clock]:
    yield clock
    clock.jump(0)


def date_of_service(client: httpx.Client) -> float:
    return parsedate_to_datetime(client.get("/livez").headers["date"]).timestamp()


@pytest.mark.parametrize(
    "seconds", [DAY_S, -DAY_S, 400 * DAY_S], ids=["a day forward", "a day back", "a year forward"]
)
def test_a_clock_jump_changes_no_answer(client: httpx.Client, jumping: Clock, seconds: int) -> None:
    before = score(client)
    jumping.jump(seconds)
    wait_until(lambda: abs(date_of_service(client) - time.time() - seconds) < 60)
    assert score(client) == before
    assert client.get("/readyz").status_code == 200

    def cache_is_used() -> bool:
        assert len(score(client, query=f"after a jump of {seconds}, at {time.monotonic()}")) == len(NOTES)
        return "notegrade_cache_breaker_open 0.0" in client.get("/metrics").text

    # Not at once: on a busy machine a call to Redis may time out, which opens the breaker for five seconds.
    wait_until(cache_is_used)


def test_a_clock_jump_neither_ends_nor_prolongs_explanation_mode(
    client: httpx.Client, jumping: Clock
) -> None:
    assert_mode_ends_in_time(client, jumping)


def test_a_clock_jump_without_redis_neither_ends_nor_prolongs_explanation_mode(
    bare: ServiceProcess, clock: Clock
) -> None:
    # With Redis, the mode follows Redis' clock, which does not jump in these tests.
    with httpx.Client(base_url=bare.url, timeout=90) as client:
        for jumps in ([DAY_S], [-DAY_S], [DAY_S, -DAY_S]):
            assert_mode_ends_in_time(client, clock, jumps)
            clock.jump(0)


def assert_mode_ends_in_time(
    client: httpx.Client, clock: Clock, jumps: Sequence[int] = (DAY_S, -DAY_S)
) -> None:
    """Turn explanation mode on for eight seconds, and check that it ends after about that time."""
    etag = client.get("/admin/explanation-mode").headers["etag"]
    body = {"mode": "on_request", "ttl_s": 8, "reason": "a test"}
    turned_on = time.monotonic()
    assert client.put("/admin/explanation-mode", json=body, headers={"If-Match": etag}).status_code == 200
    for seconds in jumps:
        clock.jump(seconds)
        time.sleep(1.5)
        mode = mode_now(client)
        assert mode == "on_request" or time.monotonic() > turned_on + 8
    wait_until(lambda: mode_now(client) == "off", within_s=60)
    print(
        f"explanation mode with clock jumps {list(jumps)}: off after {time.monotonic() - turned_on:.1f} s of 8"
    )
    assert turned_on + 7 < time.monotonic() < turned_on + 30


def mode_now(client: httpx.Client) -> str:
    return str(client.get("/admin/explanation-mode").json()["mode"])


# --- open files ---------------------------------------------------------------------------------------------------


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection."""
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_running_out_of_file_descriptors_keeps_open_connections(
    service: ServiceProcess, client: httpx.Client
) -> None:
    before = score(client)
    process = psutil.Process(service.process.pid)
    whole = process.rlimit(psutil.RLIMIT_NOFILE)
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        process.rlimit(
            psutil.RLIMIT_NOFILE, (process.num_fds() + 8, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
        stack.callback(process.rlimit, psutil.RLIMIT_NOFILE, whole)
        connections = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(40)]
        time.sleep(1)
        # The open connection of this client is still served, from the cache and from the engine.
        assert score(client) == before
        assert len(score(client, query="without free file descriptors")) == len(NOTES)
        # Connections over the limit are closed, and do not wait for ever.
        wait_until(lambda: sum(map(is_closed, connections)) >= 25)
    with httpx.Client(base_url=service.url, timeout=90) as another:
        assert score(another) == before


# --- the checkpoint's folder --------------------------------------------------------------------------------------


def damage(folder: Path) -> None:
    """Damage the folder like an interrupted copy over a folder that is being served."""
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
        file.write(b"\xff" * 1_000_000)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["name"] = "another"
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_folder_damaged_while_it_is_served_changes_no_answer(
    service: ServiceProcess, client: httpx.Client, folder: Path
) -> None:
    model = client.get("/version").json()["model"]
    before = score(client)
    damage(folder)
    assert score(client) == before
    for number in range(6):  # each one is scored by the engine
        assert len(score(client, query=f"after the damage {number}")) == len(NOTES)
    assert client.get("/version").json()["model"] == model
    assert client.get("/readyz").status_code == 200
    # The next start is refused, with one line.
    command = [*SERVE[:-1], str(free_port()), "--checkpoint", str(folder)]
    done = run(*command, within_s=120)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(r"manifest", done.stderr)


def test_a_folder_swapped_after_it_was_checked_is_never_served(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY_STUDENT, folder)
    with start_service(tmp_path / "log", [*SERVE, "--checkpoint", str(folder)]) as service:
        wait_until(lambda: "The engine is loading" in service.written(), within_s=120)
        # The folder is checked by now, and vLLM reads it seconds later, after its import.
        weights = folder / "model.safetensors"
        save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
        service.wait_for("ok", "probe_mismatch", "engine_lost")
        assert service.readiness[-1] == (503, "probe_mismatch")
        assert re.search(r"\d+ of 32 probes differ", service.written())
        refused = httpx.post(f"{service.url}/score", json={"query": "q", "notes": NOTES}, timeout=60)
        assert refused.status_code == 503
    assert service.process.returncode == 0, service.written()[-2000:]


# --- signals during the start -------------------------------------------------------------------------------------------


def test_ctrl_c_while_loading(tmp_path: Path) -> None:
    with start_service(tmp_path / "log", NOTEGRADE_CHECKPOINT=str(TINY_STUDENT)) as service:
        service.wait_for("engine_starting")
        assert httpx.get(f"{service.url}/livez", timeout=30).status_code == 200
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(60) == 0
        assert "Traceback" not in service.written()


def test_sigterm_while_probing(default_checkpoint: Checkpoint, tmp_path: Path) -> None:
    environment = {
        "NOTEGRADE_CHECKPOINT": str(default_checkpoint.folder),
        "NOTEGRADE_ENGINE_MAX_SEQUENCES": "1",  # one probe at a time, so that the signal arrives before the last one
    }
    with start_service(tmp_path / "log", **environment) as service:
        wait_until(lambda: '"probing"' in service.written(), within_s=120)
        service.process.terminate()
        assert service.process.wait(60) == 0
        assert '"ok"' not in service.written(), "it was ready before the signal"
        assert "Traceback" not in service.written()


# --- the log's disk -----------------------------------------------------------------------------------------------


def test_a_full_disk_for_the_log_does_not_stop_the_service(bare: ServiceProcess) -> None:
    with httpx.Client(base_url=bare.url, timeout=90) as client:
        assert len(score(client)) == len(NOTES)
        problem: dict[str, Any] = client.post("/score", json={}).json()
        assert problem["type"] == "urn:notegrade:problem:invalid-request"
    bare.process.terminate()
    assert bare.process.wait(60) == 0
