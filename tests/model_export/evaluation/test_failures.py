from pathlib import Path

import numpy as np
import pytest

from model_export.data.criteria import criteria_names
from model_export.evaluation.failures import describe_failures, find_failures, read_cases
from model_export.evaluation.fitted import Fitted
from service.contract.calibration import calibrate
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.manifest import Calibration, Decision
from service.contract.text import canonicalize
from tests.checkpoints import load_tiny
from tests.tiny_teacher import TinyTeacher

CASES = read_cases(criteria_names())


def test_cases_are_distinct_canonical_and_cover_the_grades() -> None:
    texts = [(case.pair.criteria, case.pair.query, case.pair.note) for case in CASES]
    assert len(set(texts)) == len(texts) >= 40
    for name in {case.pair.criteria for case in CASES}:
        grades = {case.pair.label for case in CASES if case.pair.criteria == name}
        assert {0, 3} <= grades <= {0, 1, 2, 3}
    for case in CASES:
        assert case.why
        for text in (case.pair.query, case.pair.note.title, case.pair.note.body):
            assert canonicalize(text) == text


def test_only_cases_of_the_given_criteria_are_used(tiny_teacher: TinyTeacher) -> None:
    assert {case.pair.criteria for case in read_cases(["passage-1"])} == {"passage-1"}
    form = tiny_teacher.prompting.form
    assert find_failures(form, tiny_teacher.folder, Fitted(Calibration(), ())) == ()


def test_failures_of_the_student_are_counted_and_described(tiny_teacher: TinyTeacher) -> None:
    form = tiny_teacher.prompting.form
    [criteria] = form.criteria
    asked = [type(form)(form.template, (criteria.model_copy(update={"name": "comment-1"}),), form.limits)]
    # These utilities always choose grade 3.
    always = Decision(criteria="comment-1", utilities=((0, 0, 0, 1),) * 4)
    found = find_failures(asked[0], tiny_teacher.folder, Fitted(Calibration(), (always,)))
    cases = read_cases(["comment-1"])
    right = sum(case.pair.label == 3 for case in cases)
    near = sum(case.pair.label == 2 for case in cases)
    assert found[0] == (f"Of {len(cases)} cases {right} have the right grade and {near} are off by one.")
    assert len(found) == 1 + len(cases) - right - near
    assert all("graded 3, should be " in line for line in found[1:])


def test_failure_names_pair_grades_and_reason() -> None:
    first, second, third = CASES[:3]
    grades = [first.pair.label, second.pair.label - 1, 3]
    assert third.pair.label == 0
    counts, line = describe_failures(CASES[:3], grades)
    assert counts == "Of 3 cases 1 have the right grade and 1 are off by one."
    assert line == (
        "Query “wireless mouse for left hand”, note “Mouse pad, 30 x 25 cm. Cloth top, rubber base, stitched edge.”"
        " (`product-2`): graded 3, should be 0 (goes with it, and isn't it)."
    )


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_chosen_grades_equal_the_service_s(tmp_path: Path, temperature: float) -> None:
    manifest = load_tiny(tmp_path / "checkpoint").manifest
    name = manifest.criteria[0].name
    utilities = ((1, 0.5, 0, 0), (0.2, 1, 0.9, 0), (0, 0.4, 1, 0.7), (0, 0, 0.8, 1))
    calibration = Calibration(method="temperature", temperature=1.0, temperatures={name: temperature})
    decisions = (Decision(criteria=name, utilities=utilities),)
    served = manifest.model_copy(update={"calibration": calibration, "decisions": decisions})
    rows = np.random.default_rng(3).dirichlet(np.ones(4), size=40)
    expected = [judge(LabelDistribution(tuple(row), 1.0), served, name).grade for row in rows.tolist()]
    criteria = [name] * len(rows)
    assert Fitted(calibration, decisions).choose_grades(rows, criteria).tolist() == expected
    plain = [int(np.argmax(calibrate(row, calibration, name))) for row in rows.tolist()]
    assert Fitted(calibration, ()).choose_grades(rows, criteria).tolist() == plain
    assert expected != plain
