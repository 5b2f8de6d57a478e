"""Defines the options of `load_tests.capacity`, and converts them to traffic and sites."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from load_tests.arguments import make_parser
from load_tests.capacity.checkpoint import read_prompt
from load_tests.capacity.devices import DEVICES, SMOLLM2_135M, Device, read_model
from load_tests.capacity.model import Engine, Processes, Site, Surroundings
from load_tests.capacity.prefix import Prompt
from load_tests.capacity.traffic import Traffic

RATES = (1_000, 10_000, 100_000, 1_000_000)


def parse(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = make_parser(description)
    parser.add_argument("--replay", type=Path, help="measure hit rates on this log instead of assuming them")
    parser.add_argument("--growth", action="store_true", help="show how empty caches fill")
    parser.add_argument("--check", type=Path, metavar="BENCH_JSON", help="compare with measurements")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_traffic(parser.add_argument_group("traffic"))
    _add_prompts(parser.add_argument_group("prompts"))
    _add_site(parser.add_argument_group("site"))
    return parser.parse_args(arguments)


def _add_traffic(group: Any) -> None:
    group.add_argument("--rates", type=_numbers, default=RATES, help="notes/s, comma-separated")
    group.add_argument("--queries", type=int, default=10_000_000, help="distinct queries (%(default)s)")
    group.add_argument("--notes", type=int, default=100_000_000, help="distinct notes (%(default)s)")
    group.add_argument("--query-exponent", type=float, default=1.0, help="of Zipf's law (%(default)s)")
    group.add_argument("--note-exponent", type=float, default=1.0, help="of Zipf's law (%(default)s)")
    group.add_argument("--notes-per-request", type=float, default=20, help="(%(default)s)")
    group.add_argument(
        "--own-share",
        type=_share,
        default=0.0,
        help="share of notes that are the same for each request of a query (0)",
    )
    group.add_argument(
        "--cache-pairs", type=float, default=math.inf, help="maximum pairs in the cache (no limit)"
    )
    group.add_argument("--ttl-s", type=float, default=86_400, help="NOTEGRADE_CACHE_TTL_S (%(default)s)")


def _add_prompts(group: Any) -> None:
    group.add_argument("--checkpoint", type=Path, help="read model and lengths from this folder")
    group.add_argument("--head-tokens", type=float, default=31, help="before query and note (%(default)s)")
    group.add_argument("--note-tokens", type=float, default=67, help="mean, as rendered (%(default)s)")
    group.add_argument("--note-sd", type=float, default=10, help="standard deviation (%(default)s)")
    group.add_argument("--query-tokens", type=float, default=13, help="mean, with the cue (%(default)s)")
    group.add_argument("--query-sd", type=float, default=2, help="standard deviation (%(default)s)")
    group.add_argument("--order", choices=("note-first", "query-first"), default="note-first")
    group.add_argument(
        "--block",
        type=int,
        default=16,
        help="tokens per block of the prefix cache (%(default)s, vLLM's default; on a CPU the service uses 32)",
    )


def _add_site(group: Any) -> None:
    engine, costs, around = Engine(), Processes(), Surroundings()
    group.add_argument("--devices", type=_devices, default=list(DEVICES.values()), help=", ".join(DEVICES))
    group.add_argument(
        "--peak-tflops", type=float, help="dense bf16 peak of your own device, instead of --devices"
    )
    group.add_argument(
        "--bandwidth-gb-s", type=float, default=math.inf, help="its memory bandwidth (no limit)"
    )
    group.add_argument("--memory-gb", type=float, default=16, help="its memory (%(default)s)")
    group.add_argument(
        "--cores", type=int, default=0, help="cores that its engine shares with HTTP, on a CPU"
    )
    group.add_argument(
        "--price", type=float, help="US dollars per replica and hour (default: assumed, see --json)"
    )
    group.add_argument(
        "--share", type=_share, default=engine.share, help="reached share of the peak (%(default)s)"
    )
    group.add_argument("--kv-gb", type=float, help="size of the prefix cache (default: most of the memory)")
    group.add_argument("--load", type=_share, default=0.6, help="planned utilisation (%(default)s)")
    group.add_argument(
        "--request-us", type=float, default=1e6 * costs.request_s, help="CPU µs per request (%(default).0f)"
    )
    group.add_argument("--note-us", type=float, default=1e6 * costs.note_s, help="per note (%(default).0f)")
    group.add_argument(
        "--pair-us", type=float, default=1e6 * costs.pair_s, help="per computed pair (%(default).0f)"
    )
    group.add_argument(
        "--core-us", type=float, default=1e6 * costs.core_s, help="in the engine core (%(default).0f)"
    )
    group.add_argument(
        "--redis-gb",
        type=float,
        default=around.redis_memory / 1e9,
        help="memory of one Redis (%(default).0f)",
    )
    group.add_argument(
        "--redis-price",
        type=float,
        default=around.redis_price,
        help="US dollars per GB and hour (%(default)s)",
    )


def _numbers(text: str) -> tuple[float, ...]:
    found = tuple(float(word) for word in text.split(","))
    if min(found) <= 0:
        raise argparse.ArgumentTypeError("rates must be above 0")
    return found


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return float(text)


def _devices(text: str) -> list[Device]:
    unknown = [name for name in text.split(",") if name not in DEVICES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown devices: {', '.join(unknown)}; the devices are {', '.join(DEVICES)}"
        )
    return [DEVICES[name] for name in text.split(",")]


def traffic_of(options: argparse.Namespace) -> Traffic:
    """Make the traffic from the options."""
    return Traffic(
        options.queries,
        options.notes,
        options.query_exponent,
        options.note_exponent,
        options.notes_per_request,
        options.own_share,
    )


def sites_of(options: argparse.Namespace) -> list[Site]:
    """Make a site for each device from the options."""
    prompt = Prompt(
        options.head_tokens,
        options.note_tokens,
        options.query_tokens,
        options.order,
        options.block,
        options.note_sd,
        options.query_sd,
    )
    model = SMOLLM2_135M
    if options.checkpoint is not None:
        model = read_model(options.checkpoint)
        prompt = read_prompt(options.checkpoint, options.note_tokens, options.block)
    engine = Engine(options.share, kv_bytes=None if options.kv_gb is None else options.kv_gb * 1e9)
    costs = Processes(
        *(each / 1e6 for each in (options.request_us, options.note_us, options.pair_us, options.core_us))
    )
    around = Surroundings(redis_memory=options.redis_gb * 1e9, redis_price=options.redis_price)
    return [
        Site(device, prompt, model, engine, costs, around, options.load) for device in _devices_of(options)
    ]


def _devices_of(options: argparse.Namespace) -> list[Device]:
    devices: list[Device] = options.devices
    if options.peak_tflops is not None:
        memory, bandwidth = options.memory_gb * 1e9, options.bandwidth_gb_s * 1e9
        devices = [
            Device("yours", options.peak_tflops * 1e12, bandwidth, memory, 0.0, "yours", options.cores)
        ]
    return [replace(each, price=each.price if options.price is None else options.price) for each in devices]
