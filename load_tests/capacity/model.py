"""What a rate of notes takes: replicas, Redis, links, money, and what is full first. Pure arithmetic; all assumptions are arguments."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from load_tests.capacity.devices import SMOLLM2_135M, Device, Model
from load_tests.capacity.pairs import PairCache, present
from load_tests.capacity.prefix import PrefixCache, Prompt, found_steadily
from load_tests.capacity.traffic import Traffic, pairs_of


@dataclass(frozen=True, slots=True)
class Engine:
    """How well a replica uses its device.

    Attributes:
        share: of the device's peak that matrix products, attention and all else together reach. ASSUMED for GPUs.
        step_tokens: tokens in a step (NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS).
        kv_share: of the memory that weights leave free, for the prefix cache (vLLM takes 0.9 of all; the rest is activations).
        kv_bytes: the prefix cache itself, where that is set (NOTEGRADE_ENGINE_KV_CACHE_GIB, on a CPU).
    """

    share: float = 0.35
    step_tokens: float = 1024
    kv_share: float = 0.8
    kv_bytes: float | None = None

    def prefix_cache(self, device: Device, model: Model) -> PrefixCache:
        """Its room on that device."""
        free = max(0.0, self.kv_share * (device.memory - model.weight_bytes))
        return PrefixCache((free if self.kv_bytes is None else self.kv_bytes) / model.kv_bytes_per_token)


@dataclass(frozen=True, slots=True)
class Processes:
    """Processor seconds of the two processes of a replica, each of which has one Python thread that works.

    Attributes:
        request_s: HTTP, validation, cache and answer of a request. Measured: docs/operations.md, "Traces" (667 µs with one
            cached note, two cores of an AMD EPYC).
        note_s: what each note adds to that. ASSUMED.
        pair_s: what each pair that is computed adds: rendering, and vLLM's client. ASSUMED.
        core_s: the engine core's own work for such a pair, which schedules it. ASSUMED.
    """

    request_s: float = 667e-6
    note_s: float = 50e-6
    pair_s: float = 300e-6
    core_s: float = 150e-6


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What replicas share.

    Attributes:
        redis_commands, redis_fields: a second, of one Redis: redis.io's page on benchmarks shows some 100,000 simple commands
            without pipelining; fields are ASSUMED. A request takes one HMGET and, if anything is new, MULTI, HSET, PEXPIRE, EXEC.
        redis_memory: bytes of one Redis. ASSUMED.
        entry_bytes, query_bytes: of a pair in Redis, and of a query besides. Measured on Valkey 8 with `used_memory`: 1,907 bytes for
            a query with 20 pairs, 37,786 with 500; over 512, where the hash gets a table, up to 120 a pair.
        link_bytes: a second, of one network link (10 Gbit/s). ASSUMED.
        note_bytes: of a note and its result on the wire, as JSON: about 5 a token, and 350 for ids, names and the result.
        redis_price: US dollars an hour for a GB. ASSUMED.
    """

    redis_commands: float = 100_000
    redis_fields: float = 1_000_000
    redis_memory: float = 25e9
    entry_bytes: float = 90
    query_bytes: float = 200
    link_bytes: float = 1.25e9
    note_bytes: float = 800
    redis_price: float = 0.02


@dataclass(frozen=True, slots=True)
class Site:
    """All that stays the same when the rate grows. `load`: share of what it can do that a replica or a Redis is given."""

    device: Device
    prompt: Prompt
    model: Model = SMOLLM2_135M
    engine: Engine = field(default_factory=Engine)
    processes: Processes = field(default_factory=Processes)
    surroundings: Surroundings = field(default_factory=Surroundings)
    load: float = 0.6


@dataclass(frozen=True, slots=True)
class Caching:
    """What the caches do: by formula, or measured.

    Attributes:
        hit_rate: share of the notes whose pair is known.
        found: share of the others whose note (or query) the engine still has.
        pairs, queries: in the pair cache.
    """

    hit_rate: float
    found: float
    pairs: float = 0.0
    queries: float = 0.0


