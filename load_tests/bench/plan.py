"""How much is measured: everything that a run's length and its figures depend on, in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from load_tests.bench.workloads import Repetition, Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it; times in seconds.

    Attributes:
        rounds: each contestant's turns in a part.
        requests, shape, clients: of a closed-loop turn. 4 clients with 20 notes keep 64 seats of an engine taken.
        warm_up_requests: before each turn.
        longest_turn_s: after that, a closed-loop turn begins no further request: a peer that is far behind has told enough.
        timeout_s: after that long a request is given up; over the longest deadline that the service grants.
        zipf_history: requests that everybody has answered before the rounds of `zipf`: caches are as they leave them.
        sample_requests: whose grades are compared.
        open_shape, open_seconds: of open loops: small requests, since a p99 needs hundreds of them.
        open_loads: shares of the best peer's saturation at which latencies are measured; p99s are compared at the highest.
        probe_seconds, resolution: of the search for saturation.
        sweep_notes, sweep_note_tokens: what is swept, one at a time; sweep_pairs: about how many pairs at each point.
        most_apart: greatest difference in expected grade, in grades, with which a peer still computes the same.
            Measured on 135M weights: bf16 is up to 0.03 from fp32, int8 up to 0.17.
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
    """To see that all of it works: its figures are too few to say anything."""
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
