import logging
import re

import pytest

from service.observability.redaction import log_redacted, without_text

CANARY = "a note that nobody may read"


def raised() -> Exception:
    """As a library may raise it: its text, its cause's and a note of its own quote what it was given."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            error.add_note(CANARY)
            raise RuntimeError(f"can't take {CANARY}") from error
    except RuntimeError as error:
        return error


def test_where_and_which_are_logged_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    log_redacted(logging.getLogger("service"), "unforeseen error", raised())
    assert "ERROR" in caplog.text
    assert "unforeseen error" in caplog.text
    assert CANARY not in caplog.text
    assert len(re.findall(r'test_redaction\.py", line \d+, in raised', caplog.text)) == 2
    assert re.search(r"KeyError\n(.*\n)+.*RuntimeError", caplog.text)  # the cause first, as always
    assert vars(caplog.records[0])["error"] == "RuntimeError"


def test_the_text_too_where_texts_may_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    log_redacted(logging.getLogger("service"), "unforeseen error", raised(), log_texts=True)
    assert CANARY in caplog.text


def test_what_happened_meanwhile_is_no_cause_where_it_was_cut_off() -> None:
    error = raised()
    error.__cause__ = None
    assert without_text(error).__cause__ is None
    error.__suppress_context__ = False
    assert str(without_text(error).__cause__) == "KeyError"


def test_causes_in_a_circle_end() -> None:
    error = raised()
    assert error.__cause__
    error.__cause__.__cause__ = error
    cause = without_text(error).__cause__
    assert cause
    assert str(cause) == "KeyError"
    assert cause.__cause__ is None
