"""The console's files as they are served. What they do is tested in a browser: end_to_end/test_console.py."""

import re

import pytest

from tests.service.http.conftest import Service


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/console", "text/html"),
        ("/console/console.css", "text/css"),
        ("/console/console.js", "text/javascript"),
    ],
)
async def test_each_file_forbids_what_it_does_not_need(service: Service, path: str, kind: str) -> None:
    response = await service.client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_the_page_has_no_inline_code_and_nothing_from_elsewhere(service: Service) -> None:
    page = (await service.client.get("/console")).text
    assert not re.search(r"\son\w+=|\sstyle=|javascript:|https?://", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    assert "<style" not in page
    script = (await service.client.get("/console/console.js")).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


async def test_it_is_not_part_of_the_api_s_document(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()
    assert not [path for path in document["paths"] if "console" in path]
