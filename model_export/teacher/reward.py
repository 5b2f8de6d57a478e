"""The reward of a rollout: its grade compared with the gold grade, and whether its trace parses."""

from dataclasses import dataclass

from service.contract.trace import Trace


@dataclass(frozen=True, slots=True)
class Reward:
    """The weights of a reward in [0, 1 + format_weight].

    Attributes:
        format_weight: reward of a trace that parses.
        distance_weight: share of the grade's reward that falls linearly with the distance to the gold grade; the rest is for
            the exact grade.
    """

    format_weight: float
    distance_weight: float
    top_grade: int

    def of(self, trace: Trace | None, gold: int) -> float:
        """Return the reward of a trace; 0 where the rollout does not parse."""
        if trace is None:
            return 0.0
        distance = abs(trace.grade - gold)
        exact = (1 - self.distance_weight) * (distance == 0)
        near = self.distance_weight * (1 - distance / self.top_grade)
        return self.format_weight + exact + near
