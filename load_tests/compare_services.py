"""Compares the throughput of two running services, which take turns on the same load.

    .venv/bin/python -m load_tests.compare_services http://127.0.0.1:8001 http://127.0.0.1:8002 --workload zipf

`zipf`: notes repeat across the requests of a pass by Zipf's law, queries don't. `fresh`: nothing repeats. Every pass sends new
pairs, so no score comes from a pair cache.
"""

import asyncio
import itertools
import statistics
import time
from typing import Any

import aiohttp

from load_tests.arguments import SEED, make_parser
from load_tests.bench.workloads import Repetition, Shape, cold, zipf
from load_tests.client import new_session, post_score, read_metrics
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn

POOL = Repetition(queries=1, notes=40)


def make_pass(workload: str, requests: int, notes: int, seed: str) -> list[dict[str, Any]]:
    """Make the bodies of one pass."""
    bodies = [asked.body() for asked in itertools.islice(cold(seed, Shape(notes)), requests)]
    if workload == "zipf":
        for body, asked in zip(bodies, zipf(seed, Shape(notes), POOL), strict=False):
            body["notes"] = list(asked.notes)
    return bodies


async def run_pass(
    session: aiohttp.ClientSession, url: str, bodies: list[dict[str, Any]]
) -> tuple[float, float]:
    """Return pairs per second, and the share of prompt tokens served by the engine's prefix cache.

    Raises RuntimeError when a pair did not come from the engine.
    """
    before = await read_metrics(session, url)
    started = time.perf_counter()
    for body in bodies:
        answer = await post_score(session, url, body)
        sources = {result["source"] for result in answer.body.get("results", [])}
        if sources != {"engine"}:
            raise RuntimeError(f"{url} answered {answer.status} from {sources}")
    seconds = time.perf_counter() - started
    after = await read_metrics(session, url)
    names = [f'notegrade_prompt_tokens_total{{kind="{kind}"}}' for kind in ("computed", "reused")]
    computed, reused = (after[name] - before.get(name, 0) for name in names)
    return sum(len(body["notes"]) for body in bodies) / seconds, reused / (computed + reused)


async def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__, "a", "b", passes=5, requests=10, notes=20, seed=SEED)
    parser.add_argument("--workload", choices=("zipf", "fresh"), required=True)
    options = parser.parse_args()
    urls = {"A": options.a, "B": options.b}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    saved: dict[str, list[float]] = {name: [] for name in urls}
    async with new_session() as session:
        for number in range(options.passes):
            seed = f"{options.seed} {number}"
            bodies = make_pass(options.workload, options.requests, options.notes, seed)
            for name in in_turn("AB", number):
                rate, share = await run_pass(session, urls[name], bodies)
                rates[name].append(rate)
                saved[name].append(share)
    print(
        f"{options.workload}: {options.passes} passes of {options.requests} x {options.notes}, seed {options.seed}; min / median / max"
    )
    for name, shares in saved.items():
        print(f"{name} is {urls[name]}; median of {statistics.median(shares):.0%} of tokens reused")
    print_sides(rates, "pairs/s", base="B")
    write_raw(options, {"pairs_per_s": rates, "reused_share_of_tokens": saved})


if __name__ == "__main__":
    asyncio.run(main())
