"""Lists the existing metrics: ours from docs/metrics.md, those of Prometheus's client, and vLLM's from its source."""

import re
from importlib.util import find_spec
from pathlib import Path

from tests.processes import ROOT

# The labels that Prometheus adds to a series, and a histogram to its buckets.
ADDED_LABELS = {"job", "instance", "le"}
# HAProxy's metrics that the rules read. test_alerts.py checks them against a real HAProxy.
OF_HAPROXY = {"haproxy_backend_http_responses_total", "haproxy_server_http_responses_total"}


def our_metrics() -> dict[str, set[str]]:
    """Return our series and their labels."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for name, kind, labels in re.findall(r"^\| `(notegrade_\w+)` \| (\w+) \| ([^|]*) \|", text, re.MULTILINE):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + suffix] = set(re.findall(r"`(\w+)`", labels)) | ADDED_LABELS
    return found


def vllm_metrics() -> set[str]:
    """Return the names of the engine's series, without the parts of histograms. Reads vLLM's source and does not import it."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")
    found = re.findall(r'self\._(gauge|counter)_cls\(\s*name="(vllm:\w+)"', text)
    # The client adds the suffix _total to a counter without it.
    return {name + ("_total" if kind == "counter" else "") for kind, name in found}


def process_metrics() -> set[str]:
    """Return prometheus_client's process metrics on Linux."""
    return {
        f"process_{name}"
        for name in (
            *("open_fds", "max_fds", "resident_memory_bytes", "virtual_memory_bytes"),
            *("cpu_seconds_total", "start_time_seconds"),
        )
    }


def unknown_labels(query: str) -> set[str]:
    """Return the labels that a query selects on one of our metrics although it lacks them."""
    ours = our_metrics()
    return {
        f"{name}{{{label}}}"
        for name, selector in re.findall(r"([\w:]+)\{([^}]*)\}", query)
        for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector)
        if name in ours and label not in ours[name]
    }
