from typing import Any

import numpy as np
import pytest

from model_export.reports.plots import (
    curve,
    logged_criteria,
    logged_stages,
    plot_confusion,
    plot_curves,
    plot_metrics_together,
    plot_reliability,
)

LOG: list[dict[str, Any]] = [
    {"stage": "cot_sft", "step": 1, "loss": 2.0},
    {"stage": "cot_sft", "step": 2, "loss": None},
    {"stage": "cot_sft", "step": 3, "loss": 1},
    {"stage": "sam", "step": 1, "reward": 0.5, "step_accuracy/topic": 0.4},
    {"stage": "grpo", "step": 1, "loss": float("nan"), "step_accuracy/intent": 0.4},
]
PNG = b"\x89PNG"
GOLD = np.array([0, 1, 1])
PROBABILITIES = np.array([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])


def test_curve_leaves_out_rows_without_a_finite_number() -> None:
    assert curve(LOG, "cot_sft", "loss") == ([1, 3], [2.0, 1.0])
    assert curve(LOG, "absent", "loss") == ([], [])


def test_logged_stages_have_at_least_one_number() -> None:
    assert logged_stages(LOG, "loss") == ["cot_sft"]
    assert logged_criteria(LOG, ["grpo", "sam"]) == ["topic", "intent"]
    assert logged_criteria(LOG, ["grpo"]) == ["intent"]


@pytest.mark.parametrize(
    "image",
    [
        plot_curves(LOG, "loss", "loss"),
        plot_metrics_together(LOG, {"reward": "reward", "absent": "absent"}, {"grpo": "grpo", "sam": "sam"}),
        plot_confusion(GOLD, {"student": PROBABILITIES}),
        plot_reliability(GOLD, {"student": PROBABILITIES}),
    ],
    ids=["curves", "metrics", "confusion", "reliability"],
)
def test_data_becomes_a_png(image: bytes | None) -> None:
    assert image is not None
    assert image.startswith(PNG)


def test_no_data_gives_none() -> None:
    assert plot_curves(LOG, "correlation", "") is None
    assert plot_metrics_together(LOG, {"parse_rate": "parse rate"}, {"sam": "sam"}) is None
    assert plot_confusion(GOLD, {}) is None
    assert plot_reliability(GOLD, {}) is None


def test_equal_data_give_equal_bytes() -> None:
    once, again = (plot_confusion(GOLD, {"student": PROBABILITIES}) for _ in range(2))
    assert once == again
