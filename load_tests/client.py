"""A thin client: sends a body, says what came back and how long it took."""

import re
import time
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and seconds of one request."""

    status: int
    body: dict[str, Any]
    seconds: float


async def post_score(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Answer:
    """POST to /score. Raises TimeoutError when the session's timeout passes: a request that hangs."""
    started = time.perf_counter()
    async with session.post(f"{url}/score", json=body) as response:
        answer = await response.json()
        return Answer(response.status, answer, time.perf_counter() - started)


async def read_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Every sample of /metrics by its name with labels, as written there."""
    async with session.get(f"{url}/metrics") as response:
        return parse_metrics(await response.text())


def parse_metrics(text: str) -> dict[str, float]:
    """The same, of what /metrics has answered."""
    return {name: float(value) for name, value in re.findall(r"^([^#\s][^\n]*?) (\S+)$", text, re.M)}


def new_session(timeout_s: float = 120) -> aiohttp.ClientSession:
    """A session without a limit of connections: concurrency is the caller's."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s))
