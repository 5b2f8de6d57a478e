"""Compares the throughput of two running services, which take turns on the same load.

    .venv/bin/python -m load_tests.compare_services http://127.0.0.1:8001 http://127.0.0.1:8002 --workload zipf

`zipf`: notes repeat across requests by Zipf's law, queries don't. `fresh`: nothing repeats. Every pass sends new pairs, so no
score comes from a pair cache.
"""

import asyncio
import itertools
import random
import statistics
import time
from typing import Any

import aiohttp

from load_tests.arguments import add_seed, make_parser
from load_tests.client import new_session, post_score, read_metrics
from load_tests.figures import spread
from load_tests.texts import make_note, score_requests


def make_pass(workload: str, requests: int, notes: int, seed: int) -> list[dict[str, Any]]:
    """Make the bodies of one pass."""
    rng = random.Random(seed)
    if workload == "zipf":
        pool = [make_note(rng, f"n{i}") for i in range(40)]
        return list(itertools.islice(score_requests(rng, pool, notes), requests))
    bodies: list[dict[str, Any]] = []
    for _ in range(requests):
        fresh = [make_note(rng, f"n{i}") for i in range(notes)]
        bodies += itertools.islice(score_requests(rng, fresh, notes), 1)
    return bodies


async def run_pass(
    session: aiohttp.ClientSession, url: str, bodies: list[dict[str, Any]]
) -> tuple[float, float]:
    """Return pairs per second, and the share of prompt tokens served by the engine's prefix cache.

    Raises RuntimeError when a pair did not come from the engine.
    """
    before = await read_metrics(session, url)
    started = time.perf_counter()
    pairs = 0
    for body in bodies:
        answer = await post_score(session, url, body)
        sources = [result["source"] for result in answer.body.get("results", [])]
        if set(sources) != {"engine"}:
            raise RuntimeError(f"{url} answered {answer.status} from {set(sources)}")
        pairs += len(sources)
    seconds = time.perf_counter() - started
    after = await read_metrics(session, url)
    computed, reused = (
        after[name] - before.get(name, 0)
        for name in (f'notegrade_prompt_tokens_total{{kind="{kind}"}}' for kind in ("computed", "reused"))
    )
    return pairs / seconds, reused / (computed + reused)


async def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--workload", choices=("zipf", "fresh"), required=True)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--notes", type=int, default=20)
    add_seed(parser)
    options = parser.parse_args()
    urls = [options.a.rstrip("/"), options.b.rstrip("/")]
    rates: dict[str, list[float]] = {url: [] for url in urls}
    saved: dict[str, list[float]] = {url: [] for url in urls}
    async with new_session() as session:
        for number in range(options.passes):
            bodies = make_pass(options.workload, options.requests, options.notes, options.seed + number)
            for url in urls if number % 2 == 0 else reversed(urls):
                rate, share = await run_pass(session, url, bodies)
                rates[url].append(rate)
                saved[url].append(share)
    print(
        f"{options.workload}: {options.passes} passes of {options.requests} x {options.notes}, seed {options.seed}; min / median / max"
    )
    for name, url in zip("AB", urls, strict=True):
        print(
            f"{name} {url}: {spread(rates[url])} pairs/s, {statistics.median(saved[url]):.0%} of tokens reused"
        )
    print(f"A/B: {spread([a / b for a, b in zip(rates[urls[0]], rates[urls[1]], strict=True)])}")


if __name__ == "__main__":
    asyncio.run(main())
