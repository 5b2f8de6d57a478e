import math
from typing import Any

import pytest

from load_tests.bench.peer import Request
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm_generative import VllmGenerative
from service.contract.checkpoint import Checkpoint

RAW = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.7, 0.1, 0.1, 0.1]}


def choice(checkpoint: Checkpoint, index: int) -> dict[str, Any]:
    """Make a choice like vLLM 0.32: the sampled token is among the requested labels."""
    mass = 0.5
    labels = zip(checkpoint.manifest.label_token_ids, RAW[index], strict=True)
    top = {"token_id:7": math.log(0.5)} | {f"token_id:{i}": math.log(mass * p) for i, p in labels}
    logprobs = {
        "text_offset": [0],
        "token_logprobs": [math.log(0.5)],
        "tokens": ["token_id:7"],
        "top_logprobs": [top],
    }
    return {"index": index, "text": "x", "logprobs": logprobs, "finish_reason": "length"}


def answer(checkpoint: Checkpoint, *order: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 9, "total_tokens": 11, "completion_tokens": 2}
    choices = [choice(checkpoint, index) for index in order]
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": "checkpoint",
        "choices": choices,
        "usage": usage,
    }


def test_grades_are_in_the_order_of_the_prompts(tiny: Checkpoint) -> None:
    expected = [calibrated_grade(RAW[index], tiny) for index in (0, 1)]
    assert VllmGenerative(tiny, "tuned").grades([answer(tiny, 1, 0)]) == pytest.approx(expected)


@pytest.mark.engine
def test_call_and_answer_match_vllm(tiny: Checkpoint, request_of_three: Request) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse

    [call] = VllmGenerative(tiny, "tuned").calls(request_of_three)
    body = CompletionRequest.model_validate(call.body)
    assert call.path == "/v1/completions"
    assert not body.model_extra
    assert body.prompt == [list(prompt) for prompt in request_of_three.prompts]
    assert body.logprob_token_ids == list(tiny.manifest.label_token_ids)
    assert not CompletionResponse.model_validate(answer(tiny, 0, 1)).model_extra
