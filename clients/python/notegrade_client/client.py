"""The client, with and without asyncio; `_Call` holds the code of both."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from notegrade_client.errors import (
    DeadlineError,
    NotegradeError,
    UnreachableError,
    UnreadableError,
    read_problem,
)
from notegrade_client.models import Explanation, Explanations, Priority, ScoreAnswer
from notegrade_client.retries import Retries

A = TypeVar("A", bound=BaseModel)

# The part of the remaining time that is kept for the network, so that the answer still arrives in time.
NETWORK_S = 0.02
NETWORK_SHARE = 0.05

# The events that httpx traces before it waits for the network:
# https://www.python-httpx.org/advanced/extensions/#trace
NETWORK_EVENTS = ("connect_tcp.started", "start_tls.started", "_headers.started")


@dataclass(frozen=True, slots=True)
class Note:
    """A note to grade; `id` is your own, and distinct within a call."""

    id: str
    body: str
    title: str | None = None


class _Call:
    """One call of `score`: its body, its deadline, and its retries."""

    def __init__(self, body: dict[str, Any], deadline_s: float, retries: Retries) -> None:
        self._body = {name: value for name, value in body.items() if value is not None}
        self._ends_at = time.monotonic() + deadline_s
        self._retries = retries
        self._tried = 0
        self._failure: NotegradeError = DeadlineError()  # of the last try

    @property
    def left_s(self) -> float:
        return self._ends_at - time.monotonic()

    def request(self) -> dict[str, Any]:
        """Return httpx's arguments for the next try. Raises the last failure if too little time is left, as after a long pause."""
        left_s = self.left_s
        deadline_ms = int((left_s - max(NETWORK_S, NETWORK_SHARE * left_s)) * 1000)
        if deadline_ms < 1 or (self._tried and not self._retries.has_time(left_s)):
            raise self._failure
        self._tried += 1
        return {"json": {**self._body, "deadline_ms": deadline_ms}, "timeout": left_s}

    def pause_after(self, failure: NotegradeError) -> float:
        """Return how long to wait before the next try. Raises the failure if there is none."""
        self._failure = failure
        pause_s = self._retries.pause_s(self._tried, failure, self.left_s)
        if pause_s is None or failure.status == 504:  # the deadline that was sent to the service has passed
            raise failure
        return pause_s

    def check(self) -> None:
        """Raise DeadlineError if the deadline has passed."""
        if self.left_s <= 0:
            raise DeadlineError

    def check_event(self, event: str, info: dict[str, Any]) -> None:  # noqa: ARG002 - httpx's `trace`
        """Raise DeadlineError before httpx waits for the network if the deadline has passed; never while it closes a connection."""
        if event.endswith(NETWORK_EVENTS):
            self.check()

    def in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the chunks. Raises DeadlineError once the deadline has passed."""
        for chunk in chunks:
            self.check()
            yield chunk


def _score_body(
    query: str,
    notes: Sequence[Note],
    priority: Priority,
    explain: bool,
    criteria: str | None,
    request_id: str | None,
) -> dict[str, Any]:
    return {
        "query": query,
        "notes": [asdict(note) for note in notes],
        "priority": priority,
        "explain": explain,
        "criteria": criteria,
        "request_id": request_id,
    }


def _options(url: str, key: str | None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url, "headers": headers}


def _read(answer: type[A], content: bytes) -> A:
    try:
        return answer.model_validate_json(content)
    except ValidationError:
        raise UnreadableError from None  # pydantic's error quotes the answer


def _explanations_path(request_id: str) -> str:
    return f"/explanations/{quote(request_id, safe='')}"


def _read_explanations(response: httpx.Response) -> dict[str, Explanation]:
    if not response.is_success:
        raise read_problem(response, response.content)
    return {kept.note_id: kept for kept in _read(Explanations, response.content).explanations}


class Notegrade:
    """A client for the service at a URL. Keep one, because it keeps its connections; it may be used from any thread.

    A call checks its deadline before it connects, before it sends, before it waits for the answer, and at each chunk of the
    answer's body. httpx limits each wait in between to the time that was left when the try began. So a call may end late by
    one wait, at twice its deadline at most; on an open connection, it leaves a service that hangs at the deadline. A slow
    name lookup, further addresses of a name, and a request or an answer's head that passes in small pieces are not limited.
    AsyncNotegrade has none of these exceptions.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_options(url, key), transport=transport)
        # Decompression may hold chunks back, and the deadline is checked at each chunk.
        self._http.headers["Accept-Encoding"] = "identity"
        self._retries = retries or Retries()

    def score(
        self,
        query: str,
        notes: Sequence[Note],
        *,
        deadline_s: float = 1.0,
        priority: Priority = "online",
        explain: bool = False,
        criteria: str | None = None,
        request_id: str | None = None,
    ) -> ScoreAnswer:
        """Grade each note within `deadline_s` seconds, retries included. Raises NotegradeError if no note was scored."""
        body = _score_body(query, notes, priority, explain, criteria, request_id)
        call = _Call(body, deadline_s, self._retries)
        while True:
            request = call.request()
            trace = {"trace": call.check_event}
            try:
                with self._http.stream("POST", "/score", **request, extensions=trace) as response:
                    content = b"".join(call.in_time(response.iter_bytes()))
            except httpx.TimeoutException as error:
                raise DeadlineError from error
            except httpx.TransportError as error:
                failure: NotegradeError = UnreachableError(error)
            else:
                if response.is_success:
                    return _read(ScoreAnswer, content)
                failure = read_problem(response, content)
            time.sleep(call.pause_after(failure))

    def explanations(self, request_id: str) -> dict[str, Explanation]:
        """Return the finished ones of a request's deferred explanations, by note id. Raises NotegradeError."""
        try:
            response = self._http.get(_explanations_path(request_id))
        except httpx.TransportError as error:
            raise UnreachableError(error) from error
        return _read_explanations(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncNotegrade:
    """The client for asyncio, for use from one event loop. A call is cancelled at its deadline, whatever it waits for."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, key), transport=transport)
        self._retries = retries or Retries()

    async def score(
        self,
        query: str,
        notes: Sequence[Note],
        *,
        deadline_s: float = 1.0,
        priority: Priority = "online",
        explain: bool = False,
        criteria: str | None = None,
        request_id: str | None = None,
    ) -> ScoreAnswer:
        """Grade each note, as Notegrade.score does. Cancelling it makes the service abort its work."""
        body = _score_body(query, notes, priority, explain, criteria, request_id)
        call = _Call(body, deadline_s, self._retries)
        while True:
            request = call.request()
            try:
                async with asyncio.timeout(call.left_s):
                    response = await self._http.post("/score", **request)
            except (TimeoutError, httpx.TimeoutException) as error:
                raise DeadlineError from error
            except httpx.TransportError as error:
                failure: NotegradeError = UnreachableError(error)
            else:
                if response.is_success:
                    return _read(ScoreAnswer, response.content)
                failure = read_problem(response, response.content)
            await asyncio.sleep(call.pause_after(failure))

    async def explanations(self, request_id: str) -> dict[str, Explanation]:
        """Return finished explanations, as Notegrade.explanations does."""
        try:
            response = await self._http.get(_explanations_path(request_id))
        except httpx.TransportError as error:
            raise UnreachableError(error) from error
        return _read_explanations(response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
