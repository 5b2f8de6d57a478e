import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from model_export.scale_out.rollout_server import (
    RolloutsError,
    check_rollouts,
    choose_gpus,
    rollout_server,
    serve,
    serve_options,
)
from tests.tiny_teacher import micro_job, micro_recipe


@pytest.mark.parametrize(
    ("stage", "vllm", "rollouts"),
    [
        ("distil", True, {"mode": "server"}),
        ("rl", False, {"mode": "server"}),
        ("rl", True, {"mode": "colocate"}),
        ("rl", True, {"mode": "server", "url": "http://other:8000"}),
    ],
)
def test_no_server_is_started_without_need(
    stage: str, vllm: bool, rollouts: dict[str, str], tmp_path: Path
) -> None:
    job = micro_job(stage, tmp_path, tmp_path, rl={"vllm": vllm}, launch={"rollouts": rollouts})
    with rollout_server(job, 64) as started:
        assert started is job


def test_server_takes_the_gpus_after_those_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert choose_gpus(4, 2) == ["4", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,4,5,6,7")
    assert choose_gpus(4, 2) == ["6", "7"]
    with pytest.raises(RolloutsError, match=r"4 processes and a server on 4 GPUs need 8 GPUs, and .* has 6"):
        choose_gpus(4, 4)


@pytest.mark.parametrize(
    ("installed", "gpus", "complaint"),
    [
        ("0.31.0", 3, None),
        ("0.31.0+cu130", 3, None),
        ("0.32.0", 3, r"and 0\.32\.0 is installed; install locks/train-gpu\.lock"),
        ("0.31.0", 2, "a server on 1 GPUs need 3 GPUs, and this machine has 2"),
    ],
)
def test_run_refuses_rollouts_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, installed: str, gpus: int, complaint: str | None
) -> None:
    versions = {"vllm": installed, "trl": "1.16.0"}
    monkeypatch.setattr("model_export.scale_out.rollout_server.version", versions.__getitem__)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    launch = {"processes": 2, "rollouts": {"mode": "server"}}
    with pytest.raises(RolloutsError, match=complaint) if complaint else nullcontext():
        check_rollouts(micro_recipe(rl={"vllm": True}, launch=launch))
    check_rollouts(micro_recipe(rl={"vllm": False}, launch=launch))


def test_server_has_all_that_trl_asks_for() -> None:
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a vLLM that TRL does not support
        command = build_command(ScriptArguments(model="any"))
    asked = command[command.index("--weight-transfer-config") :]
    ours = {f"--{name}": str(value) for name, value in serve_options(1, 64).items()}
    assert len(asked) == 6
    assert all(ours[name] == value for name, value in zip(asked[::2], asked[1::2], strict=True))


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning")
def test_trl_samples_from_the_server(tiny_base: Path) -> None:
    """Everything but the transfer of weights, which needs NCCL and so a GPU."""
    from trl.generation.vllm_client import VLLMClient

    options = serve_options(1, 64) | {
        "dtype": "float32",
        "block-size": 32,
        "enforce-eager": True,
        "gpu-memory-utilization": 0.1,
    }
    with serve(tiny_base, options, {"TORCHDYNAMO_DISABLE": "1"}) as url:
        client = VLLMClient(base_url=url)
        assert client.get_server_info()["weight_transfer_config"]["backend"] == "nccl"
        assert client.get_world_size() == 1
        found = client.generate(
            [[5, 9, 260], [7]],
            n=2,
            max_tokens=40,
            temperature=1.0,
            generation_kwargs={"stop_token_ids": list(range(300))},
        )
    assert len(found["completion_ids"]) == 4
    assert all(ids[-1] < 300 or len(ids) == 40 for ids in found["completion_ids"])
    assert any(ids[-1] < 300 for ids in found["completion_ids"])  # the stop token is part of the completion
    assert [len(ids) for ids in found["completion_ids"]] == [len(row) for row in found["logprobs"]]
