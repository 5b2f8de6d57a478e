"""Measures how much faster a running service answers from the cache than from the engine.

    .venv/bin/python -m load_tests.cached_vs_fresh http://127.0.0.1:8000

Each round sends one request of 20 new notes, then the same request again. Prints both latencies and their ratio.
"""

import asyncio
import itertools

import aiohttp

from load_tests.arguments import SEED, make_parser
from load_tests.bench.workloads import Shape, cold
from load_tests.client import new_session, post_score
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw


async def measure(
    session: aiohttp.ClientSession, url: str, rounds: int, notes: int, seed: int
) -> dict[str, list[float]]:
    """Return the milliseconds of each round's `fresh` and `cached` request.

    Raises RuntimeError when an answer comes from another source.
    """
    found: dict[str, list[float]] = {"fresh": [], "cached": []}
    for asked in itertools.islice(cold(str(seed), Shape(notes)), rounds):
        for name, expected in (("fresh", {"engine"}), ("cached", {"local", "redis"})):
            answer = await post_score(session, url, asked.body())
            sources = {result["source"] for result in answer.body["results"]}
            if not sources <= expected:
                raise RuntimeError(f"expected {name} answers from {expected}, and got {sources}")
            found[name].append(1000 * answer.seconds)
    return found


async def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "url", rounds=10, notes=20, seed=SEED).parse_args()
    async with new_session() as session:
        found = await measure(session, options.url, options.rounds, options.notes, options.seed)
    print(f"{options.rounds} rounds of {options.notes} notes, seed {options.seed}; min / median / max")
    print_sides(found, "ms", base="cached")
    write_raw(options, {"ms": found})


if __name__ == "__main__":
    asyncio.run(main())
