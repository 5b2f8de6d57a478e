"""Runs Notegrade itself: `notegrade serve`, called as its users call it."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load_tests.bench.peer import Request, Tuning
from load_tests.bench.peers.grades import expected_grade
from load_tests.bench.records import VECTORS
from load_tests.processes import Running, Server, free_port, run_server
from service.cli.encode import NoteSender
from service.cli.remote import Remote
from service.contract.checkpoint import Checkpoint
from service.contract.vllm_settings import has_compiler
from service.scoring.types import ScoringNote

# No drain delay, since there is no load balancer; and as many notes as the largest requests of the sweeps. With an encoder,
# the service would otherwise encode the notes of one turn in the next.
_ALWAYS = {"NOTEGRADE_DRAIN_DELAY_S": "0", "NOTEGRADE_MAX_NOTES": "500", "NOTEGRADE_READING": "text"}
# Notes without vectors are shed, so that none is read as text.
_BY_VECTORS = {"NOTEGRADE_READING": "vectors", "NOTEGRADE_ENCODING_SHARE": "1"}
# The minimum is one pair: only the same pair twice in a row would be answered from the cache.
_UNCACHED = {"NOTEGRADE_LOCAL_CACHE_PAIRS": "1"}
# Settings without a measured gain (engine_knobs.py) keep their defaults.
_TUNED = {"NOTEGRADE_LOG_LEVEL": "warning"}
_COMPILED = {"NOTEGRADE_ENGINE_COMPILE": "on"}


@dataclass
class Notegrade:
    """The service, out of the box or tuned.

    Attributes:
        cached: whether pairs may be answered from the local cache.
        settings: environment variables that override all others.
        launcher: a command prefix, such as `taskset`.
    """

    checkpoint: Checkpoint
    tuning: Tuning
    cached: bool
    name: str = "Notegrade"
    settings: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()

    def running(self) -> AbstractContextManager[Running]:
        """Start the service."""
        return run_server(self.server())

    def server(self) -> Server:
        """Make the server, which is ready once its engine has reproduced the checkpoint's probes."""
        port = free_port()
        command = [*self.launcher, str(Path(sys.executable).with_name("notegrade")), "serve"]
        options = ["--host", "127.0.0.1", "--port", str(port)]
        folder = str(self.checkpoint.folder.absolute())
        return Server([*command, *options, "--checkpoint", folder], self.environment(), port, "/readyz")

    def environment(self) -> dict[str, str]:
        """Make the environment, without inherited settings of another service such as its Redis."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NOTEGRADE_")}
        tuned: dict[str, str] = {}
        if self.tuning == "tuned":
            tuned = {**_TUNED, **(_COMPILED if has_compiler() else {})}
        return {**inherited, **_ALWAYS, **({} if self.cached else _UNCACHED), **tuned, **self.settings}

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Send texts to /score; only here and for infinity does the time include rendering and tokenising.

        The deadline is the maximum, so that late answers count as slow, not as missing.
        """
        return "/score", request.body()

    def grades(self, answer: Any) -> list[float]:
        """Read the grades from the calibrated distributions; NaN for a note that was not scored."""
        return [_grade(result) for result in answer["results"]]


@dataclass
class NotegradeVectors(Notegrade):
    """The service that reads note vectors, which it made before the requests came."""

    name: str = VECTORS
    settings: Mapping[str, str] = field(default_factory=lambda: _BY_VECTORS)

    def encode(self, url: str, requests: Sequence[Request]) -> None:
        """Let the service encode the notes of the requests, and wait until it has. Raises CommandError."""
        notes = [note for request in requests for note in request.notes]
        distinct = {(note["title"], note["body"]): note for note in notes}
        NoteSender(Remote(url)).encode([ScoringNote(**note) for note in distinct.values()])


def _grade(result: Mapping[str, Any]) -> float:
    return expected_grade(result["distribution"]) if result["outcome"] == "scored" else math.nan
