"""Estimates replicas, cost and the first bottleneck for a traffic, with a model whose assumptions are options.

    .venv/bin/python -m load_tests.capacity                                     # assumed traffic, up to a million notes/s
    .venv/bin/python -m load_tests.capacity --replay traffic.jsonl --rates 5000 # hit rates measured on your own log
    .venv/bin/python -m load_tests.capacity --vectors 4                         # notes are read from stored vectors
    .venv/bin/python -m load_tests.capacity --growth --queries 2000 --notes 5000   # from empty caches to full ones
    .venv/bin/python -m load_tests.capacity --check bench.json  # compare with measurements

docs/capacity.md explains the model. A log has {"query", "notes": [{"id", "title", "body"}]} on each line, as for
load_tests.bench; hashes may replace the texts. Below are the options of traffic and site.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from inspect import getdoc
from pathlib import Path
from typing import Any

from load_tests.arguments import make_parser
from load_tests.bench.workloads import replay
from load_tests.capacity.check import check
from load_tests.capacity.checkpoint import read_prompt
from load_tests.capacity.devices import DEVICES, SMOLLM2_135M, Device, Rates, read_model
from load_tests.capacity.growth import growth
from load_tests.capacity.model import Caching, Plan, Site, plan, steady_caching
from load_tests.capacity.prefix import Prompt
from load_tests.capacity.replay import Log
from load_tests.capacity.tables import check_row, growth_row, log_row, plan_row
from load_tests.capacity.traffic import Traffic
from load_tests.figures import finite_json, markdown_table
from load_tests.raw_results import write_raw

Cached = Callable[[Site, float], Caching]
# The options that are fields of the traffic and of the site.
TRAFFIC = {field.name: field.default for field in fields(Traffic)}
SITE = {field.name: float(field.default) for field in fields(Site) if isinstance(field.default, int | float)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the result, or a one-line error with exit code 2."""
    options = parse(arguments)
    try:
        text, document = _answer(options)
    except (OSError, ValueError) as error:
        print(f"capacity: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    write_raw(options, document)
    print(json.dumps(finite_json(document), indent=1, allow_nan=False) if options.json else text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = make_parser("\n".join(map(str, (__doc__, getdoc(Traffic), "", getdoc(Site)))), **TRAFFIC, **SITE)
    option = parser.add_argument
    option("--replay", type=Path, help="measure hit rates on this log instead of assuming them")
    option("--growth", action="store_true", help="show how empty caches fill")
    option("--check", type=Path, metavar="BENCH_JSON", help="compare with measurements")
    option("--json", action="store_true", help="print JSON")
    rates = (1e3, 1e4, 1e5, 1e6)
    option("--rates", type=_numbers, default=rates, help="notes/s, comma-separated")
    option("--cache-pairs", type=float, default=math.inf, help="maximum pairs in the cache (no limit)")
    option("--ttl-s", type=float, default=86_400, help="NOTEGRADE_CACHE_TTL_S (%(default)s)")
    option("--kv-gb", type=float, help="size of the prefix cache (default: most of the memory)")
    option("--checkpoint", type=Path, help="read model and lengths from this folder")
    option("--head-tokens", type=float, default=31, help="of a prompt, before query and note (%(default)s)")
    option("--note-tokens", type=float, default=67, help="mean, as rendered (%(default)s)")
    option("--note-sd", type=float, default=10, help="standard deviation (%(default)s)")
    option("--query-tokens", type=float, default=13, help="mean, with the cue (%(default)s)")
    option("--query-sd", type=float, default=2, help="standard deviation (%(default)s)")
    option("--order", choices=("note-first", "query-first"), default="note-first")
    option("--block", type=int, default=16, help="tokens per block of the prefix cache (32 on a CPU)")
    option("--devices", type=_devices, default=list(DEVICES.values()), help=", ".join(DEVICES))
    option(
        "--measured",
        type=_rates,
        help="NEW,KNOWN: notes/s of a replica on new pairs alone and on cached pairs alone, measured on your own device, instead of --devices",
    )
    option("--peak-tflops", type=float, help="dense bf16 peak of your own device, instead of --devices")
    option("--bandwidth-gb-s", type=float, default=math.inf, help="its memory bandwidth (no limit)")
    option("--memory-gb", type=float, default=16, help="its memory (%(default)s)")
    option("--cores", type=int, default=0, help="cores that its engine shares with HTTP, on a CPU")
    option("--price", type=float, help="US dollars per replica and hour (default: assumed, see --json)")
    options = parser.parse_args(arguments)
    for name in ("own_share", "share", "load", "kv_share"):
        if not 0 <= (value := getattr(options, name)) <= 1:
            parser.error(f"argument --{name.replace('_', '-')}: {value:g} is not a share between 0 and 1")
    return options


def _numbers(text: str) -> tuple[float, ...]:
    found = tuple(float(word) for word in text.split(","))
    if min(found) <= 0:
        raise argparse.ArgumentTypeError("rates must be above 0")
    return found


def _rates(text: str) -> Rates:
    if len(found := _numbers(text)) != 2:
        raise argparse.ArgumentTypeError("give two rates, NEW,KNOWN")
    return Rates(*found)


def _devices(text: str) -> list[Device]:
    unknown = [name for name in text.split(",") if name not in DEVICES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown devices: {', '.join(unknown)}; the devices are {', '.join(DEVICES)}"
        )
    return [DEVICES[name] for name in text.split(",")]


def _sites(options: argparse.Namespace) -> list[Site]:
    """Make a site for each device."""
    prompt = Prompt(
        options.head_tokens, options.note_tokens, options.query_tokens, options.order, options.block,
        options.note_sd, options.query_sd,
    )  # fmt: skip
    model = SMOLLM2_135M
    if options.checkpoint is not None:
        model = read_model(options.checkpoint)
        prompt = read_prompt(options.checkpoint, options.note_tokens, options.block)
    if options.vectors:
        prompt = prompt.of_vectors(options.vectors)
    devices = _devices_of(options)
    if options.price is not None:
        devices = [replace(device, price=options.price) for device in devices]
    chosen = {name: getattr(options, name) for name in (*SITE, "kv_gb")}
    return [Site(device, prompt, model, **chosen) for device in devices]


def _devices_of(options: argparse.Namespace) -> list[Device]:
    if options.measured is not None or options.peak_tflops is not None:
        flops = math.inf if options.peak_tflops is None else options.peak_tflops * 1e12
        memory, bandwidth = options.memory_gb * 1e9, options.bandwidth_gb_s * 1e9
        return [Device("yours", flops, bandwidth, memory, 0.0, "yours", options.cores, options.measured)]
    # Those with rates were measured with the text reading.
    devices = [device for device in options.devices if not (options.vectors and device.rates)]
    if not devices:
        raise ValueError("--devices has no device whose speed with vectors is known: give --measured")
    return devices


def _answer(options: argparse.Namespace) -> tuple[str, Any]:
    sites = _sites(options)
    traffic = Traffic(**{name: getattr(options, name) for name in TRAFFIC})
    if options.check is not None:
        points = check(json.loads(options.check.read_text(encoding="utf-8")), sites[0])
        table = markdown_table([check_row(point) for point in points])
        return table, [{**asdict(point), "ratio": point.ratio} for point in points]
    if options.growth:
        moments = growth(traffic, sites[0])
        table = markdown_table([growth_row(moment) for moment in moments])
        return f"{sites[0].prompt.order}, on {sites[0].device.name}\n\n{table}", [
            asdict(moment) for moment in moments
        ]
    if options.replay is not None:
        log = Log.of(replay(options.replay))

        def measured(site: Site, rate: float) -> Caching:
            return log.caching(site, rate, options.ttl_s, options.cache_pairs)

        text, plans = _plans(options.rates, sites, measured, log.notes_per_request)
        return f"{markdown_table([log_row(log.facts())])}\n\n{text}", {"log": log.facts(), "plans": plans}

    def modelled(site: Site, rate: float) -> Caching:
        return steady_caching(traffic, rate, options.ttl_s, options.cache_pairs, site)

    return _plans(options.rates, sites, modelled, traffic.notes_per_request)


def _plans(
    rates: Sequence[float], sites: Sequence[Site], cached: Cached, notes_per_request: float
) -> tuple[str, Any]:
    plans: list[tuple[Site, Plan]] = [
        (site, plan(rate, cached(site, rate), notes_per_request, site)) for rate in rates for site in sites
    ]
    table = markdown_table([plan_row(site, each) for site, each in plans])
    return table, [{"site": asdict(site), "plan": asdict(each)} for site, each in plans]


if __name__ == "__main__":
    main()
