"""Finds a student's failures on cases written for this project, whose text may be printed, unlike its training data's."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.evaluation.fitted import Fitted
from model_export.teacher.rollout import Sampler
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
    cases = []
    for number, row in enumerate(map(json.loads, text.splitlines())):
        note = Note(row["note"]["title"] or "", row["note"]["body"])
        pair = Pair(f"case-{number}", row["query"], note, row["grade"], "cases", row["criteria"])
        cases.append(Case(pair, row["why"]))
    return [case for case in cases if case.pair.criteria in criteria]


def find_failures(form: PromptForm, student: Path, fitted: Fitted) -> tuple[str, ...]:
    """Describe the failures of the student in this folder; empty if there are no cases under its criteria."""
    cases = read_cases([criteria.name for criteria in form.criteria])
    if not cases:
        return ()
    prompting = Prompting.load(form, student)
    prompts = [prompting.student_prompt(case.pair) for case in cases]
    probabilities, _ = Sampler.load(student, prompting).distributions(prompts, len(cases))
    grades = fitted.choose_grades(probabilities.numpy(), [case.pair.criteria for case in cases])
    return describe_failures(cases, grades.tolist())


def describe_failures(cases: Sequence[Case], grades: Sequence[int]) -> tuple[str, ...]:
    """Count the right cases in Markdown, then describe each one whose grade is off by two or more."""
    distances = [abs(grade - case.pair.label) for case, grade in zip(cases, grades, strict=True)]
    failures = [
        _describe(case, grade)
        for case, grade, distance in zip(cases, grades, distances, strict=True)
        if distance >= _FAILURE_DISTANCE
    ]
    right, near = distances.count(0), distances.count(1)
    return (f"Of {len(cases)} cases {right} have the right grade and {near} are off by one.", *failures)


def _describe(case: Case, grade: int) -> str:
    pair = case.pair
    note = f"{pair.note.title}. {pair.note.body}" if pair.note.title else pair.note.body
    return f"Query “{pair.query}”, note “{note}” (`{pair.criteria}`): graded {grade}, should be {pair.label} ({case.why})."
