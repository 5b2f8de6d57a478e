"""Sends requests of every kind, counts requests and answers, and checks each answer."""

import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from load_tests.bench.workloads import make_query, new_notes

# Part of every text sent; it must not occur in a log.
CANARY = "zebrafinch"
# In bf16, rounding makes the scores of a pair differ by up to this between batches.
SAME_SCORE = 0.1
# The service must have closed a connection that sends no whole request.
CLOSED_WITHIN_S = 30


@dataclass(slots=True)
class Tally:
    """Counts: `sent` by kind of request, `answered` by kind and status, `left` for clients that disconnected early."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    raw: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    scores: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def complain(self, what: str) -> None:
        """Record an error, up to 50 of them."""
        if len(self.wrong) < 50:
            self.wrong.append(what)

    def unanswered(self) -> int:
        """Count requests without an answer whose client did not disconnect."""
        return self.sent.total() - self.answered.total() - self.left.total()

    def see_score(self, query: str, note: str, score: float) -> None:
        """Check that a pair's score does not change."""
        low, high = self.scores.get((query, note), (score, score))
        low, high = min(low, score), max(high, score)
        self.scores[query, note] = low, high
        if high - low > SAME_SCORE:
            self.complain(f"one pair was scored {low:.3f} and {high:.3f}")


