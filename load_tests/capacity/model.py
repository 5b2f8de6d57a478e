"""Computes the replicas, Redis servers, links and money that a rate of notes needs, and the first bottleneck.

Pure arithmetic; all assumptions are arguments.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from load_tests.capacity.devices import SMOLLM2_135M, Device, Model
from load_tests.capacity.pairs import PairCache, present
from load_tests.capacity.prefix import Prompt, found_steadily
from load_tests.capacity.traffic import Traffic, pairs_of


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that does not depend on the rate. Figures are ASSUMED unless said otherwise.

    Attributes:
        load: planned utilisation of a replica or a Redis.
        share: reached share of the device's peak, over all operations.
        step_tokens: tokens in an engine's step (NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS).
        kv_share: the prefix cache's share of the memory that weights leave free (vLLM takes 0.9 of all; the rest is activations).
        kv_gb: size of the prefix cache instead (NOTEGRADE_ENGINE_KV_CACHE_GIB, on a CPU).
        request_us: CPU time of the front process for HTTP, validation, cache and response of a request. Measured:
            `load_tests.tracing_cost` (667 µs with one cached note, two cores of an AMD EPYC).
        note_us: additional time per note.
        pair_us: additional time per computed pair: rendering, and vLLM's client.
        core_us: time of the engine core process to schedule a computed pair.
        redis_call_us, redis_note_us: processor time of one Redis for a lookup or a write, and additionally per note. Measured by
            `load_tests.redis_cost` on Redis 8 and a busy machine. A request needs a lookup and, for new pairs, a write.
        redis_call_bytes, redis_note_bytes: the same of network traffic, both directions together. A lookup that finds nothing is
            half as large.
        redis_gb, redis_price: memory of one Redis, and US dollars per GB and hour.
        entry_bytes, query_bytes: bytes per pair in Redis, and additionally per query. Measured on Valkey 8 with `used_memory`:
            1,907 bytes for a query with 20 pairs, 37,786 with 500; above 512 pairs, where the hash becomes a table, up to 120 per pair.
        vectors: vectors of a note that is read from them, all of which are in Redis; 0 for the text reading.
        vectors_note_us: processor time of Redis for a note's vectors. Measured like `redis_note_us`.
        vectors_note_bytes: bytes in Redis beside the vectors. Measured by the same script: 4,776 bytes for 4 of 576 numbers.
        link_bytes: bytes per second of one network link (10 Gbit/s).
        note_bytes: bytes of a note and its result as JSON: about 5 per token, and 350 for ids, names and the result.
    """

    device: Device
    prompt: Prompt
    model: Model = SMOLLM2_135M
    load: float = 0.6
    share: float = 0.35
    step_tokens: float = 1024
    kv_share: float = 0.8
    kv_gb: float | None = None
    request_us: float = 667
    note_us: float = 50
    pair_us: float = 300
    core_us: float = 150
    redis_call_us: float = 27
    redis_note_us: float = 1.5
    redis_call_bytes: float = 580
    redis_note_bytes: float = 96
    redis_gb: float = 25
    redis_price: float = 0.02
    entry_bytes: float = 90
    query_bytes: float = 200
    vectors: float = 0
    vectors_note_us: float = 4
    vectors_note_bytes: float = 170
    link_bytes: float = 1.25e9
    note_bytes: float = 800

    @property
    def stored_note_bytes(self) -> float:
        """The bytes of a note's vectors in Redis, in two bytes a number; 0 for the text reading."""
        return 2 * self.model.hidden * self.vectors + self.vectors_note_bytes if self.vectors else 0.0

    @property
    def prefix_cache_tokens(self) -> float:
        """The capacity of a replica's prefix cache; replicas don't share it."""
        free = max(0.0, self.kv_share * (self.device.memory - self.model.weight_bytes))
        return (free if self.kv_gb is None else self.kv_gb * 1e9) / self.model.kv_bytes_per_token


@dataclass(frozen=True, slots=True)
class Caching:
    """The effect of the caches, by formula or measured.

    Attributes:
        hit_rate: share of the notes whose pair is cached.
        found: share of the other notes whose note (or query) is in the prefix cache.
        pairs, queries: numbers in the pair cache.
        notes: distinct notes of the traffic.
    """

    hit_rate: float
    found: float
    pairs: float = 0.0
    queries: float = 0.0
    notes: float = 0.0


def steady_caching(
    traffic: Traffic, notes_per_s: float, ttl_s: float, most_pairs: float, site: Site
) -> Caching:
    """Compute the steady state at that rate. Any replica may see any note, so the prefix cache is that of one replica."""
    pairs = pairs_of(traffic)
    cache = PairCache(most_pairs, ttl_s * notes_per_s / traffic.notes_per_request)
    known = present(pairs, cache)
    # A query is kept as long as any of its pairs; the first pair has the highest chance.
    queries = float((pairs.queries[:, 0] * known.max(axis=1)).sum())
    found = found_steadily(pairs, known, site.prompt, site.prefix_cache_tokens)
    return Caching(pairs.mean(known), found, pairs.total(known), queries, traffic.notes)


