"""Estimates replicas, cost and the first bottleneck for a traffic, with a model whose assumptions are options.

    .venv/bin/python -m load_tests.capacity                                     # assumed traffic, up to a million notes/s
    .venv/bin/python -m load_tests.capacity --replay traffic.jsonl --rates 5000 # hit rates measured on your own log
    .venv/bin/python -m load_tests.capacity --growth --queries 2000 --notes 5000   # from empty caches to full ones
    .venv/bin/python -m load_tests.capacity --check load_tests/results/bench.json  # compare with measurements

docs/capacity.md explains the model. A log has {"query", "notes": [{"id", "title", "body"}]} on each line, as for
load_tests.bench; hashes may replace the texts.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from load_tests.bench.workloads import replay
from load_tests.capacity.check import check
from load_tests.capacity.growth import growth
from load_tests.capacity.model import Caching, Plan, Site, plan, steady_caching
from load_tests.capacity.options import parse, sites_of, traffic_of
from load_tests.capacity.replay import Log
from load_tests.capacity.tables import check_table, growth_table, log_table, plan_table
from load_tests.figures import finite_json

Cached = Callable[[Site, float], Caching]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the result, or a one-line error with exit code 2."""
    options = parse(__doc__, arguments)
    try:
        text, document = _answer(options)
    except (OSError, ValueError) as error:
        print(f"capacity: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(json.dumps(finite_json(document), indent=1, allow_nan=False) if options.json else text)


def _answer(options: argparse.Namespace) -> tuple[str, Any]:
    sites = sites_of(options)
    if options.check is not None:
        points = check(json.loads(options.check.read_text(encoding="utf-8")), sites[0])
        return check_table(points), [{**asdict(point), "ratio": point.ratio} for point in points]
    if options.growth:
        moments = growth(traffic_of(options), sites[0])
        return growth_table(moments, sites[0]), [asdict(moment) for moment in moments]
    if options.replay is not None:
        return _of_log(options, sites)
    traffic = traffic_of(options)

    def cached(site: Site, rate: float) -> Caching:
        return steady_caching(traffic, rate, options.ttl_s, options.cache_pairs, site)

    return _plans(options.rates, sites, cached, traffic.notes_per_request)


def _of_log(options: argparse.Namespace, sites: Sequence[Site]) -> tuple[str, Any]:
    log = Log.of(replay(options.replay))

    def cached(site: Site, rate: float) -> Caching:
        return log.caching(site, rate, options.ttl_s, options.cache_pairs)

    text, plans = _plans(options.rates, sites, cached, log.notes_per_request)
    facts = log.facts()
    return f"{log_table(facts)}\n\n{text}", {"log": asdict(facts), "plans": plans}


def _plans(
    rates: Sequence[float], sites: Sequence[Site], cached: Cached, notes_per_request: float
) -> tuple[str, Any]:
    plans: list[tuple[Site, Plan]] = [
        (site, plan(rate, cached(site, rate), notes_per_request, site)) for rate in rates for site in sites
    ]
    return plan_table(plans), [{"site": asdict(site), "plan": asdict(each)} for site, each in plans]


if __name__ == "__main__":
    main()
