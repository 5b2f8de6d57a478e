import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.observability.logs import configure_logs
from service.observability.request_context import RequestContext, current_request


@pytest.fixture(autouse=True)
def _logging_beside_vllm() -> Iterator[None]:
    """Install vLLM's record factory, which adds an attribute to every record, and restore logging afterwards."""

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.vllm_process_name = "MainProcess"
        return record

    root = logging.getLogger()
    handlers, level, factory = root.handlers[:], root.level, logging.getLogRecordFactory()
    logging.setLogRecordFactory(make_record)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_json_lines_have_the_event_the_request_id_and_extras(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logs("info", log_format)
    token = current_request.set(RequestContext("r-7"))
    extra = {"status": 200, "outcomes": {"scored": 2}, "color_message": "in colours"}
    logging.getLogger("service.request").info("request", extra=extra)
    current_request.reset(token)
    [line] = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["logger"]) == ("request", "INFO", "service.request")
    assert (event["request_id"], event["status"], event["outcomes"]) == ("r-7", 200, {"scored": 2})
    assert not {"vllm_process_name", "color_message"} & event.keys()
    assert event["time"].endswith("Z")


def test_text_lines_end_with_extras(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "text")
    extra = {"status": 503, "color_message": "in colours"}
    logging.getLogger("service").warning("request failed", extra=extra)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING service: request failed status=503")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_level_is_applied_and_tracebacks_are_written(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logs("error", log_format)
    logging.getLogger("service").info("unheard")
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("service").exception("broken")
    written = capsys.readouterr().err
    assert "unheard" not in written
    assert "ValueError: the reason" in written
