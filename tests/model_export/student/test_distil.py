from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_export.data.pairs import UNJUDGED, DataError, Pair
from model_export.data.soft_labels import SoftLabel
from model_export.evaluation.predict import directly
from model_export.models.model_io import load_model
from model_export.recipe_stages import DistilConfig
from model_export.run_log import LOG_NAME, read_log
from model_export.student.distil import make_example, query_groups, student_examples, train_student
from model_export.teacher.rollout import Sampler, Sampling
from service.contract.prompt import Note
from tests.tiny_teacher import TinyTeacher, micro_job

PAIR = Pair("1", "red lamp", Note("lamp", "colour red"), 2, "synthetic", "synthetic-1")
TRACES = {grade: f"topic: lamp lamp yes => {grade}\n" for grade in range(4)}
STEPS = TRACES[3]
LABEL = SoftLabel("1", (0.1, 0.1, 0.2, 0.6), {3: STEPS})


def config(**changes: Any) -> DistilConfig:
    return DistilConfig.model_validate({"steps": 1, "gold_weight": 0.5, **changes})


def target(label: SoftLabel | None, tiny_teacher: TinyTeacher, **changes: Any) -> list[float] | None:
    return make_example(PAIR, label, tiny_teacher.prompting, config(**changes)).soft_label


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gold_weight": 0.0}, [0.1, 0.1, 0.2, 0.6]),
        ({"gold_weight": 1.0}, [0, 0, 1, 0]),
        ({"gold_weight": 0.5}, [0.05, 0.05, 0.6, 0.3]),
        # Temperature 0.5 squares what the teacher says: 0.01, 0.01, 0.04, 0.36 of 0.42.
        ({"gold_weight": 0.0, "temperature": 0.5}, [0.0238, 0.0238, 0.0952, 0.8571]),
        ({"gold_weight": 0.0, "temperature": 1e9}, [0.25, 0.25, 0.25, 0.25]),
        ({"gold_weight": 1.0, "smoothing": 0.4}, [0.1, 0.1, 0.7, 0.1]),
    ],
)
def test_targets_match_those_computed_by_hand(
    tiny_teacher: TinyTeacher, changes: dict[str, Any], expected: list[float]
) -> None:
    assert target(LABEL, tiny_teacher, **changes) == pytest.approx(expected, abs=1e-4)


def test_temperature_keeps_a_certain_grade(tiny_teacher: TinyTeacher) -> None:
    sure = SoftLabel("1", (0.0, 0.0, 0.0, 1.0), {3: STEPS})
    assert target(sure, tiny_teacher, gold_weight=0.0, temperature=3.0) == [0.0, 0.0, 0.0, 1.0]


def test_example_has_the_teacher_s_trace_behind_its_grade(tiny_teacher: TinyTeacher) -> None:
    prompting = tiny_teacher.prompting
    example = make_example(PAIR, LABEL, prompting, config(gold_weight=0.1))
    assert example.prompt == prompting.student_prompt(PAIR)
    assert example.completion == prompting.student_completion(STEPS, 3)
    assert example.label == 2


def test_trace_of_another_grade_than_the_target_s_explains_its_own(tiny_teacher: TinyTeacher) -> None:
    example = make_example(PAIR, LABEL, tiny_teacher.prompting, config(gold_weight=1.0))
    assert example.soft_label == [0, 0, 1, 0]  # the target's grade is 2, and the trace's 3
    assert example.completion == tiny_teacher.prompting.student_completion(STEPS, 3)


def test_copies_of_a_pair_learn_traces_of_several_grades(tiny_teacher: TinyTeacher) -> None:
    prompting = tiny_teacher.prompting
    sure = SoftLabel("1", (0.0, 0.0, 0.0, 1.0), TRACES)
    other = replace(PAIR, id="2")
    shares = config(steps=100, batch_size=8, traced_share=0.5)

    def drawn(seed: int) -> list[list[int]]:
        examples = student_examples([PAIR, other], {"1": sure}, prompting, shares, seed)
        return [each.completion for each in examples if each.completion]

    counts = [drawn(1).count(prompting.student_completion(steps, grade)) for grade, steps in TRACES.items()]
    assert sum(counts) == 400
    # Half of the draws follow the distribution: 5/8 of all have grade 3, 1/8 each other one, by four deviations.
    assert all(50 - 27 <= count <= 50 + 27 for count in counts[:3])
    assert 250 - 39 <= counts[3] <= 250 + 39
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_grade_that_a_trace_ends_on_weighs_more(tiny_teacher: TinyTeacher) -> None:
    prompting = tiny_teacher.prompting
    example = make_example(PAIR, LABEL, prompting, config(agreement_weight=20))
    place = prompting.place_of_grade(example.completion)
    assert example.weights == [20.0 if at == place else 1.0 for at in range(len(example.completion))]


def test_trace_weight_of_zero_drops_the_trace(tiny_teacher: TinyTeacher) -> None:
    assert make_example(PAIR, LABEL, tiny_teacher.prompting, config(trace_weight=0.0)).completion == []


def test_unlabelled_pair_learns_the_gold_grade(tiny_teacher: TinyTeacher) -> None:
    example = make_example(PAIR, None, tiny_teacher.prompting, config(gold_weight=0.0, smoothing=0.4))
    assert example.completion == []
    assert example.soft_label == pytest.approx([0.1, 0.1, 0.7, 0.1])


