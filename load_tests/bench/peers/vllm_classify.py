"""Runs vLLM as a classifier: its pooling runner, with the label tokens' rows of the language model's head as classes.

It returns probabilities normalised over the labels, without the label mass. Source of the settings: vLLM's
model_executor/models/adapters.py.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from load_tests.bench.peer import Call, Request, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.vllm_server import MODEL, run_vllm
from load_tests.processes import Running
from service.contract.checkpoint import Checkpoint


@dataclass
class VllmClassify:
    """vLLM's server with /classify, given prompts as token ids."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "vLLM /classify"

    def running(self) -> AbstractContextManager[Running]:
        """Start the server."""
        flags = ("--runner", "pooling", "--hf-overrides", json.dumps(self.overrides()))
        return run_vllm(self.checkpoint, self.tuning, flags)

    def overrides(self) -> dict[str, Any]:
        """Make the config overrides that turn the checkpoint into a classifier."""
        config = json.loads((self.checkpoint.folder / "config.json").read_text(encoding="utf-8"))
        [architecture] = config["architectures"]
        return {
            "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
            "classifier_from_token": [label.token for label in self.checkpoint.manifest.labels],
            "method": "no_post_processing",
        }

    def calls(self, request: Request) -> Sequence[Call]:
        """Make one call with all prompts."""
        body = {"model": MODEL, "input": [list(prompt) for prompt in request.prompts]}
        return [Call("/classify", body)]

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """Read the grades from the classes' probabilities."""
        found = (item for answer in answers for item in sorted(answer["data"], key=itemgetter("index")))
        return [calibrated_grade(item["probs"], self.checkpoint) for item in found]
