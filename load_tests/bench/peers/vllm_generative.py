"""vLLM as a generator that writes one token: /v1/completions, with the probabilities of the labels alone.

Not /generative_scoring, though it does the same work in the engine: of several labels it tells the first one's
probability, so that an expected grade would take a call for each label (vLLM 0.32, generative_scoring/serving.py).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from load_tests.bench.peer import Call, Request, Running, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm_server import MODEL, run_vllm
from service.contract.checkpoint import Checkpoint
from service.contract.labels import LabelDistribution


@dataclass
class VllmGenerative:
    """vLLM's server, sent prompts in token ids."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "vLLM /v1/completions"

    def running(self) -> AbstractContextManager[Running]:
        """Ready when its engine is loaded."""
        return run_vllm(self.checkpoint, self.tuning, ())

    def calls(self, request: Request) -> Sequence[Call]:
        """One call with all prompts."""
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
        """From the labels' log probabilities over the whole vocabulary."""
        return [self._grade(choice) for answer in answers for choice in sorted(answer["choices"], key=_index)]

    def _grade(self, choice: Mapping[str, Any]) -> float:
        [found] = choice["logprobs"]["top_logprobs"]
        labels = self.checkpoint.manifest.label_token_ids
        logprobs = [found.get(f"token_id:{token_id}", -math.inf) for token_id in labels]
        return calibrated_grade(LabelDistribution.from_logprobs(logprobs).probabilities, self.checkpoint)


def _index(choice: Mapping[str, Any]) -> int:
    index: int = choice["index"]
    return index
