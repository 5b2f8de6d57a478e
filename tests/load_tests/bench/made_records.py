"""Makes up measurements for tests."""

from dataclasses import replace
from typing import Any

from load_tests.bench.records import Measurement

_MADE = Measurement(
    part="cold", peer="Notegrade", tuning="tuned", round=0, notes=20, note_tokens=90, requests=4, pairs=80, seconds=8.0,
    pairs_per_s=10.0, outcomes={"answered": 3, "failed": 1}, latency_ms={}, cpu_s=16.0, client_cpu_s=0.4, peak_rss_mib=900.0,
    prompt_tokens_per_pair=170.0, computed_tokens_per_pair=100.0,
)  # fmt: skip


def measurement(p99_ms: float = 100.0, **changes: Any) -> Measurement:
    latency_ms = {"p50": p99_ms / 2, "p90": p99_ms, "p99": p99_ms, "max": p99_ms}
    return replace(_MADE, latency_ms=latency_ms, **changes)
