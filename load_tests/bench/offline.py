"""Runs the engine alone, without HTTP and with all prompts at once, as an upper bound for a server.

A child process runs vLLM's `LLM.generate` with the settings of Notegrade's engine; it reads a line of prompts and writes a line
of answers. `OfflineEngine` starts it.
"""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from load_tests.bench.peer import Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.records import OFFLINE
from load_tests.processes import Running
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution
from service.contract.vllm_settings import cpu_environment
from service.engines.vllm.profile import choose_cpu_dtype

if TYPE_CHECKING:
    from vllm import LLM

_READY = "ready"
# The service's defaults of NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS, _MAX_SEQUENCES and _KV_CACHE_GIB.
BATCHED_TOKENS, SEQUENCES, KV_CACHE_GIB = 1024, 64, 2
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Scored:
    """The engine's time for all prompts, and their expected grades."""

    seconds: float
    grades: list[float]


@dataclass(frozen=True, slots=True)
class Knobs:
    """Differences to the service's engine: arguments of vLLM's `LLM`, and environment variables."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


COMPILED = Knobs({"enforce_eager": False}, {"TORCHDYNAMO_DISABLE": "0"})


@dataclass
class OfflineEngine:
    """A contestant that scores through a pipe to a child process."""

    checkpoint: Checkpoint
    name: str = OFFLINE
    tuning: Tuning = "tuned"
    knobs: Knobs = field(default_factory=Knobs)
    _child: "subprocess.Popen[str] | None" = None

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Run the child process. Raises RuntimeError when it fails to load."""
        # `env` sets the variables before the process starts, as LD_PRELOAD and MALLOC_* require.
        environment = {
            **cpu_environment(len(os.sched_getaffinity(0)), KV_CACHE_GIB),
            **self.knobs.environment,
        }
        variables = [f"{name}={value}" for name, value in environment.items()]
        child = [sys.executable, "-m", "load_tests.bench.offline", str(self.checkpoint.folder.absolute())]
        command = ["env", *variables, *child, json.dumps(self.knobs.arguments)]
        started = time.monotonic()
        with tempfile.TemporaryFile() as log:
            self._child = _start(command, log)
            try:
                if self._read_line() != _READY:
                    raise RuntimeError(f"the offline engine did not load: {_tail(log)}")
                yield Running("", self._child.pid, time.monotonic() - started)
            finally:
                self._child.kill()
                self._child.communicate()
                self._child = None

    def score(self, prompts: Sequence[Sequence[int]]) -> Scored:
        """Score prompts, blocking. Raises RuntimeError when the engine has ended."""
        if self._child is None or self._child.stdin is None:
            raise RuntimeError("the offline engine is not running")
        self._child.stdin.write(json.dumps([list(prompt) for prompt in prompts]) + "\n")
        self._child.stdin.flush()
        found = json.loads(self._read_line() or "null")
        if found is None:
            raise RuntimeError("the offline engine ended while scoring")
        return Scored(found["seconds"], found["grades"])

    def _read_line(self) -> str:
        if self._child is None or self._child.stdout is None:
            raise RuntimeError("the offline engine is not running")
        return self._child.stdout.readline().strip()


def _start(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)


def _tail(log: IO[bytes]) -> str:
    """Return the last line, which names the exception."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def main() -> None:
    """Load a checkpoint (first argument) with changes (second argument, JSON), and score each line of standard input."""
    # The kernel kills it with its parent: a suspended process (see stage.py) can't notice a closed pipe.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Answers go to the original standard output; vLLM's logs to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    llm = _load(checkpoint, json.loads(sys.argv[2]))
    print(_READY, file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_score(llm, checkpoint, json.loads(line))), file=answers, flush=True)


def _load(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> "LLM":
    from vllm import LLM
    from vllm.platforms import current_platform

    longest = checkpoint.renderer.max_prompt_tokens + 1
    hardware: dict[str, Any] = {}
    if current_platform.is_cpu():
        hardware = {
            "dtype": choose_cpu_dtype(checkpoint.folder, "auto"),
            "block_size": 32,
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
        }
    arguments = {
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": longest,
        "max_num_batched_tokens": max(BATCHED_TOKENS, longest),
        "max_num_seqs": SEQUENCES,
        "enable_prefix_caching": True,
        **hardware,
        **changes,
    }
    return LLM(model=str(checkpoint.folder), **arguments)


def _score(llm: "LLM", checkpoint: Checkpoint, prompts: list[list[int]]) -> dict[str, Any]:
    from vllm import SamplingParams

    labels = checkpoint.manifest.label_token_ids
    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, logprob_token_ids=list(labels))
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "grades": [_grade(output, checkpoint) for output in outputs]}


def _grade(output: Any, checkpoint: Checkpoint) -> float:
    [found] = output.outputs[0].logprobs
    logprobs = [
        found[token_id].logprob if token_id in found else -math.inf
        for token_id in checkpoint.manifest.label_token_ids
    ]
    return calibrated_grade(LabelDistribution.from_logprobs(logprobs).probabilities, checkpoint)


if __name__ == "__main__":
    main()
