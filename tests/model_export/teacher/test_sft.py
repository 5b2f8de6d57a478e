from model_export.recipe import LabelOnlyConfig
from model_export.teacher.sft import label_only_example
from model_export.training.batches import Example
from tests.tiny_teacher import TinyTeacher


def test_control_example_has_the_smoothed_gold_grade_and_no_completion(tiny_teacher: TinyTeacher) -> None:
    pair, prompting = tiny_teacher.pairs[0], tiny_teacher.prompting
    example = label_only_example(pair, prompting, LabelOnlyConfig(steps=1, smoothing=1.0))
    assert example == Example(prompting.student_prompt(pair), [], [0.25] * 4, pair.label)
