"""What is logged of an error that nobody foresaw. What its caller is told is in test_operate.py."""

import re

import httpx
import pytest
from fastapi import FastAPI

from service.http.error_handlers import install_error_handlers

CANARY = "a note that nobody may read"


async def logged(caplog: pytest.LogCaptureFixture, log_texts: bool) -> str:
    app = FastAPI()
    install_error_handlers(app, log_texts=log_texts)

    @app.get("/")
    async def _explode() -> None:
        raise RuntimeError(CANARY)

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/")
    assert response.status_code == 500
    assert CANARY not in response.text
    return caplog.text


async def test_it_is_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    log = await logged(caplog, log_texts=False)
    assert CANARY not in log
    assert re.search(r'test_error_handlers\.py", line \d+, in _explode', log)
    assert "RuntimeError" in log


async def test_the_text_is_logged_when_a_setting_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert CANARY in await logged(caplog, log_texts=True)
