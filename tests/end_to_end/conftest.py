"""Fixtures that start `make serve` with vLLM, SmolLM2 and Redis, as a separate process."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

from service.contract.checkpoint import Checkpoint
from tests.end_to_end.replicas import Replicas, started_replicas
from tests.end_to_end.service_process import MAKE_SERVE, ServiceProcess, start_service
from tests.redis_server import RedisServer
from tests.tools import CHROMIUM, require


@pytest.fixture(scope="session")
def shared_redis(redis_binary: str) -> Iterator[RedisServer]:
    """Start the service's Redis. A test that kills it starts it again."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def service(
    default_checkpoint: Checkpoint, shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """Start `make serve` on the default checkpoint until it is ready, in fp32, to compare its scores with transformers'."""
    settings = {
        "NOTEGRADE_REDIS_URL": shared_redis.url,
        "NOTEGRADE_ENGINE_DTYPE": "float32",
        # A small local cache, so that some requests reach Redis.
        "NOTEGRADE_LOCAL_CACHE_PAIRS": "40",
        # No test may fail because the machine is busy.
        "NOTEGRADE_REDIS_TIMEOUT_MS": "5000",
        "NOTEGRADE_DEFAULT_DEADLINE_MS": "60000",
        "NOTEGRADE_EXPLANATION_WAIT_S": "600",
        "NOTEGRADE_GUARD_P99_MS": "600000",
        "NOTEGRADE_GUARD_BACKLOG_SHARE": "1",
    }
    with start_service(tmp_path_factory.mktemp("service") / "log", MAKE_SERVE, **settings) as service:
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="session")
def replicas(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Start three replicas on their own Redis. Tests leave them running, in any explanation mode."""
    with (
        RedisServer(redis_binary) as redis,
        started_replicas(redis, tmp_path_factory.mktemp("replicas")) as replicas,
    ):
        yield replicas


@pytest.fixture(scope="session")
def chromium_binary() -> str:
    return require(CHROMIUM)


@pytest.fixture
def complaints() -> list[str]:
    """Collect the page's errors and warnings. The test fails if any are left."""
    return []


@pytest.fixture
async def browser_page(chromium_binary: str, complaints: list[str]) -> AsyncIterator[Page]:
    """Open an empty page in Chromium."""
    expect.set_options(timeout=20_000)

    def complain(message: ConsoleMessage) -> None:
        # 4xx answers are expected: the page shows them.
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            complaints.append(message.text)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_binary,
            args=["--no-sandbox"],  # Chromium refuses its sandbox to root, which tests run as in containers
        )
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        await browser.close()
    assert complaints == []


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as client:
        yield client
