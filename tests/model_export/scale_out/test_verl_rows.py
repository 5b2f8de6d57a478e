"""The rows that verl reads, and the reward and the mask of its rollouts. test_verl_rl.py runs verl itself."""

import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from random import Random

import pytest
from datasets import load_dataset
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from model_export.__main__ import app
from model_export.data.pairs import Pair
from model_export.data.prepare import read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import sample_dev
from model_export.recipe_stages import RlConfig
from model_export.scale_out.verl_rows import Task, mask_batch
from model_export.teacher.reward import ClassWeights
from service.contract.prompt import Note
from tests.processes import output_of
from tests.step_groups import ANNOTATED, CRITERIA, END, HAND_WORKED, WRONG, by_place, read, tokens, trace_text
from tests.test_locks import pins
from tests.tiny_teacher import MICRO, micro_recipe

TASK = Task(ANNOTATED, CRITERIA, 1.5, END, RlConfig(steps=1, truth_weight=0.2, consistency_weight=0.3))


def test_verl_s_lock_has_all_that_its_processes_import() -> None:
    lacking = [
        top
        for top, distributions in packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & {*pins("verl"), "notegrade"}
    ]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import model_export.scale_out.verl_rows"
    )
    output_of(sys.executable, "-c", code, *lacking)


def test_rows_have_the_prompts_of_our_own_rl(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text(MICRO)
    command = ["export-verl", str(tmp_path / "micro.toml"), "--teacher", str(tiny_base)]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "rows")])
    assert done.exit_code == 0, done.output

    recipe = micro_recipe()
    data = read_data(recipe, tmp_path)
    prompting = Prompting.load(PromptForm.of(recipe.model, data.criteria, data.teacher_criteria), tiny_base)
    weights = ClassWeights(data.train, recipe.rl)
    dev = sample_dev(data.dev, recipe.rl.dev_pairs, Random(recipe.seed))
    longest = max(len(prompting.teacher_prompt(pair)) for pair in (*data.train, *dev))
    assert f"the longest prompt has {longest:,} tokens" in done.output
    for name, pairs in (("train", data.train), ("dev", dev)):
        rows = load_dataset("parquet", data_files=str(tmp_path / f"rows/{name}.parquet"))["train"]
        assert [row["prompt"] for row in rows] == [prompting.teacher_prompt(pair) for pair in pairs]
        tasks = [Task.of_json(row["extra_info"]["task"]) for row in rows]
        assert tasks == [
            Task(
                pair,
                prompting.steps(pair.criteria),
                weights.of(pair),
                prompting.end_token_id,
                recipe.rl,
            )
            for pair in pairs
        ]


@pytest.mark.parametrize("pair", [ANNOTATED, Pair("é\n", "q", Note("", "b"), 0, "s", "c")])
def test_task_is_the_same_after_json(pair: Pair) -> None:
    task = Task(pair, CRITERIA, 0.25, END, RlConfig(steps=3, mask="final"))
    assert Task.of_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Weights: 1.5 exact grade, 0.1 format, 0.2 true citations, 0.3 consistent.
        (trace_text(), 1.5 + 0.1 + 0.3),
        (trace_text(answer=0), 0.1),
        (trace_text(one='missing "green"'), 1.5 + 0.1 + 0.2 + 0.3),
        ("no trace", 0.0),
    ],
)
def test_reward_is_that_worked_by_hand(tiny_base: Path, text: str, expected: float) -> None:
    rollout = TASK.read(tokens(text), str(tiny_base))
    assert rollout == read(text)
    assert TASK.reward(rollout) == pytest.approx(expected)


def test_batch_is_masked_by_group_in_any_order() -> None:
    rows = [
        (f"uid-{number}", text, advantage, expected)
        for number, (shown, credit, places) in enumerate(HAND_WORKED)
        for text, advantage, expected in ((shown, credit, places), (WRONG, -credit, None))
    ]
    Random(1).shuffle(rows)
    uids, texts, advantages, expected = zip(*rows, strict=True)
    found = mask_batch(uids, [TASK] * len(rows), [read(text) for text in texts], advantages)
    for text, values, places in zip(texts, found, expected, strict=True):
        assert places is None or by_place(text, values) == places


def test_without_a_mask_every_token_has_the_advantage() -> None:
    task = Task(ANNOTATED, CRITERIA, 1.0, END, RlConfig(steps=1, mask="none"))
    rollouts = [read(trace_text(1, 1, 2)), read(WRONG)]
    found = mask_batch(["u", "u"], [task, task], rollouts, [1.0, -1.0])
    assert [set(values) for values in found] == [{1.0}, {-1.0}]
