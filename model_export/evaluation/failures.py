"""Where a student fails, on cases that the project wrote itself: what it may print, unlike any data that it was trained on."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.evaluation.fit_calibration import apply_calibration
from model_export.evaluation.fit_decision import choose
from model_export.evaluation.measures import most_probable
from model_export.teacher.rollout import Sampler
from service.contract.manifest import Calibration, Decision
from service.contract.prompt import Note

_FILE = "cases.jsonl"
_FAR = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A pair with the grade that it should have, and what makes it a case."""

    pair: Pair
    why: str


def read_cases(criteria: Collection[str]) -> list[Case]:
    """The cases under these criteria; none for a checkpoint of other ones."""
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [
        Case(
            Pair(
                f"case-{number}",
                row["query"],
                Note(row["note"]["title"] or "", row["note"]["body"]),
                row["grade"],
                "cases",
                row["criteria"],
            ),
            row["why"],
        )
        for number, row in enumerate(rows)
        if row["criteria"] in criteria
    ]


def find_failures(
    form: PromptForm, student: Path, calibration: Calibration, decisions: Sequence[Decision]
) -> tuple[str, ...]:
    """What `describe_failures` says of the student in this folder; nothing where there is no case under its criteria."""
    cases = read_cases([criteria.name for criteria in form.criteria])
    if not cases:
        return ()
    prompting = Prompting.load(form, student)
    prompts = [prompting.student_prompt(case.pair) for case in cases]
    probabilities, _ = Sampler.load(student, prompting).distributions(prompts, len(cases))
    criteria = [case.pair.criteria for case in cases]
    return describe_failures(cases, chosen_grades(probabilities.numpy(), criteria, calibration, decisions))


def describe_failures(cases: Sequence[Case], grades: Sequence[int]) -> tuple[str, ...]:
    """In Markdown: how many cases are right and one off, then each that is two or more off."""
    distances = [abs(grade - case.pair.label) for case, grade in zip(cases, grades, strict=True)]
    counts = f"Of {len(cases)} cases {distances.count(0)} get the grade that they should, and {distances.count(1)} are one off."
    far = [
        _describe(case, grade)
        for case, grade, distance in zip(cases, grades, distances, strict=True)
        if distance >= _FAR
    ]
    return (counts, *far)


def _describe(case: Case, grade: int) -> str:
    pair = case.pair
    note = f"{pair.note.title}. {pair.note.body}" if pair.note.title else pair.note.body
    return f"Query “{pair.query}”, note “{note}” (`{pair.criteria}`): graded {grade}, should be {pair.label} ({case.why})."


def chosen_grades(
    probabilities: np.ndarray,
    criteria: Sequence[str],
    calibration: Calibration,
    decisions: Sequence[Decision],
) -> list[int]:
    """The grades that the service would answer with.

    Args:
        probabilities: (pairs, grades) raw, read under (pairs,) `criteria`.
    """
    calibrated = apply_calibration(probabilities, calibration, criteria)
    grades = most_probable(calibrated)
    for decision in decisions:
        here = np.array([name == decision.criteria for name in criteria])
        grades[here] = choose(calibrated[here], np.array(decision.utilities))
    found: list[int] = grades.tolist()
    return found
