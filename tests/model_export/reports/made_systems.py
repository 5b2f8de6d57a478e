"""Makes pairs of two sources and systems that grade them, for reports."""

import numpy as np

from model_export.data.pairs import Finding, Pair
from model_export.evaluation.evaluate import Predictions
from service.contract.prompt import Note

SECRETS = ("secret-query", "secret-title", "secret-body", "secret-finding")
GOLD = np.arange(48) % 4
PAIRS = [
    Pair(
        f"p{number}",
        f"secret-query {number // 4}",
        Note("secret-title", "secret-body"),
        int(label),
        ("shop", "forum")[number // 24],
        "product-2",
        {"topic": Finding("secret-finding", 1)},
    )
    for number, label in enumerate(GOLD)
]


def predict(system: str, right: int) -> Predictions:
    """Make a system that grades `right` of every eight pairs correctly."""
    grades = np.where(np.arange(len(GOLD)) % 8 < right, GOLD, (GOLD + 1) % 4)
    return Predictions(system, np.eye(4)[grades] * 0.6 + 0.1, grades.astype(float))
