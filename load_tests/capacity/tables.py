"""Formats the results of the capacity model as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence

from load_tests.capacity.check import Point
from load_tests.capacity.growth import Moment
from load_tests.capacity.model import Plan, Site
from load_tests.figures import markdown_table

_PLAN = (
    "notes/s", "device", "hit rate", "prefix reuse", "tokens/new pair", "max notes/s per replica", "replica limit",
    "arithmetic used", "replicas", "$/h", "cached pairs", "Redis", "Redis GB", "links", "first bottleneck",
)  # fmt: skip
_GROWTH = ("pairs served", "hit rate", "prefix reuse", "tokens/note", "notes/s")
_CHECK = ("row", "quantity", "model", "measured", "model / measured")


def plan_table(plans: Iterable[tuple[Site, Plan]]) -> str:
    """Format a row per rate and device."""
    return markdown_table(_PLAN, (_plan_cells(site, each) for site, each in plans))


def _plan_cells(site: Site, each: Plan) -> list[str]:
    return [
        f"{each.notes_per_s:,.0f}",
        site.device.name,
        f"{each.caching.hit_rate:.1%}",
        f"{each.caching.found:.1%}",
        f"{each.computed_tokens:.0f}",
        f"{each.replica_rate:,.0f}",
        each.limit,
        f"{each.busy:.0%}",
        f"{each.replicas:,}",
        f"{each.dollars_per_hour:,.2f}",
        f"{each.caching.pairs:.3g}",
        f"{each.redis:,}",
        f"{each.redis_bytes / 1e9:,.1f}",
        str(each.links),
        each.first,
    ]


def growth_table(moments: Sequence[Moment], site: Site) -> str:
    """Format a row per number of served pairs; the last column is a multiple of the start."""
    heading = f"{site.prompt.order}, on {site.device.name}; notes/s is a multiple of the start"
    return f"{heading}\n\n" + markdown_table(_GROWTH, map(_growth_cells, moments))


def _growth_cells(moment: Moment) -> list[str]:
    return [
        f"{moment.served:,}",
        f"{moment.caching.hit_rate:.1%}",
        f"{moment.caching.found:.1%}",
        f"{moment.tokens:.1f}",
        f"{moment.speed_up:.2f}",
    ]


def check_table(points: Iterable[Point]) -> str:
    """Format a row per compared quantity."""
    return markdown_table(_CHECK, map(_check_cells, points))


def _check_cells(point: Point) -> list[str]:
    ratio = "fitted" if point.fitted else f"{point.ratio:.2f}"
    return [point.name, point.quantity, f"{point.model:.1f}", f"{point.measured:.1f}", ratio]


def log_table(facts: Mapping[str, float]) -> str:
    """Format the statistics of a log as one row."""
    cells = [f"{value:.1%}" if "rate" in name else f"{value:,}" for name, value in facts.items()]
    return markdown_table(list(facts), [cells])
