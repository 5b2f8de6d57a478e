"""Reads the counts of both arms of an experiment from Prometheus, window by window."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from service.errors import CommandError
from service.experiments.measures import Windows

TIMEOUT_S = 30
# The same routes as in deploy/prometheus/rules/slo.yaml.
SCORES = 'route=~"(/v1)?/score|(/v[12])?/rerank"'
# Each kind of count: the metric, a selector of its series, and the label that distinguishes them.
COUNTED = {
    "requests": ("notegrade_request_seconds_count", SCORES, "status"),
    "seconds": ("notegrade_request_seconds_sum", SCORES + ', status=~"2.."', "status"),
    "buckets": ("notegrade_request_seconds_bucket", SCORES + ', status=~"2.."', "le"),
    "outcomes": ("notegrade_pair_outcomes_total", "", "outcome"),
    "sources": ("notegrade_pair_source_total", "", "source"),
    "grades": ("notegrade_grade_total", "", "grade"),
}
# The labels that identify a checkpoint, as `Version`.
VERSION = "fingerprint, grading_version"
# The labels that identify a replica. Outside of a cluster `namespace` is empty for all.
REPLICA = "job, namespace, instance"


@dataclass(frozen=True, slots=True)
class Period:
    """The time from `since` to `until` (seconds since 1970) in windows of `window_s`; the rest at its start is left out."""

    since: float
    until: float
    window_s: float

    @property
    def windows(self) -> int:
        return math.floor((self.until - self.since) / self.window_s + 1e-6)

    @property
    def window(self) -> str:
        """Return the window's length as a PromQL duration."""
        return f"{self.window_s * 1000:.0f}ms"


class Version(NamedTuple):
    """Identifies a checkpoint. The grading version is empty for a service of a release without one."""

    fingerprint: str
    grading_version: str

    def __str__(self) -> str:
        return f"{self.fingerprint}/{self.grading_version.removeprefix('sha256:')[:12]}".rstrip("/")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A client of Prometheus's HTTP API. The URL may have a path, a user and a password. Every failure is a CommandError.

    `where` is a PromQL selector for all series: `namespace="notegrade"`.
    """

    url: str
    where: str = ""
    transport: httpx.BaseTransport | None = None

    def versions(self, period: Period) -> set[Version]:
        """Return the checkpoints that were served in that time."""
        span = f"{(period.until - period.since) * 1000:.0f}ms"
        query = f"group by ({VERSION}) (last_over_time({self._series('notegrade_build_info')}[{span}]))"
        return {_version(each) for each in self._ask("query", query=query, time=str(period.until))}

    def read(self, period: Period) -> dict[Version, Windows]:
        """Return the counts of all replicas of each checkpoint, by window."""
        read: dict[Version, dict[int, dict[str, dict[str, float]]]] = defaultdict(dict)
        for kind in COUNTED:
            for series in self._read_kind(kind, period):
                arm, (_, _, label) = read[_version(series)], COUNTED[kind]
                for at, value in series["values"]:
                    position = period.windows - round((period.until - at) / period.window_s)
                    counts = arm.setdefault(position, {each: {} for each in COUNTED})
                    counts[kind][series["metric"][label]] = float(value)
        return dict(read)

    def _read_kind(self, kind: str, period: Period) -> list[dict[str, Any]]:
        metric, selected, label = COUNTED[kind]
        increase = increase_in(
            self._series(metric, selected), self._series("notegrade_build_info"), period.window
        )
        arms = arms_in(self._series("notegrade_build_info"), period.window)
        query = f"sum by ({VERSION}, {label}) (({increase}) * on ({REPLICA}) group_left ({VERSION}) ({arms}))"
        first_end = period.until - (period.windows - 1) * period.window_s
        times = {"start": str(first_end), "end": str(period.until), "step": str(period.window_s)}
        return self._ask("query_range", query=query, **times)

    def _series(self, metric: str, selected: str = "") -> str:
        return f"{metric}{{{', '.join(filter(None, (selected, self.where)))}}}"

    def _ask(self, path: str, **asked: str) -> list[dict[str, Any]]:
        # Prometheus stops the query at its own timeout; the client's, a little later, would leave it running.
        asked["timeout"] = f"{TIMEOUT_S}s"
        try:
            with httpx.Client(
                base_url=self.url, timeout=TIMEOUT_S + 2, transport=self.transport, follow_redirects=True
            ) as client:
                response = client.get(f"/api/v1/{path}", params=asked)
            answer = response.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"Prometheus at {self._shown} did not answer: {error}") from error
        except ValueError as error:
            raise CommandError(
                f"{self._shown} is not Prometheus: it answered HTTP {response.status_code} without JSON"
            ) from error
        if not isinstance(answer, dict) or answer.get("status") != "success":
            detail = answer.get("error") if isinstance(answer, dict) else answer
            raise CommandError(f"Prometheus at {self._shown} refused the query: {detail}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    @property
    def _shown(self) -> str:
        return re.sub(r"//[^/@]*@", "//", self.url)


def _version(series: dict[str, Any]) -> Version:
    labels = series["metric"]
    return Version(labels["fingerprint"], labels.get("grading_version", ""))


def increase_in(series: str, build_info: str, window: str) -> str:
    """Build the PromQL for how much counters increased in the window, also when their replicas restarted.

    `increase` alone misses the first value of a series, because there is no earlier one to compare it with; and a replica's first HTTP
    500s may be most of all. A new series of a replica that was there in the window before has increased from zero.
    """
    increase = f"increase({series}[{window}])"
    is_new = f"min_over_time({series}[{window}]) unless last_over_time({series}[{window}] offset {window})"
    new_series = f"(({is_new}) and on ({REPLICA}) last_over_time({build_info}[{window}] offset {window}))"
    return f"({increase} + {new_series}) or {increase} or {new_series}"


def arms_in(build_info: str, window: str) -> str:
    """Build the PromQL that is 1 for each replica, with its checkpoint, unless it had two of them in the window."""
    served = f"group by ({REPLICA}, {VERSION}) (last_over_time({build_info}[{window}]))"
    return f"{served} unless on ({REPLICA}) (count by ({REPLICA}) ({served}) > 1)"
