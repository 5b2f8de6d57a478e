"""The reward of a rollout: its grade compared with the gold grade, and whether its trace parses."""

from model_export.data.pairs import GRADES
from model_export.recipe import RlConfig
from service.contract.trace import Trace


def reward(trace: Trace | None, gold: int, config: RlConfig) -> float:
    """Return the reward of a trace, in [0, 1 + format_weight]; 0 where the rollout does not parse.

    `distance_weight` is the share of the grade's reward that falls linearly with the distance to the gold grade; the rest is
    for the exact grade.
    """
    if trace is None:
        return 0.0
    distance = abs(trace.grade - gold)
    exact = (1 - config.distance_weight) * (distance == 0)
    near = config.distance_weight * (1 - distance / GRADES[-1])
    return config.format_weight + exact + near
