"""Sends repeated and new pairs from concurrent clients, and checks every answer and the service's own counts.

.venv/bin/python -m load_tests.mixed_traffic http://127.0.0.1:8000 --requests 1000 --clients 16
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from load_tests.arguments import SEED, make_parser
from load_tests.bench.workloads import make_query, new_notes
from load_tests.client import Answer, new_session, post_score, read_metrics
from load_tests.figures import percentile
from load_tests.raw_results import write_raw


@dataclass(slots=True)
class Traffic:
    """Counts of requests and answers, and the errors found."""

    requests: int = 0
    pairs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, body: dict[str, Any], answer: Answer) -> None:
        """Count one answer, and check that it belongs to that body."""
        self.requests += 1
        self.pairs += len(body["notes"])
        self.statuses[answer.status] += 1
        self.seconds.append(answer.seconds)
        results = answer.body.get("results", [])
        self.outcomes.update(result["outcome"] for result in results)
        self.sources.update(result["source"] for result in results if result["source"])
        sent, got = [note["id"] for note in body["notes"]], [result["id"] for result in results]
        if sent != got or answer.body.get("request_id") != body["request_id"]:
            self.wrong.append(f"{body['request_id']}: sent {sent}, got {answer.status} {got}")


def plan(count: int, seed: int) -> list[dict[str, Any]]:
    """Make `count` bodies of one to three notes; about 15 % of them have a new query and one note."""
    rng = random.Random(seed)
    queries = [make_query(rng) for _ in range(8)]
    pool = list(itertools.islice(new_notes(rng, mean_tokens=20), 12))
    bodies = []
    for number in range(count):
        is_new = rng.random() < 0.15
        query = f"{make_query(rng)} {rng.random()}" if is_new else rng.choice(queries)
        chosen = rng.sample(pool, 1 if is_new else rng.randint(1, 3))
        bodies.append(
            {"request_id": f"mixed-{number}", "query": query, "notes": chosen, "deadline_ms": 60_000}
        )
    return bodies


async def drive(
    session: aiohttp.ClientSession,
    url: str,
    bodies: list[dict[str, Any]],
    clients: int,
    at: dict[int, Callable[[], Awaitable[None]]] | None = None,
) -> Traffic:
    """Send the bodies from `clients` concurrent clients; `at[n]` is awaited before body number n is sent."""
    traffic, todo = Traffic(), iter(enumerate(bodies))

    async def client() -> None:
        for number, body in todo:
            if at and number in at:
                await at[number]()
            traffic.add(body, await post_score(session, url, body))

    await asyncio.gather(*(client() for _ in range(clients)))
    return traffic


def differences(traffic: Traffic, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """List the metrics of the service that differ from the client's counts; empty if all agree."""

    def grown(sample: str) -> float:
        return after.get(f"notegrade_{sample}", 0) - before.get(f"notegrade_{sample}", 0)

    expected = {'request_seconds_count{route="/score",status="200"}': traffic.statuses[200]}
    for outcome in ("scored", "deadline_exceeded", "shed", "failed"):
        expected[f'pair_outcomes_total{{outcome="{outcome}"}}'] = traffic.outcomes[outcome]
    for source in ("engine", "redis", "local", "coalesced"):
        expected[f'pair_source_total{{source="{source}"}}'] = traffic.sources[source]
    expected["score_count"] = traffic.outcomes["scored"]
    return [f"{sample}: {grown(sample):g}, sent {n}" for sample, n in expected.items() if grown(sample) != n]


async def main() -> None:
    """Read the command line and run."""
    options = make_parser(__doc__, "url", requests=1000, clients=16, seed=SEED).parse_args()
    url = options.url
    async with new_session() as session:
        before = await read_metrics(session, url)
        traffic = await drive(session, url, plan(options.requests, options.seed), options.clients)
        after = await read_metrics(session, url)
    p50, p99 = (1000 * percentile(traffic.seconds, percent) for percent in (50, 99))
    print(f"{traffic.requests} requests, {traffic.pairs} pairs, seed {options.seed}")
    print(
        f"statuses {dict(traffic.statuses)}  outcomes {dict(traffic.outcomes)}  sources {dict(traffic.sources)}"
    )
    print(f"p50 {p50:.1f} ms  p99 {p99:.1f} ms")
    found_wrong = traffic.wrong + differences(traffic, before, after)
    for wrong in found_wrong:
        print(f"WRONG {wrong}")
    counts = {name: dict(getattr(traffic, name)) for name in ("statuses", "outcomes", "sources")}
    write_raw(options, {"pairs": traffic.pairs, **counts, "seconds": traffic.seconds, "wrong": found_wrong})


if __name__ == "__main__":
    asyncio.run(main())
