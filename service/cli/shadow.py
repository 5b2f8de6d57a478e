"""Describe how the shadow of a running service differs, for `notegrade shadow`."""

from collections.abc import Mapping
from typing import Any

from service.cli.remote import utc
from service.contract.comparison import describe_comparison, describe_interval


def describe_shadow(report: Mapping[str, Any]) -> str:
    """Describe the report for a person."""
    counts, served, shadow = report["mirrored"], report["served"], report["shadow"]
    lines = [f"served  {_identify(served)}"]
    if shadow is not None:
        lines.append(f"shadow  {_identify(shadow)}, since {utc(report['since'])}")
    lines.append(
        f"{report['rate']:.1%} of requests are mirrored: {counts['compared']:,} compared, {counts['failed']:,} failed,"
        f" {counts['dropped']:,} dropped"
    )
    if shadow is None:
        return "\n".join([*lines, "The shadow has not answered yet."])
    cost = report["engine_ms_per_pair"]
    lines += ["", describe_comparison(report["comparison"]), ""]
    by_reading = report.get("by_reading", [])  # an older release states none
    if any("vectors" in (found["served"], found["shadow"]) for found in by_reading):
        for found in by_reading:
            lines += [f"Notes read as {found['served']} here and as {found['shadow']} by the shadow:"]
            lines += [describe_comparison(found["comparison"]), ""]
    lines += [
        f"engine ms a pair  {name} {describe_interval(cost[name], '.1f')}" for name in ("served", "shadow")
    ]
    return "\n".join(lines)


def _identify(checkpoint: Mapping[str, Any]) -> str:
    version = checkpoint.get("grading_version")  # an older release states none
    shown = f"{checkpoint['name']} {checkpoint['fingerprint']}"
    return f"{shown}, grading version {version}" if version else shown
