import json
from pathlib import Path

import pytest

from model_export.experiment.arms import ARMS
from model_export.experiment.measure import Figures
from model_export.experiment.report import write_experiment
from model_export.experiment.results import Mean, area, compare, to_markdown
from tests.model_export.experiment.readings import readings

SPLITS = ("random", "long_tail", "unseen")


def figures(accuracy: float) -> Figures:
    shares = {"parse_rate": 1.0, "step_accuracy": accuracy / 2, "true": 0.9, "consistent": 0.8}
    return {split: {"accuracy": accuracy, "macro_f1": accuracy / 4, **shares} for split in SPLITS}


def measured(gain: dict[str, float], seeds: int = 8) -> dict[int, dict[str, dict[int, Figures]]]:
    """Return accuracies that rise linearly by each arm's gain from a warm-up that differs by seed."""
    return {
        seed: {
            arm: {
                step: figures(0.6 + seed / 100 + gain.get(arm, 0.0) * step / 150)
                for step in (0, 25, 50, 100, 150)
            }
            for arm in ARMS
        }
        for seed in range(1, seeds + 1)
    }


def test_area_is_the_mean_accuracy_while_training() -> None:
    steps = {0: figures(0.6), 50: figures(0.8), 150: figures(0.8)}
    assert area(steps, "random") == pytest.approx((0.7 * 50 + 0.8 * 100) / 150)


def test_arm_that_is_better_for_every_seed_wins() -> None:
    found = compare(measured({"step": 0.2, "grpo": 0.1}), "grpo", "random")
    assert (found.wins, found.seeds) == (8, 8)
    assert found.p == pytest.approx(2 / 2**8)
    assert found.difference.mean == pytest.approx(0.05)


def test_equal_arms_differ_by_nothing() -> None:
    found = compare(measured({}), "sft", "unseen")
    assert (found.difference, found.wins, found.p) == (Mean(0.0, 0.0, 0.0), 0, 1.0)


def test_interval_is_student_s() -> None:
    assert Mean.of([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)


def test_control_that_wins_is_first_in_the_table() -> None:
    table = to_markdown(measured({"dense": 0.3, "step": 0.2}))
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[2][0] == "| dense"
    assert rows[2][4].startswith("-0.050 [")
    assert rows[2][5] == "0 of 8"


def test_arms_of_rl_are_compared_with_more_supervised_training() -> None:
    table = to_markdown(measured({"step": 0.2, "sft": 0.1}))
    # The first split's table, up to the next heading.
    first = table.split("minus `sft`:")[1].split("###")[0]
    rows = {
        line.split(" | ")[0]: line.split(" | ")[1:] for line in first.splitlines() if line.startswith("| ")
    }
    assert rows["| step"] == [
        "0.100 [0.100, 0.100]",
        "0.025 [0.025, 0.025]",
        "0.000 [0.000, 0.000]",
        "0.000 [0.000, 0.000] |",
    ]
    assert "| sft" not in rows


def test_report_has_figures_tables_and_a_picture(tmp_path: Path) -> None:
    found = {
        seed: {
            arm: {step: readings(0.5 + gain * step / 100, ("all", "shop")) for step in (0, 50, 100)}
            for arm, gain in (("sft", 0.0), ("grpo", 0.1), ("step", 0.2))
        }
        for seed in (1, 2)
    }
    shown = write_experiment(found, tmp_path)
    assert (tmp_path / "experiment.md").read_text(encoding="utf-8") == shown
    raw = json.loads((tmp_path / "experiment.json").read_text(encoding="utf-8"))
    assert raw["measured"]["2"]["step"]["100"]["shop"]["accuracy"] == pytest.approx(0.7)
    assert set(raw["comparisons"]["all"]) == {"sft", "grpo"}
    assert raw["gains_by_query"]["all"]["step"]["accuracy"]["mean"] == pytest.approx(0.2)
    assert "intervals by a paired bootstrap over queries" in shown
    assert (tmp_path / "experiment.png").read_bytes().startswith(b"\x89PNG")
