import json
import logging
from collections.abc import Iterator

import pytest

from service.logs import configure_logs, request_id_var


@pytest.fixture(autouse=True)
def _restored_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_json_lines_carry_event_request_id_and_extras(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logs("info", log_format)
    token = request_id_var.set("r-7")
    extra = {"status": 200, "outcomes": {"scored": 2}, "vllm_process_name": "MainProcess"}
    logging.getLogger("service.request").info("request", extra=extra)
    request_id_var.reset(token)
    [line] = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["logger"]) == ("request", "INFO", "service.request")
    assert (event["request_id"], event["status"], event["outcomes"]) == ("r-7", 200, {"scored": 2})
    assert "vllm_process_name" not in event
    assert event["time"].endswith("Z")


def test_text_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "text")
    extra = {"status": 503, "vllm_process_name": "MainProcess", "color_message": "in colours"}
    logging.getLogger("service").warning("request failed", extra=extra)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING service: request failed status=503")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_level_and_tracebacks(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure_logs("error", log_format)
    logging.getLogger("service").info("unheard")
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("service").exception("broken")
    written = capsys.readouterr().err
    assert "unheard" not in written
    assert "ValueError: the reason" in written
