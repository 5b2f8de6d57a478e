import socket
from collections.abc import Iterator

import pytest

from service.contract.checkpoint import Checkpoint
from tests.checkpoints import load_tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Load a tiny checkpoint, which only a fake engine can run."""
    return load_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def refused_port() -> Iterator[int]:
    """Bind a port without listening, so that connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
