import json
from pathlib import Path
from typing import Any

import pytest

from load_tests.bench.peer import Request
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm_classify import VllmClassify
from service.contract.checkpoint import Checkpoint

RAW = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.7, 0.1, 0.1, 0.1]}


def answer(*order: int) -> dict[str, Any]:
    """Make an answer like vLLM 0.32."""
    data = [{"index": i, "label": "LABEL_0", "probs": RAW[i], "num_classes": 4} for i in order]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return {"id": "classify-1", "object": "list", "model": "checkpoint", "data": data, "usage": usage}


def test_grades_are_in_the_order_of_the_prompts(tiny: Checkpoint) -> None:
    expected = [calibrated_grade(RAW[index], tiny) for index in (0, 1)]
    assert VllmClassify(tiny, "tuned").grades([answer(1, 0)]) == pytest.approx(expected)


def test_classes_are_the_label_tokens(tiny: Checkpoint) -> None:
    assert VllmClassify(tiny, "tuned").overrides() == {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["0", "1", "2", "3"],
        "method": "no_post_processing",
    }


def test_label_tokens_are_spelled_as_in_the_vocabulary(tiny: Checkpoint) -> None:
    # vLLM looks them up there, without tokenising them.
    spec = json.loads(Path(tiny.folder / "tokenizer.json").read_text(encoding="utf-8"))
    found = [
        spec["model"]["vocab"][token]
        for token in VllmClassify(tiny, "tuned").overrides()["classifier_from_token"]
    ]
    assert tuple(found) == tiny.manifest.label_token_ids


@pytest.mark.engine
def test_call_and_answer_match_vllm(tiny: Checkpoint, request_of_three: Request) -> None:
    from vllm.entrypoints.pooling.classify.protocol import (
        ClassificationCompletionRequest,
        ClassificationResponse,
    )

    [call] = VllmClassify(tiny, "tuned").calls(request_of_three)
    body = ClassificationCompletionRequest.model_validate(call.body)
    assert call.path == "/classify"
    assert not body.model_extra
    assert body.input == [list(prompt) for prompt in request_of_three.prompts]
    assert not ClassificationResponse.model_validate(answer(0, 1)).model_extra
