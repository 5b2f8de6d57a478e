import pytest

from service.errors import InvalidRequestError
from service.explaining.mode import NEVER_FLIPPED, Flip, check_flip, conflict
from tests.service.explaining.replica import turn_on

MAX_TTL_S = 3600


@pytest.mark.parametrize("flip", [turn_on(), turn_on("sample", rate=0.1), Flip("off", "ann", "seen enough")])
def test_valid_flips_are_accepted(flip: Flip) -> None:
    assert check_flip(flip, MAX_TTL_S) == flip


@pytest.mark.parametrize(
    ("flip", "fields"),
    [
        (Flip("all", "ann", "  ", 60), ["reason"]),
        (Flip("all", "ann", "x" * 501, 60), ["reason"]),
        (Flip("all", "ann", "why"), ["ttl_s"]),
        (turn_on(ttl_s=0), ["ttl_s"]),
        (turn_on(ttl_s=3601), ["ttl_s"]),
        (turn_on(ttl_s=float("nan")), ["ttl_s"]),
        (Flip("off", "ann", "done", 60), ["ttl_s"]),
        (turn_on("sample"), ["rate"]),
        (turn_on("sample", rate=0.0), ["rate"]),
        (turn_on("sample", rate=1.1), ["rate"]),
        (turn_on("sample", rate=float("nan")), ["rate"]),
        (turn_on("all", rate=0.5), ["rate"]),
        (turn_on("loud", ttl_s=-1), ["mode", "ttl_s"]),
    ],
)
def test_every_bad_field_of_a_flip_is_listed(flip: Flip, fields: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_flip(flip, MAX_TTL_S)
    assert [bad.field for bad in caught.value.fields] == fields


def test_a_reason_becomes_one_line_of_canonical_text() -> None:
    assert check_flip(Flip("off", "ann", " seen\n\tenough "), MAX_TTL_S).reason == "seen enough"


def test_a_conflict_names_the_current_mode() -> None:
    assert "the mode is off at revision 0" in str(conflict(NEVER_FLIPPED, 3))
