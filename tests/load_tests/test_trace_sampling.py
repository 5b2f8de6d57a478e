"""The comparison runs on the smallest recipe, where it says nothing about speed."""

import argparse
import json
from pathlib import Path

import pytest

from load_tests.trace_sampling import Generate, measure
from model_export.data.prepare import prepare_base, read_data
from model_export.teacher.rollout import Sampler, Sampling
from tests.tiny_base import make_micro_model
from tests.tiny_teacher import micro_recipe


def test_both_sides_sample_a_batch_in_each_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out, teacher = micro_recipe(), tmp_path / "sampling.json", tmp_path / "teacher"
    teacher.mkdir()
    prepare_base(recipe.model.teacher, recipe, read_data(recipe, tmp_path), teacher)
    measure(argparse.Namespace(teacher=teacher, data=tmp_path, rounds=2, seed=1, out=out), recipe)
    assert "sampler / generate: " in capsys.readouterr().out
    seconds = json.loads(out.read_text(encoding="utf-8"))["figures"]["s_a_batch"]
    assert {side: len(each) for side, each in seconds.items()} == {"generate": 2, "sampler": 2}


@pytest.mark.parametrize("end", [0, 11])
def test_both_sides_decode_the_same(end: int) -> None:
    prompts = [[1, 2, 3, 4], [1, 2, 5], [6, 7, 8, 9, 1]]
    one, other = (
        side(make_micro_model(layers=2), (), end).sample(prompts, Sampling(20, 0.0, 3))
        for side in (Generate, Sampler)
    )
    assert one == other
