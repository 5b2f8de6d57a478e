import pytest
from pydantic import BaseModel, ValidationError

from service.contract.validation import bad_fields, one_line
from service.errors import BadField


class Inner(BaseModel):
    size: int


class Outer(BaseModel):
    items: list[Inner]
    name: str


def error_of(text: str) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json(text)
    return caught.value


def test_every_bad_field_is_named_by_its_path_without_its_value() -> None:
    error = error_of('{"items": [{"size": 1}, {"size": "secret"}]}')
    assert [bad.field for bad in bad_fields(error, "body")] == ["items.1.size", "name"]
    assert "secret" not in one_line(error)
    assert one_line(error).startswith("items.1.size: Input should be a valid integer")
    assert one_line(error).endswith("; name: Field required")


def test_an_error_without_a_field_has_the_given_name() -> None:
    error = error_of("[")
    [bad] = bad_fields(error, "body")
    assert bad == BadField("body", bad.message)
    assert one_line(error, "body") == f"body: {bad.message}"
    assert one_line(error) == bad.message
