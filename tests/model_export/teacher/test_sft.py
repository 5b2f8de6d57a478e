from typing import Any

import pytest

from model_export.data.pairs import Pair
from model_export.recipe import LabelOnlyConfig
from model_export.teacher.sft import label_only_example
from service.contract.prompt import Note
from tests.tiny_teacher import TinyTeacher

PAIR = Pair("1", "red lamp", Note("lamp", "colour red"), 2, "synthetic", "synthetic-1")


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, [0, 0, 1, 0]),
        ({"smoothing": 0.4}, [0.1, 0.1, 0.7, 0.1]),
    ],
)
def test_control_example_has_the_gold_grade_and_no_completion(
    tiny_teacher: TinyTeacher, changes: dict[str, Any], target: list[float]
) -> None:
    config = LabelOnlyConfig.model_validate({"steps": 1, **changes})
    example = label_only_example(PAIR, tiny_teacher.prompting, config)
    assert example.prompt == tiny_teacher.prompting.student_prompt(PAIR)
    assert example.completion == []
    assert example.soft_label == pytest.approx(target, abs=1e-4)
    assert example.label == 2
