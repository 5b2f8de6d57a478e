"""Named criteria texts, which tell the model what makes a note relevant."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from service.contract.manifest import Criteria
from service.contract.validation import one_line
from service.errors import NotegradeError

DEFAULT_CRITERIA = "general-1"
# The steps of packaged criteria, and how the teacher's prompt explains them.
_STEPS = ("asked", "for", "against")
_STEPS_TEXT = {
    "en": """Write one line for each step, and then the grade. A line ends with => and the highest grade that is still possible.
asked: quote what is asked for, as query "..."
for: quote what in the note answers it, as title "..." or body "..."; or write nothing
against: quote what in the note speaks against it, or words of the query that the note lacks, as missing "..."; or write nothing""",
    "zh": """每个步骤写一行，然后写等级。每行以 => 和仍有可能的最高等级结尾。
asked: 引用搜索的要求，写作 query "..."
for: 引用标题或正文中符合要求的内容，写作 title "..." 或 body "..."；没有就写 nothing
against: 引用标题或正文中不符合要求的内容，或标题和正文都没有的搜索用字，写作 missing "..."；没有就写 nothing""",
}


class _CriteriaFile(Criteria):
    """Criteria as a TOML file holds them: `text` is for the student, in every prompt that is served.

    `language` is that of `teacher_text`, in which the steps are explained.
    """

    language: Literal["en", "zh"] = "en"
    teacher_text: str | None = None


class CriteriaError(NotegradeError):
    """Raised for criteria that do not exist or are not valid."""


def criteria_names() -> tuple[str, ...]:
    """Return the names of the packaged criteria."""
    files = resources.files(__package__).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_criteria(name_or_path: str) -> Criteria:
    """Load the student's criteria by the name of a packaged file, or from a TOML file with `name` and `text`.

    Raises CriteriaError.
    """
    found = _load(name_or_path)
    return Criteria(name=found.name, text=found.text, steps=found.steps)


def load_teacher_criteria(name_or_path: str) -> Criteria:
    """Load the teacher's criteria: the file's `teacher_text` with the steps explained, or else the student's.

    Raises CriteriaError.
    """
    found = _load(name_or_path)
    text = found.text if found.teacher_text is None else found.teacher_text.strip()
    if found.teacher_text is not None and found.steps == _STEPS:
        text += f"\n{_STEPS_TEXT[found.language]}"
    return Criteria(name=found.name, text=text, steps=found.steps)


def _load(name_or_path: str) -> _CriteriaFile:
    if name_or_path in criteria_names():
        return _parse(
            name_or_path, resources.files(__package__).joinpath(f"{name_or_path}.toml").read_bytes()
        )
    path = Path(name_or_path)
    try:
        return _parse(str(path), path.read_bytes())
    except OSError as error:
        known = ", ".join(criteria_names())
        raise CriteriaError(
            f"no criteria {name_or_path!r}: name a readable TOML file or one of {known}"
        ) from error


def _parse(where: str, content: bytes) -> _CriteriaFile:
    try:
        raw = tomllib.loads(content.decode("utf-8"))
        if isinstance(raw.get("text"), str):
            raw["text"] = raw["text"].strip()
        return _CriteriaFile.model_validate(raw)
    except ValidationError as error:
        raise CriteriaError(f"criteria {where} are not valid: {one_line(error)}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise CriteriaError(f"criteria {where} are not valid TOML: {error}") from error
