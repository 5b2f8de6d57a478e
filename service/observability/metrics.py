"""Every metric, defined once. Names and labels are a contract with dashboards and alerts.

Label values are closed sets, so that a caller can't make new series.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from service.observability.engine_use import EngineUse

# Laid around the service level objective: 5 ms (all from cache) to 10 s (a long list on a small machine).
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)
UNIT_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# No signed shifts: OpenMetrics allows a histogram no sum where a bucket is negative, and its parsers then refuse the whole page.
DISTANCE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Half of the health of a prompt shows below one percent.
MASS_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


def initialize_series(metric: Counter | Histogram, *labels: Iterable[str]) -> None:
    """Make the series of these values of its labels, each with each, at 0.

    Prometheus takes what a series begins with for no increase: the events up to the first scrape that finds one would be in no rate,
    and in no alert.
    """
    for values in itertools.product(*labels):
        metric.labels(*values)


class ModeGauge(Collector):
    """`notegrade_explanation_mode`, read at each scrape: a mode ends by the clock, with nobody there to set a gauge.

    All modes' values are of one moment, so that a scrape never finds two of them, nor none.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._mode: Callable[[], str] = str

    def follow(self, names: tuple[str, ...], mode: Callable[[], str]) -> None:
        """Show from now on which of the names `mode` tells."""
        self._names, self._mode = names, mode

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """What it is, without values: by this the registry knows its name, and nobody else's may be the same."""
        yield GaugeMetricFamily(
            "notegrade_explanation_mode", "1 under the mode that applies now", labels=("mode",)
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All of it, as Prometheus's client asks for it."""
        [family] = self.describe()
        now = self._mode()
        for name in self._names:
            family.add_metric((name,), float(name == now))
        yield family


class Metrics:
    """All `notegrade_` metrics on one registry; a test makes its own, the service uses the process's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"notegrade_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"notegrade_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"notegrade_{name}", what, labels, buckets=buckets, registry=registry)

        self.request_seconds = histogram(
            "request_seconds",
            "Time from a request's first byte to its answer's last",
            SECONDS_BUCKETS,
            "route",
            "status",
        )
        self.stage_seconds = histogram(
            "stage_seconds", "Time that a scoring request spent in a stage", SECONDS_BUCKETS, "stage"
        )
        self.pair_outcomes = counter("pair_outcomes_total", "Pairs by what became of them", "outcome")
        self.pair_source = counter("pair_source_total", "Scored pairs by where the score came from", "source")
        self.prompt_tokens = counter(
            "prompt_tokens_total", "Prompt tokens by how the engine got them", "kind"
        )
        self.backlog_tokens = gauge("backlog_tokens", "Prompt tokens admitted and not yet answered")
        self.service_rate_tokens = gauge(
            "service_rate_tokens",
            "Prompt tokens that the engine computes in a second under load; 0: not measured",
        )
        self.shed = counter("shed_total", "Pairs that were not admitted", "reason")
        self.cache_operations = counter(
            "cache_operations_total",
            "Pairs looked up in or written to a cache tier, by result",
            "tier",
            "result",
        )
        self.cache_breaker_open = gauge("cache_breaker_open", "1 while the Redis tier is passed over")
        self.grades = counter("grade_total", "Scored pairs by grade", "grade")
        self.score = histogram("score", "Scores that were answered", UNIT_BUCKETS)
        self.label_mass = histogram("label_mass", "Probability of all labels together", MASS_BUCKETS)
        self.explanation_mode = ModeGauge()
        registry.register(self.explanation_mode)
        self.explanations = counter("explanations_total", "Explanations by what became of them", "outcome")
        self.explanation_drops = counter(
            "explanation_drops_total", "Explanations that gave way, by why", "reason"
        )
        self.explanation_guard_trips = counter(
            "explanation_guard_trips_total", "Times that the guard here turned explanation mode off"
        )
        self.explanation_agreement = counter(
            "explanation_agreement_total",
            "Parsed traces by whether their last grade is the served one",
            "agrees",
        )
        self.explanation_seconds = histogram(
            "explanation_seconds", "Time that an explanation spent in a stage", SECONDS_BUCKETS, "stage"
        )
        self.explanation_tokens = counter("explanation_tokens_total", "Trace tokens written")
        self.explanation_queue = gauge("explanation_queue", "Explanations that wait for their turn")
        self.shadow_requests = counter(
            "shadow_requests_total", "Requests that were to be mirrored, by what became of them", "outcome"
        )
        self.shadow_grades = counter(
            "shadow_grades_total",
            "Mirrored pairs by the grade that was served and the one of the shadow",
            "served",
            "shadow",
        )
        self.shadow_score_distance = histogram(
            "shadow_score_distance",
            "How far the shadow's score is from the one that was served",
            DISTANCE_BUCKETS,
        )
        self.engine_use = EngineUse()
        registry.register(self.engine_use)
        self.ready = gauge("ready", "1 under the one reason that holds now; reason ok means ready", "reason")
        self.connections = gauge("connections", "Connections of clients that are open")
        self.refused_connections = counter(
            "refused_connections_total",
            "Connections that were closed for what they sent, how slowly, or how many there were, by problem",
            "problem",
        )
        self.tasks = gauge(
            "tasks", "Tasks of the event loop; more and more of them with the same load: a leak"
        )
        self.tasks.set_function(_count_tasks)
        self.build_info = gauge("build_info", "Always 1", "version", "fingerprint")

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The registry and its content type: in OpenMetrics, with exemplars, where the `Accept` header asks for it, else in
        the Prometheus text format (version 0.0.4)."""
        encode, content_type = choose_encoder(accept)
        if not content_type.startswith("application/openmetrics-text"):
            return encode(self._registry), content_type
        # Its encoder of choice (0.26) writes vllm_ for vllm:, as if a colon were no part of a name; one that escapes nothing does not.
        # prometheus_client gives this one of its functions no types.
        text: bytes = openmetrics.generate_latest(self._registry, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST


def _count_tasks() -> float:
    try:
        return float(len(asyncio.all_tasks()))
    except RuntimeError:  # read from outside of the loop
        return math.nan
