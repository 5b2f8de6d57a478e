"""Sends /score load with locust (https://locust.io), under the traffic models of `load_tests.bench`.

    .venv/bin/locust -f load_tests/locustfile.py --host http://127.0.0.1:8000 --headless -u 20 -t 60s --traffic zipf

Locust's users wait for their answers (closed loop), so a slow service gets fewer requests and latencies look better than in an
open loop, which `load_tests.bench` measures. With --pace, users keep to a rate as long as the service can.
A request counts as failed unless all its notes are scored.
"""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner

from load_tests.bench.peer import Asked
from load_tests.bench.workloads import Repetition, Shape, cold, zipf

# Longer than the service's maximum deadline (NOTEGRADE_MAX_DEADLINE_MS).
ANSWER_TIMEOUT_S = 90


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust types no hook
def add_options(parser: LocustArgumentParser) -> None:
    """Add Notegrade's options to locust's; the web page shows all but the key."""
    group = parser.add_argument_group("Notegrade")

    def option(name: str, kind: type, default: object, text: str, **more: Any) -> None:
        group.add_argument(name, type=kind, default=default, help=text, **more)

    option("--traffic", str, "zipf", "cold: no pair repeats; zipf: pairs repeat", choices=["cold", "zipf"])
    option("--notes-per-request", int, Shape().notes, "Notes in a request")
    option("--note-tokens", float, Shape().note_tokens, "Mean length of a note")
    option("--zipf-exponent", float, Repetition().exponent, "The k-th most popular has weight k^-exponent")
    option("--zipf-queries", int, Repetition().queries, "Queries to draw from")
    option("--zipf-notes", int, Repetition().notes, "Notes to draw from")
    option("--traffic-seed", str, "", "Seed of the traffic; empty: random, or fixed if there are workers")
    option("--streams", int, 1, "Number of locust processes that share the traffic")
    option("--pace", float, 0.0, "Requests per second of each user; 0: no waiting between requests")
    option("--deadline-ms", int, 10_000, "Deadline of each request")
    parser.add_argument(
        "--api-key", default="", env_var="NOTEGRADE_KEY", include_in_web_ui=False, help="Key of the service"
    )


def make_traffic(options: Any, stream: int) -> Iterator[Asked]:
    """Make the traffic of one locust process: every `streams`-th request, from the `stream`-th on."""
    # Workers can't share a random seed, so they use a fixed one.
    seed = options.traffic_seed or (str(random.random()) if options.streams == 1 else "locust")
    shape = Shape(options.notes_per_request, options.note_tokens)
    if options.traffic == "cold":
        whole = cold(seed, shape)
    else:
        repetition = Repetition(options.zipf_exponent, options.zipf_queries, options.zipf_notes)
        whole = zipf(seed, shape, repetition)
    return itertools.islice(whole, stream, None, options.streams)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def start_traffic(environment: Environment, **_: Any) -> None:
    """Give all users of this process one stream of requests; a master process sends none."""
    if not isinstance(environment.runner, MasterRunner):
        stream = getattr(environment.runner, "worker_index", 0)
        Scorer.traffic = make_traffic(environment.parsed_options, stream)


class Scorer(FastHttpUser):
    """A user that sends one request after the other."""

    traffic: Iterator[Asked]
    network_timeout = ANSWER_TIMEOUT_S
    connection_timeout = ANSWER_TIMEOUT_S

    def wait_time(self) -> float:
        """Return the seconds until the next request."""
        pace = self.environment.parsed_options.pace
        return float(constant_throughput(pace)(self)) if pace else 0.0

    @task
    def score(self) -> None:
        """Send the next request."""
        options, asked = self.environment.parsed_options, next(self.traffic)
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        with self.client.post(
            "/score", json=asked.body(options.deadline_ms), headers=headers, catch_response=True
        ) as answer:
            if problem := problem_of(answer):
                answer.failure(problem)


def problem_of(answer: Any) -> str | None:
    """Describe a failure, always in the same words since locust groups by them; None if all notes are scored."""
    if answer.status_code == 0:
        return f"no answer: {type(answer.error).__name__}"
    try:
        document = json.loads(answer.text)
    except ValueError:
        return f"{answer.status_code}: no JSON"
    if answer.status_code != 200:
        return f"{answer.status_code}: {document.get('type')}"
    others = {each["outcome"] for each in document["results"]} - {"scored"}
    return f"notes not scored: {', '.join(sorted(others))}" if others else None
