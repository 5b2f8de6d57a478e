"""Reads a recipe from a TOML file and applies changes from the command line."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_export.recipe import Recipe
from service.contract.validation import one_line
from service.errors import NotegradeError

# Marks an appended change. The text stays valid TOML, and reports show it.
_CHANGE = "# --set "


class RecipeError(NotegradeError):
    """Raised for a recipe that can't be read or is not valid."""


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. RecipeError lists every bad field.

    `changes` are as for `read_recipe_text`.
    """
    return parse_recipe(read_recipe_text(path, changes), f"the recipe {path}")


def read_recipe_text(path: Path, changes: Sequence[str] = ()) -> str:
    """Return the file's text with each change appended as a comment line. Raises RecipeError.

    A change is a line of TOML with a dotted key, such as `label_only_sft.steps=300`. It overrides the file. A value that is
    not TOML is taken as a string.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"the recipe {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"the recipe {path} is not valid TOML: {error}") from error
    return "".join([text, *(f"{_CHANGE}{change}\n" for change in changes)])


def read_changes(text: str) -> tuple[str, ...]:
    """Return the changes that were appended to a recipe's text."""
    return tuple(line.removeprefix(_CHANGE) for line in text.splitlines() if line.startswith(_CHANGE))


def parse_recipe(text: str, what: str = "the recipe") -> Recipe:
    """Parse a recipe's text and apply its changes. RecipeError lists every bad field."""
    try:
        stated = tomllib.loads(text)
        for change in read_changes(text):
            _merge(stated, _parse_change(change))
        return Recipe.model_validate(stated)
    except ValidationError as error:
        raise RecipeError(f"{what} is not valid: {one_line(error, 'recipe')}") from error
    except ValueError as error:
        raise RecipeError(f"{what} is not valid TOML: {error}") from error


def _parse_change(change: str) -> dict[str, Any]:
    key, equals, value = change.partition("=")
    if not equals:
        raise RecipeError(f"{change!r} is not KEY=VALUE, such as label_only_sft.steps=300")
    try:
        return tomllib.loads(change)
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f"{key} = {json.dumps(value)}")


def _merge(stated: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(stated.get(key), dict):
            _merge(stated[key], value)
        else:
            stated[key] = value
