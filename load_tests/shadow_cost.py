"""Measures what mirroring requests to a shadow costs: latency without a shadow, at the default rate, and with all mirrored.

    .venv/bin/python -m load_tests.shadow_cost

Three services take turns on the same Poisson arrivals; latency counts from the intended send time. They get requests of 20 cached
pairs at `--known-rate`, and of 4 new pairs at `--new-rate`, which must be less than the engine's capacity. The shadow is a stub in this process that answers at once; a real one has
its own machine. Prints p50 and p99 of each service, and the ratio to the service without a shadow within each round.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice

from aiohttp import web

from load_tests.arguments import CHECKPOINT, SEED, make_parser
from load_tests.bench.drive import Job, closed_loop, make_jobs, open_loop, poisson
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.stage import Entrant, stage_all
from load_tests.bench.workloads import Shape, cold, take
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from service.contract.checkpoint import Checkpoint, load_checkpoint

TIMEOUT_S = 60.0
KNOWN, NEW = Shape(notes=20), Shape(notes=4)


@asynccontextmanager
async def run_stub() -> AsyncIterator[str]:
    """Run a stub that answers /score as a service does, and yield its URL."""

    async def score(request: web.Request) -> web.Response:
        notes = (await request.json())["notes"]
        results = [
            {"id": note["id"], "outcome": "scored", "grade": 2, "score": 0.5, "distribution": [0.1, 0.2, 0.6, 0.1], "source": "engine"}
            for note in notes
        ]  # fmt: skip
        model = {"name": "stub", "fingerprint": "sha256:0"}
        return web.json_response({"model": model, "results": results, "timing_ms": {"engine": 1.0}})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/score", score)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def services(checkpoint: Checkpoint, shadow_url: str) -> list[Notegrade]:
    """Make a service without a shadow, and with one at the default rate and for all requests."""
    shadow = {"NOTEGRADE_SHADOW_URL": shadow_url}
    settings = {"none": {}, "default": shadow, "all": {**shadow, "NOTEGRADE_SHADOW_RATE": "1"}}
    return [
        Notegrade(checkpoint, "default", cached=True, name=name, settings=chosen)
        for name, chosen in settings.items()
    ]


async def measure(options: argparse.Namespace) -> None:
    """Measure and print both kinds of load, with the stub as the shadow."""
    checkpoint = load_checkpoint(options.checkpoint)
    async with run_stub() as url:
        contestants = services(checkpoint, url)
        requests = take(checkpoint.renderer, cold(f"{options.seed} known", KNOWN), 50)
        known = make_jobs(contestants[0], requests)
        new = cold(f"{options.seed} new", NEW)

        def make_new(count: int) -> list[Job]:
            return make_jobs(contestants[0], take(checkpoint.renderer, new, count))

        with stage_all(contestants) as entrants:
            for entrant in entrants:
                with entrant.turn() as running:
                    await closed_loop(running.url, known, 4, TIMEOUT_S)
            print(f"cached pairs, {options.known_rate:g} requests/s of {KNOWN.notes} notes")
            found = {
                "known": await compare(
                    entrants, options, options.known_rate, lambda count: islice(cycle(known), count)
                )
            }
            print(f"new pairs, {options.new_rate:g} requests/s of {NEW.notes} notes")
            found["new"] = await compare(entrants, options, options.new_rate, make_new)
    write_raw(options, {"latency_ms": found})


async def compare(
    entrants: Sequence[Entrant],
    options: argparse.Namespace,
    rate: float,
    make: Callable[[int], Iterable[Job]],
) -> dict[str, dict[str, list[float]]]:
    """Send each service the same arrivals in each round; print and return latencies by percentile and service.

    Raises RuntimeError for an unanswered request.
    """
    found: dict[str, dict[str, list[float]]] = {"p50": {}, "p99": {}}
    for number in range(options.rounds):
        moments = poisson(f"{options.seed} {rate} {number}", rate, options.seconds)
        arrivals = list(zip(moments, make(len(moments)), strict=True))
        for entrant in in_turn(entrants, number):
            with entrant.turn() as running:
                drive = await open_loop(running.url, arrivals, TIMEOUT_S)
            if set(drive.outcomes) != {"answered"}:
                raise RuntimeError(f"{entrant.contestant.name}: {dict(drive.outcomes)}")
            for percentile, sides in found.items():
                latency_ms = drive.latencies_ms(TIMEOUT_S)[percentile]
                sides.setdefault(entrant.contestant.name, []).append(latency_ms)
    for percentile, sides in found.items():
        print_sides(sides, f"ms at {percentile}", base="none")
    return found


def main() -> None:
    """Read the command line, and measure."""
    parser = make_parser(
        __doc__, checkpoint=CHECKPOINT, rounds=5, seconds=30.0, known_rate=50.0, new_rate=2.0, seed=SEED
    )
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