def replica_limits(site: Site, caching: Caching, notes_per_request: float) -> Mapping[str, float]:
    """Compute the maximum notes per second of each part of a replica; the minimum is the replica's rate."""
    missing = 1 - caching.hit_rate
    tokens, reused = site.prompt.tokens, site.prompt.reused(caching.found)
    device = site.device
    moved = site.model.bytes_moved(tokens, reused, site.step_tokens)
    arithmetic_s = missing * site.model.flops(tokens, reused) / (device.flops * site.share)
    front_s = (site.request_us / notes_per_request + site.note_us + missing * site.pair_us) / 1e6
    core_s = missing * site.core_us / 1e6
    if device.rates:
        return {"measured rate": _rate(missing / device.rates.new + caching.hit_rate / device.rates.known)}
    if device.shared_cores:
        # All parts share the same cores.
        return {"processor": _rate(arithmetic_s + (front_s + core_s) / device.shared_cores)}
    return {
        "arithmetic": _rate(arithmetic_s),
        "memory bandwidth": _rate(missing * moved / device.bandwidth),
        "front process": _rate(front_s),
        "engine core process": _rate(core_s),
    }


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources that a rate needs.

    Attributes:
        replica_rate: maximum notes per second of one replica, limited by its part `limit`.
        busy: used share of the device's arithmetic at the planned load.
        redis_bytes: bytes of all cached pairs.
        redis_traffic, traffic: bytes per second to and from Redis, and of all requests and answers.
        needs: units of each shared resource (Redis by kind of load, link), not rounded.
        first: the first bottleneck: the most needed shared resource if one unit is not enough, else the replica's limit.
    """

    notes_per_s: float
    caching: Caching
    computed_tokens: float
    replica_rate: float
    limit: str
    busy: float
    replicas: int
    redis_bytes: float
    redis_traffic: float
    traffic: float
    needs: Mapping[str, float]
    redis: int
    links: int
    dollars_per_hour: float
    first: str


def plan(notes_per_s: float, caching: Caching, notes_per_request: float, site: Site) -> Plan:
    """Compute the resources for a rate; replicas and shared resources are rounded up, to at least one."""
    limits = replica_limits(site, caching, notes_per_request)
    limit = min(limits, key=lambda part: limits[part])
    needs = _shared_needs(notes_per_s, caching, notes_per_request, site)
    replicas = _whole(notes_per_s / (limits[limit] * site.load))
    redis = _whole(max(need for name, need in needs.items() if name.startswith("Redis")))
    redis_bytes = _redis_bytes(caching, site)
    most = max(needs, key=lambda name: needs[name])
    return Plan(
        notes_per_s=notes_per_s,
        caching=caching,
        computed_tokens=site.prompt.tokens - site.prompt.reused(caching.found),
        replica_rate=limits[limit],
        limit=limit,
        busy=site.load * limits[limit] / limits.get("arithmetic", limits[limit]),
        replicas=replicas,
        redis_bytes=redis_bytes,
        redis_traffic=_redis_traffic(notes_per_s, caching, notes_per_request, site),
        traffic=notes_per_s * site.note_bytes,
        needs=needs,
        redis=redis,
        links=_whole(needs["link"]),
        dollars_per_hour=replicas * site.device.price + redis_bytes / 1e9 * site.redis_price,
        first=most if needs[most] > 1 else f"{limit} of a replica",
    )


def _whole(units: float) -> int:
    return max(1, math.ceil(units))


def _redis_bytes(caching: Caching, site: Site) -> float:
    pairs = caching.pairs * site.entry_bytes + caching.queries * site.query_bytes
    return pairs + caching.notes * site.stored_note_bytes


def _redis_calls(notes_per_s: float, caching: Caching, notes_per_request: float, site: Site) -> float:
    # A request with at least one new note writes, and looks for vectors.
    new = 1 - math.pow(caching.hit_rate, notes_per_request)
    return notes_per_s / notes_per_request * (1 + new * (2 if site.vectors else 1))


def _redis_traffic(notes_per_s: float, caching: Caching, notes_per_request: float, site: Site) -> float:
    calls, missing = _redis_calls(notes_per_s, caching, notes_per_request, site), 1 - caching.hit_rate
    of_pairs = calls * site.redis_call_bytes + notes_per_s * (1 + missing / 2) * site.redis_note_bytes
    return of_pairs + notes_per_s * missing * site.stored_note_bytes


def _shared_needs(
    notes_per_s: float, caching: Caching, notes_per_request: float, site: Site
) -> dict[str, float]:
    calls, missing = _redis_calls(notes_per_s, caching, notes_per_request, site), 1 - caching.hit_rate
    note_us = (1 + missing) * site.redis_note_us + (missing * site.vectors_note_us if site.vectors else 0)
    return {
        "Redis processor": (calls * site.redis_call_us + notes_per_s * note_us) / (1e6 * site.load),
        "Redis memory": _redis_bytes(caching, site) / (site.redis_gb * 1e9),
        "link": notes_per_s * site.note_bytes / (site.link_bytes * site.load),
    }
