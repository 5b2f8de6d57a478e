"""The experiment at its smallest: every arm for real, on one seed."""

from dataclasses import replace
from pathlib import Path

import pytest

from model_export.data.pairs import write_pairs
from model_export.data.synthetic import generate
from model_export.experiment.arms import ARMS
from model_export.experiment.measure import figures_of
from model_export.experiment.run import run_seeds
from model_export.recipe import Recipe
from model_export.stages import RunError
from tests.tiny_teacher import control_as_teacher, micro_recipe


def stages_in(folder: Path) -> list[str]:
    return sorted(path.parent.name.split("-")[0] for path in folder.glob("*/stage.json"))


def micro_experiment(target: float = 0.0) -> Recipe:
    return micro_recipe(
        data={"synthetic": {"task": "six", "train_queries": 12, "dev_queries": 6, "notes_per_query": 4}},
        model={"limits": {"max_query_tokens": 96, "max_note_tokens": 128}},
        cot_sft={"steps": 20},
        rl={"steps": 9, "max_tokens": 110},
        experiment={"seeds": (1, 2), "warm_up_accuracy": target, "measure_at": (1, 3)},
    )


@pytest.mark.slow  # a minute: a warm-up and six arms
def test_arms_start_from_one_warm_up_and_a_rerun_keeps_them(tmp_path: Path) -> None:
    recipe = micro_experiment()
    found = run_seeds(recipe, Path(), tmp_path, [2], lambda *_: None)
    assert set(found[2]) == set(ARMS)
    warm_up = found[2]["grpo"][0]
    for readings in found[2].values():
        assert list(readings) == [0, 1, 3]
        assert readings[0] == warm_up
        assert all(list(figures_of(each)) == ["random", "long_tail", "unseen"] for each in readings.values())
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-2/*/model.safetensors")}
    assert len(written) == 1 + 1 + len(ARMS)
    assert run_seeds(recipe, Path(), tmp_path, [2], lambda *_: None) == found
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.slow  # a minute: a control, evidence, a warm-up and two arms
def test_arms_on_own_data_start_from_the_teacher_that_learned_evidence(tmp_path: Path) -> None:
    made = generate(3, 8, 4, 4)
    data = {
        "synthetic": None,
        "sources": [{"name": "shop", "train": "train.jsonl", "dev": "dev.jsonl", "criteria": "product-2"}],
    }
    for name, pairs in (("train", made.train), ("dev", made.dev)):
        write_pairs(tmp_path / f"{name}.jsonl", [replace(pair, findings={}) for pair in pairs])
    recipe = micro_recipe(
        data=data,
        evidence={"min_effect": 1e-6},
        experiment={"seeds": (1, 2), "arms": ("sft", "step"), "measure_at": (1, 2)},
    )
    found = run_seeds(recipe, tmp_path, tmp_path / "out", [1, 2], lambda *_: None)
    starts = [readings[0] for arms in found.values() for readings in arms.values()]
    assert starts == [starts[0]] * 4
    figures = figures_of(starts[0])
    assert set(figures) == {"all", "shop"}
    assert set(figures["all"]) == {
        "accuracy",
        "macro_f1",
        "parse_rate",
        "step_accuracy",
        "true",
        "consistent",
    }
    assert stages_in(tmp_path / "out/seed-2") == ["arm_sft", "arm_step"]
    # Those of a run's folder, which keeps them.
    of_run = ["cot_sft", "data", "evidence", "label_only_sft", "parse_rate", "student_base"]
    assert stages_in(tmp_path / "out") == [*of_run, "warm_up"]


def test_warm_up_that_does_not_reach_its_target_is_an_error(tmp_path: Path) -> None:
    recipe = micro_experiment(target=1.0)
    short = recipe.model_copy(update={"cot_sft": recipe.cot_sft.model_copy(update={"steps": 10})})
    with pytest.raises(RunError, match=r"stays below 100%: raise cot_sft\.steps"):
        run_seeds(short, Path(), tmp_path, [1], lambda *_: None)


def test_recipe_without_a_warm_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"start from a warm-up: set cot_sft\.steps"):
        run_seeds(control_as_teacher(), tmp_path, tmp_path, [1], lambda *_: None)