def test_pair_with_a_soft_label_and_no_trace_learns_the_mixed_distribution(tiny_teacher: TinyTeacher) -> None:
    bare = replace(LABEL, traces={})
    example = make_example(PAIR, bare, tiny_teacher.prompting, config(gold_weight=0.5))
    assert example.soft_label == pytest.approx([0.05, 0.05, 0.6, 0.3])
    assert example.completion == []


def test_unjudged_pair_learns_the_soft_label_alone(tiny_teacher: TinyTeacher) -> None:
    unjudged, prompting = replace(PAIR, label=UNJUDGED), tiny_teacher.prompting
    example = make_example(unjudged, LABEL, prompting, config(gold_weight=1.0, smoothing=0.4))
    assert example.soft_label == pytest.approx([0.1, 0.1, 0.2, 0.6])
    assert example.completion == prompting.student_completion(STEPS, 3)
    with pytest.raises(DataError, match="no gold grade"):
        make_example(unjudged, None, prompting, config())


def test_groups_are_those_of_source_query_and_copy() -> None:
    other = replace(PAIR, id="2", query="Red Lamp")
    elsewhere = replace(PAIR, id="3", source="other")
    first, second, copy, third = query_groups([PAIR, other, PAIR, elsewhere])
    assert first == second
    assert len({first, copy, third}) == 3


def test_student_learns_the_order_of_a_query_s_pairs(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    pairs = [replace(pair, label=UNJUDGED, query="one query") for pair in tiny_teacher.pairs]
    orders = {pair.id: place for place, pair in enumerate(pairs)}
    labels = {
        id_: SoftLabel(id_, ((1 - up) / 2, (1 - up) / 2, up / 2, up / 2), {})
        for id_, up in ((id_, 0.1 + 0.1 * place) for id_, place in orders.items())
    }
    settings = {"ranking": "listwise", "ranking_weight": 5.0, "steps": 40, "learning_rate": 5e-3}
    job = micro_job("distil", tiny_teacher.base, tmp_path, distil=settings)
    train_student(pairs, labels, tiny_teacher.prompting, job, lambda *_: None)

    def correlation(folder: Path) -> float:
        sampler = Sampler.load(folder, tiny_teacher.prompting)
        found = directly("student", pairs, tiny_teacher.prompting, sampler, 8, lambda *_: None)
        return float(np.corrcoef(found.ranking, list(orders.values()))[0, 1])

    assert correlation(tiny_teacher.base) < 0.8 < 0.95 < correlation(tmp_path)
    rows = [row for row in read_log(tmp_path / LOG_NAME) if "ranking_loss" in row]
    assert 0 <= rows[-1]["ranking_loss"] < 0.5 * rows[0]["ranking_loss"]
    assert not any("correlation" in row for row in rows)  # of gold grades, which these pairs lack


def test_student_explains_the_grade_that_it_is_asked_to(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    prompting, (*traced, _) = tiny_teacher.prompting, tiny_teacher.pairs
    labels = {pair.id: SoftLabel(pair.id, (0.1, 0.1, 0.1, 0.7), TRACES) for pair in traced}
    weights = {"trace_weight": 1.0, "agreement_weight": 20}
    settings = {"steps": 150, "learning_rate": 5e-3, "traced_share": 0.9, **weights}
    job = micro_job("distil", tiny_teacher.base, tmp_path, distil=settings)
    train_student(tiny_teacher.pairs, labels, prompting, job, lambda *_: None)
    asked = [(pair, grade) for pair in traced for grade in range(4)]
    prompts = [prompting.explanation_prompt(*each) for each in asked]
    written = Sampler.load(tmp_path, prompting).sample(prompts, Sampling(60, 0.0, 16))
    texts = [prompting.tokenizer.decode(each[:-1]) for each in written]
    assert texts == [TRACES[grade] for _, grade in asked]


def test_student_learns_its_teachers_labels_and_traces(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    # Labels that gold does not say: each grade is turned round.
    labels = {}
    for pair in tiny_teacher.pairs:
        turned = tuple(0.97 if grade == 3 - pair.label else 0.01 for grade in range(4))
        labels[pair.id] = SoftLabel(pair.id, turned, {3 - pair.label: TRACES[3 - pair.label]})
    settings = {"steps": 80, "learning_rate": 5e-3, "gold_weight": 0.0}
    job = micro_job("distil", tiny_teacher.base, tmp_path, distil=settings)
    train_student(tiny_teacher.pairs, labels, tiny_teacher.prompting, job, lambda *_: None)
    sampler = Sampler.load(tmp_path, tiny_teacher.prompting)
    found = directly("student", tiny_teacher.pairs, tiny_teacher.prompting, sampler, 8, lambda *_: None)
    assert found.probabilities.argmax(1).tolist() == [3 - pair.label for pair in tiny_teacher.pairs]
    student = load_model(tmp_path)
    prompt = tiny_teacher.prompting.student_prompt(tiny_teacher.pairs[0])
    with torch.inference_mode():
        written = student.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[
            0, len(prompt) + 1 :
        ]
    text, _ = tiny_teacher.prompting.tokenizer.decode_with_ends(written.tolist())
    assert text == f"\nSteps:\ntopic: lamp lamp yes => {3 - tiny_teacher.pairs[0].label}\n"
