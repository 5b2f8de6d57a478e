"""Measures how much faster a running service answers from the cache than from the engine.

    .venv/bin/python -m load_tests.cached_vs_fresh http://127.0.0.1:8000

Each round sends one request of 20 new notes, then the same request again. Prints both latencies and their ratio.
"""

import asyncio
import random
from dataclasses import dataclass

import aiohttp

from load_tests.arguments import add_seed, make_parser
from load_tests.client import new_session, post_score
from load_tests.figures import spread
from load_tests.texts import make_note, make_query


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each round's fresh and cached request."""

    fresh_s: list[float]
    cached_s: list[float]

    def ratios(self) -> list[float]:
        """Return each round's fresh time over its cached time."""
        return [fresh / cached for fresh, cached in zip(self.fresh_s, self.cached_s, strict=True)]


async def measure(session: aiohttp.ClientSession, url: str, rounds: int, notes: int, seed: int) -> Rounds:
    """Time `rounds` fresh and cached requests. Raises RuntimeError when an answer comes from another source."""
    rng = random.Random(seed)
    found = Rounds([], [])
    for _ in range(rounds):
        query = f"{make_query(rng)} {rng.random()}"
        body = {
            "query": query,
            "notes": [make_note(rng, str(i)) for i in range(notes)],
            "deadline_ms": 60_000,
        }
        fresh, cached = await post_score(session, url, body), await post_score(session, url, body)
        sources = [{result["source"] for result in answer.body["results"]} for answer in (fresh, cached)]
        if sources[0] != {"engine"} or not sources[1] <= {"local", "redis"}:
            raise RuntimeError(f"expected answers from the engine, then from the cache, and got {sources}")
        found.fresh_s.append(fresh.seconds)
        found.cached_s.append(cached.seconds)
    return found


async def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--notes", type=int, default=20)
    add_seed(parser)
    options = parser.parse_args()
    async with new_session() as session:
        found = await measure(session, options.url.rstrip("/"), options.rounds, options.notes, options.seed)
    print(f"{options.rounds} rounds of {options.notes} notes, seed {options.seed}; min / median / max")
    print(f"fresh ms: {spread([s * 1000 for s in found.fresh_s])}")
    print(f"cached ms: {spread([s * 1000 for s in found.cached_s])}")
    print(f"fresh / cached: {spread(found.ratios())}")


if __name__ == "__main__":
    asyncio.run(main())
