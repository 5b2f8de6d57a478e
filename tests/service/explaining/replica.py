"""A replica's explanation mode on in-memory stores, with clocks that a test sets."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from service.errors import ExplanationStoreError
from service.explaining.base import ModeReading
from service.explaining.memory_stores import MemoryModeStore
from service.explaining.mode import Flip
from service.explaining.switch import Switch
from service.observability.metrics import Metrics
from tests.clock import Clock


class FaultyModeStore(MemoryModeStore):
    """A mode store with faults: no call is answered (`failing`), a flip's answer is lost, or its code has a bug (`broken`)."""

    failing = False
    losing_answers = False
    broken = False

    async def read(self) -> ModeReading:
        self._check()
        return await super().read()

    async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
        self._check()
        reading = await super().flip(flip, expected_revision)
        if self.losing_answers:
            raise ExplanationStoreError("the answer was lost")
        return reading

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("a bug in the store")
        if self.failing:
            raise ExplanationStoreError("the test makes it fail")


@dataclass
class Replica:
    """A switch over a store that other replicas may share."""

    clock: Clock = field(default_factory=Clock)
    store: FaultyModeStore = field(init=False)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    switch: Switch = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.store = FaultyModeStore(clock=self.clock)
        self.metrics = Metrics(self.registry)
        self.switch = Switch(self.store, self.metrics, self.clock, poll_s=0.01)

    def count(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"notegrade_{metric}", labels) or 0.0


def turn_on(mode: str = "all", ttl_s: float = 60.0, owner: str = "ann", rate: float | None = None) -> Flip:
    """Make a flip as somebody on call would request it."""
    return Flip(mode, owner, "a note ranks absurdly high", ttl_s, rate)  # type: ignore[arg-type]  # tests try others
