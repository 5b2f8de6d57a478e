"""The client, with and without asyncio. What both do is in `_Call`."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from notegrade_client.errors import DeadlineError, NotegradeError, UnreachableError, read_problem
from notegrade_client.models import Explanation, Priority, ScoreAnswer
from notegrade_client.retries import Retries

# What the way there and back may take of the time that is left: what was scored by then must still arrive.
WAY_S = 0.02
WAY_SHARE = 0.05

# The events before a wait for the network, of those that httpx traces:
# https://www.python-httpx.org/advanced/extensions/#trace
STEPS = ("connect_tcp.started", "start_tls.started", "_headers.started")


@dataclass(frozen=True, slots=True)
class Note:
    """A note to judge; `id` is yours, and distinct within a call."""

    id: str
    body: str
    title: str | None = None


class _Call:
    """One call of `score`: its body, its time, and what to do about each failure."""

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
        """Arguments of httpx for the next try. Raises when too little time is left: a pause may have lasted too long."""
        left_s = self.left_s
        deadline_ms = int((left_s - max(WAY_S, WAY_SHARE * left_s)) * 1000)
        if deadline_ms < 1 or (self._tried and not self._retries.worth_a_try(left_s)):
            raise self._failure
        self._tried += 1
        return {"json": {**self._body, "deadline_ms": deadline_ms}, "timeout": left_s}

    def pause_after(self, failure: NotegradeError) -> float:
        """How long to wait for the next try. Raises the failure when there is none."""
        self._failure = failure
        pause_s = self._retries.pause_s(self._tried, failure, self.left_s)
        if pause_s is None or failure.status == 504:  # the call's time, as the service was told it, is over
            raise failure
        return pause_s

    def check(self) -> None:
        """Raise when the time is over."""
        if self.left_s <= 0:
            raise DeadlineError

    def check_step(self, event: str, info: dict[str, Any]) -> None:  # noqa: ARG002 - httpx's `trace`
        """Raise before a step of the connection when the time is over; never while httpx closes it."""
        if event.endswith(STEPS):
            self.check()

    def in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, while there is time."""
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


def _read_explanations(response: httpx.Response) -> dict[str, Explanation]:
    if not response.is_success:
        raise read_problem(response, response.content)
    return {kept["note_id"]: Explanation.model_validate(kept) for kept in response.json()["explanations"]}


class Notegrade:
    """A service at a URL. Keep one: it keeps its connections; use it from any thread.

    What its deadline is worth: a call looks at the clock before it connects, before it sends, before it waits for the answer,
    and at each piece of the answer's body. httpx bounds each single wait in between, here by what was left when the try
    began. So a call may end late by one wait, at twice its deadline at the most; on an open connection, a service that hangs
    is left at the deadline. Not bounded are a slow name lookup, the addresses of a name beyond the first, and a request or
    an answer's head that passes in small pieces. AsyncNotegrade has none of these limits.
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
        # Decompressing may hold back pieces, and the clock is looked at when one comes out.
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
        """Grade each note, in `deadline_s` seconds with all tries. Raises NotegradeError when none was scored."""
        body = _score_body(query, notes, priority, explain, criteria, request_id)
        call = _Call(body, deadline_s, self._retries)
        while True:
            request = call.request()
            trace = {"trace": call.check_step}
            try:
                with self._http.stream("POST", "/score", **request, extensions=trace) as response:
                    content = b"".join(call.in_time(response.iter_bytes()))
            except httpx.TimeoutException as error:
                raise DeadlineError from error
            except httpx.TransportError as error:
                failure: NotegradeError = UnreachableError(error)
            else:
                if response.is_success:
                    return ScoreAnswer.model_validate_json(content)
                failure = read_problem(response, content)
            time.sleep(call.pause_after(failure))

    def explanations(self, request_id: str) -> dict[str, Explanation]:
        """What is written by now of a request's deferred explanations, by note id. Raises NotegradeError."""
        try:
            response = self._http.get(f"/explanations/{request_id}")
        except httpx.TransportError as error:
            raise UnreachableError(error) from error
        return _read_explanations(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncNotegrade:
    """The same for asyncio; use it from one event loop. A call is cancelled at its deadline, whatever it waits for."""

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
        """As Notegrade.score. Cancelling it has the service abort its work."""
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
                    return ScoreAnswer.model_validate_json(response.content)
                failure = read_problem(response, response.content)
            await asyncio.sleep(call.pause_after(failure))

    async def explanations(self, request_id: str) -> dict[str, Explanation]:
        """As Notegrade.explanations."""
        try:
            response = await self._http.get(f"/explanations/{request_id}")
        except httpx.TransportError as error:
            raise UnreachableError(error) from error
        return _read_explanations(response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
