"""Load for those who drive theirs with locust (https://locust.io): /score under `load_tests.bench`'s traffic models.

    .venv/bin/locust -f load_tests/locustfile.py --host http://127.0.0.1:8000 --headless -u 20 -t 60s --traffic zipf

Locust's users wait for their answers, so a slow service is asked less: latencies look better than what callers who don't wait would
see. `load_tests.bench` measures those (docs/decisions/0016-bench.md). With --pace, users at least keep to a rate while they can.
A request counts as failed unless every one of its notes is scored.
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

from load_tests.bench.workloads import Asked, Repetition, Shape, cold, zipf

# Longer than the longest deadline that the service grants (NOTEGRADE_MAX_DEADLINE_MS).
ANSWER_TIMEOUT_S = 90


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust types no hook
def add_options(parser: LocustArgumentParser) -> None:
    """Locust's own, and these; the web page shows them all but the key."""
    group = parser.add_argument_group("Notegrade")

    def option(name: str, kind: type, default: object, told: str, **more: Any) -> None:
        group.add_argument(name, type=kind, default=default, help=told, **more)

    option("--traffic", str, "zipf", "cold: no pair comes twice; zipf: they repeat", choices=["cold", "zipf"])
    option("--notes-per-request", int, Shape().notes, "Notes in a request")
    option("--note-tokens", float, Shape().note_tokens, "Mean length of a note")
    option("--zipf-exponent", float, Repetition().exponent, "The k-th most popular has weight k^-exponent")
    option("--zipf-queries", int, Repetition().queries, "Queries to draw from")
    option("--zipf-notes", int, Repetition().notes, "Notes to draw from")
    option("--traffic-seed", str, "", "The same traffic again; empty: a new one, but with workers")
    option("--streams", int, 1, "Locust processes that send, where there are several: each takes its part")
    option("--pace", float, 0.0, "Requests a second of each user; 0: the next one at once")
    option("--deadline-ms", int, 10_000, "Deadline of each request")
    parser.add_argument(
        "--api-key", default="", env_var="NOTEGRADE_KEY", include_in_web_ui=False, help="Key of the service"
    )


def make_traffic(options: Any, stream: int) -> Iterator[Asked]:
    """Every `streams`-th request, from the `stream`-th on."""
    # Workers don't hear of a seed that one of them has made up.
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
    """All users of this process take from one stream. A master sends nothing."""
    if not isinstance(environment.runner, MasterRunner):
        stream = getattr(environment.runner, "worker_index", 0)
        Scorer.traffic = make_traffic(environment.parsed_options, stream)


class Scorer(FastHttpUser):
    """A ranking backend that asks for one list after the other."""

    traffic: Iterator[Asked]
    network_timeout = ANSWER_TIMEOUT_S
    connection_timeout = ANSWER_TIMEOUT_S

    def wait_time(self) -> float:
        """Seconds until the next request."""
        pace = self.environment.parsed_options.pace
        return float(constant_throughput(pace)(self)) if pace else 0.0

    @task
    def score(self) -> None:
        """Send the next request."""
        options, asked = self.environment.parsed_options, next(self.traffic)
        body = {"query": asked.query, "notes": list(asked.notes), "deadline_ms": options.deadline_ms}
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        with self.client.post("/score", json=body, headers=headers, catch_response=True) as answer:
            if problem := problem_of(answer):
                answer.failure(problem)


def problem_of(answer: Any) -> str | None:
    """In words that are the same for the same problem, since locust counts by them; None where all is scored."""
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
