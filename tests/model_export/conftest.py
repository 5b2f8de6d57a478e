import shutil
from pathlib import Path

import pytest

from model_export.checkpoint.assemble import Plan, assemble
from model_export.data.criteria import load_criteria
from model_export.data.synthetic import generate
from model_export.data.template import find_template
from tests.tiny_base import make_tiny_base
from tests.tiny_bert import make_tiny_bert
from tests.tiny_teacher import TinyTeacher, make_tiny_teacher


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a transformers folder, shared by all tests: do not change it."""
    import torch

    # On matrices this small a second thread only waits, on a busy machine a hundred times longer than the work takes.
    torch.set_num_threads(1)
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny-base")


@pytest.fixture(scope="session")
def tiny_encoder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that sentence-transformers loads as an encoder; read-only."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("encoders") / "tiny-encoder"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a BERT that knows the words of the synthetic pairs; read-only."""
    return make_tiny_bert(tmp_path_factory.mktemp("bases") / "tiny-bert", generate(1, 300, 1, 8).train)


@pytest.fixture(scope="session")
def tiny_plan(tiny_base: Path) -> Plan:
    return Plan(str(tiny_base), find_template("note-first-1"), load_criteria("general-1"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Assemble a checkpoint from the tiny base; read-only."""
    return assemble(tiny_plan, tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> TinyTeacher:
    """Train a teacher that memorises eight pairs; read-only."""
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"))
