"""Calls keep their deadlines and share connections, with a slow server on a real socket."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from notegrade_client import DeadlineError, NotegradeError, Retries, UnreachableError
from tests.clients.asking import AT_ONCE, SCORED, Answers, ask, asking, overloaded
from tests.clients.slow_server import PIECE_S, accepting_nobody, at_once, cut_off, in_pieces, serving, silence

DEADLINE_S = 1.0
ENDLESS_BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
ENDLESS_HEAD = b"HTTP/1.1 200 OK\r\nx-slow: "


@contextmanager
def ends_in_time() -> Iterator[None]:
    """Check that the call raises DeadlineError at its deadline, with some time to spare for a busy machine."""
    started = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        yield
    assert 0.9 * DEADLINE_S < time.monotonic() - started < 10 * DEADLINE_S
    assert caught.value.type == "urn:notegrade:client:deadline"
    assert caught.value.retryable


@pytest.mark.parametrize("response", [silence, in_pieces(ENDLESS_BODY)], ids=["silent", "body-in-pieces"])
async def test_a_slow_answer_ends_at_the_deadline(kind: str, response: Any) -> None:
    assert PIECE_S < DEADLINE_S / 10  # a wait for one piece is much shorter than the deadline
    async with serving(response) as server, asking(kind, server.url) as score:
        with ends_in_time():
            await score(deadline_s=DEADLINE_S)
        assert len(server.asked) == 1


async def test_a_slow_head_ends_at_the_deadline_with_asyncio() -> None:
    async with serving(in_pieces(ENDLESS_HEAD)) as server, asking("async", server.url) as score:
        with ends_in_time():
            await score(deadline_s=DEADLINE_S)


async def test_connecting_ends_at_the_deadline(kind: str) -> None:
    with accepting_nobody() as url:
        async with asking(kind, url) as score:
            with ends_in_time():
                await score(deadline_s=DEADLINE_S)


async def test_no_request_is_sent_after_the_deadline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(1.5 * DEADLINE_S)
        return look_up(*args, **options)

    async with serving(at_once(SCORED)) as server, asking(kind, server.url) as score:
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        with ends_in_time():
            await score(deadline_s=DEADLINE_S)
        assert server.asked == []


@dataclass(frozen=True, slots=True)
class Oversleeping(Retries):
    """Pauses until only this much of the call's time is left, as on a busy machine."""

    until_left_s: float = 0.0

    def pause_s(self, tried: int, error: NotegradeError, left_s: float) -> float | None:
        return left_s - self.until_left_s


@pytest.mark.parametrize("until_left_s", [-0.1, 0.04], ids=["past-the-deadline", "just-before-it"])
async def test_no_request_is_sent_after_too_long_a_pause(kind: str, until_left_s: float) -> None:
    retries = Oversleeping(until_left_s=until_left_s)
    async with serving(at_once(overloaded())) as server, asking(kind, server.url, retries=retries) as score:
        with pytest.raises(NotegradeError, match="shed"):  # the last answer
            await score(deadline_s=DEADLINE_S)
        assert len(server.asked) == 1


@pytest.mark.parametrize("deadline_s", [-1, 0, 0.01])
async def test_too_short_a_deadline_is_an_error_without_a_request(kind: str, deadline_s: float) -> None:
    answers = Answers(SCORED)
    with pytest.raises(DeadlineError):
        await ask(kind, "http://x", handler=answers, deadline_s=deadline_s)
    assert answers.asked == []


def test_a_retry_needs_enough_time() -> None:
    retries = Retries(first_pause_s=0, least_left_s=0.5)
    assert retries.pause_s(1, DeadlineError(), left_s=0.5) == 0
    assert retries.pause_s(1, DeadlineError(), left_s=0.499) is None
    after = NotegradeError("shed", type_="t", retryable=True, retry_after_s=3)
    assert retries.pause_s(1, after, left_s=3.5) == 3
    assert retries.pause_s(1, after, left_s=3.4) is None


async def test_each_try_sends_the_remaining_time(kind: str) -> None:
    slow = at_once(overloaded(), after_s=0.3)
    async with serving(slow, slow, at_once(SCORED)) as server, asking(kind, server.url) as score:
        started = time.monotonic()
        await score(deadline_s=20)
        elapsed_ms = (time.monotonic() - started) * 1000
    first, second, third = (asked["deadline_ms"] for asked in server.asked)
    assert 20_000 - elapsed_ms < first / 0.95 + 2 <= 20_002  # 5 % is kept for the network
    assert first - second >= 0.95 * 300 - 2
    assert second - third >= 0.95 * 300 - 2


async def test_calls_and_retries_share_one_connection(kind: str) -> None:
    responses = [at_once(SCORED), at_once(overloaded()), at_once(SCORED)]
    async with serving(*responses) as server, asking(kind, server.url) as score:
        await score(deadline_s=20)
        await score(deadline_s=20)
        assert (len(server.asked), server.accepted) == (3, 1)


async def test_the_client_is_usable_after_a_deadline_error(kind: str) -> None:
    async with serving(in_pieces(ENDLESS_BODY), at_once(SCORED)) as server, asking(kind, server.url) as score:
        with ends_in_time():
            await score(deadline_s=DEADLINE_S)
        assert (await score(deadline_s=20)).results
        assert server.accepted == 2  # the rest of the first answer is not read as the next one


async def test_a_truncated_answer_is_retried(kind: str) -> None:
    cut = cut_off(ENDLESS_BODY + b"{")
    async with serving(cut, at_once(SCORED)) as server, asking(kind, server.url) as score:
        assert (await score(deadline_s=20)).results
    async with serving(cut) as server, asking(kind, server.url, retries=AT_ONCE) as score:
        with pytest.raises(UnreachableError, match="RemoteProtocolError"):
            await score(deadline_s=20)
        assert len(server.asked) == AT_ONCE.tries
