"""Calibrates raw label probabilities with the calibration in the manifest."""

import math
from collections.abc import Sequence

from service.contract.manifest import Calibration


def calibrate(probabilities: Sequence[float], calibration: Calibration, criteria: str) -> tuple[float, ...]:
    """Return the calibrated probabilities in the same order; they sum to 1. `criteria` names the criteria of the prompt.

    Scaling probabilities by a temperature equals scaling logits: softmax(log p / T).
    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    if calibration.method == "identity":
        return tuple(probabilities)
    temperature = calibration.temperature_under(criteria)
    logits = [math.log(p) / temperature if p > 0 else -math.inf for p in probabilities]
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    total = sum(weights)
    return tuple(weight / total for weight in weights)
