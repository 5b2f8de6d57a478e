import logging
import re

import pytest

from service.observability.redaction import log_redacted, without_text

CANARY = "a note that nobody may read"


def raised() -> Exception:
    """Raise an error as a library may: its text, its cause's text and its note quote the input."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            error.add_note(CANARY)
            raise RuntimeError(f"can't take {CANARY}") from error
    except RuntimeError as error:
        return error


def test_type_and_frames_are_logged_without_the_text(caplog: pytest.LogCaptureFixture) -> None:
    log_redacted(logging.getLogger("service"), "unforeseen error", raised())
    assert "ERROR" in caplog.text
    assert "unforeseen error" in caplog.text
    assert CANARY not in caplog.text
    assert len(re.findall(r'test_redaction\.py", line \d+, in raised', caplog.text)) == 2
    assert re.search(r"KeyError\n(.*\n)+.*RuntimeError", caplog.text)  # Python prints the cause first
    assert vars(caplog.records[0])["error"] == "RuntimeError"


def test_the_text_is_logged_if_texts_may_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    log_redacted(logging.getLogger("service"), "unforeseen error", raised(), log_texts=True)
    assert CANARY in caplog.text


def test_a_suppressed_context_is_not_logged() -> None:
    error = raised()
    error.__cause__ = None
    assert without_text(error).__cause__ is None
    error.__suppress_context__ = False
    assert str(without_text(error).__cause__) == "KeyError"


def test_a_circle_of_causes_is_logged_once() -> None:
    error = raised()
    assert error.__cause__
    error.__cause__.__cause__ = error
    cause = without_text(error).__cause__
    assert cause
    assert str(cause) == "KeyError"
    assert cause.__cause__ is None
