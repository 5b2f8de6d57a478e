import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from model_export.data.pairs import DataError
from model_export.data.template import TemplateError
from model_export.dry_run import describe_plan
from model_export.models.base_model import BaseModelError
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "recipes"


def change(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """Change fields by section."""
    changed = {name: getattr(recipe, name).model_copy(update=fields) for name, fields in sections.items()}
    return recipe.model_copy(update=changed)


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return load_recipe(RECIPES / "tiny.toml")


def stages(plan: str) -> dict[str, str]:
    """Return the description of each stage of a plan, by the stage's name."""
    return dict(re.findall(r"^  (\w+) {2,}(.*)$", plan, re.MULTILINE))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Plan all recipes in a folder without data; return the plans by the recipe's name."""
    nowhere = tmp_path_factory.mktemp("nowhere")
    return {path.stem: describe_plan(load_recipe(path), nowhere) for path in RECIPES.glob("*.toml")}


def test_every_recipe_has_a_plan_anywhere(plans: dict[str, str]) -> None:
    assert {"default", "full", "tiny"} <= set(plans)
    assert all("steps of" in stages(plan)["label_only_sft"] for plan in plans.values())
    assert not any("nowhere" in plan for plan in plans.values())


def test_plan_leaves_out_the_stages_that_a_recipe_leaves_out(tiny: Recipe) -> None:
    without_rl = change(tiny, rl={"steps": 0}, label={"teacher": "cot_sft"})
    names = list(stages(describe_plan(without_rl, Path())))
    assert names[names.index("parse_rate") :][:3] == ["parse_rate", "label", "unlabelled"]
    assert "predict_rl" not in names


def test_plan_has_the_teacher_s_own_traces_before_or_after_its_warm_up(tiny: Recipe) -> None:
    after = list(stages(describe_plan(change(tiny, self_sft={"steps": 10}), Path())))
    assert after[after.index("parse_rate") :][:4] == ["parse_rate", "own_traces", "self_sft", "rl"]
    assert "predict_self_sft" in after
    before = list(stages(describe_plan(change(tiny, cot_sft={"traces": "own"}), Path())))
    assert before[before.index("cot_sft") - 1] == "own_traces"


def test_plan_names_how_unlabelled_pairs_are_mined(plans: dict[str, str], tiny: Recipe) -> None:
    by_encoder = change(tiny, unlabelled={"pairs": 50_000, "encoder": "minilm"})
    mined = stages(describe_plan(by_encoder, Path()))["unlabelled"]
    assert mined == "mine about 50,000 unjudged pairs by BM25 and minilm"
    assert stages(plans["tiny"])["unlabelled"] == "mine about 400 unjudged pairs by BM25"
    assert "unlabelled" not in stages(describe_plan(change(tiny, unlabelled={"pairs": 0}), Path()))


def test_plan_names_a_second_base_and_an_adapter(tiny: Recipe, tiny_base: Path) -> None:
    model = {"teacher": str(tiny_base), "student": "tiny"}
    plan = describe_plan(change(tiny, model=model, export={"adapter_rank": 8}), Path())
    assert "teacher_base" in stages(plan)
    assert stages(plan)["cut"].endswith("rank 8")
    count = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_base)).num_parameters()
    assert f"{tiny_base}, {count / 1e6:,.1f}M parameters, 2 layers" in plan


def test_parameters_of_smollm2_are_counted(plans: dict[str, str]) -> None:
    plan = plans["small"]
    assert "smollm2, 134.5M parameters, 30 layers, 513 MiB as float32" in plan
    # 20 of 30 layers learn, in their linear weights alone: 12 bytes each beside the weights.
    assert "70.8M parameters learn; weights 513 MiB, gradients and Adam 810 MiB" in stages(plan)["cot_sft"]
    assert "smollm2:20, 99.1M parameters, 20 layers" in plans["relevance"]


def test_factors_alone_need_gradients() -> None:
    small = load_recipe(RECIPES / "small.toml")
    low = stages(describe_plan(change(small, cot_sft={"lora_rank": 16}), Path()))["cot_sft"]
    assert "3.3M parameters learn; weights 526 MiB, gradients and Adam 37 MiB" in low


def test_base_that_is_not_cached_has_steps_and_no_memory() -> None:
    full = load_recipe(RECIPES / "full.toml")
    plan = describe_plan(change(full, model={"teacher": "owner/teacher", "teacher_config": None}), Path())
    assert "On H100 GPUs" not in plan
    assert "owner/teacher, of unknown size" in plan
    assert stages(plan)["cot_sft"] == "1,000 steps of 128 examples: 128,000 in all"


def test_fsdp_shares_weights_and_optimizer(tiny: Recipe) -> None:
    def bytes_of(recipe: Recipe) -> float:
        return float(re.findall(r"gradients and Adam (\d+) MiB", describe_plan(recipe, Path()))[0])

    wide = tiny.model.tiny.model_copy(update={"hidden": 512})
    alone = change(tiny, model={"tiny": wide})
    together = change(alone, launch={"processes": 4, "fsdp": ("label_only_sft",)})
    assert bytes_of(together) == pytest.approx(bytes_of(alone) / 4, abs=1)
    assert bytes_of(change(alone, launch={"processes": 4, "fsdp": ("rl",)})) == bytes_of(alone)


