"""Turns a label distribution into the caller's result: calibrated distribution, grade, score and margin."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.calibration import calibrate
from service.contract.labels import LabelDistribution
from service.contract.manifest import Manifest, ReadingKind


@dataclass(frozen=True, slots=True)
class Judgement:
    """The grade and the score of a note for a query.

    Attributes:
        score: expected gain over the distribution divided by the top gain, in [0, 1].
        grade: the most probable grade, or the one that the criteria's decision chooses; of equals, the lower one.
        distribution: calibrated probabilities, lowest grade first; they sum to 1.
        margin: the largest minus the second largest probability, in [0, 1], whichever grade is chosen.
        label_mass: see LabelDistribution.
    """

    score: float
    grade: int
    distribution: tuple[float, ...]
    margin: float
    label_mass: float


def judge(raw: LabelDistribution, manifest: Manifest, criteria: str, kind: ReadingKind = "text") -> Judgement:
    """Calibrate the distribution and compute grade, score and margin.

    `criteria` names the criteria of the prompt, and `kind` says how it read the note.
    """
    distribution = calibrate(raw.probabilities, manifest.calibration_of(kind), criteria)
    first, second = sorted(distribution, reverse=True)[:2]
    return Judgement(
        score=_expected_gain(distribution, [label.gain for label in manifest.labels]),
        grade=_choose(distribution, manifest.utilities(criteria, kind)),
        distribution=distribution,
        margin=first - second,
        label_mass=raw.label_mass,
    )


def _choose(distribution: Sequence[float], utilities: Sequence[Sequence[float]] | None) -> int:
    expected = distribution
    if utilities:
        by_chosen_grade = zip(*utilities, strict=True)
        expected = [
            sum(p * value for p, value in zip(distribution, column, strict=True))
            for column in by_chosen_grade
        ]
    return expected.index(max(expected))


def _expected_gain(distribution: Sequence[float], gains: Sequence[float]) -> float:
    expected = sum(p * gain for p, gain in zip(distribution, gains, strict=True)) / max(gains)
    return min(1.0, max(0.0, expected))
