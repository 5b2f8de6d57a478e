"""What explaining everything costs scoring: p99 at 60 % of capacity with explanation mode `all` and `off`, in turn.

    .venv/bin/python -m load_tests.explanations_cost http://127.0.0.1:8000

Single new notes, open loop. Prints both p99s and their ratio for each round, and what became of scores and explanations.
NOTEGRADE_KEY holds an admin key where keys are set.
"""

import argparse
import asyncio
import os
import random
import statistics
from collections import Counter

import aiohttp

from load_tests.client import read_metrics
from load_tests.open_loop import Arrival, measure_capacity, new_body, percentile, send

MODE = "/admin/explanation-mode"
COUNTERS = ("notegrade_explanations_total", "notegrade_explanation_drops_total", "notegrade_shed_total")


async def flip(session: aiohttp.ClientSession, url: str, mode: str) -> None:
    """Raises aiohttp.ClientResponseError when it is refused."""
    async with session.get(url + MODE) as response:
        response.raise_for_status()
        etag = response.headers["ETag"]
    body = {"mode": mode, "reason": "load test", **({} if mode == "off" else {"ttl_s": 3600})}
    async with session.put(url + MODE, json=body, headers={"If-Match": etag}) as response:
        response.raise_for_status()


def p99(arrivals: list[Arrival]) -> float:
    """Of all answers, in seconds."""
    return percentile([arrival.seconds for arrival in arrivals], 0.99)


def describe(mode: str, arrivals: list[Arrival]) -> str:
    """A line for a person."""
    results = [result for arrival in arrivals for result in arrival.results]
    told = Counter(each["reason"] or each["outcome"] for r in results if (each := r["explanation"]))
    p50 = percentile([arrival.seconds for arrival in arrivals], 0.5)
    return (
        f"  {mode:3}  {len(arrivals)} requests: p50 {p50 * 1000:.0f} ms, p99 {p99(arrivals) * 1000:.0f} ms, "
        f"{dict(Counter(result['outcome'] for result in results))}{f', explanations {dict(told)}' if told else ''}"
    )


async def compare(url: str, rounds: int, seconds: float, load: float, seed: int) -> float:
    """Print all of it; the median ratio."""
    rng = random.Random(seed)
    key = os.environ.get("NOTEGRADE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    ratios = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        await flip(session, url, "off")
        await measure_capacity(session, url, lambda: new_body(rng), seconds / 4)  # warms up
        capacity = await measure_capacity(session, url, lambda: new_body(rng), seconds)
        print(f"capacity {capacity:.1f} pairs/s; load {load:.0%} of it: {load * capacity:.1f} pairs/s")
        for number in range(rounds):
            found = {}
            # In turn, and the other way round each time: a machine that slows down must not look like a mode.
            for mode in ("off", "all") if number % 2 == 0 else ("all", "off"):
                await flip(session, url, mode)
                found[mode] = await send(session, url, lambda: new_body(rng), load * capacity, seconds)
            await flip(session, url, "off")
            ratios.append(p99(found["all"]) / p99(found["off"]))
            print(f"round {number + 1}: p99 with all / p99 with off = {ratios[-1]:.2f}")
            print(describe("off", found["off"]), describe("all", found["all"]), sep="\n")
        counted = await read_metrics(session, url)
    print({name: value for name, value in counted.items() if name.startswith(COUNTERS)})
    print(
        f"ratio of p99s: min {min(ratios):.2f}, median {statistics.median(ratios):.2f}, max {max(ratios):.2f}"
    )
    return statistics.median(ratios)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40, help="length of each phase")
    parser.add_argument("--load", type=float, default=0.6, help="share of the capacity")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    asyncio.run(compare(arguments.url, arguments.rounds, arguments.seconds, arguments.load, arguments.seed))


if __name__ == "__main__":
    main()
