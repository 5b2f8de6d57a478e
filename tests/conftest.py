import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from load_tests.processes import find_redis
from service.contract.checkpoint import Checkpoint, load_checkpoint
from tests.checkpoints import load_tiny
from tests.places import Place
from tests.redis_cluster import RedisClusterServers, running_cluster
from tests.redis_server import RedisServer
from tests.skips import Skips
from tests.tools import REDIS, lacks, require
from tests.workers import ALONE, Groups, arrange, machine

# No deadline: on a busy machine any example may be slow, and that says nothing about the code.
hypothesis.settings.register_profile(
    "notegrade", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("notegrade")


def pytest_configure(config: pytest.Config) -> None:
    """Add the summary of tests that did not run, and why, and speed up the imports."""
    config.pluginmanager.register(Skips())
    gc.disable()  # until everything is imported: collections would take a quarter of that time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first."""
    arrange(items)


def pytest_collection_finish() -> None:
    """Exclude all existing objects from garbage collection: about a million of them live until the end."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Undo the freeze: leak checks at exit would otherwise count the frozen objects as leaks."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Choose the scheduler that decides which tests share a worker."""
    return Groups(config, log)


# It runs before any timeout starts: waiting for a turn must not count as hanging.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run no other test beside one that is marked `alone`."""
    with machine(alone=item.get_closest_marker(ALONE) is not None):
        return (yield)


@pytest.fixture(scope="session")
def redis_binary() -> str:
    return find_redis() or require(REDIS)


@pytest.fixture
def redis_server(redis_binary: str) -> Iterator[RedisServer]:
    """Start an empty Redis for this test alone, which may kill and pause it."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def started_cluster(
    redis_binary: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisClusterServers]:
    with running_cluster(redis_binary, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(started_cluster: RedisClusterServers) -> RedisClusterServers:
    """Return the session's Redis Cluster, empty and with every node running. A test may stop nodes."""
    started_cluster.heal()
    return started_cluster


@pytest.fixture(
    params=["memory", *(pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "cluster"))]
)
def place(request: pytest.FixtureRequest) -> Place:
    """Return where a store keeps what a test stores; a test that asks for it runs once in each place."""
    if request.param == "memory":
        return Place()
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return Place(server.url, [server.url])
    servers: RedisClusterServers = request.getfixturevalue("redis_cluster")
    return Place(servers.url, [node.url for node in servers.nodes])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Load a tiny checkpoint, which only a fake engine can run."""
    return load_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def default_checkpoint() -> Checkpoint:
    """Load the checkpoint that `make checkpoint` assembles from SmolLM2."""
    folder = Path(__file__).parent.parent / "checkpoints" / "default"
    if not folder.exists():
        lacks("no checkpoints/default here: `make checkpoint` assembles it")
    return load_checkpoint(folder)
