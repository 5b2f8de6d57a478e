from typing import Any

import numpy as np
import pytest

from model_export.reports.plots import curve, plot_confusion, plot_metrics, plot_reliability, plot_stages

LOG: list[dict[str, Any]] = [
    {"stage": "cot_sft", "step": 1, "loss": 2.0},
    {"stage": "cot_sft", "step": 2, "loss": None},
    {"stage": "cot_sft", "step": 3, "loss": 1},
    {"stage": "rl", "step": 1, "reward": 0.5},
    {"stage": "cot_sft", "step": 1, "loss": float("nan")},
]
GOLD = np.array([0, 1, 1])
PROBABILITIES = np.array([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])


def test_curve_leaves_out_rows_without_a_finite_number() -> None:
    assert curve(LOG, "cot_sft", "loss") == ([1, 3], [2.0, 1.0])
    assert curve(LOG, "absent", "loss") == ([], [])


@pytest.mark.parametrize(
    ("image", "nothing"),
    [
        (plot_stages(LOG, "loss"), plot_stages(LOG, "correlation")),
        (
            plot_metrics(LOG, {"reward": "reward", "absent": "absent"}, {"cot_sft": "cot_sft", "rl": "rl"}),
            plot_metrics(LOG, {"parse_rate": "parse rate"}, {"rl": "rl"}),
        ),
        (plot_confusion(GOLD, {"student": PROBABILITIES}), plot_confusion(GOLD, {})),
        (plot_reliability(GOLD, {"student": PROBABILITIES}), plot_reliability(GOLD, {})),
    ],
    ids=["stages", "metrics", "confusion", "reliability"],
)
def test_data_becomes_a_png_and_no_data_none(image: bytes | None, nothing: bytes | None) -> None:
    assert image is not None
    assert image.startswith(b"\x89PNG")
    assert nothing is None


def test_equal_data_give_equal_bytes() -> None:
    once, again = (plot_confusion(GOLD, {"student": PROBABILITIES}) for _ in range(2))
    assert once == again
