"""Finds a student's failures on cases written for this project, whose text may be printed, unlike its training data's."""

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
_FAILURE_DISTANCE = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A pair with its right grade, and what makes it difficult."""

    pair: Pair
    why: str


def read_cases(criteria: Collection[str]) -> list[Case]:
    """Read the packaged cases under these criteria; there may be none."""
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
    """Describe the failures of the student in this folder; empty if there are no cases under its criteria."""
    cases = read_cases([criteria.name for criteria in form.criteria])
    if not cases:
        return ()
    prompting = Prompting.load(form, student)
    prompts = [prompting.student_prompt(case.pair) for case in cases]
    probabilities, _ = Sampler.load(student, prompting).distributions(prompts, len(cases))
    criteria = [case.pair.criteria for case in cases]
    return describe_failures(cases, chosen_grades(probabilities.numpy(), criteria, calibration, decisions))


def describe_failures(cases: Sequence[Case], grades: Sequence[int]) -> tuple[str, ...]:
    """Count the right cases in Markdown, then describe each one whose grade is off by two or more."""
    distances = [abs(grade - case.pair.label) for case, grade in zip(cases, grades, strict=True)]
    counts = f"Of {len(cases)} cases {distances.count(0)} have the right grade and {distances.count(1)} are off by one."
    failures = [
        _describe(case, grade)
        for case, grade, distance in zip(cases, grades, distances, strict=True)
        if distance >= _FAILURE_DISTANCE
    ]
    return (counts, *failures)


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
    """Choose grades as the service does.

    Args:
        probabilities: (pairs, grades) raw.
        criteria: (pairs,) the criteria of each prompt.
    """
    calibrated = apply_calibration(probabilities, calibration, criteria)
    grades = most_probable(calibrated)
    for decision in decisions:
        here = np.array([name == decision.criteria for name in criteria])
        grades[here] = choose(calibrated[here], np.array(decision.utilities))
    found: list[int] = grades.tolist()
    return found
