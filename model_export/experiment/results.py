"""Compares the arms: area under the accuracy curve and final accuracy, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t, wilcoxon

from model_export.experiment.arms import SFT, STEP
from model_export.experiment.measure import Figures

# Figures by seed, arm and RL step.
Measured = Mapping[int, Mapping[str, Mapping[int, Figures]]]
# The figures after the last step that RL is compared with more supervised training by, and their titles.
GAINS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "true": "traces without a false quote",
    "consistent": "consistent",
}


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of two or more seeds' values, with an interval by Student's t."""
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
        margin = float(t.ppf(0.975, len(values) - 1)) * spread
        return cls(mean, mean - margin, mean + margin)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The step mask's area minus an arm's, by seed: mean, wins of the mask, and p of Wilcoxon's signed-rank test, two-sided."""

    difference: Mean
    wins: int
    seeds: int
    p: float


def arms_of(measured: Measured) -> list[str]:
    """Return the arms, in the order in which they ran."""
    return list(next(iter(measured.values())))


def splits_of(measured: Measured) -> list[str]:
    """Return the splits."""
    first = next(iter(next(iter(measured.values())).values()))
    return list(next(iter(first.values())))


def curve(measured: Mapping[int, Figures], split: str, figure: str = "accuracy") -> list[tuple[int, float]]:
    """Return a figure of a split by RL step."""
    return [(step, figures[split][figure]) for step, figures in sorted(measured.items())]


def area(measured: Mapping[int, Figures], split: str) -> float:
    """Return the area under the accuracy curve, divided by the number of steps: the mean accuracy while training."""
    steps, values = zip(*curve(measured, split), strict=True)
    return float(np.trapezoid(values, steps)) / float(steps[-1] - steps[0])


def areas(measured: Measured, arm: str, split: str) -> list[float]:
    """Return an arm's area for each seed."""
    return [area(arms[arm], split) for arms in measured.values()]


def finals(measured: Measured, arm: str, split: str, figure: str = "accuracy") -> list[float]:
    """Return an arm's figure after the last step for each seed."""
    return [curve(arms[arm], split, figure)[-1][1] for arms in measured.values()]


def compare(measured: Measured, arm: str, split: str) -> Comparison:
    """Compare the step mask's area with another arm's."""
    differences = _differences(areas(measured, STEP, split), areas(measured, arm, split))
    p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
    return Comparison(Mean.of(differences), sum(d > 0 for d in differences), len(differences), p)


def gain(measured: Measured, arm: str, split: str, figure: str) -> Mean:
    """Return an arm's figure after the last step minus that of more supervised training, paired by seed."""
    return Mean.of(_differences(finals(measured, arm, split, figure), finals(measured, SFT, split, figure)))


def _differences(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    return [our - other for our, other in zip(ours, others, strict=True)]


def to_json(measured: Measured) -> dict[str, Any]:
    """Return all figures and comparisons as JSON-like data."""
    return {
        "measured": measured,
        "areas": {
            split: {arm: areas(measured, arm, split) for arm in arms_of(measured)}
            for split in splits_of(measured)
        },
        "comparisons": {
            split: {
                arm: {
                    "difference": [found.difference.mean, found.difference.low, found.difference.high],
                    "wins": found.wins,
                    "p": found.p,
                }
                for arm in arms_of(measured)
                if arm != STEP
                for found in [compare(measured, arm, split)]
            }
            for split in splits_of(measured)
        },
    }


def to_markdown(measured: Measured) -> str:
    """Return a table for each split, best area first."""
    lines = []
    for split in splits_of(measured):
        ranked = sorted(arms_of(measured), key=lambda arm: -float(np.mean(areas(measured, arm, split))))
        lines += [
            f"### {split}",
            "",
            "| arm | area under the accuracy | final accuracy | final step accuracy | step mask minus arm | wins | p |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_row(measured, arm, split) for arm in ranked),
            "",
        ]
        if SFT in ranked:
            lines += _gains(measured, [arm for arm in ranked if arm != SFT], split)
    return "\n".join(lines)


def _row(measured: Measured, arm: str, split: str) -> str:
    cells = [
        arm,
        str(Mean.of(areas(measured, arm, split))),
        str(Mean.of(finals(measured, arm, split))),
        str(Mean.of(finals(measured, arm, split, "step_accuracy"))),
    ]
    if arm == STEP:
        return f"| {' | '.join(cells)} | | | |"
    found = compare(measured, arm, split)
    cells += [str(found.difference), f"{found.wins} of {found.seeds}", f"{found.p:.3f}"]
    return f"| {' | '.join(cells)} |"


def _gains(measured: Measured, arms: Sequence[str], split: str) -> list[str]:
    rows = [[arm, *(str(gain(measured, arm, split, figure)) for figure in GAINS)] for arm in arms]
    return [
        f"After the last step, minus `{SFT}`:",
        "",
        f"| arm | {' | '.join(GAINS.values())} |",
        "|---" * (1 + len(GAINS)) + "|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
        "",
    ]
