"""From a label distribution to what the caller gets: calibrated distribution, grade, score, margin."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.calibration import calibrate
from service.contract.labels import LabelDistribution
from service.contract.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well a note answers a query.

    Attributes:
        grade: the most probable grade, or what the criteria's decision chooses; the lower one where two are equal.
        score: expected gain over the distribution divided by the top gain, in [0, 1].
        distribution: calibrated probabilities, lowest grade first; they sum to 1.
        margin: first minus second probability, in [0, 1], whichever grade was chosen.
        label_mass: see LabelDistribution.
    """

    grade: int
    score: float
    distribution: tuple[float, ...]
    margin: float
    label_mass: float


def judge(raw: LabelDistribution, manifest: Manifest, criteria: str) -> Judgement:
    """Calibrate the distribution and read grade, score and margin off it. `criteria` names what it was read under."""
    distribution = calibrate(raw.probabilities, manifest.calibration, criteria)
    first, second = sorted(distribution, reverse=True)[:2]
    return Judgement(
        grade=_choose(distribution, manifest.utilities(criteria)),
        score=_expected_gain(distribution, [label.gain for label in manifest.labels]),
        distribution=distribution,
        margin=first - second,
        label_mass=raw.label_mass,
    )


def _choose(distribution: Sequence[float], utilities: Sequence[Sequence[float]] | None) -> int:
    expected = distribution
    if utilities:
        of_chosen = zip(*utilities, strict=True)
        expected = [
            sum(p * value for p, value in zip(distribution, column, strict=True)) for column in of_chosen
        ]
    return expected.index(max(expected))


def _expected_gain(distribution: Sequence[float], gains: Sequence[float]) -> float:
    expected = sum(p * gain for p, gain in zip(distribution, gains, strict=True)) / max(gains)
    return min(1.0, max(0.0, expected))
