from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from load_tests.bench.peer import Request
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.prompts import TransformersLoop
from load_tests.bench.peers.transformers_server import (
    BATCH,
    PlainScorer,
    Scorer,
    TunedScorer,
    build_app,
    count_shared,
    pad_right,
)
from service.contract.checkpoint import Checkpoint
from tests.load_tests.bench.peers.tiny import forward, make_request


def make_scorer(kind: Any, checkpoint: Checkpoint) -> Scorer:
    extra = [torch.float32] if kind is TunedScorer else []
    scorer: Scorer = kind(checkpoint.folder, checkpoint.manifest.label_token_ids, *extra)
    return scorer


def close_to(expected: Sequence[Sequence[float]]) -> Any:
    return [pytest.approx(row, abs=1e-5) for row in expected]


@pytest.mark.parametrize("kind", [PlainScorer, TunedScorer])
def test_probabilities_equal_single_forward_passes(
    kind: Any, tiny: Checkpoint, request_of_three: Request
) -> None:
    peer = TransformersLoop(tiny, "default")
    client = TestClient(build_app(make_scorer(kind, tiny)))
    path, body = peer.call(request_of_three)
    answer = client.post(path, json=body).json()
    expected = [calibrated_grade(forward(tiny, prompt), tiny) for prompt in request_of_three.prompts]
    assert peer.grades(answer) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3  # else any order would do


@pytest.mark.parametrize("kind", [PlainScorer, TunedScorer])
def test_several_batches_keep_the_order(kind: Any, tiny: Checkpoint, request_of_three: Request) -> None:
    prompts = (request_of_three.prompts * BATCH)[: 2 * BATCH + 1]
    expected = {prompt: forward(tiny, prompt) for prompt in request_of_three.prompts}
    assert make_scorer(kind, tiny).score(prompts) == close_to([expected[prompt] for prompt in prompts])


@pytest.mark.parametrize("kind", [PlainScorer, TunedScorer])
def test_single_and_repeated_prompts(kind: Any, tiny: Checkpoint) -> None:
    [prompt] = make_request(tiny, notes=1).prompts
    scorer = make_scorer(kind, tiny)
    expected = forward(tiny, prompt)
    assert scorer.score([prompt]) == close_to([expected])
    assert scorer.score([prompt, prompt]) == close_to([expected, expected])


def test_shared_prefix_leaves_a_token_to_each_prompt() -> None:
    assert count_shared([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert count_shared([[1, 2], [1, 2, 3]]) == 1
    assert count_shared([[1], [2]]) == 0
    assert count_shared([[1, 2, 3]]) == 0


def test_padding_follows_the_prompt() -> None:
    ids, last = pad_right([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert last.tolist() == [2, 0]


def test_health_answers(tiny: Checkpoint) -> None:
    assert TestClient(build_app(make_scorer(PlainScorer, tiny))).get("/health").status_code == 200
