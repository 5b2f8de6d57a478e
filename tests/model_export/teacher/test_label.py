import pytest
import torch

from model_export.data.pairs import Pair
from model_export.data.soft_labels import SoftLabel
from model_export.recipe_stages import LabelConfig
from model_export.teacher.label import average, honest_steps, label_pairs
from model_export.teacher.rollout import Sampler
from service.contract.prompt import Note
from service.contract.trace import parse_steps
from tests.tiny_teacher import TinyTeacher


def label(teacher: TinyTeacher, *, max_tokens: int = 48, temperature: float = 0.3) -> list[SoftLabel]:
    torch.manual_seed(1)
    config = LabelConfig(paths=3, temperature=temperature, batch_size=5)
    sampler = Sampler.load(teacher.folder, teacher.prompting)
    return label_pairs(teacher.pairs, teacher.prompting, sampler, config, max_tokens, lambda *_: None)


def test_average_matches_one_computed_by_hand() -> None:
    paths = [
        ("far", (1.0, 0.0, 0.0, 0.0)),
        ("near", (0.25, 0.5, 0.25, 0.0)),
        ("other", (0.0, 0.75, 0.0, 0.25)),
    ]
    found = average("1", paths)
    assert found.distribution == pytest.approx((1.25 / 3, 1.25 / 3, 0.25 / 3, 0.25 / 3))
    # Distances to the mean: 7/6, 1/3 and 5/6.
    assert (found.id, found.traces) == ("1", {1: "near"})
    assert average("1", paths[:1]) == SoftLabel("1", (1.0, 0.0, 0.0, 0.0), {0: "far"})


def test_student_learns_the_nearest_honest_trace() -> None:
    answers = ((1.0, 0.0, 0.0, 0.0), (0.25, 0.5, 0.25, 0.0), (0.0, 0.75, 0.0, 0.25))
    assert average("1", list(zip(("far", "", "other"), answers, strict=True))).traces == {1: "other"}
    assert average("1", [("", answers[0])]) == SoftLabel("1", answers[0], {})


@pytest.mark.parametrize(
    ("steps", "answer", "is_honest"),
    [
        ('topic: title "tea" => 3\n', (0.1, 0.1, 0.2, 0.6), True),
        ('topic: title "tea" => 3\n', (0.1, 0.6, 0.2, 0.1), False),  # ends on another grade
        ('topic: title "coffee" => 3\n', (0.1, 0.1, 0.2, 0.6), False),
    ],
)
def test_trace_is_honest_or_not_learned(steps: str, answer: tuple[float, ...], is_honest: bool) -> None:
    pair = Pair("1", "green tea", Note("Tea", ""), 2, "made", "c")
    assert honest_steps(pair, steps, answer) == (steps if is_honest else "")


def test_soft_labels_match_what_the_teacher_learned(tiny_teacher: TinyTeacher) -> None:
    found = label(tiny_teacher)
    assert [each.id for each in found] == [pair.id for pair in tiny_teacher.pairs]
    for each, pair in zip(found, tiny_teacher.pairs, strict=True):
        assert each.distribution[pair.label] > 0.8
        assert sum(each.distribution) == pytest.approx(1)
        [text] = each.traces.values()
        steps, end = parse_steps(text, top_grade=3)
        assert tuple(step.criterion for step in steps) == tiny_teacher.prompting.steps(pair.criteria)
        assert end == len(text)


def test_same_seed_gives_the_same_labels(tiny_teacher: TinyTeacher) -> None:
    assert label(tiny_teacher, temperature=1.0) == label(tiny_teacher, temperature=1.0)


def test_pair_without_parsed_paths_has_no_label(tiny_teacher: TinyTeacher) -> None:
    assert label(tiny_teacher, max_tokens=2) == []
