"""The comparison runs on the smallest recipe, where it says nothing about speed."""

import argparse
import json
from pathlib import Path

import pytest

from load_tests.packed_prompts import Padded, measure
from model_export.teacher.rollout import Sampler, Sampling
from tests.tiny_base import make_micro_model
from tests.tiny_teacher import micro_recipe


def test_both_sides_sample_a_batch_in_each_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prompts.json"
    (tmp_path / "base").mkdir()
    options = argparse.Namespace(data=tmp_path, rounds=2, tokens=5, seed=1, out=out)
    measure(options, micro_recipe(), tmp_path / "base")
    assert "packed / padded: " in capsys.readouterr().out
    seconds = json.loads(out.read_text(encoding="utf-8"))["figures"]["s_a_batch"]
    assert {side: len(each) for side, each in seconds.items()} == {"padded": 2, "packed": 2}


def test_both_sides_decode_the_same() -> None:
    prompts = [[1, 2, 3, 4], [1, 2, 5], [6, 7, 8, 9, 1]]
    one, other = (
        side(make_micro_model(layers=2), (), 0).sample(prompts, Sampling(20, 0.0, 3))
        for side in (Padded, Sampler)
    )
    assert one == other
