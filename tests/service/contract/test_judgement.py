import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.calibration import calibrate
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.manifest import Calibration, Manifest
from tests.checkpoints import load_tiny

GENERAL = "general-1"
WEIGHTS = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda weights: sum(weights) > 1e-6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_tiny(tmp_path_factory.mktemp("checkpoint")).manifest


def distribution_of(weights: list[float]) -> LabelDistribution:
    return LabelDistribution(tuple(weight / sum(weights) for weight in weights), 0.9)


def with_calibration(manifest: Manifest, **calibration: Any) -> Manifest:
    return manifest.model_copy(update={"calibration": Calibration(**calibration)})


def test_score_is_expected_gain_over_top_gain(manifest: Manifest) -> None:
    judgement = judge(LabelDistribution((0.01, 0.02, 0.12, 0.85), 0.998), manifest, GENERAL)
    assert judgement.score == pytest.approx((0.02 * 1 + 0.12 * 3 + 0.85 * 7) / 7)
    assert judgement.grade == 3
    assert judgement.margin == pytest.approx(0.73)
    assert judgement.label_mass == 0.998


def test_of_equally_probable_grades_the_lower_one_is_chosen(manifest: Manifest) -> None:
    assert judge(LabelDistribution((0.4, 0.1, 0.1, 0.4), 1.0), manifest, GENERAL).grade == 0


@given(weights=WEIGHTS, temperature=st.floats(0.2, 5))
def test_score_and_margin_stay_in_range(manifest: Manifest, weights: list[float], temperature: float) -> None:
    calibrated = with_calibration(manifest, name="t-1", method="temperature", temperature=temperature)
    judgement = judge(distribution_of(weights), calibrated, GENERAL)
    assert 0 <= judgement.score <= 1
    assert 0 <= judgement.margin <= 1
    assert math.isclose(sum(judgement.distribution), 1, abs_tol=1e-9)
    assert judgement.distribution[judgement.grade] == max(judgement.distribution)


def decided(manifest: Manifest, utilities: list[list[float]]) -> Manifest:
    decision = {"criteria": GENERAL, "utilities": utilities}
    return Manifest.model_validate({**manifest.model_dump(), "decisions": [decision]})


def test_a_decision_chooses_the_greatest_expected_utility(manifest: Manifest) -> None:
    found = LabelDistribution((0.5, 0.0, 0.1, 0.4), 1.0)
    nearest = decided(manifest, [[-float((true - chosen) ** 2) for chosen in range(4)] for true in range(4)])
    assert judge(found, manifest, GENERAL).grade == 0
    assert judge(found, nearest, GENERAL).grade == 1  # the mean is 1.4
    assert judge(found, nearest, "another-1").grade == 0


def test_a_decision_changes_only_the_grade(manifest: Manifest) -> None:
    found = LabelDistribution((0.4, 0.3, 0.2, 0.1), 0.9)
    rare_first = decided(
        manifest, [[float(true == chosen) * 4**true for chosen in range(4)] for true in range(4)]
    )
    before, after = judge(found, manifest, GENERAL), judge(found, rare_first, GENERAL)
    assert (before.grade, after.grade) == (0, 3)
    assert replace(before, grade=3) == after


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([("another-1", 4, 4)], "of this manifest"),
        ([(GENERAL, 4, 4), (GENERAL, 4, 4)], "each criteria of this manifest may have one decision"),
        ([(GENERAL, 3, 4)], "a row and a column"),
        ([(GENERAL, 4, 3)], "a row and a column"),
    ],
)
def test_a_decision_that_does_not_match_the_manifest_is_refused(
    manifest: Manifest, decisions: list[tuple[str, int, int]], message: str
) -> None:
    stated = [{"criteria": name, "utilities": [[0.0] * columns] * rows} for name, rows, columns in decisions]
    with pytest.raises(ValueError, match=message):
        Manifest.model_validate({**manifest.model_dump(), "decisions": stated})


@given(weights=WEIGHTS)
def test_identity_utilities_choose_the_most_probable_grade(manifest: Manifest, weights: list[float]) -> None:
    identity = decided(manifest, [[float(true == chosen) for chosen in range(4)] for true in range(4)])
    found = distribution_of(weights)
    assert judge(found, identity, GENERAL) == judge(found, manifest, GENERAL)


@given(weights=WEIGHTS, temperature=st.floats(0.2, 5))
def test_temperature_equals_softmax_of_scaled_logits(weights: list[float], temperature: float) -> None:
    raw = distribution_of(weights).probabilities
    powers = [p ** (1 / temperature) for p in raw]
    calibration = Calibration(name="t-1", method="temperature", temperature=temperature)
    calibrated = calibrate(raw, calibration, GENERAL)
    assert calibrated == pytest.approx([power / sum(powers) for power in powers], abs=1e-9)


def test_the_identity_calibration_keeps_probabilities() -> None:
    assert calibrate((0.1, 0.9), Calibration(), GENERAL) == (0.1, 0.9)


def test_criteria_with_their_own_temperature_are_calibrated_with_it(manifest: Manifest) -> None:
    own = Calibration(method="temperature", temperature=3.0, temperatures={GENERAL: 0.5})
    # The squares, renormalised.
    assert calibrate((0.25, 0.75), own, GENERAL) == pytest.approx((0.1, 0.9))
    assert calibrate((0.25, 0.75), own, "other") == calibrate(
        (0.25, 0.75), Calibration(method="temperature", temperature=3.0), GENERAL
    )
    raw = distribution_of([0.1, 0.2, 0.3, 0.4])
    calibrated = manifest.model_copy(update={"calibration": own})
    assert judge(raw, calibrated, GENERAL).distribution == pytest.approx(
        calibrate(raw.probabilities, own, GENERAL)
    )


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({"temperatures": {"general-1": 2.0}}, "identity calibration takes no temperature"),
        ({"method": "temperature", "temperatures": {"nobody-1": 2.0}}, "not for .'nobody-1'"),
        ({"method": "temperature", "temperatures": {"general-1": 0.0}}, "greater than 0"),
    ],
)
def test_temperatures_that_do_not_match_the_manifest_are_refused(
    manifest: Manifest, calibration: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Manifest.model_validate({**manifest.model_dump(), "calibration": calibration})
