"""The capacity model beside what `load_tests.bench` measured: tokens computed for a pair, and pairs a second.

One thing is fitted, the share of the machine's peak, to the first row that it may be fitted to (`cold`). All else is predicted.
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

# NOTEGRADE_ENGINE_KV_CACHE_GIB, on a CPU; the bench leaves it as it is.
DEFAULT_KV_BYTES = 2 * 2**30
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2}


@dataclass(frozen=True, slots=True)
class Point:
    """One figure by the model and as measured. `fitted`: the model was made to meet it, so that it proves nothing."""

    name: str
    quantity: str
    model: float
    measured: float
    fitted: bool = False

    @property
    def ratio(self) -> float:
        """Model over measured."""
        return self.model / self.measured if self.measured else math.nan


def check(document: Mapping[str, Any], site: Site) -> list[Point]:
    """Points of all rows of Notegrade's whose computed tokens were counted.

    Args:
        document: `bench.json`.
        site: head and query of the prompts, model, room for the prefix cache and costs; lengths of notes and the peak are the
            document's.

    Raises ValueError where there is nothing to check.
    """
    rows = [row for row in document["summary"] if row["peer"] == OURS and row["computed_tokens_per_pair"]]
    if not rows:
        raise ValueError(f"no row of {OURS} has computed tokens")
    points, share = [], None
    for row in rows:
        here = _site(document, row, site)
        caching = _caching(document, row, here)
        computed = here.prompt.tokens - here.prompt.reused(caching.found)
        model = (1 - caching.hit_rate) * computed
        points.append(Point(_name(row), "tokens/pair", model, row["computed_tokens_per_pair"]))
        # At a given rate of arrivals, that rate is what is measured.
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
    # As service/engines/vllm/engine.py has it: 32 on a CPU, on others vLLM's default.
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
    # Nothing repeats but the query of a request.
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
    """The requests of each round that count, by their number since the caches were empty (`load_tests.bench.parts`)."""
    warm_up, requests = plan["warm_up_requests"], plan["requests"]
    before = warm_up + plan["zipf_history"] + warm_up
    firsts = [before + number * (warm_up + requests) for number in range(rounds)]
    return [(first, first + requests) for first in firsts]


def _fit(row: Mapping[str, Any], site: Site, caching: Caching) -> float:
    """The share of the peak with which the model meets the row's rate, HTTP and all else by the model."""

    def seconds(share: float) -> float:
        limits = _limits(site, share, caching, row["notes"])
        return 1 / limits.get("processor", limits.get("arithmetic", math.inf))

    # Seconds are a / share + b.
    rest = 2 * seconds(1.0) - seconds(0.5)
    measured: float = row["pairs_per_s"]["median"]
    return (seconds(1.0) - rest) / (1 / measured - rest)


def _rate(row: Mapping[str, Any], site: Site, caching: Caching, share: float, fitted: bool) -> Point:
    rate = min(_limits(site, share, caching, row["notes"]).values())
    name = f"{_name(row)}, {share:.0%} of the peak" if fitted else _name(row)
    return Point(name, "pairs/s", rate, row["pairs_per_s"]["median"], fitted)


def _limits(site: Site, share: float, caching: Caching, notes: float) -> Mapping[str, float]:
    return replica_limits(replace(site, engine=replace(site.engine, share=share)), caching, notes)
