import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from service.contract.checkpoint import Checkpoint, load_checkpoint
from tests.redis_server import RedisServer
from tests.skips import Skips
from tests.tools import REDIS, find_redis, lacks, require
from tests.workers import ALONE, Groups, arrange, machine

# No deadline: on a busy machine any example may be slow, and that says nothing about the code.
hypothesis.settings.register_profile(
    "notegrade", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("notegrade")


def pytest_configure(config: pytest.Config) -> None:
    """The summary says which tests did not run, and why."""
    config.pluginmanager.register(Skips())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first."""
    arrange(items)


def pytest_collection_finish() -> None:
    """A million objects of libraries and tests stay to the end: no garbage collection needs to visit them from now on."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Or what is still there would be taken for a leak by those who count."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Which tests share a worker."""
    return Groups(config, log)


# Before any limit of time begins: to wait for one's turn is not to hang.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Nothing runs beside what is to run alone."""
    with machine(alone=item.get_closest_marker(ALONE) is not None):
        return (yield)


@pytest.fixture(scope="session")
def redis_binary() -> str:
    return find_redis() or require(REDIS)


@pytest.fixture
def redis_server(redis_binary: str) -> Iterator[RedisServer]:
    """An empty Redis of this test's own, which it may kill and pause."""
    server = RedisServer(redis_binary)
    server.start()
    yield server
    server.kill()  # nothing to save, and SIGTERM would wait for its next tick


@pytest.fixture(scope="session")
def default_checkpoint() -> Checkpoint:
    """The checkpoint that `make checkpoint` assembles from SmolLM2."""
    folder = Path(__file__).parent.parent / "checkpoints" / "default"
    if not folder.exists():
        lacks("no checkpoints/default here: `make checkpoint` assembles it")
    return load_checkpoint(folder)
