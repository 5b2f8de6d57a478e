"""The comparison runs on the smallest recipe, where it says nothing about speed."""

import argparse
import json
from pathlib import Path

import pytest

from load_tests.packed_rollouts import SIDES, measure
from model_export.data.prepare import prepare_base, read_data
from tests.tiny_teacher import micro_recipe


def test_all_sides_compute_the_same_loss_in_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out, start, folder = micro_recipe(), tmp_path / "r.json", tmp_path / "start", tmp_path / "rl"
    start.mkdir()
    folder.mkdir()
    prepare_base(recipe.model.teacher, recipe, read_data(recipe, tmp_path), start)
    measure(argparse.Namespace(start=start, data=tmp_path, rounds=2, seed=1, out=out), recipe, folder)
    assert "packed / shared: " in capsys.readouterr().out
    seconds = json.loads(out.read_text(encoding="utf-8"))["figures"]["s_a_step"]
    assert {side: len(each) for side, each in seconds.items()} == dict.fromkeys(SIDES, 2)
