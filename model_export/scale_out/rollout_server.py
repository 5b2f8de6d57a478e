"""vLLM for the rollouts of RL: whether it can work here, and its own server on GPUs beside those that train.

TRL sends the server prompts, and the weights after each step.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import httpx
import torch
from packaging.requirements import Requirement

from model_export.checkpoint.vllm_server import server_environment, stop_server, wait_until_up
from model_export.child_process import start_child
from model_export.models.model_io import free_gpu_memory
from model_export.recipe import Recipe
from model_export.training.stage_job import StageJob
from service.errors import NotegradeError

_HOST = "127.0.0.1"
_MEMORY_SHARE = 0.9


class RolloutsError(NotegradeError):
    """Raised for rollouts by vLLM that can't work on this machine."""


def check_rollouts(recipe: Recipe) -> None:
    """Check that the recipe's rollouts can work here, before hours of other stages. Raises RolloutsError."""
    if recipe.rl.steps and recipe.rl.vllm:
        _check_version()
        rollouts = recipe.launch.rollouts
        starts_server = rollouts.mode == "server" and not rollouts.url
        choose_gpus(recipe.launch.processes, rollouts.tensor_parallel if starts_server else 0)


def _check_version() -> None:
    [supported] = [need for need in map(Requirement, requires("trl") or ()) if need.name == "vllm"]
    try:
        installed = version("vllm")
    except PackageNotFoundError:
        installed = "none"
    if installed == "none" or not supported.specifier.contains(installed.partition("+")[0]):
        raise RolloutsError(
            f"rl.vllm: TRL {version('trl')} takes rollouts from vLLM {supported.specifier}, and {installed} is installed; "
            "install locks/train-gpu.lock (WITH_GPU=1 scripts/setup.sh train), or set rl.vllm = false"
        )


@contextmanager
def rollout_server(job: StageJob, max_tokens: int) -> Iterator[StageJob]:
    """Start the server that the job's rollouts need, if any; yield the job with its address, and stop the server after the block.

    `max_tokens` is the length of the longest prompt and completion. Raises RolloutsError where there are too few GPUs, and
    VllmServerError when the server does not start.
    """
    rollouts = job.recipe.launch.rollouts
    if job.stage != "rl" or not job.recipe.rl.vllm or rollouts.mode == "colocate" or rollouts.url:
        yield job
        return
    gpus = choose_gpus(job.recipe.launch.processes, rollouts.tensor_parallel)
    free_gpu_memory()
    options = serve_options(rollouts.tensor_parallel, max_tokens)
    with serve(job.start, options, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}) as url:
        yield _with_url(job, url)


@contextmanager
def serve(folder: Path, options: dict[str, object], environment: Mapping[str, str]) -> Iterator[str]:
    """Run the server on a transformers folder and yield its address. Raises VllmServerError when it does not start."""
    with tempfile.TemporaryDirectory(prefix="notegrade-rollouts-") as private:
        port, log = _free_port(), Path(private) / "log"
        where = {"model": folder.absolute(), "host": _HOST, "port": port}
        flags = [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in (where | options).items()
        ]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
        # TRL sends the weights through endpoints that vLLM has in this mode alone.
        extra = {"VLLM_SERVER_DEV_MODE": "1", **environment}
        whole_environment = server_environment(private, compiled=True) | extra
        process = start_child(command, log, environment=whole_environment)
        try:
            with httpx.Client(base_url=f"http://{_HOST}:{port}") as client:
                wait_until_up(process, client, (_HOST, port), log)
            yield f"http://{_HOST}:{port}"
        finally:
            stop_server(process)


def choose_gpus(training: int, serving: int) -> list[str]:
    """Name the GPUs of the server, which come after those that train. Raises RolloutsError where there are too few."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    if count < training + serving:
        raise RolloutsError(
            f"rl.vllm: {training} processes and a server on {serving} GPUs need {training + serving} GPUs, "
            f"and this machine has {count}"
        )
    return visible.split(",")[training : training + serving]


def serve_options(tensor_parallel: int, max_tokens: int) -> dict[str, object]:
    """Return the server's options, with those that TRL asks for: the options of `trl vllm-serve`."""
    return {
        "tensor-parallel-size": tensor_parallel,
        "gpu-memory-utilization": _MEMORY_SHARE,
        "dtype": "bfloat16",
        "max-model-len": max_tokens,
        "generation-config": "vllm",
        "weight-transfer-config": '{"backend": "nccl"}',
        "logprobs-mode": "processed_logprobs",
        "max-logprobs": -1,
        "disable-uvicorn-access-log": True,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _with_url(job: StageJob, url: str) -> StageJob:
    launch = job.recipe.launch
    rollouts = launch.rollouts.model_copy(update={"url": url})
    recipe = job.recipe.model_copy(update={"launch": launch.model_copy(update={"rollouts": rollouts})})
    return job.model_copy(update={"recipe": recipe})
