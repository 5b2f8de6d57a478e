import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.cli.encode import CHUNK_CHARACTERS, CHUNK_NOTES, STALL_S, Encoded, NoteSender
from service.cli.remote import Remote
from service.errors import CommandError, OverloadedError, RateLimitedError
from service.scoring.types import ScoringNote

FULL = {"type": OverloadedError.type, "detail": "the backlog is full"}
NOTES = [ScoringNote(f"n{i}", None, f"note {i}") for i in range(250)]


class Service:
    """Takes notes into a backlog of `room`, and encodes one whenever the sender sleeps."""

    def __init__(self, room: int, known: int = 0) -> None:
        self.room = room
        self.seen = {f"n{i}" for i in range(known)}
        self.waiting: list[str] = []
        self.stored = 7  # from before
        self.failed = 0
        self.failing: set[str] = set()
        self.requests: list[int] = []
        self.limited = 0  # of the next requests
        self.of_others = 0  # notes that another caller adds at each sleep
        self.now = 0.0

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            counts = {"backlog": len(self.waiting), "stored": self.stored, "failed": self.failed}
            return httpx.Response(200, json=counts)
        notes: list[dict[str, Any]] = json.loads(request.content)["notes"]
        self.requests.append(len(notes))
        if self.limited:
            self.limited -= 1
            return httpx.Response(429, json={"type": RateLimitedError.type, "detail": "too many"})
        assert notes[0].keys() == {"id", "title", "body"}
        new = [note["id"] for note in notes if note["id"] not in self.seen]
        accepted = new[: max(0, self.room - len(self.waiting))]
        self.seen.update(accepted)
        self.waiting += accepted
        if len(accepted) < len(new):
            return httpx.Response(503, json=FULL)
        return httpx.Response(202, json={"accepted": len(new), "known": len(notes) - len(new)})

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waiting += ["other"] * self.of_others
        for note in self.waiting[:30]:
            self.stored, self.failed = (
                self.stored + (note not in self.failing),
                self.failed + (note in self.failing),
            )
        del self.waiting[:30]

    def sender(self, advance: Callable[[int], None] = lambda _: None) -> NoteSender:
        remote = Remote("http://service", "secret", httpx.MockTransport(self.answer))
        return NoteSender(remote, advance, lambda: self.now, self.sleep)


@pytest.mark.parametrize("room", [1_000, 120, 40])
def test_all_notes_are_encoded_once_however_small_the_backlog_is(room: int) -> None:
    service = Service(room, known=10)
    service.failing = {"n100", "n249"}
    assert service.sender().encode(NOTES) == Encoded(sent=250, stored=238, failed=2)
    assert max(service.requests) == CHUNK_NOTES
    assert not service.waiting


def test_known_notes_take_no_time() -> None:
    service = Service(room=1, known=250)
    assert service.sender().encode(NOTES) == Encoded(250, 0, 0)
    assert service.now == 0


def test_long_notes_are_sent_fewer_at_a_time() -> None:
    service = Service(room=1_000)
    lengths = [1, CHUNK_CHARACTERS + 1, CHUNK_CHARACTERS // 2, CHUNK_CHARACTERS // 2, 1]
    notes = [ScoringNote(f"n{i}", "", "x" * length) for i, length in enumerate(lengths)]
    assert service.sender().encode(notes) == Encoded(5, 5, 0)
    assert service.requests == [1, 1, 2, 1]


def test_a_rate_limit_delays_the_command() -> None:
    service = Service(room=1_000)
    service.limited = 2
    assert service.sender().encode(NOTES[:50]) == Encoded(50, 50, 0)
    assert service.requests == [50, 50, 50]


def test_other_callers_whose_notes_never_end_do_not_keep_the_command() -> None:
    service = Service(room=1_000)
    service.of_others = 30
    encoded = service.sender().encode(NOTES)
    assert encoded.stored == 270  # the 250 notes, and some that came meanwhile
    assert service.waiting


class Restarting(Service):
    """Loses what it has whenever the sender sleeps, and has room for all notes then."""

    def sleep(self, seconds: float) -> None:
        self.stored, self.waiting, self.room = 0, ["of another caller"][: self.room // 100], 1_000


@pytest.mark.parametrize("room", [1_000, 50], ids=["while it waits", "while it sends"])
def test_a_restart_that_loses_the_notes_ends_the_command(room: int) -> None:
    with pytest.raises(CommandError, match="was restarted and has lost the notes that waited"):
        Restarting(room).sender().encode(NOTES)


class Busy(Service):
    """Encodes nothing."""

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_service_that_encodes_nothing_ends_the_command() -> None:
    service = Busy(room=50)
    with pytest.raises(CommandError, match="has encoded no note for 600 s"):
        service.sender().encode(NOTES)
    assert service.now == pytest.approx(STALL_S, abs=5)


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_ends_the_command_with_its_reason(status: int) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"backlog": 0, "stored": 0, "failed": 0})
        return httpx.Response(status, json={"type": "about:blank", "detail": "no vectors are made"})

    remote = Remote("http://service", "secret", httpx.MockTransport(answer))
    with pytest.raises(CommandError, match="refused: no vectors are made"):
        NoteSender(remote).encode(NOTES)
