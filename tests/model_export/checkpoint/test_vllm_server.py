import json
import os
import shutil
import sys
from pathlib import Path

import httpx
import pytest
import torch

from model_export.checkpoint.vllm_server import VllmServer, VllmServerError, choose_dtype, run_vllm
from model_export.models.reference_scorer import ReferenceScorer

LABELS = (16, 17, 18, 19)


def serve(answer: httpx.Response, log: Path = Path(os.devnull)) -> VllmServer:
    transport = httpx.MockTransport(lambda _: answer)
    return VllmServer(httpx.Client(transport=transport, base_url="http://vllm"), LABELS, log)


def choice(index: int, logprobs: tuple[float, ...]) -> dict[str, object]:
    top = {f"token_id:{token_id}": value for token_id, value in zip(LABELS, logprobs, strict=True)}
    return {"index": index, "logprobs": {"top_logprobs": [{"token_id:7": -0.1, **top}]}}


def test_distributions_keep_the_order_of_the_prompts() -> None:
    flat, steep = (-2.0, -2.0, -2.0, -2.0), (-9.0, -9.0, -9.0, -0.5)
    server = serve(httpx.Response(200, json={"choices": [choice(1, steep), choice(0, flat)]}))
    first, second = server.distributions([[1], [2]])
    assert first.probabilities == pytest.approx((0.25, 0.25, 0.25, 0.25))
    assert second.probabilities[3] > 0.99


def test_label_mass_is_relative_to_the_whole_vocabulary() -> None:
    [found] = serve(httpx.Response(200, json={"choices": [choice(0, (-3.0,) * 4)]})).distributions([[1]])
    assert found.label_mass == pytest.approx(4 * 0.049787, rel=1e-4)


@pytest.mark.parametrize("answer", [httpx.Response(500), httpx.Response(200, text="no JSON")])
def test_failed_batch_shows_the_end_of_the_log(answer: httpx.Response, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("the engine core says why\n", encoding="utf-8")
    with pytest.raises(
        VllmServerError, match=r"vLLM failed on a batch of prompts: (.*\n)*the engine core says why"
    ):
        list(serve(answer, log).distributions([[1]]))


def test_missing_vllm_gives_a_one_line_error(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(VllmServerError, match="not installed"), run_vllm(tiny_base, 64, LABELS):
        pass


def test_gpu_computes_in_bfloat16_as_the_service_does(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_dtype(tiny_base) == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_dtype(tiny_base) == "bfloat16"


@pytest.mark.engine
@pytest.mark.slow
def test_plain_vllm_agrees_with_transformers(tiny_base: Path) -> None:
    prompts = [[5, 9, 260, 33], [1] * 50, *([token] * 20 for token in range(100, 120))]
    with run_vllm(tiny_base, 64, LABELS) as server:
        found = list(server.distributions(prompts))
    expected = list(ReferenceScorer.load(tiny_base, LABELS).distributions(prompts))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)
        assert ours.label_mass == pytest.approx(theirs.label_mass, abs=1e-4)


@pytest.mark.engine
@pytest.mark.slow
def test_folder_that_vllm_refuses_shows_the_end_of_its_log(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "no-such-model"}), encoding="utf-8"
    )
    with (
        pytest.raises(
            VllmServerError, match=r"ended with exit code 1; the end of its log:\n(.*\n)*.*no-such-model"
        ),
        run_vllm(folder, 64, LABELS),
    ):
        pass
