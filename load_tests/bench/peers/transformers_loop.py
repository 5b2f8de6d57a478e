"""The service that most teams write first: FastAPI around transformers (`transformers_server.py`), no engine."""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from load_tests.bench.peer import Call, Request, Running, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.process import Server, run_server
from load_tests.soak.processes import free_port
from service.contract.checkpoint import Checkpoint


@dataclass
class TransformersLoop:
    """Batches of one request at a time; sent prompts in token ids."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "FastAPI + transformers"

    def running(self) -> AbstractContextManager[Running]:
        """Ready when the model is loaded."""
        port = free_port()
        labels = ",".join(map(str, self.checkpoint.manifest.label_token_ids))
        options = {
            "model": self.checkpoint.folder.absolute(),
            "labels": labels,
            "tuning": self.tuning,
            "port": port,
        }
        named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "load_tests.bench.peers.transformers_server", *named]
        return run_server(Server(command, {**os.environ, "HF_HUB_OFFLINE": "1"}, port))

    def calls(self, request: Request) -> Sequence[Call]:
        """One call with all prompts."""
        return [Call("/score", {"prompts": [list(prompt) for prompt in request.prompts]})]

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """From the labels' probabilities."""
        return [calibrated_grade(raw, self.checkpoint) for answer in answers for raw in answer]
