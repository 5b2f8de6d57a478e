"""What pydantic finds wrong, in our words: where and what, never the value, which may be private."""

from pydantic import ValidationError

from service.errors import BadField


def bad_fields(error: ValidationError, whole: str) -> list[BadField]:
    """Each thing that is wrong; what is wrong with all of it, not with one field, is called `whole`."""
    details = error.errors(include_input=False, include_url=False, include_context=False)
    return [BadField(".".join(map(str, e["loc"])) or whole, e["msg"]) for e in details]


def one_line(error: ValidationError, whole: str = "") -> str:
    """All of it as `field: what is wrong`, in one line; without a name where all of it is and `whole` is empty."""
    return "; ".join(": ".join(filter(None, (bad.field, bad.message))) for bad in bad_fields(error, whole))
