"""Load that doesn't wait for answers: arrivals at random moments, latency from the moment that a request was meant to be sent.

A client that waits for answers slows down with the service, and so never sees how late the others would have been.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from load_tests.client import Answer, post_score
from load_tests.texts import make_note, make_query


@dataclass(frozen=True, slots=True)
class Arrival:
    """An answer, and its latency in seconds from the moment that the request was meant to be sent."""

    answer: Answer
    seconds: float

    @property
    def results(self) -> list[dict[str, Any]]:
        """The pairs' results; none where the answer was a problem."""
        found: list[dict[str, Any]] = self.answer.body.get("results", [])
        return found

    @property
    def scored(self) -> int:
        """Pairs that were scored."""
        return sum(result["outcome"] == "scored" for result in self.results)


def new_body(rng: random.Random, notes: int = 1, deadline_ms: int = 60_000) -> dict[str, Any]:
    """A request that no cache has seen."""
    return {
        "query": f"{make_query(rng)} {rng.random()}",
        "notes": [make_note(rng, f"n{number}") for number in range(notes)],
        "deadline_ms": deadline_ms,
    }


async def measure_capacity(
    session: aiohttp.ClientSession,
    url: str,
    make_body: Callable[[], dict[str, Any]],
    seconds: float,
    clients: int = 16,
) -> float:
    """Pairs a second from clients that each send the next request when the last one is answered."""
    scored = 0
    started = time.perf_counter()

    async def client() -> None:
        nonlocal scored
        while time.perf_counter() < started + seconds:
            answer = await post_score(session, url, make_body())
            scored += Arrival(answer, 0.0).scored

    await asyncio.gather(*(client() for _ in range(clients)))
    return scored / (time.perf_counter() - started)


async def send(
    session: aiohttp.ClientSession,
    url: str,
    make_body: Callable[[], dict[str, Any]],
    rate: float,
    seconds: float,
) -> list[Arrival]:
    """Send so many requests a second (Poisson arrivals) for so long, and wait for all answers."""
    rng = random.Random()
    asking: list[asyncio.Task[Arrival]] = []

    async def ask(meant_at: float) -> Arrival:
        answer = await post_score(session, url, make_body())
        return Arrival(answer, time.perf_counter() - meant_at)

    started = at = time.perf_counter()
    while at < started + seconds:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        asking.append(asyncio.create_task(ask(at)))
        at += rng.expovariate(rate)
    return list(await asyncio.gather(*asking))


def percentile(seconds: Sequence[float], share: float) -> float:
    """Nearest rank. NaN of nothing."""
    ranked = sorted(seconds)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan
