import pytest

from service.contract.checkpoint import Checkpoint
from tests.checkpoints import load_tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Make a checkpoint for the fake engine, with room for the generated queries and notes."""
    limits = {"max_query_tokens": 400, "max_note_tokens": 400}
    return load_tiny(tmp_path_factory.mktemp("checkpoint"), limits=limits)
