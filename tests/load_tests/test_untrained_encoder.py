from pathlib import Path

import torch

from load_tests.untrained_encoder import add_encoder
from model_export.checkpoint.assemble import Plan, assemble
from model_export.models.model_io import load_model
from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import ENCODER_NAME
from tests.tiny_base import make_tiny_base


def test_the_encoder_is_the_checkpoint_itself(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "base")
    made = assemble(Plan(str(tmp_path / "base")), tmp_path / "checkpoint")
    add_encoder(made, tmp_path / "out")
    before, after = load_checkpoint(made), load_checkpoint(tmp_path / "out")
    assert after.manifest.vectors
    assert after.manifest.fingerprint != before.manifest.fingerprint
    assert after.probes == before.probes
    weights = [load_model(folder).state_dict() for folder in (made, tmp_path / "out" / ENCODER_NAME)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
