"""The stages of a run: each works in a folder that is named by a hash of its inputs.

A finished stage is kept. Changed inputs give another hash, so that a rerun repeats exactly the stages that depend on the
change. A killed stage finds its files in `<folder>.partial` and may resume from them.
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

# Part of every hash: raise it in a release whose stages give other results for the same inputs.
REVISION = 1
_STAGE_FILE = "stage.json"
_HASH_LENGTH = 12


class RunError(NotegradeError):
    """Raised when a run can't start or continue."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A finished stage; `seconds` counts only the attempt that finished it."""

    name: str
    hash: str
    seconds: float
    status: str


class Stages:
    """The stages of one run folder.

    Attributes:
        records: the stages of this run, in the order in which they were done.
        folders: their folders, in the same order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[StageRecord] = []
        self.folders: list[Path] = []

    def do(self, name: str, inputs: Mapping[str, object], work: Callable[[Path], None]) -> Path:
        """Return the folder of a stage; `work` writes it unless it is kept from an earlier run.

        `inputs` is JSON-like: configuration, and the names of earlier stages' folders.
        """
        digest = hash_of({"stage": name, "revision": REVISION, **inputs})
        done = self.folder / f"{name}-{digest.removeprefix('sha256:')[:_HASH_LENGTH]}"
        self.folders.append(done)
        if (done / _STAGE_FILE).is_file():
            record = json.loads((done / _STAGE_FILE).read_text(encoding="utf-8"))
            self.records.append(StageRecord(**{**record, "status": "kept"}))
            return done
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
    """Hold the run's folder for this process. Raises RunError when another run holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another run works in {folder}: wait for it to end, or choose another --out"
            ) from error
        yield file


def hash_of(value: object) -> str:
    """Return `sha256:<hex>` of JSON-like data; the order of keys does not change it."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file that a kill leaves either complete or as it was."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
