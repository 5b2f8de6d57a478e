"""Measures what tracing costs: CPU time of a request answered from the local cache, the cheapest kind of request.

    .venv/bin/notegrade serve --port 8000
    NOTEGRADE_TRACING=true .venv/bin/notegrade serve --port 8001
    .venv/bin/python -m load_tests.tracing_cost http://127.0.0.1:8000 http://127.0.0.1:8001

Each round measures the first service (off), and the second with a caller that does not sample and with one that does. Prints
CPU time per request of the service's own process (not of its engine), and the ratio to the first service within each round.
"""

import asyncio
from typing import Any

import aiohttp

from load_tests.arguments import make_parser
from load_tests.bench.workloads import Shape, cold
from load_tests.client import new_session, post_score, read_metrics
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
_CPU = "process_cpu_seconds_total"


async def measure(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], requests: int, flags: str
) -> float:
    """Return CPU µs per request. Raises RuntimeError when a request is not answered from the local cache."""
    before = (await read_metrics(session, url))[_CPU]
    for _ in range(requests):
        answer = await post_score(session, url, body, {"traceparent": f"{TRACE}-{flags}"})
        if {result["source"] for result in answer.body["results"]} != {"local"}:
            raise RuntimeError("expected answers from the local cache, and got another source")
    return 1e6 * ((await read_metrics(session, url))[_CPU] - before) / requests


async def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "off", "on", rounds=15, requests=1000, notes=1).parse_args()
    body = next(cold("tracing", Shape(options.notes))).body()
    sides = {"off": (options.off, "01"), "not sampled": (options.on, "00"), "sampled": (options.on, "01")}
    found: dict[str, list[float]] = {name: [] for name in sides}
    async with new_session() as session:
        for url in (options.off, options.on):
            await post_score(session, url, body)  # fills the cache
        for number in range(options.rounds):
            for name, (url, flags) in in_turn(sides.items(), number):
                found[name].append(await measure(session, url, body, options.requests, flags))
    print(
        f"{options.rounds} rounds of {options.requests} requests of {options.notes} cached notes; min / median / max"
    )
    print_sides(found, "µs", base="off")
    write_raw(options, {"cpu_us_per_request": found})


if __name__ == "__main__":
    asyncio.run(main())