class Callers:
    """Sends all kinds of requests to one service."""

    def __init__(self, url: str, session: aiohttp.ClientSession, seed: int) -> None:
        self._url = url
        self._session = session
        self._rng = random.Random(seed)
        self._queries = [f"{make_query(self._rng)} {CANARY}" for _ in range(8)]
        self._pool = list(itertools.islice(new_notes(self._rng, mean_tokens=20), 12))
        self._number = 0
        self.tally = Tally()

    async def run(self, seconds: float, pace: float = 1.0) -> None:
        """Send all kinds of requests concurrently, and return when every request has ended.

        `pace` is the share of the full request rate: at 0.25 the pauses between requests are four times as long.
        """
        kinds: list[tuple[Callable[[], Awaitable[None]], int, float]] = [
            (self._score, 4, 0.1),
            (self._rerank, 1, 0.3),
            (self._explain, 1, 1.0),
            (self._leave, 2, 1.0),
            (self._burst, 1, 20.0),
            (self._flip, 1, 5.0),
            (self._refused, 1, 0.5),
            (self._raw, 1, 0.5),
        ]
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stopping.set)
        await asyncio.gather(
            *(
                self._keep_on(call, pause_s / pace, stopping)
                for call, count, pause_s in kinds
                for _ in range(count)
            )
        )

    async def _keep_on(
        self, call: Callable[[], Awaitable[None]], pause_s: float, stopping: asyncio.Event
    ) -> None:
        while not stopping.is_set():
            await call()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self._rng.expovariate(1 / pause_s))

    async def _send(
        self, kind: str, method: str, path: str, body: Any, wanted: int = 200, *others: int, **options: Any
    ) -> Any:
        """Return the answer if it has the status `wanted`; complain about a status that is none of `others`."""
        self.tally.sent[kind] += 1
        try:
            async with self._session.request(method, self._url + path, json=body, **options) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.tally.complain(f"{kind}: no answer: {type(error).__name__} {error}")
            return None
        self.tally.answered[kind, response.status] += 1
        if response.status not in (wanted, *others):
            self.tally.complain(f"{kind}: {response.status} {text}")
        if response.status != wanted:
            return None
        return text if "event-stream" in response.content_type else json.loads(text)

    def _body(self) -> dict[str, Any]:
        self._number += 1
        rng = self._rng
        is_new = rng.random() < 0.1
        query = f"{make_query(rng)} {CANARY} {rng.random()}" if is_new else rng.choice(self._queries)
        return {
            "request_id": f"soak-{self._number}",
            "query": query,
            "notes": rng.sample(self._pool, rng.randint(1, 4)),
            "deadline_ms": rng.choice([300, 2_000, 20_000]),
            "priority": "batch" if rng.random() < 0.1 else "online",
            "explain": rng.random() < 0.02,
        }

    async def _score(self, **changes: Any) -> None:
        body = {**self._body(), **changes}
        answer = await self._send("score", "POST", "/score", body, 200, 503, 504)
        if answer is None:
            return
        ids, expected = [result["id"] for result in answer["results"]], [note["id"] for note in body["notes"]]
        if answer["request_id"] != body["request_id"] or ids != expected:
            self.tally.complain(f"score: {body['request_id']} got the answer of {answer['request_id']}")
        for result in answer["results"]:
            self.tally.pairs[result["outcome"]] += 1
            if result["outcome"] == "scored" and body["query"] in self._queries:
                self.tally.see_score(body["query"], result["id"], result["score"])

    async def _rerank(self) -> None:
        notes = self._rng.sample(self._pool, 3)
        body = {"query": self._rng.choice(self._queries), "documents": [note["body"] for note in notes]}
        await self._send("rerank", "POST", "/v2/rerank", body, 200, 503, 504)

    async def _explain(self) -> None:
        note = self._rng.choice(self._pool)
        body = {"query": self._rng.choice(self._queries), "note": {"body": note["body"]}}
        answer = await self._send("explain", "POST", "/explain", body, 200, 409, 503, 504)
        if answer is not None and "event: explanation" not in answer:
            self.tally.complain("explain: the stream ended without its last event")

    async def _leave(self) -> None:
        """Send a request, and usually disconnect before the answer."""
        self.tally.sent["leave"] += 1
        body = {**self._body(), "query": f"{CANARY} {self._rng.random()}"}
        try:
            timeout = aiohttp.ClientTimeout(total=self._rng.uniform(0.02, 0.5))
            async with self._session.post(f"{self._url}/score", json=body, timeout=timeout) as response:
                await response.read()
        except TimeoutError:
            self.tally.left["leave"] += 1
        except (aiohttp.ClientError, OSError) as error:
            self.tally.complain(f"leave: {type(error).__name__} {error}")
        else:
            self.tally.answered["leave", response.status] += 1

    async def _burst(self) -> None:
        """Send more requests at once than the service can answer in time."""
        queries = [f"{CANARY} {self._rng.random()}" for _ in range(60)]
        await asyncio.gather(*(self._score(query=query, deadline_ms=1_000) for query in queries))

    async def _flip(self) -> None:
        mode = self._rng.choice(["off", "on_request", "all"])
        body = {"mode": mode, "reason": "soak", **({} if mode == "off" else {"ttl_s": 10})}
        now = await self._send("mode", "GET", "/admin/explanation-mode", None)
        if now is not None:
            etag = {"If-Match": f'"{now["last"]["revision"]}"'}
            path, statuses = "/admin/explanation-mode", (200, 409, 412, 503)
            await self._send("flip", "PUT", path, body, *statuses, headers=etag)

    async def _refused(self) -> None:
        bad = self._rng.choice(
            [{}, {"query": CANARY}, {"query": CANARY, "notes": [{}]}, [CANARY], {"query": "x" * 9_000}]
        )
        answer = await self._send("refused", "POST", "/score", bad, wanted=422)
        if CANARY in json.dumps(answer):
            self.tally.complain(f"refused: {answer}")

    async def _raw(self) -> None:
        """Send malformed requests, which do not reach the application and so are not counted as sent."""
        head = b"POST /score HTTP/1.1\r\nHost: soak\r\n"
        name, data = self._rng.choice(
            [
                ("silent", b""),
                ("slow head", head),
                ("rubbish", self._rng.randbytes(200) + b"\r\n\r\n"),
                ("huge head", head + b"X: " + b"a" * 100_000 + b"\r\n\r\n"),
                ("half closed", head[:-5]),
            ]
        )
        self.tally.raw[name] += 1
        host, port = self._url.removeprefix("http://").split(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError as error:
            self.tally.complain(f"{name}: no connection: {error}")
            return
        try:
            writer.write(data)
            if name == "half closed":
                writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), CLOSED_WITHIN_S)
            if b" 500 " in answer[:20] or CANARY.encode() in answer:
                self.tally.complain(f"{name}: {answer[:200]!r}")
        except TimeoutError:  # before OSError, of which it is one
            self.tally.complain(f"{name}: the connection was kept for {CLOSED_WITHIN_S} s")
        except OSError:
            pass  # the service cut the connection
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
