"""Translates pydantic's validation errors: they state the field and the problem, never the value, which may be private."""

from pydantic import ValidationError

from service.errors import BadField


def bad_fields(error: ValidationError, whole: str) -> list[BadField]:
    """Return every error. An error that concerns no single field has the field name `whole`."""
    details = error.errors(include_input=False, include_url=False, include_context=False)
    return [BadField(".".join(map(str, e["loc"])) or whole, e["msg"]) for e in details]


def one_line(error: ValidationError, whole: str = "") -> str:
    """Return all errors as `field: problem` in one line. With an empty `whole`, errors without a field have no name."""
    return "; ".join(": ".join(filter(None, (bad.field, bad.message))) for bad in bad_fields(error, whole))
