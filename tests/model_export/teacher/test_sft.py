import re
from dataclasses import replace
from pathlib import Path

import pytest

from model_export.data.gold_traces import gold_steps
from model_export.data.soft_labels import SoftLabel
from model_export.teacher.rollout import Sampler, Sampling, sample_paths
from model_export.teacher.sft import graded_example, trace_of, traced_example, train_cot
from model_export.training.batches import Example
from model_export.training.supervised import TrainingError
from tests.tiny_teacher import TinyTeacher, micro_job


def test_control_example_has_the_smoothed_gold_grade_and_no_completion(tiny_teacher: TinyTeacher) -> None:
    pair, prompting = tiny_teacher.pairs[0], tiny_teacher.prompting
    prompt = prompting.student_prompt(pair)
    assert graded_example(pair, prompting, 1.0) == Example(prompt, [], [0.25] * 4, pair.label)


def test_trace_comes_from_findings_or_from_evidence_for_the_gold_grade(tiny_teacher: TinyTeacher) -> None:
    with_findings, prompting = tiny_teacher.pairs[0], tiny_teacher.prompting
    bare = replace(with_findings, findings={})
    right = {bare.id: SoftLabel(bare.id, (), {bare.label: "topic: nothing => 0\n"})}
    wrong = {bare.id: SoftLabel(bare.id, (), {3 - bare.label: "topic: nothing => 0\n"})}
    steps = gold_steps(with_findings, prompting.steps(with_findings.criteria))
    assert trace_of(with_findings, right, prompting) == steps
    assert trace_of(bare, right, prompting) == "topic: nothing => 0\n"
    assert trace_of(bare, wrong, prompting) is None
    assert trace_of(bare, {}, prompting) is None


def test_grades_of_a_trace_weigh_more_than_its_words(tiny_teacher: TinyTeacher) -> None:
    pair, prompting = tiny_teacher.pairs[0], tiny_teacher.prompting
    steps = gold_steps(pair, prompting.steps(pair.criteria))
    example = traced_example(pair, steps, prompting, 10.0)
    assert example.weights is not None
    tokens = [prompting.tokenizer.decode([token]) for token in example.completion]
    heavy = [token for token, weight in zip(tokens, example.weights, strict=True) if weight == 10.0]
    assert heavy == [*re.findall("=> ([0-3])", steps), str(pair.label)]
    assert example.weights.count(1.0) == len(tokens) - len(heavy)


def test_teacher_without_any_trace_is_an_error(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    bare = [replace(pair, findings={}) for pair in tiny_teacher.pairs]
    job = micro_job("cot_sft", tiny_teacher.base, tmp_path)
    with pytest.raises(TrainingError, match=r"no pair has a trace to learn: .* raise evidence\.pairs and "):
        train_cot(bare, {}, tiny_teacher.prompting, job, lambda *_: None)


def test_teacher_learns_its_own_traces_in_place_of_findings(
    tiny_teacher: TinyTeacher, tmp_path: Path
) -> None:
    [pair, *_] = tiny_teacher.pairs
    steps = "".join(
        f"{step}: nothing => {pair.label}\n" for step in tiny_teacher.prompting.steps(pair.criteria)
    )
    own = {pair.id: SoftLabel(pair.id, (), {pair.label: steps})}
    job = micro_job("self_sft", tiny_teacher.folder, tmp_path, self_sft={"steps": 40, "learning_rate": 5e-3})
    train_cot(tiny_teacher.pairs, own, tiny_teacher.prompting, job, lambda *_: None)
    sampler = Sampler.load(tmp_path, tiny_teacher.prompting)
    greedy = Sampling(60, 0.0, 1)
    [path] = sample_paths([pair], tiny_teacher.prompting, sampler, greedy, lambda *_: None)
    assert path is not None
    assert path.steps == steps
