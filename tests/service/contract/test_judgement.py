import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.calibration import calibrate
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.manifest import Calibration, Manifest
from tests.checkpoints import load_tiny

WEIGHTS = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda weights: sum(weights) > 1e-6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_tiny(tmp_path_factory.mktemp("checkpoint")).manifest


def distribution_of(weights: list[float]) -> LabelDistribution:
    return LabelDistribution(tuple(weight / sum(weights) for weight in weights), 0.9)


def with_calibration(manifest: Manifest, **calibration: Any) -> Manifest:
    return manifest.model_copy(update={"calibration": Calibration(**calibration)})


def test_score_is_expected_gain_over_top_gain(manifest: Manifest) -> None:
    judgement = judge(LabelDistribution((0.01, 0.02, 0.12, 0.85), 0.998), manifest)
    assert judgement.score == pytest.approx((0.02 * 1 + 0.12 * 3 + 0.85 * 7) / 7)
    assert judgement.grade == 3
    assert judgement.margin == pytest.approx(0.73)
    assert judgement.label_mass == 0.998


def test_equal_probabilities_give_the_lower_grade(manifest: Manifest) -> None:
    assert judge(LabelDistribution((0.4, 0.1, 0.1, 0.4), 1.0), manifest).grade == 0


@given(weights=WEIGHTS, temperature=st.floats(0.2, 5))
def test_score_and_margin_stay_in_range(manifest: Manifest, weights: list[float], temperature: float) -> None:
    calibrated = with_calibration(manifest, name="t-1", method="temperature", temperature=temperature)
    judgement = judge(distribution_of(weights), calibrated)
    assert 0 <= judgement.score <= 1
    assert 0 <= judgement.margin <= 1
    assert math.isclose(sum(judgement.distribution), 1, abs_tol=1e-9)
    assert judgement.distribution[judgement.grade] == max(judgement.distribution)


@given(weights=WEIGHTS, temperature=st.floats(0.2, 5))
def test_temperature_equals_softmax_of_scaled_logits(weights: list[float], temperature: float) -> None:
    raw = distribution_of(weights).probabilities
    powers = [p ** (1 / temperature) for p in raw]
    calibrated = calibrate(raw, Calibration(name="t-1", method="temperature", temperature=temperature))
    assert calibrated == pytest.approx([power / sum(powers) for power in powers], abs=1e-9)


def test_identity_leaves_probabilities_alone() -> None:
    assert calibrate((0.1, 0.9), Calibration()) == (0.1, 0.9)
