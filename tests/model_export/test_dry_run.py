import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_export.data.template import TemplateError
from model_export.dry_run import describe_plan
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "recipes"


def change(recipe: Recipe, part: str, **fields: Any) -> Recipe:
    changed = getattr(recipe, part).model_copy(update=fields)
    return recipe.model_copy(update={part: changed})


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return load_recipe(RECIPES / "tiny.toml")


@pytest.fixture(scope="module")
def full() -> Recipe:
    return load_recipe(RECIPES / "full.toml")


def stage(plan: str, name: str) -> str:
    """A stage's lines as one."""
    [found] = re.findall(rf"^  {name} .*(?:\n {{17}} .*)*", plan, re.MULTILINE)
    return " ".join(str(found).split())


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_has_a_plan_anywhere(recipe: Path, tmp_path: Path) -> None:
    plan = describe_plan(load_recipe(recipe), tmp_path)
    assert "PFLOP" in plan
    assert str(tmp_path) not in plan


def test_stages_come_in_the_order_of_the_run(tiny: Recipe) -> None:
    tiny = change(tiny, "export", adapter_rank=8)
    plan = describe_plan(tiny, Path())
    assert re.findall(r"^  (\w+) {2,}", plan, re.MULTILINE) == [
        "data",
        "student_base",
        "label_only_sft",
        "cot_sft",
        "parse_rate",
        "grpo",
        "sam",
        "label",
        "distil",
        "cut",
        "predictions",
        "predictions",
        "evaluation",
        "export",
    ]


def test_stages_that_a_recipe_leaves_out_or_adds(tiny: Recipe) -> None:
    tiny = change(change(tiny, "rl", steps=0), "label", teacher="cot_sft")
    plan = describe_plan(change(tiny, "distil", control_share=0.5), Path())
    names = re.findall(r"^  (\w+) {2,}", plan, re.MULTILINE)
    assert names[4:9] == ["parse_rate", "label", "distil", "average", "predictions"]
    assert "50% of label_only_sft's" in stage(plan, "average")
    assert "6 systems in one table" in stage(plan, "evaluation")
    assert "reasoned answers of cot_sft on" in plan


def test_teacher_of_its_own_is_a_stage_and_a_size(full: Recipe) -> None:
    plan = describe_plan(full, Path())
    assert "teacher: Qwen/Qwen3-8B, 8B parameters" in plan
    assert "student: Qwen/Qwen3-0.6B, 600M parameters" in plan
    assert "write Qwen/Qwen3-8B as float32, 30 GiB" in stage(plan, "teacher_base")


def test_training_stage_is_described(tiny: Recipe) -> None:
    described = stage(describe_plan(tiny, Path()), "cot_sft")
    steps, size = tiny.cot_sft.steps, tiny.cot_sft.batch_size
    assert f"{steps:,} steps of {size:,} examples: {steps * size:,} in all" in described
    # Made from scratch: all of them.
    assert re.search(r"; (\S+) of \1 parameters learn", described)
    assert "GiB a process (weights" in described


def test_upper_layers_alone_are_fewer_parameters() -> None:
    small = change(load_recipe(RECIPES / "small.toml"), "label_only_sft", frozen_layers=10)
    assert "70.8M of 135M parameters learn" in stage(describe_plan(small, Path()), "label_only_sft")


def test_what_is_frozen_costs_less_and_what_is_kept_costs_it_once() -> None:
    stages = {
        "all learn": {},
        "frozen": {"frozen_layers": 10},
        "kept": {"frozen_layers": 10, "keep_outputs": True},
    }
    small = load_recipe(RECIPES / "small.toml")
    costs = []
    for fields in stages.values():
        changed = change(small, "label_only_sft", **{"frozen_layers": 0, "pairs": 1000, **fields})
        described = stage(describe_plan(changed, Path()), "label_only_sft")
        [cost] = re.findall(r"([\d.]+) PFLOP", described)
        costs.append(float(cost))
    assert costs == sorted(costs, reverse=True)
    # 2 FLOPs a weight forward, 4 backward where it learns.
    assert costs[1] / costs[0] == pytest.approx(
        (2 * 135 + 4 * 70.8) / (2 * 135 + 4 * 106), abs=0.05
    )  # of two digits each
    # 12,800 examples, of which 1,000 are another pair.
    frozen = 2 * (135 - 70.8)
    assert costs[2] / costs[1] == pytest.approx(
        1 - frozen * (1 - 1 / 12.8) / (2 * 135 + 4 * 70.8), abs=0.05
    )  # of two digits each


def test_processes_share_a_batch_and_with_fsdp_the_weights(full: Recipe) -> None:
    described = stage(describe_plan(full, Path()), "cot_sft")
    assert "1,000 steps of 128 examples, 16 a process" in described
    assert "without FSDP: " in described
    assert "with FSDP, as the recipe says: " in described


def test_rollouts_are_counted_and_their_cache_is_where_they_are_made(full: Recipe) -> None:
    by_vllm = stage(describe_plan(full, Path()), "sam")
    by_transformers = stage(describe_plan(change(full, "rl", vllm=False), Path()), "sam")
    assert "600 steps of 16 prompts with 8 rollouts each, 16 a process: 76,800 rollouts by vLLM" in by_vllm
    assert "vLLM beside it" in by_vllm
    assert "KV cache" in by_transformers
    assert "vLLM" not in by_transformers


def test_iterations_train_twice_on_what_was_sampled_once(tiny: Recipe) -> None:
    sizes = {"steps": 40, "prompts": 8, "rollouts": 8}
    once, twice = (change(tiny, "rl", iterations=iterations, **sizes) for iterations in (1, 2))
    assert ": 2,560 rollouts" in stage(describe_plan(once, Path()), "grpo")
    assert ": 1,280 rollouts" in stage(describe_plan(twice, Path()), "grpo")


def test_gates_are_named(tiny: Recipe) -> None:
    bare = change(tiny, "export", with_vllm=False)
    assert stage(describe_plan(bare, Path()), "export").split("the ")[1] == "gates: label mass"
    whole = change(tiny, "export", int8=True)
    assert "int8 against float32, vLLM against transformers" in stage(describe_plan(whole, Path()), "export")


def test_base_of_unknown_size_has_steps_and_no_memory(full: Recipe) -> None:
    plan = describe_plan(change(full, "model", teacher="owner/teacher"), Path())
    assert "of unknown size" in plan
    assert "GiB" not in stage(plan, "cot_sft")
    assert "1,000 steps" in stage(plan, "cot_sft")
    assert "GiB" in stage(plan, "distil")


def test_fewer_layers_make_a_smaller_student(full: Recipe) -> None:
    plan = describe_plan(change(full, "distil", layers=5), Path())
    assert "of 240M parameters learn" in stage(plan, "distil")
    assert "of 600M parameters learn" in stage(plan, "label_only_sft")


def test_mistake_in_the_recipe_is_told(tiny: Recipe) -> None:
    with pytest.raises(TemplateError, match="no template 'mine'"):
        describe_plan(change(tiny, "model", template="mine"), Path())


def test_command_prints_it_without_loading_torch(tmp_path: Path) -> None:
    script = "import sys; from model_export.__main__ import main\n"
    script += (
        "try: main()\nexcept SystemExit: print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "run", str(RECIPES / "full.toml"), "--dry-run"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "not found here: DATA/pairs/train.jsonl, needed to run" in found.stdout
    assert found.stdout.splitlines()[-1] == "[]"
