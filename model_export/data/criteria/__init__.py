"""Named criteria prompts: what makes a note relevant, as the model reads it."""

import tomllib
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from service.contract.manifest import Criteria
from service.contract.validation import one_line
from service.errors import NotegradeError

DEFAULT_CRITERIA = "general-1"


class CriteriaError(NotegradeError):
    """Criteria that are not there, or not valid."""


def criteria_names() -> tuple[str, ...]:
    """The criteria that come with the package."""
    files = resources.files(__package__).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_criteria(name_or_path: str) -> Criteria:
    """Criteria by the name of a packaged file, or from a TOML file with `name` and `text`.

    Raises CriteriaError with one line that says what is wrong.
    """
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
            f"no criteria {name_or_path!r}: neither a readable TOML file nor one of {known}"
        ) from error


def _parse(where: str, content: bytes) -> Criteria:
    try:
        raw = tomllib.loads(content.decode("utf-8"))
        if isinstance(raw.get("text"), str):
            raw["text"] = raw["text"].strip()
        return Criteria.model_validate(raw)
    except ValidationError as error:
        raise CriteriaError(f"criteria {where} are not valid: {one_line(error)}") from error
    except ValueError as error:  # bytes that are no UTF-8, text that is no TOML
        raise CriteriaError(f"criteria {where} are not valid TOML: {error}") from error
