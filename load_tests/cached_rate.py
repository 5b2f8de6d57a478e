"""Measures notes per second that a service on one core answers from its local cache, and from Redis.

    .venv/bin/python -m load_tests.cached_rate

Starts a Redis and two services pinned to the first core. One answers from its local cache; the other's local cache holds one
pair, so it asks Redis. They take turns on the same requests, which both have answered before: `--repeats` times in each round.
Redis and the load generator run on the other cores.
"""

import argparse
import asyncio
import os
from collections import Counter
from collections.abc import Sequence

from load_tests.arguments import CHECKPOINT, SEED, make_parser
from load_tests.bench.drive import Job, closed_loop, make_jobs
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.stage import Entrant, stage_all
from load_tests.bench.workloads import Shape, cold, take
from load_tests.client import new_session, read_metrics
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from load_tests.soak.processes import REDIS, Redis
from service.contract.checkpoint import Checkpoint, load_checkpoint

TIMEOUT_S = 120.0
SOURCES = ("engine", "redis", "local", "coalesced")


def pinned(name: str, checkpoint: Checkpoint, redis_url: str, local_pairs: int) -> Notegrade:
    """Make a service on the first core; `name` is the source that its answers must come from."""
    settings = {"NOTEGRADE_REDIS_URL": redis_url, "NOTEGRADE_LOCAL_CACHE_PAIRS": str(local_pairs)}
    return Notegrade(
        checkpoint, "tuned", cached=True, name=name, settings=settings, launcher=("taskset", "-c", "0")
    )


async def measure(options: argparse.Namespace, redis_url: str) -> None:
    """Measure both services, and print their rates and the ratio."""
    checkpoint = load_checkpoint(options.checkpoint)
    traffic = cold(f"{options.seed} cached", Shape(notes=options.notes))
    known = take(checkpoint.renderer, traffic, options.requests)
    services = [pinned("local", checkpoint, redis_url, 50_000), pinned("redis", checkpoint, redis_url, 1)]
    jobs = make_jobs(services[0], known)
    rates: dict[str, list[float]] = {each.name: [] for each in services}
    with stage_all(services) as entrants:
        for entrant in entrants:
            await turn(entrant, jobs, 1)
        for number in range(options.rounds):
            for entrant in in_turn(entrants, number):
                rate = await turn(entrant, jobs * options.repeats, options.clients, checked=True)
                rates[entrant.contestant.name].append(rate)
    print(
        f"{options.rounds} rounds of {len(jobs) * options.repeats} x {options.notes} notes, seed {options.seed}; on one core, min / median / max"
    )
    print_sides(rates, "notes/s", base="redis")
    write_raw(options, {"notes_per_s": rates})


async def turn(entrant: Entrant, jobs: Sequence[Job], clients: int, *, checked: bool = False) -> float:
    """Return notes per second. Raises RuntimeError when `checked` and an answer came from another source than expected."""
    with entrant.turn() as running:
        before = await _sources(running.url)
        drive = await closed_loop(running.url, jobs, clients, TIMEOUT_S)
        sources = await _sources(running.url) - before
    notes = sum(job.pairs for job in jobs)
    if checked and sources != {entrant.contestant.name: notes}:
        raise RuntimeError(
            f"answers came from {dict(sources)}, expected {notes} from {entrant.contestant.name}"
        )
    return notes / drive.seconds


async def _sources(url: str) -> Counter[str]:
    async with new_session() as session:
        metrics = await read_metrics(session, url)
    names = {source: f'notegrade_pair_source_total{{source="{source}"}}' for source in SOURCES}
    return Counter({source: round(metrics.get(name, 0)) for source, name in names.items()})


def main() -> None:
    """Read the command line, start Redis, and measure."""
    parser = make_parser(
        __doc__, checkpoint=CHECKPOINT, rounds=7, requests=10, repeats=50, notes=50, clients=4, seed=SEED,
        redis_server=REDIS,
    )  # fmt: skip
    options = parser.parse_args()
    if options.requests <= options.clients:
        parser.error(
            "--requests must exceed --clients, or a request may follow itself and hit the local cache's one pair"
        )
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        parser.error("a second core is needed for Redis and the load generator")
    os.sched_setaffinity(0, cores - {0})
    with Redis(options.redis_server) as redis:
        asyncio.run(measure(options, redis.url))


if __name__ == "__main__":
    main()
