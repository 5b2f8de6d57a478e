"""The reward of a rollout: its final grade against gold, and its form."""

from dataclasses import dataclass

from service.contract.trace import Trace


@dataclass(frozen=True, slots=True)
class Reward:
    """Weights of a reward in [0, 1 + format_weight].

    Attributes:
        format_weight: for a trace that parses.
        distance_weight: share of the grade's reward that falls evenly with its distance from gold; the rest is for
            the exact grade alone.
    """

    format_weight: float
    distance_weight: float
    top_grade: int

    def of(self, trace: Trace | None, gold: int) -> float:
        """The reward; 0 where there is no trace."""
        if trace is None:
            return 0.0
        distance = abs(trace.grade - gold)
        exact = (1 - self.distance_weight) * (distance == 0)
        near = self.distance_weight * (1 - distance / self.top_grade)
        return self.format_weight + exact + near
