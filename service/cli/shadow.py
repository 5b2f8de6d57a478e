"""What `notegrade shadow` does: reads from a running service how its shadow differs."""

from collections.abc import Mapping
from typing import Any

from service.cli.remote import Remote, utc
from service.contract.comparison import describe_comparison, describe_interval

PATH = "/admin/shadow"


def read_shadow(remote: Remote) -> dict[str, Any]:
    """What that one replica knows."""
    found: dict[str, Any] = remote.send("GET", PATH).json()
    return found


def describe_shadow(found: Mapping[str, Any]) -> str:
    """The same for a person."""
    counts, served, other = found["mirrored"], found["served"], found["shadow"]
    lines = [f"served  {served['name']} {served['fingerprint']}"]
    if other is not None:
        lines.append(f"shadow  {other['name']} {other['fingerprint']}, since {utc(found['since'])}")
    lines.append(
        f"{found['rate']:.1%} of requests are mirrored: {counts['compared']:,} compared, {counts['failed']:,} failed,"
        f" {counts['dropped']:,} dropped"
    )
    if other is None:
        return "\n".join([*lines, "The shadow has not answered yet."])
    cost = found["engine_ms_per_pair"]
    lines += ["", describe_comparison(found["comparison"]), ""]
    lines += [
        f"engine ms a pair  {name} {describe_interval(cost[name], '.1f')}" for name in ("served", "shadow")
    ]
    return "\n".join(lines)