def test_size_stated_in_the_recipe_is_compared_with_the_base(tiny: Recipe, tiny_base: Path) -> None:
    model = {"teacher": str(tiny_base), "teacher_config": {"num_hidden_layers": 3}}
    with pytest.raises(
        BaseModelError, match=r"states num_hidden_layers = 3 for .*, whose config\.json has 2"
    ):
        describe_plan(change(tiny, model=model), Path())


def test_full_recipe_s_sizes_are_those_of_the_model_cards(plans: dict[str, str]) -> None:
    """Qwen3-8B: 8.2B parameters, 6.95B without embeddings; Qwen3-0.6B: 0.6B and 0.44B."""
    assert "Qwen/Qwen3-8B, 8,190.7M parameters, 36 layers" in plans["full"]
    assert "Qwen/Qwen3-0.6B, 596.0M parameters, 28 layers" in plans["full"]
    assert "6,945.8M parameters learn" in stages(plans["full"])["rl"]
    assert "440.4M parameters learn" in stages(plans["full"])["distil"]


def test_full_recipe_fits_on_eight_gpus_and_on_disk(plans: dict[str, str]) -> None:
    table = plans["full"].split("On H100 GPUs\n")[1]
    rows = {line.split()[0]: re.split(r" {2,}", line.strip()) for line in table.splitlines()[1:8]}
    assert list(rows) == ["label_only_sft", "own_traces", "cot_sft", "rl", "label", "distil", "all"]
    assert "!" in rows["rl"][1]
    assert not any("!" in row[2] for row in rows.values())
    assert "On H100 GPUs" not in plans["small"]


def test_iterations_train_twice_on_what_was_sampled_once(tiny: Recipe) -> None:
    sizes = {"steps": 40, "prompts": 8, "rollouts": 8}
    once, twice = (change(tiny, rl={**sizes, "iterations": iterations}) for iterations in (1, 2))
    assert "2,560 rollouts" in stages(describe_plan(once, Path()))["rl"]
    assert "1,280 rollouts" in stages(describe_plan(twice, Path()))["rl"]


def test_tokens_that_ray_samples_are_planned(tiny: Recipe) -> None:
    config = {"rl": {"max_tokens": 250}, "label": {"pairs": 208_000, "paths": 8}}
    assert "tokens" not in stages(describe_plan(change(tiny, **config), Path()))["label"]

    def planned(workers: int) -> str:
        plan = describe_plan(change(tiny, **config, launch={"ray_workers": workers}), Path())
        assert f"features of the stack's models: {workers}" in plan
        return stages(plan)["label"]

    # 208,000 pairs with 8 paths of 250 tokens.
    assert planned(8).endswith("at most 416.0M tokens")


def test_gates_are_named(tiny: Recipe) -> None:
    bare = change(tiny, export={"with_vllm": False})
    assert stages(describe_plan(bare, Path()))["export"].endswith("gates: label mass")
    whole = change(tiny, export={"int8": True})
    assert "int8 against float32, vLLM against transformers" in stages(describe_plan(whole, Path()))["export"]


def test_generated_pairs_are_counted(tiny: Recipe) -> None:
    plan = describe_plan(tiny, Path())
    assert "synthetic: 4,800 pairs to train on, 480 to measure on" in plan
    assert "1,920 in all, 0.4 per pair" in stages(plan)["label_only_sft"]


def write_rows(path: Path, *ids: str, label: int = 1) -> None:
    rows = ({"id": id_, "query": id_, "note": {"title": None, "body": "b"}, "label": label} for id_ in ids)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def on_files(recipe: Recipe, **files: str) -> Recipe:
    data = {"sources": [{"name": "mine", "train": "train.jsonl", "dev": "dev.jsonl", **files}]}
    return Recipe.model_validate({**recipe.model_dump(), "data": data})


def test_pairs_are_read_if_the_files_exist(tiny: Recipe, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", "a", "b")
    assert "missing under DATA, needed to run: dev.jsonl" in describe_plan(on_files(tiny), tmp_path)
    write_rows(tmp_path / "dev.jsonl", "c")
    assert "mine: 2 pairs to train on, 1 to measure on" in describe_plan(on_files(tiny), tmp_path)
    write_rows(tmp_path / "test.jsonl", "d")
    plan = describe_plan(on_files(tiny, test="test.jsonl"), tmp_path)
    assert "mine: 2 pairs to train on, 1 to measure on, 1 set aside to test" in plan
    write_rows(tmp_path / "train.jsonl", "a", label=7)
    with pytest.raises(DataError, match="line 1: label: 7 is out of range"):
        describe_plan(on_files(tiny), tmp_path)


def test_unknown_template_is_refused(tiny: Recipe) -> None:
    with pytest.raises(TemplateError, match="no template 'mine'"):
        describe_plan(change(tiny, model={"template": "mine"}), Path())


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "nothing"}'])
def test_folder_that_is_no_model_is_refused(tiny: Recipe, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(BaseModelError, match="can't be read"):
        describe_plan(change(tiny, model={"teacher": str(tmp_path)}), Path())


def test_command_prints_the_plan(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model_export", "run", str(RECIPES / "full.toml"), "--dry-run"]
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert "missing under DATA, needed to run: pairs/train.jsonl, pairs/dev.jsonl" in found.stdout
    assert "On H100 GPUs" in found.stdout
    assert found.stderr == ""
