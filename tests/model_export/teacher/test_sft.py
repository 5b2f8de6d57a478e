from model_export.teacher.sft import graded_example
from model_export.training.batches import Example
from tests.tiny_teacher import TinyTeacher


def test_control_example_has_the_smoothed_gold_grade_and_no_completion(tiny_teacher: TinyTeacher) -> None:
    pair, prompting = tiny_teacher.pairs[0], tiny_teacher.prompting
    prompt = prompting.student_prompt(pair)
    assert graded_example(pair, prompting, 1.0) == Example(prompt, [], [0.25] * 4, pair.label)
