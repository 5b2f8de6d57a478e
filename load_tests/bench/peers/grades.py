"""From label probabilities to the one number that all peers must agree on."""

from collections.abc import Sequence

from service.contract.calibration import calibrate
from service.contract.checkpoint import Checkpoint


def expected_grade(probabilities: Sequence[float]) -> float:
    """Mean of a distribution over grades, lowest grade first: in [0, top grade]."""
    return sum(grade * probability for grade, probability in enumerate(probabilities))


def calibrated_grade(raw: Sequence[float], checkpoint: Checkpoint) -> float:
    """Expected grade of raw label probabilities, lowest grade first, after the checkpoint's calibration.

    Notegrade answers with calibrated probabilities; the other peers know of no calibration. All are asked under the
    checkpoint's default criteria.
    """
    criteria = checkpoint.renderer.default_criteria
    return expected_grade(calibrate(raw, checkpoint.manifest.calibration, criteria))
