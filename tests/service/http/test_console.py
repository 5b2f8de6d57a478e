"""The console's files and their headers. tests/end_to_end/test_console.py tests the page in a browser."""

import re

import pytest

from tests.service.http.conftest import Service


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/console", "text/html"),
        ("/console/console.css", "text/css"),
        ("/console/console.js", "text/javascript"),
        ("/console/citations.js", "text/javascript"),
    ],
)
async def test_each_file_has_a_strict_content_security_policy(service: Service, path: str, kind: str) -> None:
    response = await service.client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_the_page_has_no_inline_code_and_loads_nothing_from_other_hosts(service: Service) -> None:
    page = (await service.client.get("/console")).text
    assert not re.search(r"\son\w+=|\sstyle=|javascript:|https?://", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    assert "<style" not in page
    for name in ("console.js", "citations.js"):
        script = (await service.client.get(f"/console/{name}")).text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


async def test_the_console_is_not_in_the_openapi_document(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()
    assert not [path for path in document["paths"] if "console" in path]
