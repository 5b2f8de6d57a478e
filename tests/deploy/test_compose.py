"""deploy/compose.yaml is parsed by Docker Compose itself, and checked against the files that it mounts."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis

from service.app import listening_addresses
from service.http.auth import Keyring, hash_key
from service.settings import Settings
from tests.checkpoints import make_checkpoint
from tests.deploy.compose_rig import as_processes, of_the_image
from tests.deploy.deployed_settings import load_settings, seconds_to_stop
from tests.deploy.prometheus_rig import Prometheus, read, tools
from tests.doc_commands import problems
from tests.processes import ROOT
from tests.tools import COMPOSE, VENV_BIN, require
from tests.waiting import is_ready, wait_until

DEPLOY = ROOT / "deploy"
ENTRY = f"admin:{hash_key('a test')}:test"

Composed = dict[str, Any]


@pytest.fixture(scope="module")
def docker_compose() -> str:
    """Return Debian's Compose 2, which parses a file without a daemon."""
    return require(COMPOSE)


def read_by(docker_compose: str, file: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    ours = {name: value for name, value in os.environ.items() if name not in ("NOTEGRADE_KEYS", "CHECKPOINT")}
    command = [docker_compose, "-f", str(file), "config", "--format", "json"]
    return subprocess.run(command, env={**ours, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def composed(docker_compose: str) -> Composed:
    done = read_by(docker_compose, DEPLOY / "compose.yaml", NOTEGRADE_KEYS=ENTRY)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "Compose reports obsolete keys there"
    whole: Composed = json.loads(done.stdout)
    return whole


def test_its_commands_work_on_a_fresh_clone() -> None:
    head = (DEPLOY / "compose.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    typed = re.findall(r"^# {3}(.*)$", head, re.MULTILINE)
    assert problems("```bash\n" + "\n".join(typed) + "\n```\n") == []
    # A clone has no checkpoint, and Compose does not mount a missing folder.
    assert [line.split("#")[0].strip() for line in typed[:2]] == ["make checkpoint", "make image"]
    assert "docker compose -f deploy/compose.yaml up" in typed[-1]


def test_a_misspelt_key_is_refused(docker_compose: str, tmp_path: Path) -> None:
    written = (DEPLOY / "compose.yaml").read_text().replace("cap_drop:", "cap_dropped:")
    (tmp_path / "compose.yaml").write_text(written)
    done = read_by(docker_compose, tmp_path / "compose.yaml", NOTEGRADE_KEYS=ENTRY)
    assert done.returncode != 0
    assert "cap_dropped" in done.stderr


def test_compose_refuses_to_start_without_keys(docker_compose: str) -> None:
    done = read_by(docker_compose, DEPLOY / "compose.yaml")
    assert done.returncode != 0
    assert "NOTEGRADE_KEYS" in done.stderr


def binds(service: Composed) -> dict[str, Path]:
    return {
        each["target"]: Path(each["source"]) for each in service.get("volumes", ()) if each["type"] == "bind"
    }


def test_mounted_files_exist_and_are_read_only(composed: Composed) -> None:
    mounted = {
        target: source for each in composed["services"].values() for target, source in binds(each).items()
    }
    default = re.search(r"^default_checkpoint := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert default is not None
    assert mounted.pop("/checkpoint") == ROOT / default[1]
    assert set(mounted) == {
        "/etc/prometheus",
        "/etc/alertmanager",
        "/etc/grafana/provisioning",
        "/var/lib/grafana/dashboards",
    }
    assert all(any(source.iterdir()) for source in mounted.values())
    volumes = [volume for each in composed["services"].values() for volume in each.get("volumes", ())]
    assert all(volume["read_only"] for volume in volumes if volume["type"] == "bind")
    named = {volume["source"] for volume in volumes if volume["type"] == "volume"}
    assert named == set(composed["volumes"])


@pytest.fixture
def settings(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings as the service would in its container."""
    return load_settings(composed["services"]["notegrade"]["environment"], monkeypatch)


def test_the_service_listens_beyond_loopback_with_a_key(settings: Settings) -> None:
    assert listening_addresses(settings) == [("0.0.0.0", settings.port)]
    assert Keyring.load(settings.keys.get_secret_value(), None).check("a test", "admin").key_id == "test"


def listening_ports(composed: Composed, settings: Settings) -> dict[str, int]:
    """Return each service's port, from its command; Redis and Grafana use their defaults."""
    ports = {"notegrade": settings.port, "redis": 6379, "grafana": 3000}
    for name in ("prometheus", "alertmanager"):
        [option] = [each for each in composed["services"][name]["command"] if "--web.listen-address" in each]
        ports[name] = int(option.rpartition(":")[2])
    return ports


def test_each_service_reaches_the_others(composed: Composed, settings: Settings) -> None:
    """They share one network namespace, and so 127.0.0.1."""
    services = composed["services"]
    assert all(
        each["network_mode"] == "service:network" for name, each in services.items() if name != "network"
    )
    port = listening_ports(composed, settings)
    assert len(set(port.values())) == len(port), "two services have the same port"
    assert settings.redis_url is not None
    redis = urlsplit(settings.redis_url.get_secret_value())
    assert (redis.hostname, redis.port) == ("127.0.0.1", port["redis"])

    prometheus = read(binds(services["prometheus"])["/etc/prometheus"] / "prometheus.yml")
    [job] = [each for each in prometheus["scrape_configs"] if each["job_name"] == "notegrade"]
    # With an admin port, /metrics would be only there.
    assert settings.admin_port is None
    assert targets(job) == [f"127.0.0.1:{port['notegrade']}"]
    [alerting] = prometheus["alerting"]["alertmanagers"]
    assert targets(alerting) == [f"127.0.0.1:{port['alertmanager']}"]
    assert any((DEPLOY / "prometheus").glob(prometheus["rule_files"][0]))

    provisioning = binds(services["grafana"])["/etc/grafana/provisioning"]
    [sources] = [read(file) for file in (provisioning / "datasources").iterdir()]
    assert [each["url"] for each in sources["datasources"]] == [f"http://127.0.0.1:{port['prometheus']}"]
    [providers] = [read(file) for file in (provisioning / "dashboards").iterdir()]
    for provider in providers["providers"]:
        folder = binds(services["grafana"])[provider["options"]["path"]]
        assert any(folder.glob("*.json"))


def targets(config: Composed) -> list[str]:
    return [target for static in config["static_configs"] for target in static["targets"]]


def test_the_files_named_in_commands_are_mounted(composed: Composed) -> None:
    for name in ("prometheus", "alertmanager"):
        service = composed["services"][name]
        [option] = [each for each in service["command"] if each.startswith("--config.file=")]
        file = Path(option.partition("=")[2])
        assert (binds(service)[str(file.parent)] / file.name).is_file()


def test_ports_are_published_on_loopback_only(composed: Composed, settings: Settings) -> None:
    published = composed["services"]["network"]["ports"]
    assert {each["host_ip"] for each in published} == {"127.0.0.1"}
    ports = listening_ports(composed, settings)
    assert {each["target"] for each in published} == set(ports.values()) - {ports["redis"]}
    assert not any("ports" in each for name, each in composed["services"].items() if name != "network")


def test_every_container_is_hardened(composed: Composed) -> None:
    for each in composed["services"].values():
        assert each["read_only"]
        assert each["cap_drop"] == ["ALL"]
        assert each["security_opt"] == ["no-new-privileges:true"]
        assert not each.get("privileged")
        assert "mem_limit" in each
        assert ":" in each["image"].rpartition("/")[2], "an image without a version can change any day"
    user = re.search(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert composed["services"]["notegrade"]["user"] == user[1]


def test_the_image_is_that_of_make_image(composed: Composed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert composed["services"]["notegrade"]["image"] == f"notegrade:{version}"
    assert composed["services"]["network"]["image"] == f"notegrade:{version}"


def test_the_grace_period_covers_a_stop(composed: Composed, settings: Settings) -> None:
    written = composed["services"]["notegrade"]["stop_grace_period"]
    found = re.fullmatch(r"(\d+)m(\d+)s", written)
    assert found is not None
    assert int(found[1]) * 60 + int(found[2]) >= seconds_to_stop(settings)


@pytest.mark.redis
def test_its_services_work_together(
    docker_compose: str, composed: Composed, settings: Settings, redis_binary: str, tmp_path: Path
) -> None:
    """They run as processes, on the fake engine, and without Grafana; no image of the others can be fetched here."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    done = read_by(docker_compose, DEPLOY / "compose.yaml", NOTEGRADE_KEYS=ENTRY, CHECKPOINT=str(checkpoint))
    services = json.loads(done.stdout)["services"]
    [folder] = re.findall(r"NOTEGRADE_CHECKPOINT=(\S+)", of_the_image("ENV PATH"))
    services["notegrade"]["environment"] |= {"NOTEGRADE_CHECKPOINT": folder, "NOTEGRADE_ENGINE": "fake"}
    program, *command = json.loads(of_the_image("ENTRYPOINT"))
    assert services["redis"]["command"].pop(0) == "redis-server"
    programs = {
        "redis": [redis_binary, "--port", "{port}"],
        "notegrade": [str(VENV_BIN / program), *command, "--port", "{port}"],
        "prometheus": [str(tools() / "prometheus")],
        "alertmanager": [str(tools() / "alertmanager")],
    }
    with as_processes(services, programs, listening_ports(composed, settings), tmp_path) as running:
        ready = [f"{running.url(name)}/-/ready" for name in ("prometheus", "alertmanager")]
        wait_until(lambda: all(map(is_ready, [f"{running.url('notegrade')}/readyz", *ready])))
        assert running.is_healthy()

        body = {"query": "quiet cafes", "notes": [{"id": "n1", "body": "A cafe."}], "deadline_ms": 60_000}
        answer = httpx.post(
            f"{running.url('notegrade')}/score", json=body, headers={"Authorization": "Bearer a test"}
        )
        assert [result["outcome"] for result in answer.json()["results"]] == ["scored"], answer.text
        prometheus = Prometheus(running.url("prometheus"))
        scored = 'notegrade_pair_outcomes_total{job="notegrade", outcome="scored"}'
        wait_until(lambda: prometheus.value(scored) == 1, within_s=60)  # it scrapes every 15 s
        alerting = [each["url"] for each in prometheus.ask("alertmanagers")["activeAlertmanagers"]]
        assert alerting == [f"{running.url('alertmanager')}/api/v2/alerts"]
        assert prometheus.ask("rules")["groups"]
        with Redis(port=running.ports["redis"]) as redis:
            wait_until(lambda: redis.dbsize() >= 1)
        assert running.stop("notegrade", within_s=60) == 0
