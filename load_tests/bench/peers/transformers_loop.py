"""Runs `transformers_server.py`, FastAPI around transformers without an engine, which many teams start with."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from load_tests.bench.peer import Request, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.processes import Running, Server, free_port, run_server
from service.contract.checkpoint import Checkpoint


@dataclass
class TransformersLoop:
    """A server that scores the prompts of one request at a time, given as token ids."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "FastAPI + transformers"

    def running(self) -> AbstractContextManager[Running]:
        """Start the server, which is ready once the model is loaded."""
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

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Send all prompts."""
        return "/score", {"prompts": [list(prompt) for prompt in request.prompts]}

    def grades(self, answer: Any) -> list[float]:
        """Read the grades from the label probabilities."""
        return [calibrated_grade(raw, self.checkpoint) for raw in answer]
