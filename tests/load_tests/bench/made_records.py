"""Makes up measurements for tests."""

from load_tests.bench.peer import Tuning
from load_tests.bench.records import Measurement, Part


def measurement(
    *,
    part: Part = "cold",
    peer: str = "Notegrade",
    tuning: Tuning = "tuned",
    round: int = 0,
    pairs_per_s: float = 10.0,
    p99_ms: float = 100.0,
    notes: int = 20,
    note_tokens: float = 90,
    computed: float | None = 100.0,
    load: float | None = None,
) -> Measurement:
    return Measurement(
        part=part,
        peer=peer,
        tuning=tuning,
        round=round,
        notes=notes,
        note_tokens=note_tokens,
        requests=4,
        pairs=4 * notes,
        seconds=8.0,
        pairs_per_s=pairs_per_s,
        outcomes={"answered": 3, "failed": 1},
        latency_ms={"p50": p99_ms / 2, "p90": p99_ms, "p99": p99_ms, "p99.9": p99_ms, "max": p99_ms},
        cpu_s=16.0,
        client_cpu_s=0.4,
        peak_rss_mib=900.0,
        prompt_tokens_per_pair=170.0,
        computed_tokens_per_pair=computed,
        load=load,
    )
