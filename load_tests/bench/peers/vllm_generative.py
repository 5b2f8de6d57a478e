"""Runs vLLM as a generator of one token: /v1/completions with the log probabilities of the label tokens.

/generative_scoring does the same work in the engine, but returns only the first label's probability, so an expected grade would
take a call per label (vLLM 0.32, generative_scoring/serving.py).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from load_tests.bench.peer import Call, Request, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm_server import MODEL, run_vllm
from load_tests.processes import Running
from service.contract.checkpoint import Checkpoint
from service.contract.labels import LabelDistribution


@dataclass
class VllmGenerative:
    """vLLM's server, given prompts as token ids."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "vLLM /v1/completions"

    def running(self) -> AbstractContextManager[Running]:
        """Start the server."""
        return run_vllm(self.checkpoint, self.tuning, ())

    def calls(self, request: Request) -> Sequence[Call]:
        """Make one call with all prompts."""
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
        return [Call("/v1/completions", body)]

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """Read the grades from the labels' log probabilities over the whole vocabulary."""
        found = (
            choice for answer in answers for choice in sorted(answer["choices"], key=itemgetter("index"))
        )
        return [self._grade(choice) for choice in found]

    def _grade(self, choice: Mapping[str, Any]) -> float:
        [found] = choice["logprobs"]["top_logprobs"]
        labels = self.checkpoint.manifest.label_token_ids
        logprobs = [found.get(f"token_id:{token_id}", -math.inf) for token_id in labels]
        return calibrated_grade(LabelDistribution.from_logprobs(logprobs).probabilities, self.checkpoint)
