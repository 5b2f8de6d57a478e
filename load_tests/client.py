"""A minimal client for /score and /metrics."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and duration of one request."""

    status: int
    body: dict[str, Any]
    seconds: float


async def post_score(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Answer:
    """POST to /score. Raises TimeoutError when the session's timeout passes."""
    started = time.perf_counter()
    async with session.post(f"{url}/score", json=body, headers=headers) as response:
        answer = await response.json()
        return Answer(response.status, answer, time.perf_counter() - started)


async def read_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Read all samples of /metrics, by name with labels as written there."""
    async with session.get(f"{url}/metrics") as response:
        return parse_metrics(await response.text())


def parse_metrics(text: str) -> dict[str, float]:
    """Parse the text of /metrics into samples by name with labels."""
    return {name: float(value) for name, value in re.findall(r"^([^#\s][^\n]*?) (\S+)$", text, re.M)}


def new_session(timeout_s: float = 120) -> aiohttp.ClientSession:
    """Make a session without a connection limit, so that the caller decides on concurrency."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s))
