"""Measures what explaining every score costs: p99 at 60 % of capacity with explanation mode `all` and `off`.

    .venv/bin/python -m load_tests.explanations_cost http://127.0.0.1:8000

Sends requests of one new note in an open loop, each mode for `--seconds` in a round, at the share `--load` of the capacity. Prints both p99s and their ratio for each round, and the outcomes of requests, scores
and explanations; a request without an answer counts as one that took the longest time. If the service requires keys, NOTEGRADE_KEY must hold an admin key.
"""

import asyncio
import os
from collections import Counter
from typing import Any

import aiohttp

from load_tests.arguments import SEED, make_parser
from load_tests.bench.drive import Drive
from load_tests.client import read_metrics
from load_tests.figures import spread
from load_tests.new_pairs import TIMEOUT_S, NewPairs, results_of
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn

MODE = "/admin/explanation-mode"
COUNTERS = ("notegrade_explanations_total", "notegrade_explanation_drops_total", "notegrade_shed_total")


async def set_mode(session: aiohttp.ClientSession, url: str, mode: str) -> None:
    """Set the explanation mode. Raises aiohttp.ClientResponseError when the service refuses."""
    async with session.get(url + MODE) as response:
        response.raise_for_status()
        etag = response.headers["ETag"]
    body = {"mode": mode, "reason": "load test", **({} if mode == "off" else {"ttl_s": 3600})}
    async with session.put(url + MODE, json=body, headers={"If-Match": etag}) as response:
        response.raise_for_status()


def describe(mode: str, drive: Drive) -> str:
    """Format one phase as a line."""
    results = [result for each in drive.sent for result in results_of(each)]
    explained = Counter(each["reason"] or each["outcome"] for r in results if (each := r["explanation"]))
    latencies = drive.latencies_ms(TIMEOUT_S)
    return (
        f"  {mode:3}  {dict(drive.outcomes)} requests: p50 {latencies['p50']:.0f} ms, p99 {latencies['p99']:.0f} ms, "
        f"{dict(Counter(result['outcome'] for result in results))}"
        f"{f', explanations {dict(explained)}' if explained else ''}"
    )


async def compare(pairs: NewPairs, rounds: int, seconds: float, load: float) -> dict[str, Any]:
    """Print and return the p99s of all rounds in ms, and print their ratio."""
    ratios: list[float] = []
    p99_ms: dict[str, list[float]] = {"all": [], "off": []}
    async with aiohttp.ClientSession(headers=pairs.headers) as session:
        await set_mode(session, pairs.url, "off")
        before = await read_metrics(session, pairs.url)
        try:
            capacity = await pairs.measure_capacity(seconds)
            print(f"capacity {capacity:.1f} pairs/s; load {load:.0%} of it: {load * capacity:.1f} pairs/s")
            for number in range(rounds):
                found = {}
                for mode in in_turn(("off", "all"), number):
                    await set_mode(session, pairs.url, mode)
                    found[mode] = await pairs.send(load * capacity, seconds)
                for mode, values in p99_ms.items():
                    values.append(found[mode].latencies_ms(TIMEOUT_S)["p99"])
                ratios.append(p99_ms["all"][-1] / p99_ms["off"][-1])
                print(f"round {number + 1}: p99 with all / p99 with off = {ratios[-1]:.2f}")
                print(describe("off", found["off"]), describe("all", found["all"]), sep="\n")
        finally:
            await set_mode(session, pairs.url, "off")
        counted = await read_metrics(session, pairs.url)
    counters = {
        name: value - before.get(name, 0.0) for name, value in counted.items() if name.startswith(COUNTERS)
    }
    print(counters)
    print(f"ratio of p99s, min / median / max: {spread(ratios)}")
    return {"capacity_pairs_per_s": capacity, "p99_ms": p99_ms, "counters": counters}


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "url", rounds=5, seconds=40.0, load=0.6, seed=SEED).parse_args()
    key = os.environ.get("NOTEGRADE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    pairs = NewPairs(options.url, options.seed, headers=headers)
    write_raw(options, asyncio.run(compare(pairs, options.rounds, options.seconds, options.load)))


if __name__ == "__main__":
    main()
