"""The reward of a rollout: its grade compared with the gold grade, and whether its trace parses, is true and is consistent."""

from collections import Counter
from collections.abc import Sequence

from model_export.data.gold_traces import citations_of
from model_export.data.pairs import GRADES, Pair
from model_export.recipe_stages import RlConfig
from service.contract.citations import are_true
from service.contract.trace import Trace


def reward(trace: Trace | None, pair: Pair, config: RlConfig, class_weight: float = 1.0) -> float:
    """Return the reward of a trace; 0 where the rollout does not parse.

    `class_weight` times the grade's reward in [0, 1], plus `format_weight`, plus `truth_weight` if it cites something and all of it is there, plus
    `consistency_weight` if the last step's grade is the answer. `distance_weight` is the share of the grade's reward that falls
    linearly with the distance to the gold grade; the rest is for the exact grade.
    """
    if trace is None:
        return 0.0
    distance = abs(trace.grade - pair.label)
    exact = (1 - config.distance_weight) * (distance == 0)
    near = config.distance_weight * (1 - distance / GRADES[-1])
    cited = [citation.found for citation in citations_of(trace.steps, pair)]
    return (
        class_weight * (exact + near)
        + config.format_weight
        + config.truth_weight * (are_true(cited) is True)
        + config.consistency_weight * trace.is_consistent
    )


class ClassWeights:
    """The weight of a pair's gold grade: inverse to its frequency in the pair's source, 1 in the mean over a source's pairs.

    An exact-grade reward alone pulls towards the most frequent grade. Frequencies over all sources would still leave that pull
    within each source, since a model sees the source in the prompt's criteria.
    """

    def __init__(self, pairs: Sequence[Pair], config: RlConfig) -> None:
        counts = Counter((pair.source, pair.label) for pair in pairs) if config.class_weighted else {}
        sizes = Counter(pair.source for pair in pairs)
        grades = Counter(source for source, _ in counts)
        self._weights = {
            (source, grade): sizes[source] / (grades[source] * count)
            for (source, grade), count in counts.items()
        }

    def of(self, pair: Pair) -> float:
        """Return the pair's weight; 1 for a grade that its source lacks, and where the recipe has no class weights."""
        return self._weights.get((pair.source, pair.label), 1.0)
