"""Calls either client, and prepares answers for cases that the service seldom produces."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx

from notegrade_client import AsyncNotegrade, Note, Notegrade, Retries

NOTES = [Note("n1", "A quiet cafe with light.", title="Cafes"), Note("n2", "Surf beaches.")]
AT_ONCE = Retries(first_pause_s=0.001, longest_pause_s=0.001)
Score = Callable[..., Awaitable[Any]]
Handler = Callable[[httpx.Request], httpx.Response]


@asynccontextmanager
async def asking(
    kind: str,
    url: str,
    *,
    handler: Handler | None = None,
    key: str | None = "key",
    retries: Retries = AT_ONCE,
) -> AsyncIterator[Score]:
    """Yield `score` of the sync or the async client, to be awaited."""
    transport = httpx.MockTransport(handler) if handler else None
    if kind == "async":
        async with AsyncNotegrade(url, key, retries=retries, transport=transport) as client:
            yield partial(client.score, "quiet cafes", NOTES)
    else:
        with Notegrade(url, key, retries=retries, transport=transport) as client:
            yield partial(asyncio.to_thread, client.score, "quiet cafes", NOTES)


async def ask(
    kind: str, url: str, *, handler: Handler | None = None, key: str | None = "key", **options: Any
) -> Any:
    """Call `score` once with either client."""
    async with asking(kind, url, handler=handler, key=key) as score:
        return await score(**options)


class Answers:
    """Gives the answers in order, repeats the last one, and keeps the requests."""

    def __init__(self, *answers: tuple[int, dict[str, str], Any] | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer
        return httpx.Response(status, headers=headers, json=body)


SCORED: tuple[int, dict[str, str], Any] = (200, {}, {
    "request_id": "r", "model": {"name": "m", "fingerprint": "f", "criteria": "c", "calibration": "none"},
    "explanation_mode": "off", "timing_ms": {"total": 1, "cache": 0, "queue": 0, "engine": 1},
    "results": [{"id": "n1", "outcome": "scored", "score": 0.5, "from_a_later_version": 1}],
})  # fmt: skip


def overloaded(after: str = "0", status: int = 503) -> tuple[int, dict[str, str], Any]:
    body = {"type": "urn:notegrade:problem:overloaded", "detail": "shed", "retryable": True}
    return status, {"retry-after": after}, body
