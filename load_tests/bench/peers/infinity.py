"""Runs infinity-emb, a server for small embedders, rerankers and classifiers, in its own virtual environment.

It gets the same prompts by /classify, as texts that it tokenises itself. /rerank is not used: for infinity a reranker has a single
class and no instruction, so its prompts would be shorter and its answers would not be grades.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.bench.peer import Call, Request, Tuning
from load_tests.bench.peers.faster_dtype import ask_faster_dtype
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.infinity_environment import ensure_infinity
from load_tests.bench.peers.infinity_model import cue_ids, write_classifier
from load_tests.processes import Running, Server, free_port, run_server
from service.contract.checkpoint import Checkpoint

_QUIET = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Infinity:
    """Infinity's torch engine; out of the box it uses float32 and batches of 32."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "infinity-emb /classify"

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Install it at first use, and start it. Raises Unavailable when it can't be installed."""
        command = ensure_infinity()
        with tempfile.TemporaryDirectory(prefix="notegrade-infinity-") as made:
            model = Path(made) / "model"
            model.mkdir()
            write_classifier(self.checkpoint, model)
            port = free_port()
            options = ["--model-id", str(model), "--host", "127.0.0.1", "--port", str(port)]
            engine = ["--engine", "torch", "--device", "cpu", *self._tuned()]
            environment = {**_QUIET, "INFINITY_HOME": made, **os.environ}
            with run_server(Server([str(command), "v2", *options, *engine], environment, port)) as running:
                yield running

    def _tuned(self) -> list[str]:
        if self.tuning == "default":
            return []
        # It sorts its queue by length: by default in characters, with this flag in tokens.
        dtype = ask_faster_dtype(self.checkpoint.folder)
        return ["--dtype", dtype, "--batch-size", "16", "--lengths-via-tokenize"]

    def calls(self, request: Request) -> Sequence[Call]:
        """Make one call with all prompts, as texts without the cue, which the tokenizer appends."""
        end = -len(cue_ids(self.checkpoint))
        texts = [self.checkpoint.tokenizer.decode(prompt[:end]) for prompt in request.prompts]
        return [Call("/classify", {"input": texts})]

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """Read the grades from the classes' probabilities, which are sorted by probability."""
        return [self._grade(found) for answer in answers for found in answer["data"]]

    def _grade(self, found: Sequence[Any]) -> float:
        by_grade = {int(one["label"]): float(one["score"]) for one in found}
        return calibrated_grade([by_grade[grade] for grade in sorted(by_grade)], self.checkpoint)
