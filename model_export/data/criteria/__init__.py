"""Named criteria texts, which tell the model what makes a note relevant."""

import tomllib
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from service.contract.manifest import Criteria
from service.contract.validation import one_line
from service.errors import NotegradeError

DEFAULT_CRITERIA = "general-1"


class CriteriaError(NotegradeError):
    """Raised for criteria that do not exist or are not valid."""


def criteria_names() -> tuple[str, ...]:
    """Return the names of the packaged criteria."""
    files = resources.files(__package__).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_criteria(name_or_path: str) -> Criteria:
    """Load criteria by the name of a packaged file, or from a TOML file with `name` and `text`.

    Raises CriteriaError.
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
            f"no criteria {name_or_path!r}: name a readable TOML file or one of {known}"
        ) from error


def _parse(where: str, content: bytes) -> Criteria:
    try:
        raw = tomllib.loads(content.decode("utf-8"))
        if isinstance(raw.get("text"), str):
            raw["text"] = raw["text"].strip()
        return Criteria.model_validate(raw)
    except ValidationError as error:
        raise CriteriaError(f"criteria {where} are not valid: {one_line(error)}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise CriteriaError(f"criteria {where} are not valid TOML: {error}") from error
