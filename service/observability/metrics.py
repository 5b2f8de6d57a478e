"""Declare every metric. Dashboards and alerts depend on the names and labels.

Label values are closed sets, so that callers can't create new series.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from service.observability.engine_use import EngineUse

# From 5 ms (all pairs from the cache) to 10 s (a long list on a small machine), densest around the service level objective.
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)
# Up to a busy small machine, whose first batch waits for the encoder to load.
ENCODING_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
UNIT_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Distances, not signed shifts: OpenMetrics forbids a sum in a histogram with negative buckets, and its parsers then refuse all metrics.
DISTANCE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Most values are near 1 with a healthy prompt and below 0.01 with a broken one, so both ends are dense.
MASS_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)

VectorLookup = Literal["hit", "miss", "invalid", "unavailable"]
EncodingOutcome = Literal["encoded", "failed", "refused"]


def initialize_series(metric: Counter | Histogram, *labels: Iterable[str]) -> None:
    """Create the metric's series at 0 for every combination of these label values.

    Prometheus does not count a series' first value as an increase: without this, the events before the first scrape of a series would
    be missing from rates and alerts.
    """
    for values in itertools.product(*labels):
        metric.labels(*values)


class ModeGauge(Collector):
    """Collects `notegrade_explanation_mode` at each scrape: a mode can end by time, when no code runs that could set a gauge.

    All of its values are read at once, so that a scrape always finds exactly one mode.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._mode: Callable[[], str] = str

    def follow(self, names: tuple[str, ...], mode: Callable[[], str]) -> None:
        """Report from now on which of the names `mode` returns."""
        self._names, self._mode = names, mode

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric without values: the registry reads its name here, to refuse duplicates."""
        yield GaugeMetricFamily(
            "notegrade_explanation_mode", "1 for the mode that applies now", labels=("mode",)
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric with its values."""
        [family] = self.describe()
        now = self._mode()
        for name in self._names:
            family.add_metric((name,), float(name == now))
        yield family


class Metrics:
    """All `notegrade_` metrics on one registry; the service uses the process's registry, tests make their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"notegrade_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"notegrade_{name}", help_text, labels, registry=registry)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"notegrade_{name}", help_text, labels, buckets=buckets, registry=registry)

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
        self.pair_outcomes = counter("pair_outcomes_total", "Pairs by outcome", "outcome")
        self.pair_source = counter("pair_source_total", "Scored pairs by the source of the score", "source")
        self.prompt_tokens = counter(
            "prompt_tokens_total", "Prompt tokens that the engine computed or reused", "kind"
        )
        self.backlog_tokens = gauge("backlog_tokens", "Prompt tokens that are admitted and not answered yet")
        self.service_rate_tokens = gauge(
            "service_rate_tokens",
            "Prompt tokens that the engine computes in a second under load; 0: not measured yet",
        )
        self.shed = counter("shed_total", "Pairs that were not admitted", "reason")
        self.cache_operations = counter(
            "cache_operations_total",
            "Pairs looked up in or written to a cache tier, by result",
            "tier",
            "result",
        )
        self.cache_breaker_open = gauge(
            "cache_breaker_open", "1 while the breaker is open and the Redis tier is skipped"
        )
        self.grades = counter("grade_total", "Scored pairs by grade", "grade")
        self.score = histogram("score", "Scores in answers", UNIT_BUCKETS)
        self.label_mass = histogram(
            "label_mass", "Probability of all labels together, before renormalising", MASS_BUCKETS
        )
        self.explanation_mode = ModeGauge()
        registry.register(self.explanation_mode)
        self.explanations = counter("explanations_total", "Explanations by outcome", "outcome")
        self.explanation_drops = counter(
            "explanation_drops_total", "Dropped explanations by reason", "reason"
        )
        self.explanation_guard_trips = counter(
            "explanation_guard_trips_total", "Times that this replica's guard turned explanation mode off"
        )
        self.explanation_agreement = counter(
            "explanation_agreement_total",
            "Well-formed traces by whether their last grade is the served one",
            "agrees",
        )
        self.explanation_grounded = counter(
            "explanation_grounded_total",
            "Well-formed traces by whether all their citations are true",
            "grounded",
        )
        self.explanation_seconds = histogram(
            "explanation_seconds", "Time that an explanation spent in a stage", SECONDS_BUCKETS, "stage"
        )
        self.explanation_tokens = counter("explanation_tokens_total", "Trace tokens that were generated")
        self.explanation_queue = gauge("explanation_queue", "Explanations that wait in the queue")
        self.shadow_requests = counter(
            "shadow_requests_total", "Requests sampled to be mirrored, by outcome", "outcome"
        )
        self.shadow_grades = counter(
            "shadow_grades_total",
            "Mirrored pairs by the served grade and the shadow's grade",
            "served",
            "shadow",
        )
        self.shadow_score_distance = histogram(
            "shadow_score_distance",
            "Absolute difference between the shadow's score and the served score",
            DISTANCE_BUCKETS,
        )
        self.vector_lookups = counter(
            "vector_lookups_total", "Notes whose vectors were looked up, by result", "result"
        )
        self.encoded_notes = counter(
            "encoded_notes_total",
            "Notes offered to be encoded, by outcome; not those that were known",
            "outcome",
        )
        # Here, because these series exist without a second reading, too: a dashboard draws them.
        initialize_series(self.vector_lookups, get_args(VectorLookup))
        initialize_series(self.encoded_notes, get_args(EncodingOutcome))
        self.encoding_backlog = gauge("encoding_backlog", "Notes that wait to be encoded")
        self.encoding_oldest_seconds = gauge(
            "encoding_oldest_seconds", "Time that the oldest of these has waited; 0 if none waits"
        )
        self.encoding_seconds = histogram(
            "encoding_seconds", "Time to encode and store a batch of notes", ENCODING_BUCKETS
        )
        self.engine_use = EngineUse()
        registry.register(self.engine_use)
        self.ready = gauge("ready", "1 for the present reason; reason ok means ready", "reason")
        self.connections = gauge("connections", "Open connections of clients")
        self.refused_connections = counter(
            "refused_connections_total", "Connections that were refused or cut, by problem", "problem"
        )
        self.tasks = gauge("tasks", "Tasks of the event loop; a growing number under constant load is a leak")
        self.tasks.set_function(_count_tasks)
        self.build_info = gauge("build_info", "Always 1", "version", "fingerprint", "grading_version")

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Render the registry, and return it with its content type.

        The format is OpenMetrics with exemplars if the `Accept` header asks for it, else Prometheus's text format (0.0.4).
        """
        encode, content_type = choose_encoder(accept)
        if not content_type.startswith("application/openmetrics-text"):
            return encode(self._registry), content_type
        # The encoder that prometheus_client 0.26 chooses replaces the colon in vLLM's names; this one escapes nothing. The
        # function has no type annotations.
        text: bytes = openmetrics.generate_latest(self._registry, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST


def _count_tasks() -> float:
    try:
        return float(len(asyncio.all_tasks()))
    except RuntimeError:  # no event loop runs in this thread
        return math.nan
