"""Compares the capacity model with measurements of `load_tests.bench`: computed tokens per pair, and pairs per second.

Only the share of the machine's peak is fitted, to the first suitable row (`cold`). Everything else is predicted.
"""

import math
from collections.abc import Mapping
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
DEFAULT_KV_GB = 2 * 2**30 / 1e9
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
    """Compare all rows of Notegrade that have counts of computed tokens, but for `replay`, whose repetition is the log's.

    Args:
        document: `bench.json`.
        site: prompt head and query, model, prefix cache size and costs; note lengths and the peak come from the document.
    Raises: ValueError if there is no such row.
    """
    ours = [row for row in document["summary"] if row["peer"] == OURS and row["part"] != "replay"]
    rows = [row for row in ours if row["computed_tokens_per_pair"]]
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
    prompt = site.prompt
    note = row["prompt_tokens_per_pair"] - prompt.head - prompt.query
    # As in service/engines/vllm/engine.py: 32 on a CPU, vLLM's default elsewhere.
    block = 32 if cores else 16
    return replace(
        site,
        device=Device(machine["processor"], flops, math.inf, math.inf, 0.0, "bench.json", cores),
        model=replace(site.model, bytes_per_number=_BYTES[peak]),
        prompt=replace(prompt, note=note, note_sd=note * prompt.note_sd / prompt.note, block=block),
        kv_gb=DEFAULT_KV_GB if cores and site.kv_gb is None else site.kv_gb,
    )


def _caching(document: Mapping[str, Any], row: Mapping[str, Any], site: Site) -> Caching:
    if row["part"] == "zipf":
        return _repeating(document["plan"], row["rounds"], site)
    # Only the query repeats, within a request.
    found = 0.0 if site.prompt.order == "note-first" else 1 - 1 / row["notes"]
    return Caching(0.0, found)


def _repeating(plan: Mapping[str, Any], rounds: int, site: Site) -> Caching:
    repetition = plan["repetition"]
    exponent = repetition["exponent"]
    pairs = pairs_of(
        Traffic(repetition["queries"], repetition["notes"], exponent, exponent, plan["shape"]["notes"])
    )
    # The measured requests of each round, numbered since the caches were empty (see `load_tests.bench.parts`).
    warm_up, requests = plan["warm_up_requests"], plan["requests"]
    before = warm_up + plan["zipf_history"] + warm_up
    firsts = [before + number * (warm_up + requests) for number in range(rounds)]
    hit_rate = fmean(hit_rate_between(pairs, first, first + requests) for first in firsts)
    room = site.prefix_cache_tokens
    found = fmean(found_after(pairs, first + requests / 2, site.prompt, room) for first in firsts)
    return Caching(hit_rate, found)


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
    return replica_limits(replace(site, share=share), caching, notes)
