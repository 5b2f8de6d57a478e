"""Formats the results of the capacity model as rows of Markdown tables."""

from load_tests.capacity.check import Point
from load_tests.capacity.growth import Moment
from load_tests.capacity.model import Plan, Site


def plan_row(site: Site, plan: Plan) -> dict[str, str]:
    """Format the plan for a rate and a device."""
    return {
        "notes/s": f"{plan.notes_per_s:,.0f}",
        "device": site.device.name,
        "hit rate": f"{plan.caching.hit_rate:.1%}",
        "prefix reuse": f"{plan.caching.found:.1%}",
        "tokens/new pair": f"{plan.computed_tokens:.0f}",
        "max notes/s per replica": f"{plan.replica_rate:,.0f}",
        "replica limit": plan.limit,
        "arithmetic used": f"{plan.busy:.0%}",
        "replicas": f"{plan.replicas:,}",
        "$/h": f"{plan.dollars_per_hour:,.2f}",
        "cached pairs": f"{plan.caching.pairs:.3g}",
        "Redis": f"{plan.redis:,}",
        "Redis GB": f"{plan.redis_bytes / 1e9:,.1f}",
        "Redis MB/s": f"{plan.redis_traffic / 1e6:,.1f}",
        "HTTP MB/s": f"{plan.traffic / 1e6:,.1f}",
        "links": str(plan.links),
        "first bottleneck": plan.first,
    }


def growth_row(moment: Moment) -> dict[str, str]:
    """Format the state after a number of served pairs."""
    return {
        "pairs served": f"{moment.served:,}",
        "hit rate": f"{moment.caching.hit_rate:.1%}",
        "prefix reuse": f"{moment.caching.found:.1%}",
        "tokens/note": f"{moment.tokens:.1f}",
        "notes/s, times the start": f"{moment.speed_up:.2f}",
    }


def check_row(point: Point) -> dict[str, str]:
    """Format a compared quantity."""
    return {
        "row": point.name,
        "quantity": point.quantity,
        "model": f"{point.model:.1f}",
        "measured": f"{point.measured:.1f}",
        "model / measured": "fitted" if point.fitted else f"{point.ratio:.2f}",
    }


def log_row(facts: dict[str, float]) -> dict[str, str]:
    """Format the statistics of a log."""
    return {name: f"{value:.1%}" if "rate" in name else f"{value:,}" for name, value in facts.items()}
