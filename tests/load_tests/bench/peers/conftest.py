import pytest

from load_tests.bench.peer import Request
from service.contract.checkpoint import Checkpoint
from tests.load_tests.bench.peers.tiny import make_request, make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def request_of_three(tiny: Checkpoint) -> Request:
    return make_request(tiny)
