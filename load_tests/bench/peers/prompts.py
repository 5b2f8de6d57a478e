"""Runs two servers that take prompts as token ids: transformers without an engine, and the engine alone."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from load_tests.bench.peer import Request, Tuning
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.records import OFFLINE
from load_tests.processes import Running, Server, free_port, run_server
from service.contract.checkpoint import Checkpoint
from service.contract.vllm_settings import cpu_environment

# The service's default of NOTEGRADE_ENGINE_KV_CACHE_GIB.
KV_CACHE_GIB = 2


class _PromptPeer:
    """Sends all prompts of a request, and reads label probabilities."""

    checkpoint: Checkpoint

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Send all prompts."""
        return "/score", {"prompts": [list(prompt) for prompt in request.prompts]}

    def grades(self, answer: Any) -> list[float]:
        """Read the grades from the label probabilities."""
        return [calibrated_grade(raw, self.checkpoint) for raw in answer]

    def _server(self, module: str, environment: Mapping[str, str], **options: object) -> Server:
        port = free_port()
        named = {"checkpoint": self.checkpoint.folder.absolute(), "port": port, **options}
        flags = [part for name, value in named.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", f"load_tests.bench.peers.{module}", *flags]
        return Server(command, {**os.environ, **environment}, port)


@dataclass
class TransformersLoop(_PromptPeer):
    """`transformers_server.py`, FastAPI around transformers without an engine, which many teams start with."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "FastAPI + transformers"

    def running(self) -> AbstractContextManager[Running]:
        """Start the server, which is ready once the model is loaded."""
        return run_server(self._server("transformers_server", {"HF_HUB_OFFLINE": "1"}, tuning=self.tuning))


@dataclass(frozen=True, slots=True)
class Knobs:
    """Differences to the service's engine: arguments of vLLM's `LLM`, and environment variables."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


COMPILED = Knobs({"enforce_eager": False}, {"TORCHDYNAMO_DISABLE": "0"})


@dataclass
class EngineAlone(_PromptPeer):
    """`engine_server.py`, which gives the engine all prompts of a request at once: an upper bound for a server."""

    checkpoint: Checkpoint
    name: str = OFFLINE
    tuning: Tuning = "tuned"
    knobs: Knobs = field(default_factory=Knobs)

    def running(self) -> AbstractContextManager[Running]:
        """Start the engine."""
        return run_server(self.server())

    def server(self) -> Server:
        """Make the server, with the settings of Notegrade's engine and the changes to them."""
        settings = cpu_environment(len(os.sched_getaffinity(0)), KV_CACHE_GIB)
        environment = {**settings, **self.knobs.environment}
        return self._server("engine_server", environment, changes=json.dumps(self.knobs.arguments))


def merge(requests: Sequence[Request]) -> Request:
    """Make one request of all, for the engine alone."""
    return Request(
        "",
        tuple(note for request in requests for note in request.notes),
        tuple(prompt for request in requests for prompt in request.prompts),
    )
