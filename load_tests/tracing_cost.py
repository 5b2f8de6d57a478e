"""Measures what tracing costs: CPU time of a request answered from the local cache, the cheapest kind of request.

    .venv/bin/notegrade serve --port 8000
    NOTEGRADE_TRACING=true .venv/bin/notegrade serve --port 8001
    .venv/bin/python -m load_tests.tracing_cost http://127.0.0.1:8000 http://127.0.0.1:8001

Each round measures the first service, then the second with a caller that does not sample, then with one that does. Prints CPU
time per request of the service's own process (not of its engine), and the ratio to the first service within each round.
"""

import asyncio
import random

import aiohttp

from load_tests.arguments import make_parser
from load_tests.client import new_session, read_metrics
from load_tests.figures import spread
from load_tests.texts import make_note, make_query

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
_CPU = "process_cpu_seconds_total"


async def measure(session: aiohttp.ClientSession, url: str, body: object, requests: int, flags: str) -> float:
    """Return CPU seconds per request. Raises RuntimeError when a request is not answered from the local cache."""
    headers = {"traceparent": f"{TRACE}-{flags}"}
    before = (await read_metrics(session, url))[_CPU]
    for _ in range(requests):
        async with session.post(f"{url}/score", json=body, headers=headers) as response:
            answer = await response.json()
        if {result["source"] for result in answer["results"]} != {"local"}:
            raise RuntimeError("expected answers from the local cache, and got another source")
    return ((await read_metrics(session, url))[_CPU] - before) / requests


async def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("off", help="URL of a service without tracing")
    parser.add_argument("on", help="URL of a service with tracing")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=1000, help="requests per round and side")
    parser.add_argument("--notes", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(0)
    notes = [make_note(rng, str(number)) for number in range(options.notes)]
    body = {"query": make_query(rng), "notes": notes, "deadline_ms": 60_000}
    sides = {"off": (options.off, "01"), "not sampled": (options.on, "00"), "sampled": (options.on, "01")}
    found: dict[str, list[float]] = {name: [] for name in sides}
    async with new_session() as session:
        for url in (options.off, options.on):  # fill the caches
            async with session.post(f"{url}/score", json=body) as response:
                response.raise_for_status()
        for _ in range(options.rounds):
            for name, (url, flags) in sides.items():
                found[name].append(await measure(session, url, body, options.requests, flags))
    print(
        f"{options.rounds} rounds of {options.requests} requests of {options.notes} cached notes; min / median / max"
    )
    for name, values in found.items():
        print(f"{name}: {spread([value * 1e6 for value in values])} µs")
    for name in ("not sampled", "sampled"):
        print(f"{name} / off: {spread([a / b for a, b in zip(found[name], found['off'], strict=True)])}")


if __name__ == "__main__":
    asyncio.run(main())
