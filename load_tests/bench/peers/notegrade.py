"""Notegrade itself: `notegrade serve`, asked as its users ask it."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load_tests.bench.peer import Call, Request, Running, Tuning
from load_tests.bench.peers.grades import expected_grade
from load_tests.bench.peers.process import Server, run_server
from load_tests.soak.processes import free_port
from service.contract.checkpoint import Checkpoint
from service.contract.vllm_settings import has_compiler

# The longest that the service grants by default: here a late answer is a slow one, not a missing one.
DEADLINE_MS = 60_000
# Ends at once: there is no balancer to hear of it first. As many notes as the largest requests of the sweeps have.
_ALWAYS = {"NOTEGRADE_DRAIN_DELAY_S": "0", "NOTEGRADE_MAX_NOTES": "500"}
# One pair, the least that it takes: no note of a workload is answered from it unless it is asked for twice in a row.
_UNCACHED = {"NOTEGRADE_LOCAL_CACHE_PAIRS": "1"}
# What engine_knobs.py measured no gain of stays as it comes.
_TUNED = {"NOTEGRADE_LOG_LEVEL": "warning"}
_COMPILED = {"NOTEGRADE_ENGINE_COMPILE": "on"}


@dataclass
class Notegrade:
    """The service at its defaults, or tuned.

    Attributes:
        cached: whether a pair may be answered from the local cache.
        settings: variables that go before all of these.
        launcher: a command that starts the service's own, `taskset` say.
    """

    checkpoint: Checkpoint
    tuning: Tuning
    cached: bool
    name: str = "Notegrade"
    settings: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()

    def running(self) -> AbstractContextManager[Running]:
        """Ready once the engine has reproduced the checkpoint's probes."""
        port = free_port()
        command = [
            *self.launcher,
            str(Path(sys.executable).with_name("notegrade")),
            "serve",
            "--host",
            "127.0.0.1",
        ]
        options = ["--port", str(port), "--checkpoint", str(self.checkpoint.folder.absolute())]
        return run_server(Server([*command, *options], self.environment(), port, "/readyz"))

    def environment(self) -> dict[str, str]:
        """Without settings that somebody made for another service, a Redis above all."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NOTEGRADE_")}
        best: dict[str, str] = {}
        if self.tuning == "tuned":
            best = {**_TUNED, **(_COMPILED if has_compiler() else {})}
        return {**inherited, **_ALWAYS, **({} if self.cached else _UNCACHED), **best, **self.settings}

    def calls(self, request: Request) -> Sequence[Call]:
        """One POST /score of texts: rendering and tokenising are part of its time, as of no other peer's but infinity's."""
        body = {"query": request.query, "notes": list(request.notes), "deadline_ms": DEADLINE_MS}
        return [Call("/score", body)]

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """From the distributions, which are calibrated; NaN for a note that was not scored."""
        return [_grade(result) for answer in answers for result in answer["results"]]


def _grade(result: Mapping[str, Any]) -> float:
    return expected_grade(result["distribution"]) if result["outcome"] == "scored" else math.nan
