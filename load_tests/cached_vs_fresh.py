"""How much faster an answer from the cache is than one from the engine.

    .venv/bin/python -m load_tests.cached_vs_fresh http://127.0.0.1:8000

Each round sends one request of 20 new notes, then the same request again. Prints both sides and their ratio.
"""

import argparse
import asyncio
import random
import statistics
from dataclasses import dataclass

import aiohttp

from load_tests.client import new_session, post_score
from load_tests.texts import make_note, make_query


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each round's fresh and cached request."""

    fresh_s: list[float]
    cached_s: list[float]

    def ratios(self) -> list[float]:
        """How many times faster the cached request of each round was."""
        return [fresh / cached for fresh, cached in zip(self.fresh_s, self.cached_s, strict=True)]


async def measure(session: aiohttp.ClientSession, url: str, rounds: int, notes: int, seed: int) -> Rounds:
    """Raises RuntimeError when an answer did not come from where it should."""
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
            raise RuntimeError(f"expected the engine, then the cache, and got {sources}")
        found.fresh_s.append(fresh.seconds)
        found.cached_s.append(cached.seconds)
    return found


def _line(name: str, values: list[float], unit: str) -> str:
    return f"{name:>7}: min {min(values):.4g}  median {statistics.median(values):.4g}  max {max(values):.4g} {unit}"


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--notes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(0, 10**9))
    options = parser.parse_args()
    async with new_session() as session:
        found = await measure(session, options.url.rstrip("/"), options.rounds, options.notes, options.seed)
    print(f"{options.rounds} rounds of {options.notes} notes, seed {options.seed}")
    print(_line("fresh", [s * 1000 for s in found.fresh_s], "ms"))
    print(_line("cached", [s * 1000 for s in found.cached_s], "ms"))
    print(_line("ratio", found.ratios(), "times faster"))


if __name__ == "__main__":
    asyncio.run(main())
