"""Runs vLLM's own OpenAI server on a checkpoint folder, and reads label distributions from it over HTTP.

None of our code runs in the server, so a checkpoint that passes its gate also works with plain vLLM. The server listens
on a Unix socket in a private folder, so it can't collide with another server's port.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from model_export.child_process import start_child
from model_export.models.model_io import free_gpu_memory
from model_export.recipe import Precision
from service.contract.labels import LabelDistribution
from service.contract.vllm_settings import cpu_environment, refuses_float32
from service.errors import NotegradeError

START_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.2
_BATCH = 8
_MODEL = "checkpoint"
_LOG_TAIL_LINES = 12


class VllmServerError(NotegradeError):
    """vLLM is not installed, does not start with this folder, or does not answer."""


class VllmServer:
    """Computes label distributions with a running server, in `dtype`; has the interface of `ReferenceScorer`."""

    def __init__(
        self, client: httpx.Client, label_token_ids: Sequence[int], log: Path, dtype: Precision = "float32"
    ) -> None:
        self.dtype = dtype
        self._client = client
        self._label_token_ids = list(label_token_ids)
        self._log = log

    def distributions(self, prompts: Sequence[Sequence[int]]) -> Iterator[LabelDistribution]:
        """Yield the raw label distribution of each prompt of token ids, in order.

        Raises VllmServerError when the server fails on a batch.
        """
        for start in range(0, len(prompts), _BATCH):
            for logprobs in self._label_logprobs(prompts[start : start + _BATCH]):
                yield LabelDistribution.from_logprobs(logprobs)

    def _label_logprobs(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        body = {
            "model": _MODEL,
            "prompt": [list(token_ids) for token_ids in prompts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(self._label_token_ids),
            "logprob_token_ids": self._label_token_ids,  # normalised over the whole vocabulary: we need the label mass
            "return_tokens_as_token_ids": True,
        }
        for choice in sorted(self._post(body)["choices"], key=lambda choice: int(choice["index"])):
            [found] = choice["logprobs"]["top_logprobs"]
            yield [float(found[f"token_id:{token_id}"]) for token_id in self._label_token_ids]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._client.post("/v1/completions", json=body).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise VllmServerError(
                f"vLLM failed on a batch of prompts: {error}; the end of its log:\n{_tail(self._log)}"
            ) from error
        return answer


@contextlib.contextmanager
def run_vllm(folder: Path, max_prompt_tokens: int, label_token_ids: Sequence[int]) -> Iterator[VllmServer]:
    """Start vLLM on a transformers folder (15-40 s), and stop all its processes after the block.

    It computes in float32 where it can, and on a GPU in bfloat16 as the service does. This process's GPU memory is freed first.
    Raises VllmServerError when vLLM isn't installed or doesn't start; the message includes the end of its log.
    """
    if importlib.util.find_spec("vllm") is None:
        raise VllmServerError("vLLM is not installed: install it, or skip its gates with --no-vllm")
    free_gpu_memory()
    dtype = choose_dtype(folder)
    with tempfile.TemporaryDirectory(prefix="notegrade-vllm-") as private:
        address, log = Path(private) / "http", Path(private) / "log"
        command = _command(folder, dtype, max_prompt_tokens, address)
        process = start_child(command, log, environment=server_environment(private))
        try:
            transport = httpx.HTTPTransport(uds=str(address))
            with httpx.Client(
                transport=transport, base_url="http://vllm", timeout=REQUEST_TIMEOUT_S
            ) as client:
                wait_until_up(process, client, address, log)
                yield VllmServer(client, label_token_ids, log, dtype)
        finally:
            stop_server(process)


def choose_dtype(folder: Path) -> Precision:
    """Return bfloat16 on a GPU and for a model that vLLM can't compute in float32, else float32."""
    if torch.cuda.is_available() or refuses_float32(folder, torch.cpu.get_capabilities()):
        return "bfloat16"
    return "float32"


def _command(folder: Path, dtype: Precision, max_prompt_tokens: int, address: Path) -> list[str]:
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options: dict[str, object] = {
        "model": folder.absolute(),
        "served-model-name": _MODEL,
        "uds": address,
        "dtype": dtype,
        "max-model-len": max_prompt_tokens + 1,
        "max-num-seqs": _BATCH,
        "block-size": 32,
        "generation-config": "vllm",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*server, *flags, "--enforce-eager", "--disable-uvicorn-access-log"]


def server_environment(private: str, *, compiled: bool = False) -> dict[str, str]:
    """Return the environment of a server whose processes meet in the private folder. `compiled` allows torch.compile."""
    defaults = cpu_environment(len(os.sched_getaffinity(0)), compiled=compiled) | {"HF_HUB_OFFLINE": "1"}
    return {**defaults, **os.environ, "VLLM_RPC_BASE_PATH": private}


def wait_until_up(
    process: subprocess.Popen[bytes], client: httpx.Client, address: Path | tuple[str, int], log: Path
) -> None:
    """Wait for the server on a Unix socket, or on a host and port. Raises VllmServerError when it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None:
        if _is_listening(address) and client.get("/health").is_success:
            return
        if time.monotonic() > deadline:
            raise VllmServerError(
                f"vLLM was not up after {START_TIMEOUT_S:.0f} s; the end of its log:\n{_tail(log)}"
            )
        time.sleep(_POLL_S)
    raise VllmServerError(
        f"vLLM ended with exit code {process.returncode}; the end of its log:\n{_tail(log)}"
    )


def _is_listening(address: Path | tuple[str, int]) -> bool:
    # httpx leaks a socket on each refused connection, and vLLM binds the address long before it listens.
    target = str(address) if isinstance(address, Path) else address
    with contextlib.closing(
        socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
    ) as probe:
        return probe.connect_ex(target) == 0


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:])


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Stop all processes of a server."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    # Even after a clean exit of the server: its engine core may still run.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()
