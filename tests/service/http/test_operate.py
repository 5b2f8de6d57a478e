import json
import logging
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.http.conftest import Service, settings


async def test_ready_and_live(service: Service) -> None:
    ready = await service.client.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (200, "ok")
    assert (await service.client.get("/livez")).json()["live"] is True


async def test_not_ready_states_its_reason(service: Service) -> None:
    service.stack.readiness.set("probing", "reproducing 3 probes")
    response = await service.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "reason": "probing", "detail": "reproducing 3 probes"}
    assert (await service.client.get("/livez")).status_code == 200


async def test_lost_engine_asks_for_a_restart(service: Service) -> None:
    service.engine.kill()
    service.stack.readiness.set("engine_lost", "gone")
    response = await service.client.get("/livez")
    assert response.status_code == 503
    assert response.json()["reason"] == "engine_lost"


async def test_version_names_release_checkpoint_and_engine(service: Service) -> None:
    body = (await service.client.get("/version")).json()
    manifest = service.stack.checkpoint.manifest
    assert body["model"]["fingerprint"] == manifest.fingerprint
    assert body["model"]["grading_version"] == manifest.grading_version
    versions = {"fingerprint": manifest.fingerprint, "grading_version": manifest.grading_version}
    assert service.count("build_info", version=body["version"], **versions) == 1
    assert body["model"]["criteria_limits"] == {}
    assert body["engine"]["dtype"] == "float32"
    assert body["version"]


async def test_metrics_are_prometheus_text(service: Service) -> None:
    await service.score()
    response = await service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families["notegrade_pair_outcomes"].samples[0].value == 2
    assert {s.labels["stage"] for s in families["notegrade_stage_seconds"].samples} >= {
        "cache",
        "queue",
        "engine",
    }


async def test_series_of_failures_exist_from_the_start(service: Service) -> None:
    """Prometheus does not count a series' first value as an increase, so rates would miss a replica's first errors."""
    text = (await service.client.get("/metrics")).text
    for route in ("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"):
        for status in ("200", "500", "503", "504"):
            assert f'notegrade_request_seconds_count{{route="{route}",status="{status}"}} 0.0\n' in text
    for outcome in ("scored", "deadline_exceeded", "shed", "failed"):
        assert f'notegrade_pair_outcomes_total{{outcome="{outcome}"}} 0.0\n' in text
    for reason in ("deadline", "backlog"):
        assert f'notegrade_shed_total{{reason="{reason}"}} 0.0\n' in text


async def test_labels_hold_routes_and_never_paths(service: Service) -> None:
    for path in ("/nowhere/1", "/nowhere/2", "/readyz"):
        await service.client.get(path)
    assert service.count("request_seconds_count", route="unmatched", status="404") == 2
    assert service.count("request_seconds_count", route="/readyz", status="200") == 1


async def test_docs_and_schema_are_served(service: Service) -> None:
    page = await service.client.get("/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(sources) >= 3
    for source in sources:  # served by ourselves: clusters seldom reach a public CDN
        assert (await service.client.get(source)).status_code == 200, source
    document = (await service.client.get("/openapi.json")).json()
    body = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rsplit("/", 1)[1]
    assert document["components"]["schemas"][name]["additionalProperties"] is False
    assert "256 notes" in document["info"]["description"]
    assert document["paths"]["/score"]["post"]["summary"] == "Grade every note against the query"
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


async def test_each_request_has_one_log_event_without_texts(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await service.score(query="sesame secret", notes=[{"id": "n1", "title": "hidden", "body": "private"}])
    [event] = [vars(record) for record in caplog.records if record.name == "service.request"]
    assert (event["route"], event["status"], event["notes"]) == ("/score", 200, 1)
    assert (event["outcomes"], event["sources"]) == ({"scored": 1}, {"engine": 1})
    written = " ".join(str(vars(record)) for record in caplog.records)
    assert not any(word in written for word in ("sesame", "hidden", "private"))


@settings(log_texts=True)
async def test_a_setting_allows_texts_in_the_log(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await service.score(query="sesame secret")
    assert any("sesame secret" in str(vars(record)) for record in caplog.records)
