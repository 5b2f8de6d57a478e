import pytest

from load_tests.bench.peers.grades import calibrated_grade, expected_grade
from service.contract.checkpoint import Checkpoint


def test_expected_grade_is_the_mean() -> None:
    assert expected_grade([0.1, 0.2, 0.3, 0.4]) == pytest.approx(2.0)


def test_raw_probabilities_are_calibrated_first(tiny: Checkpoint) -> None:
    # Square roots, for a temperature of 2: 0.8, 0.6, 0 and 0 of 1.4.
    assert calibrated_grade([0.64, 0.36, 0.0, 0.0], tiny) == pytest.approx(0.6 / 1.4)
