"""Compares the capacity model with measurements of `load_tests.bench`: computed tokens per pair, and pairs per second.

Only the share of the machine's peak is fitted, to the first suitable row (`cold`). Everything else is predicted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from load_tests.bench.records import OURS
from load_tests.capacity.devices import Device
from load_tests.capacity.model import Caching, Site, replica_limits
from load_tests.capacity.pairs import hit_rate_between
from load_tests.capacity.prefix import found_after
from load_tests.capacity.traffic import Traffic, pairs_of

# The default of NOTEGRADE_ENGINE_KV_CACHE_GIB on a CPU, which the benchmark does not change.
DEFAULT_KV_BYTES = 2 * 2**30
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2}


@dataclass(frozen=True, slots=True)
class Point:
    """A modelled and a measured figure. `fitted` means that the model was fitted to it, so it is no evidence."""

    name: str
    quantity: str
    model: float
    measured: float
    fitted: bool = False

    @property
    def ratio(self) -> float:
        """The modelled over the measured figure."""
        return self.model / self.measured if self.measured else math.nan


def check(document: Mapping[str, Any], site: Site) -> list[Point]:
    """Compare all rows of Notegrade that have counts of computed tokens.

    Args:
        document: `bench.json`.
        site: prompt head and query, model, prefix cache size and costs; note lengths and the peak come from the document.
    Raises: ValueError if there is no such row.
    """
    rows = [row for row in document["summary"] if row["peer"] == OURS and row["computed_tokens_per_pair"]]
    if not rows:
        raise ValueError(f"the file has no row of {OURS} with computed tokens")
    points, share = [], None
    for row in rows:
        here = _site(document, row, site)
        caching = _caching(document, row, here)
        computed = here.prompt.tokens - here.prompt.reused(caching.found)
        model = (1 - caching.hit_rate) * computed
        points.append(Point(_name(row), "tokens/pair", model, row["computed_tokens_per_pair"]))
        # In an open loop the measured rate is the rate of arrivals, so it is not compared.
        if row["load"] is None and row["peak"] is not None:
            fitted = share is None
            share = _fit(row, here, caching) if share is None else share
            points.append(_rate(row, here, caching, share, fitted))
    return points


def _name(row: Mapping[str, Any]) -> str:
    load = "" if row["load"] is None else f" at {row['load']:.0%}"
    return f"{row['part']}{load}, {row['notes']} notes of {row['note_tokens']:g}, {row['tuning']}"


def _site(document: Mapping[str, Any], row: Mapping[str, Any], site: Site) -> Site:
    machine, peak = document["machine"], row["peak"] or "bfloat16"
    flops = 1e9 * machine["gemm_gflops"].get(peak, math.nan)
    cores = machine["cores"] if machine["gemm_device"] == "cpu" else 0
    device = Device(machine["processor"], flops, math.inf, math.inf, 0.0, "bench.json", cores)
    model = replace(site.model, bytes_per_number=_BYTES[peak])
    note = row["prompt_tokens_per_pair"] - site.prompt.head - site.prompt.query
    # As in service/engines/vllm/engine.py: 32 on a CPU, vLLM's default elsewhere.
    prompt = replace(
        site.prompt,
        note=note,
        note_sd=note * site.prompt.note_sd / site.prompt.note,
        block=32 if cores else 16,
    )
    engine = site.engine
    if cores and engine.kv_bytes is None:
        engine = replace(engine, kv_bytes=DEFAULT_KV_BYTES)
    return replace(site, device=device, model=model, prompt=prompt, engine=engine)


def _caching(document: Mapping[str, Any], row: Mapping[str, Any], site: Site) -> Caching:
    if row["part"] == "zipf":
        return _repeating(document["plan"], row["rounds"], site)
    # Only the query repeats, within a request.
    found = 0.0 if site.prompt.order == "note-first" else 1 - 1 / row["notes"]
    return Caching(0.0, found)


def _repeating(plan: Mapping[str, Any], rounds: int, site: Site) -> Caching:
    repetition, notes = plan["repetition"], plan["shape"]["notes"]
    traffic = Traffic(
        repetition["queries"], repetition["notes"], repetition["exponent"], repetition["exponent"], notes
    )
    pairs = pairs_of(traffic)
    windows = _counted(plan, rounds)
    room = site.engine.prefix_cache(site.device, site.model)
    hit_rate = fmean(hit_rate_between(pairs, first, last) for first, last in windows)
    found = fmean(found_after(pairs, (first + last) / 2, site.prompt, room) for first, last in windows)
    return Caching(hit_rate, found)


def _counted(plan: Mapping[str, Any], rounds: int) -> Sequence[tuple[int, int]]:
    """Return the measured requests of each round, numbered since the caches were empty (see `load_tests.bench.parts`)."""
    warm_up, requests = plan["warm_up_requests"], plan["requests"]
    before = warm_up + plan["zipf_history"] + warm_up
    firsts = [before + number * (warm_up + requests) for number in range(rounds)]
    return [(first, first + requests) for first in firsts]


def _fit(row: Mapping[str, Any], site: Site, caching: Caching) -> float:
    """Fit the share of the peak with which the model matches the row's rate, including HTTP and other costs."""

    def seconds(share: float) -> float:
        limits = _limits(site, share, caching, row["notes"])
        return 1 / limits.get("processor", limits.get("arithmetic", math.inf))

    # seconds(share) = a / share + b.
    rest = 2 * seconds(1.0) - seconds(0.5)
    measured: float = row["pairs_per_s"]["median"]
    return (seconds(1.0) - rest) / (1 / measured - rest)


def _rate(row: Mapping[str, Any], site: Site, caching: Caching, share: float, fitted: bool) -> Point:
    rate = min(_limits(site, share, caching, row["notes"]).values())
    name = f"{_name(row)}, {share:.0%} of the peak" if fitted else _name(row)
    return Point(name, "pairs/s", rate, row["pairs_per_s"]["median"], fitted)


def _limits(site: Site, share: float, caching: Caching, notes: float) -> Mapping[str, float]:
    return replica_limits(replace(site, engine=replace(site.engine, share=share)), caching, notes)