def steady_caching(
    traffic: Traffic, notes_per_s: float, ttl_s: float, most_pairs: float, site: Site
) -> Caching:
    """After a time to live or two at that rate. Every replica sees all notes, so each has the prefix cache of one."""
    pairs = pairs_of(traffic)
    cache = PairCache(most_pairs, ttl_s * notes_per_s / traffic.notes_per_request)
    known = present(pairs, cache)
    room = site.engine.prefix_cache(site.device, site.model)
    # A query is kept while any of its pairs is, and the first of them is the one that is surest to be there.
    queries = float((pairs.queries[:, 0] * known.max(axis=1)).sum())
    found = found_steadily(pairs, known, site.prompt, room)
    return Caching(pairs.mean(known), found, pairs.total(known), queries)


def replica_limits(site: Site, caching: Caching, notes_per_request: float) -> Mapping[str, float]:
    """Notes a second at which each part of a replica is full; the least is the replica's rate."""
    missing = 1 - caching.hit_rate
    tokens, reused = site.prompt.tokens, site.prompt.reused(caching.found)
    device, costs = site.device, site.processes
    moved = site.model.bytes_moved(tokens, reused, site.engine.step_tokens)
    arithmetic_s = missing * site.model.flops(tokens, reused) / (device.flops * site.engine.share)
    front_s = costs.request_s / notes_per_request + costs.note_s + missing * costs.pair_s
    core_s = missing * costs.core_s
    if device.shared_cores:
        # On one set of cores they take turns.
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
    """What a rate takes.

    Attributes:
        replica_rate: notes a second of one replica, full; `limit` is the part of it that is full.
        busy: share of the device's arithmetic that is used at the planned load.
        redis_bytes: of all pairs in the cache.
        needs: units of each shared thing (one Redis by what fills it, one link), not rounded.
        first: what has to be made more of first as the rate grows to this: the shared thing of which most units are needed, if
            one is not enough, else the part that limits a replica.
    """

    notes_per_s: float
    caching: Caching
    computed_tokens: float
    replica_rate: float
    limit: str
    busy: float
    replicas: int
    redis_bytes: float
    needs: Mapping[str, float]
    redis: int
    links: int
    dollars_per_hour: float
    first: str


def plan(notes_per_s: float, caching: Caching, notes_per_request: float, site: Site) -> Plan:
    """Replicas and shared things are whole, and never fewer than one."""
    limits = replica_limits(site, caching, notes_per_request)
    limit = min(limits, key=lambda part: limits[part])
    needs = _shared_needs(notes_per_s, caching, notes_per_request, site)
    replicas = _whole(notes_per_s / (limits[limit] * site.load))
    redis = _whole(max(need for name, need in needs.items() if name.startswith("Redis")))
    around, redis_bytes = site.surroundings, _redis_bytes(caching, site.surroundings)
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
        needs=needs,
        redis=redis,
        links=_whole(needs["link"]),
        dollars_per_hour=replicas * site.device.price + redis_bytes / 1e9 * around.redis_price,
        first=most if needs[most] > 1 else f"{limit} of a replica",
    )


def _whole(units: float) -> int:
    return max(1, math.ceil(units))


def _redis_bytes(caching: Caching, around: Surroundings) -> float:
    return caching.pairs * around.entry_bytes + caching.queries * around.query_bytes


def _shared_needs(
    notes_per_s: float, caching: Caching, notes_per_request: float, site: Site
) -> dict[str, float]:
    around, missing = site.surroundings, 1 - caching.hit_rate
    # At least one of its notes is new.
    writes = 1 - caching.hit_rate**notes_per_request
    commands = notes_per_s / notes_per_request * (1 + 4 * writes)
    return {
        "Redis commands": commands / (around.redis_commands * site.load),
        "Redis fields": notes_per_s * (1 + missing) / (around.redis_fields * site.load),
        "Redis memory": _redis_bytes(caching, around) / around.redis_memory,
        "link": notes_per_s * around.note_bytes / (around.link_bytes * site.load),
    }
