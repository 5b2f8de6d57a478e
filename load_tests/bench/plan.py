"""The parameters of a benchmark run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from load_tests.bench.workloads import Repetition, Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run; times are in seconds.

    Attributes:
        rounds: turns of each contestant in a part.
        requests, shape, clients: of a closed-loop turn. 4 clients with 20 notes fill the engine's 64 sequences.
        warm_up_requests: unmeasured requests before each turn.
        longest_turn_s: a closed-loop turn starts no request after this time, which bounds slow peers.
        timeout_s: timeout of a request, above the service's maximum deadline.
        zipf_history: requests that all contestants answer before the rounds of `zipf`, to fill caches.
        sample_requests: number of requests whose grades are compared.
        open_shape, open_seconds: of open loops. Requests are small, since a p99 needs hundreds of them.
        open_loads: shares of the best peer's saturation at which latencies are measured; p99s are compared at the highest.
        probe_seconds, resolution: of the search for saturation.
        sweep_notes, sweep_note_tokens: swept values; sweep_pairs: approximate pairs at each point.
        most_apart: maximum difference in expected grade for a peer to count as computing the same.
            On 135M weights, bf16 differs from fp32 by up to 0.03, int8 by up to 0.17.
    """

    seed: int
    rounds: int = 5
    requests: int = 16
    shape: Shape = field(default_factory=Shape)
    clients: int = 4
    warm_up_requests: int = 4
    longest_turn_s: float = 60.0
    timeout_s: float = 120.0
    zipf_history: int = 100
    sample_requests: int = 2
    repetition: Repetition = field(default_factory=Repetition)
    open_shape: Shape = field(default_factory=lambda: Shape(notes=4))
    open_seconds: float = 60.0
    open_loads: Sequence[float] = (0.4, 0.6, 0.8)
    probe_seconds: float = 30.0
    resolution: float = 0.05
    sweep_notes: Sequence[int] = (1, 5, 20, 100, 500)
    sweep_note_tokens: Sequence[int] = (30, 90, 270)
    sweep_pairs: int = 300
    most_apart: float = 0.2


def quick(seed: int) -> Plan:
    """Make a plan that checks that everything works; it measures too little for meaningful figures."""
    return Plan(
        seed,
        rounds=2,
        requests=3,
        shape=Shape(notes=8),
        clients=2,
        warm_up_requests=1,
        zipf_history=5,
        sample_requests=1,
        repetition=Repetition(queries=50, notes=100),
        open_seconds=8.0,
        open_loads=(0.4, 0.8),
        probe_seconds=4.0,
        resolution=0.25,
        sweep_notes=(1, 20),
        sweep_note_tokens=(30, 90),
        sweep_pairs=20,
    )
