"""What the capacity model finds, as tables in Markdown."""

from collections.abc import Iterable, Sequence

from load_tests.capacity.check import Point
from load_tests.capacity.growth import Moment
from load_tests.capacity.model import Plan, Site
from load_tests.capacity.replay import Facts

_PLAN = (
    "notes/s", "device", "hit rate", "found", "tokens/new pair", "notes/s of one, full", "its limit", "arithmetic used",
    "replicas", "$/h", "pairs kept", "Redis", "of GB", "links", "more of first",
)  # fmt: skip
_GROWTH = ("pairs served", "hit rate", "found", "tokens/note", "arithmetic", "notes/s")
_CHECK = ("what", "quantity", "model", "measured", "model / measured")


def plan_table(plans: Iterable[tuple[Site, Plan]]) -> str:
    """A row for each rate and device."""
    return _table(_PLAN, (_plan_cells(site, each) for site, each in plans))


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
    """A row for each number of pairs; the last columns as multiples of the start."""
    told = f"{site.prompt.order}, on {site.device.name}; arithmetic and notes/s as multiples of the start"
    return f"{told}\n\n" + _table(_GROWTH, map(_growth_cells, moments))


def _growth_cells(moment: Moment) -> list[str]:
    return [
        f"{moment.served:,}",
        f"{moment.caching.hit_rate:.1%}",
        f"{moment.caching.found:.1%}",
        f"{moment.tokens:.1f}",
        f"{moment.arithmetic:.2f}",
        f"{moment.speed_up:.2f}",
    ]


def check_table(points: Iterable[Point]) -> str:
    """A row for each point."""
    return _table(_CHECK, map(_check_cells, points))


def _check_cells(point: Point) -> list[str]:
    ratio = "fitted" if point.fitted else f"{point.ratio:.2f}"
    return [point.name, point.quantity, f"{point.model:.1f}", f"{point.measured:.1f}", ratio]


def log_table(facts: Facts) -> str:
    """What a log holds, in one row."""
    heads = ("requests", "pairs", "queries", "notes", "distinct pairs", "hit rate", "of the second half")
    counts = (
        facts.requests,
        facts.pairs,
        facts.distinct_queries,
        facts.distinct_notes,
        facts.distinct_pairs,
    )
    rates = (facts.hit_rate, facts.late_hit_rate)
    return _table(heads, [[*(f"{count:,}" for count in counts), *(f"{rate:.1%}" for rate in rates)]])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
