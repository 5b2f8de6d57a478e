"""Which metrics there are: ours as docs/metrics.md has them, Prometheus's and its client's, vLLM's as its source names them."""

import re
from importlib.util import find_spec
from pathlib import Path

from tests.deploy.containers import ROOT

# What Prometheus adds to a series, and a histogram to its buckets.
ADDED_LABELS = {"job", "instance", "le"}
# Those of HAProxy that rules read. A real one is asked for them in test_alerts.py.
OF_HAPROXY = {"haproxy_backend_http_responses_total", "haproxy_server_http_responses_total"}


def our_metrics() -> dict[str, set[str]]:
    """Series and their labels."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for name, kind, labels in re.findall(r"^\| `(notegrade_\w+)` \| (\w+) \| ([^|]*) \|", text, re.MULTILINE):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + suffix] = set(re.findall(r"`(\w+)`", labels)) | ADDED_LABELS
    return found


def vllm_metrics() -> set[str]:
    """Names of the series that vLLM's engine exposes, but for the parts of its histograms. Reads its source, without importing it."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")
    found = re.findall(r'self\._(gauge|counter)_cls\(\s*name="(vllm:\w+)"', text)
    # The client adds the suffix to a counter that has none.
    return {name + ("_total" if kind == "counter" else "") for kind, name in found}


def process_metrics() -> set[str]:
    """What prometheus_client tells of the process on Linux."""
    return {
        f"process_{name}"
        for name in (
            *("open_fds", "max_fds", "resident_memory_bytes", "virtual_memory_bytes"),
            *("cpu_seconds_total", "start_time_seconds"),
        )
    }


def unknown_labels(query: str) -> set[str]:
    """Labels that a query selects of one of our metrics, and that it does not have."""
    ours = our_metrics()
    return {
        f"{name}{{{label}}}"
        for name, selector in re.findall(r"([\w:]+)\{([^}]*)\}", query)
        for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector)
        if name in ours and label not in ours[name]
    }
