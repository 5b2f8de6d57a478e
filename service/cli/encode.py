"""Give a running service notes to encode, for `notegrade encode`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.cli.remote import Remote
from service.errors import CommandError, OverloadedError
from service.scoring.types import ScoringNote

CHUNK_NOTES = 100
POLL_S = 1.0
# A busy service encodes nothing. This long without a note that is encoded, the command gives up.
STALL_S = 600.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """How many notes have new vectors, how many had some, and how many failed."""

    stored: int
    known: int
    failed: int


@dataclass(frozen=True, slots=True)
class NoteSender:
    """Sends notes as fast as the service's backlog takes them.

    `advance` is called with the number of notes that are encoded; `clock` and `sleep` are replaced by tests.
    """

    remote: Remote
    advance: Callable[[int], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def encode(self, notes: Sequence[ScoringNote]) -> Encoded:
        """Send the notes and wait until the service has encoded them. Raises CommandError, also when it makes no progress."""
        before = self._status()
        for start in range(0, len(notes), CHUNK_NOTES):
            while not self._send(notes[start : start + CHUNK_NOTES]):
                self._wait(until_below=self._status()["backlog"])
        after = self._wait(until_below=1)
        stored, failed = (after[name] - before[name] for name in ("stored", "failed"))
        return Encoded(stored, len(notes) - stored - failed, failed)

    def _send(self, notes: Sequence[ScoringNote]) -> bool:
        """Return whether all are accepted or known; else the backlog is full, and the same notes are to be sent again."""
        body = {"notes": [asdict(note) for note in notes]}
        return not self.remote.send("POST", "/notes", json=body, accept=OverloadedError.type).is_error

    def _wait(self, until_below: int) -> dict[str, Any]:
        """Return the status with a backlog below that."""
        progress, since = -1, self.clock()
        while (status := self._status())["backlog"] >= max(1, until_below):
            if (done := status["stored"] + status["failed"]) != progress:
                self.advance(done - progress if progress >= 0 else 0)
                progress, since = done, self.clock()
            elif self.clock() - since > STALL_S:
                raise CommandError(
                    f"{self.remote.url} has encoded no note for {STALL_S:.0f} s: it may be busy with scores, or its encoder "
                    "fails (see its log); the notes that it accepted still wait there"
                )
            self.sleep(POLL_S)
        return status

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.remote.send("GET", "/notes/encoding").json()
        return status
