"""The comparison of counts runs on the fake engine, where it says nothing about speed."""

import argparse
import json
from pathlib import Path

import pytest

from load_tests.vector_counts import measure
from service.contract.checkpoint import load_checkpoint
from service.contract.vector_prompt import VectorPrompt
from service.engines.base import EngineAnswer, EnginePrompt
from service.engines.fake_engine import FakeEngine
from tests.checkpoints import engine_model, make_vector_checkpoint


class Recorded(FakeEngine):
    """Keeps the prompts."""

    prompts: list[EnginePrompt]

    async def score(self, prompt: EnginePrompt, priority: int) -> EngineAnswer:
        self.prompts.append(prompt)
        return await super().score(prompt, priority)


async def test_every_turn_has_new_queries_and_its_number_of_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(make_vector_checkpoint(tmp_path / "checkpoint"))
    assert checkpoint.vectors
    engine = Recorded(engine_model(checkpoint))
    engine.prompts = []
    await engine.start()
    out = tmp_path / "counts.json"
    options = argparse.Namespace(counts=[1, 2], rounds=2, requests=2, notes=3, seed=1, out=out)
    await measure(options, engine, checkpoint, checkpoint.vectors)
    await engine.close()
    width = 2 * checkpoint.vectors.reading.width
    counts = [len(each.rows) // width if isinstance(each, VectorPrompt) else 0 for each in engine.prompts]
    there = [0] * 6 + [1] * 6 + [2] * 6
    assert counts == there[::-1] + there + there[::-1]  # the first round warms up
    prefixes = [each.prefix for each in engine.prompts if isinstance(each, VectorPrompt)]
    assert len(set(prefixes)) == len(prefixes) // 3  # of each request's three notes
    assert "2 vectors / text: " in capsys.readouterr().out
    rates = json.loads(out.read_text(encoding="utf-8"))["figures"]["pairs_per_s"]
    assert {name: len(each) for name, each in rates.items()} == {"text": 2, "1 vectors": 2, "2 vectors": 2}
