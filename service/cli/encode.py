"""Give a running service notes to encode, for `notegrade encode`."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.cli.remote import Remote
from service.errors import CommandError, OverloadedError, RateLimitedError
from service.scoring.types import ScoringNote

# Well below what a request may hold by default.
CHUNK_NOTES = 100
CHUNK_CHARACTERS = 100_000
POLL_S = 1.0
# A busy service encodes nothing. This long without a note that is encoded, the command gives up.
STALL_S = 600.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """How many notes were sent, and how many the service encoded and failed on meanwhile, other callers' included."""

    sent: int
    stored: int
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
        for chunk in _chunks(notes):
            while not self._send(chunk):
                self.sleep(POLL_S)
                self._wait(self._status(), for_notes=1)
        sent = self._status()
        if _done(sent) < _done(before):
            raise self._lost()
        after = self._wait(sent, for_notes=sent["backlog"])
        return Encoded(len(notes), *(after[name] - before[name] for name in ("stored", "failed")))

    def _send(self, notes: Sequence[ScoringNote]) -> bool:
        """Return whether all are accepted or known; else the same notes are to be sent again later."""
        body = {"notes": [asdict(note) for note in notes]}
        later = (OverloadedError.type, RateLimitedError.type)
        return not self.remote.send("POST", "/notes", json=body, accept=later).is_error

    def _wait(self, status: dict[str, Any], for_notes: int) -> dict[str, Any]:
        """Return the status after this many more notes, or with an empty backlog."""
        progress, since = _done(status), self.clock()
        enough = progress + for_notes
        while status["backlog"] and progress < enough:
            self.sleep(POLL_S)
            status = self._status()
            if (done := _done(status)) < progress:
                raise self._lost()
            if done > progress:
                self.advance(done - progress)
                progress, since = done, self.clock()
            elif self.clock() - since > STALL_S:
                raise CommandError(
                    f"{self.remote.url} has encoded no note for {STALL_S:.0f} s: it may be busy with scores, or its encoder "
                    "fails (see its log); the notes that it accepted still wait there"
                )
        return status

    def _lost(self) -> CommandError:
        return CommandError(
            f"{self.remote.url} was restarted and has lost the notes that waited, or several replicas answer there: run "
            "this again for one replica"
        )

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.remote.send("GET", "/notes/encoding").json()
        return status


def _chunks(notes: Sequence[ScoringNote]) -> Iterator[list[ScoringNote]]:
    """Yield the notes in order, as many at a time as the limits allow, at least one."""
    chunk: list[ScoringNote] = []
    characters = 0
    for note in notes:
        length = len(note.title or "") + len(note.body)
        if chunk and (len(chunk) == CHUNK_NOTES or characters + length > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(note)
        characters += length
    if chunk:
        yield chunk


def _done(status: dict[str, Any]) -> int:
    return int(status["stored"] + status["failed"])
