"""Reasoning traces to train the teacher on: from findings that the data has, or from evidence that a model's grades rest on.

Each step carries the highest grade that is still possible, and only the last one the grade itself. If all steps carried the
grade, a model would guess it at the first step and copy it from there.
"""

from collections.abc import Iterable, Sequence

from model_export.data.pairs import GRADES, DataError, Finding, Pair
from service.contract.citations import NOTHING, Citation, read_citations
from service.contract.trace import Step, parse_steps, write_step


def gold_steps(pair: Pair, steps: Sequence[str]) -> str:
    """Return the lines of a trace's steps by the findings of the data; the last step carries the gold grade.

    A step without a finding names nothing, and leaves what is possible as it was. Raises DataError where the last step's
    finding has another grade than the pair.
    """
    last = pair.findings.get(steps[-1]) if steps else None
    if last and last.grade != pair.label:
        raise DataError(
            f"pair {pair.id} has the label {pair.label}, but the finding of its last step, {steps[-1]}, has the grade {last.grade}"
        )
    found, possible = [], GRADES[-1]
    for step in steps:
        finding = pair.findings.get(step, Finding(NOTHING, possible))
        possible = finding.grade
        found.append((step, finding.text, finding.grade))
    if found:
        found[-1] = (*found[-1][:2], pair.label)
    return "".join(write_step(*each) for each in found)


def is_honest(steps: str, grade: int, pair: Pair) -> bool:
    """Return whether a trace ends on the grade that it explains, and cites nothing that is not there."""
    read, _ = parse_steps(steps, GRADES[-1])
    return read_grade(steps) == grade and all(citation.found for citation in citations_of(read, pair))


def citations_of(steps: Iterable[Step], pair: Pair) -> list[Citation]:
    """Return the citations of all steps, in their order."""
    return [each for step in steps for each in read_citations(step.finding, pair.query, pair.note)]


def read_grade(steps: str) -> int | None:
    """Return the grade of the last step; None where there is none."""
    read, _ = parse_steps(steps, GRADES[-1])
    return read[-1].grade if read else None
