import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest

from load_tests.bench.peer import Peer, Request, Tuning
from load_tests.bench.peers import vllm as vllm_peer
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm import VllmClassify, VllmGenerative, settings
from service.contract.checkpoint import Checkpoint

TUNINGS: tuple[Tuning, ...] = ("default", "tuned")
RAW = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.7, 0.1, 0.1, 0.1]}
USAGE = {"prompt_tokens": 9, "total_tokens": 11, "completion_tokens": 2}


@pytest.fixture(autouse=True)
def _float32_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_peer, "ask_faster_dtype", lambda _: "float32")


def classes(*order: int) -> dict[str, Any]:
    """Make an answer of /classify like vLLM 0.32."""
    data = [{"index": i, "label": "LABEL_0", "probs": RAW[i], "num_classes": 4} for i in order]
    return {"id": "classify-1", "object": "list", "model": "checkpoint", "data": data, "usage": USAGE}


def completions(checkpoint: Checkpoint, *order: int) -> dict[str, Any]:
    """Make an answer of /v1/completions like vLLM 0.32: the sampled token is among the requested labels."""
    choices = []
    for index in order:
        labels = zip(checkpoint.manifest.label_token_ids, RAW[index], strict=True)
        top = {"token_id:7": math.log(0.5)} | {f"token_id:{i}": math.log(0.5 * p) for i, p in labels}
        logprobs = {
            "text_offset": [0], "token_logprobs": [math.log(0.5)], "tokens": ["token_id:7"], "top_logprobs": [top],
        }  # fmt: skip
        choices.append({"index": index, "text": "x", "logprobs": logprobs, "finish_reason": "length"})
    return {
        "id": "cmpl-1", "object": "text_completion", "model": "checkpoint", "choices": choices, "usage": USAGE,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["classify", "generative"])
def test_grades_are_in_the_order_of_the_prompts(
    tiny: Checkpoint, kind: Literal["classify", "generative"]
) -> None:
    peer: Peer = VllmClassify(tiny, "tuned") if kind == "classify" else VllmGenerative(tiny, "tuned")
    answer = classes(1, 0) if kind == "classify" else completions(tiny, 1, 0)
    assert peer.grades(answer) == pytest.approx([calibrated_grade(RAW[index], tiny) for index in (0, 1)])


def test_classes_are_the_label_tokens_as_in_the_vocabulary(tiny: Checkpoint) -> None:
    overrides = VllmClassify(tiny, "tuned").overrides()
    assert overrides == {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["0", "1", "2", "3"],
        "method": "no_post_processing",
    }
    # vLLM looks them up there, without tokenising them.
    spec = json.loads(Path(tiny.folder / "tokenizer.json").read_text(encoding="utf-8"))
    found = [spec["model"]["vocab"][token] for token in overrides["classifier_from_token"]]
    assert tuple(found) == tiny.manifest.label_token_ids


def test_default_settings_set_no_options(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh")  # any program that is there
    flags, environment = settings(tiny, "default")
    assert flags == []
    assert set(environment) == {"VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"}


def test_tuned_settings_equal_those_of_our_engine(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh")
    flags, environment = settings(tiny, "tuned")
    longest = tiny.renderer.max_prompt_tokens + 1
    expected = {
        "--dtype": "float32",
        "--block-size": "32",
        "--max-model-len": str(longest),
        "--max-num-batched-tokens": str(max(1024, longest)),
    }
    assert {name: flags[flags.index(name) + 1] for name in expected} == expected
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "TORCHDYNAMO_DISABLE" not in environment
    assert "--enforce-eager" not in flags


@pytest.mark.parametrize("tuning", TUNINGS)
def test_eager_without_a_compiler(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, tuning: Tuning) -> None:
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    flags, environment = settings(tiny, tuning)
    assert "--enforce-eager" in flags
    assert environment["TORCHDYNAMO_DISABLE"] == "1"


@pytest.mark.engine
def test_classify_call_and_answer_match_vllm(tiny: Checkpoint, request_of_three: Request) -> None:
    from vllm.entrypoints.pooling.classify.protocol import (
        ClassificationCompletionRequest,
        ClassificationResponse,
    )

    path, sent = VllmClassify(tiny, "tuned").call(request_of_three)
    body = ClassificationCompletionRequest.model_validate(sent)
    assert path == "/classify"
    assert not body.model_extra
    assert body.input == [list(prompt) for prompt in request_of_three.prompts]
    assert not ClassificationResponse.model_validate(classes(0, 1)).model_extra


@pytest.mark.engine
def test_completions_call_and_answer_match_vllm(tiny: Checkpoint, request_of_three: Request) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse

    path, sent = VllmGenerative(tiny, "tuned").call(request_of_three)
    body = CompletionRequest.model_validate(sent)
    assert path == "/v1/completions"
    assert not body.model_extra
    assert body.prompt == [list(prompt) for prompt in request_of_three.prompts]
    assert body.logprob_token_ids == list(tiny.manifest.label_token_ids)
    assert not CompletionResponse.model_validate(completions(tiny, 0, 1)).model_extra
