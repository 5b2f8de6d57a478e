"""Computes the expected grade from label probabilities, on which all peers must agree."""

from collections.abc import Sequence

from service.contract.calibration import calibrate
from service.contract.checkpoint import Checkpoint


def expected_grade(probabilities: Sequence[float]) -> float:
    """Compute the mean of a distribution over grades, lowest grade first; in [0, top grade]."""
    return sum(grade * probability for grade, probability in enumerate(probabilities))


def calibrated_grade(raw: Sequence[float], checkpoint: Checkpoint) -> float:
    """Compute the expected grade of raw label probabilities, lowest grade first, after the checkpoint's calibration.

    Only Notegrade answers with calibrated probabilities. All peers use the checkpoint's default criteria.
    """
    criteria = checkpoint.renderer.default_criteria
    return expected_grade(calibrate(raw, checkpoint.manifest.calibration, criteria))
