"""vLLM as a classifier: its pooling runner, with the label tokens' rows of the language model's head as classes.

It tells the labels' probabilities among themselves, not their mass. Settings from vLLM's model_executor/models/adapters.py.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from load_tests.bench.peer import Call, Request, Running, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm_server import MODEL, run_vllm
from service.contract.checkpoint import Checkpoint


@dataclass
class VllmClassify:
    """vLLM's server with /classify, sent prompts in token ids."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "vLLM /classify"

    def running(self) -> AbstractContextManager[Running]:
        """Ready when its engine is loaded."""
        flags = ("--runner", "pooling", "--hf-overrides", json.dumps(self.overrides()))
        return run_vllm(self.checkpoint, self.tuning, flags)

    def overrides(self) -> dict[str, Any]:
        """What makes a classifier of the checkpoint's config."""
        config = json.loads((self.checkpoint.folder / "config.json").read_text(encoding="utf-8"))
        [architecture] = config["architectures"]
        return {
            "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
            "classifier_from_token": [label.token for label in self.checkpoint.manifest.labels],
            "method": "no_post_processing",
        }

    def calls(self, request: Request) -> Sequence[Call]:
        """One call with all prompts."""
        body = {"model": MODEL, "input": [list(prompt) for prompt in request.prompts]}
        return [Call("/classify", body)]

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """From the classes' probabilities."""
        found = (item for answer in answers for item in sorted(answer["data"], key=_index))
        return [calibrated_grade(item["probs"], self.checkpoint) for item in found]


def _index(item: Mapping[str, Any]) -> int:
    index: int = item["index"]
    return index
