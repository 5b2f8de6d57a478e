"""The calibration and decisions of a system, which turn its probabilities into the grades that are served."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.data.pairs import Pair
from model_export.evaluation.fit_calibration import apply_calibration, make_calibration
from model_export.evaluation.fit_decision import choose, make_decisions
from model_export.evaluation.judged import Judged
from model_export.evaluation.measures import most_probable
from service.contract.manifest import Calibration, Decision


@dataclass(frozen=True)
class Fitted:
    """A calibration and decisions fitted on dev pairs."""

    calibration: Calibration
    decisions: tuple[Decision, ...]

    def calibrate(self, probabilities: np.ndarray, criteria: Sequence[str]) -> np.ndarray:
        """Calibrate as the service does, from (pairs, grades) raw probabilities and each pair's criteria."""
        return apply_calibration(probabilities, self.calibration, criteria)

    def choose_grades(self, probabilities: np.ndarray, criteria: Sequence[str]) -> np.ndarray:
        """Choose (pairs,) grades as the service does, from raw probabilities."""
        calibrated = self.calibrate(probabilities, criteria)
        grades = most_probable(calibrated)
        for decision in self.decisions:
            here = np.array(criteria) == decision.criteria
            grades[here] = choose(calibrated[here], np.array(decision.utilities))
        return grades

    def to_json(self) -> dict[str, Any]:
        """Return both in the format of the manifest and of adapter.json."""
        decisions = [each.model_dump(mode="json") for each in self.decisions]
        return {"calibration": self.calibration.model_dump(mode="json"), "decisions": decisions}


def fit(probabilities: np.ndarray, pairs: Sequence[Pair], seed: int) -> Fitted:
    """Fit the calibration and the decisions on these dev pairs, per criteria; `probabilities` are raw.

    Raises CalibrationDataError with fewer than two queries.
    """
    judged = Judged.of(pairs)
    data_name = f"{len(pairs)} dev pairs of {', '.join(dict.fromkeys(pair.source for pair in pairs))}"
    calibration = make_calibration(probabilities, judged, data_name=data_name, seed=seed)
    calibrated = apply_calibration(probabilities, calibration, judged.criteria)
    return Fitted(calibration, make_decisions(calibrated, judged, seed=seed, data_name=data_name))
