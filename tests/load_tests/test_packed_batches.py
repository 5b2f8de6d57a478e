"""The comparison runs on the smallest recipe, where it says nothing about speed."""

import argparse
import json
from pathlib import Path

import pytest

from load_tests.packed_batches import measure
from tests.tiny_teacher import micro_recipe


def test_both_sides_compute_the_same_loss_of_each_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.json"
    (tmp_path / "base").mkdir()
    measure(argparse.Namespace(data=tmp_path, rounds=3, seed=1, out=out), micro_recipe(), tmp_path / "base")
    assert "packed / padded: " in capsys.readouterr().out
    seconds = json.loads(out.read_text(encoding="utf-8"))["figures"]["s_a_step"]
    assert {side: len(each) for side, each in seconds.items()} == {"padded": 3, "packed": 3}
