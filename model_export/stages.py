"""Stages of a run: each works in a folder of its own, named by a hash of all that goes into it.

A stage that is done is kept; a changed input makes another hash, and so reruns exactly what depends on it. A stage
that was killed finds its own remains in `<folder>.partial` and may go on from them.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from service.errors import NotegradeError

# Part of every hash: a release whose stages make other results from the same inputs raises it.
REVISION = 1
_STAGE_FILE = "stage.json"
_HASH_LENGTH = 12


class RunError(NotegradeError):
    """A run that can't start or go on."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What is known of a stage that is done; `seconds` is of the attempt that finished it."""

    name: str
    hash: str
    seconds: float
    status: str


class Stages:
    """The stages of one run folder, done in the order that they are asked for."""

    def __init__(self, folder: Path, on_stage: Callable[[str, str], None] = lambda *_: None) -> None:
        self.folder = folder
        self.records: list[StageRecord] = []
        self._on_stage = on_stage

    def do(self, name: str, inputs: Mapping[str, object], work: Callable[[Path], None]) -> Path:
        """The folder of this stage, made by `work` if it isn't there yet.

        `inputs` is JSON-like: configuration, and the names of earlier stages' folders.
        """
        digest = hash_of({"stage": name, "revision": REVISION, **inputs})
        done = self.folder / f"{name}-{digest.removeprefix('sha256:')[:_HASH_LENGTH]}"
        if (done / _STAGE_FILE).is_file():
            self._on_stage(name, "kept")
            record = json.loads((done / _STAGE_FILE).read_text(encoding="utf-8"))
            self.records.append(StageRecord(**{**record, "status": "kept"}))
            return done
        self._on_stage(name, "started")
        partial = done.with_name(f"{done.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        work(partial)
        record = StageRecord(name, digest, round(time.monotonic() - started, 1), "done")
        (partial / _STAGE_FILE).write_text(json.dumps(asdict(record)), encoding="utf-8")
        partial.rename(done)
        self.records.append(record)
        return done


@contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the run's folder for this process. Raises RunError when another run works there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another run works in {folder}: wait for it, or give this one another --out"
            ) from error
        yield file


def hash_of(value: object) -> str:
    """`sha256:<hex>` of JSON-like data, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
