"""The overlay `experiment` works beside the normal install, applied over it, and can be removed again."""

import copy
import re
import shutil
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # it comes with vLLM, its stubs don't

from load_tests.processes import free_port
from service.settings import Settings
from tests.deploy.haproxy_rig import BY_QUERY, ROUTING, replica_addresses, routed
from tests.deploy.kustomize_rig import (
    MANIFESTS,
    OVERLAYS,
    Manifest,
    build,
    build_with,
    config_of,
    container_of,
    found_by,
    labels_of,
    of_kind,
    selects,
)
from tests.deploy.test_routing import failing
from tests.processes import ROOT, output_of
from tests.tools import HAPROXY, require

ARMS = {"control": "notegrade", "treatment": "notegrade-treatment"}
# Connections of the kubelet, every router and Prometheus, and those that only one side has closed yet.
RESERVED_CONNECTIONS = 100


@pytest.fixture(scope="module")
def experiment() -> list[Manifest]:
    return build(OVERLAYS / "experiment")


def named(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Index manifests by what `kubectl apply` identifies them by; all are in one namespace."""
    return {(each["kind"], each["metadata"]["name"]): each for each in manifests}


def of_the_service(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the manifests by arm."""
    found = of_kind(manifests, kind)
    return {arm: found[name] for arm, name in ARMS.items()}


def test_arms_differ_only_in_their_image(experiment: list[Manifest]) -> None:
    arms = copy.deepcopy(of_the_service(experiment, "Deployment"))
    images = {arm: container_of(each).pop("image") for arm, each in arms.items()}
    assert images["control"] != images["treatment"]
    treatment = yaml.safe_load(yaml.safe_dump(arms["treatment"]).replace("-treatment", ""))
    assert treatment == arms["control"]


def test_the_overlay_changes_one_service_of_the_normal_install(experiment: list[Manifest]) -> None:
    before, after = named(build(OVERLAYS / "cpu")), named(experiment)
    assert before.keys() <= after.keys()
    assert [name for name in before if after[name] != before[name]] == [("Service", "notegrade")]


def test_its_parts_can_be_applied_and_removed_without_the_install(experiment: list[Manifest]) -> None:
    """docs/experiments.md applies the parts before the whole overlay, and deletes them at the end."""
    install = named(build(OVERLAYS / "cpu"))
    parts = {part: named(build(OVERLAYS / "experiment" / part)) for part in ("treatment", "router")}
    for part in parts.values():
        assert not part.keys() & install.keys()
        # Applying the whole overlay changes nothing in a part.
        assert all(named(experiment)[name] == each for name, each in part.items())
    assert named(experiment).keys() == install.keys() | parts["treatment"].keys() | parts["router"].keys()


def test_no_pod_is_selected_twice_beside_the_normal_install(tmp_path: Path) -> None:
    """Objects of both are in the cluster at once: a pod with two budgets can't be evicted, one with two HPAs can't be scaled."""
    both: list[Manifest] = []
    for overlay in ("cpu", "experiment"):
        (tmp_path / overlay).mkdir()
        both += build_with(overlay, "monitoring", tmp_path / overlay)
    # An object that is in both is the one applied last, which decides where the Service points.
    manifests = list(named(both).values())
    workloads = of_kind(manifests, "Deployment")
    assert set(workloads) == {*ARMS.values(), "notegrade-router"}
    for name, workload in workloads.items():
        for kind in ("Deployment", "PodDisruptionBudget", "NetworkPolicy"):
            others = of_kind(manifests, kind).items()
            assert [other for other, each in others if selects(labels_of(each), workload)] == [name]
        scraped = [
            (service["metadata"]["name"], port["name"])
            for monitor in of_kind(manifests, "ServiceMonitor").values()
            for service in found_by(monitor, manifests)
            if selects(service["spec"]["selector"], workload)
            for port in service["spec"]["ports"]
            for endpoint in monitor["spec"]["endpoints"]
            if endpoint["port"] == port["name"]
        ]
        assert len(scraped) == 1, f"{name}: {scraped}"
    # The same before the Service `notegrade` points to the router.
    for service in (each for each in both if each["kind"] == "Service"):
        assert sum(selects(service["spec"]["selector"], each) for each in workloads.values()) == 1
    scalers = [
        each["spec"]["scaleTargetRef"]["name"]
        for each in of_kind(manifests, "HorizontalPodAutoscaler").values()
    ]
    assert sorted(scalers) == sorted(ARMS.values())


def test_the_documented_promotion_gives_the_control_the_treatments_image(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    [written] = re.findall(
        r"```yaml\n# in deploy/kubernetes/overlays/cpu/kustomization\.yaml\n(.*?)```", page, re.DOTALL
    )
    copied = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, copied)
    with (copied / "overlays" / "cpu" / "kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write(written)
    arms = of_the_service(build(copied / "overlays" / "experiment"), "Deployment")
    images = {arm: container_of(each)["image"] for arm, each in arms.items()}
    assert images == dict.fromkeys(ARMS, "notegrade:0.1.0-treatment")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("make image", "notegrade:0.1.0"),
        ("make image TARGET=gpu", "notegrade:0.1.0-gpu"),
        ("make image TARGET=gpu TAG=mine", "notegrade:mine"),
        ("make image-train TAG=mine", "notegrade-train:mine"),
        # The command of docs/experiments.md without the checkpoint, which a test may lack.
        ("make image TAG=0.1.0-treatment", None),
    ],
)
def test_images_get_the_names_that_the_overlays_use(
    experiment: list[Manifest],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    name: str | None,
) -> None:
    """A fake builder prints its arguments."""
    builder = tmp_path / "builder"
    builder.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    builder.chmod(0o755)
    for variable in ("TAG", "IMAGE", "TARGET"):
        monkeypatch.delenv(variable, raising=False)
    printed = output_of(*command.split(), f"BUILDER={builder}", "CHECKPOINT=")
    [tag] = re.findall(r"--tag (\S+)", printed)
    if name is None:
        assert f"{command} CHECKPOINT=" in (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
        name = container_of(of_the_service(experiment, "Deployment")["treatment"])["image"]
    assert tag == name


def test_the_router_s_files_equal_deploy_routing(experiment: list[Manifest]) -> None:
    files = config_of(experiment, "notegrade-routing")
    assert set(files) == {"defaults.cfg", "experiment.cfg"}
    for name, text in files.items():
        assert text == (ROUTING / name).read_text(encoding="utf-8"), "cp deploy/routing/*.cfg to the overlay"


def test_haproxy_accepts_the_rendered_configuration(experiment: list[Manifest], tmp_path: Path) -> None:
    for name, text in config_of(experiment, "notegrade-routing").items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    router = container_of(of_kind(experiment, "Deployment")["notegrade-router"])
    [mount] = router["volumeMounts"]
    _, *arguments = [each.replace(mount["mountPath"], str(tmp_path)) for each in router["args"]]
    output_of(require(HAPROXY), "-c", *arguments, within_s=60, **config_of(experiment, "notegrade-router"))


def test_the_router_finds_every_replica_of_each_arm(experiment: list[Manifest]) -> None:
    environment = config_of(experiment, "notegrade-router")
    routing = config_of(experiment, "notegrade-routing")["experiment.cfg"]
    for arm, workload in of_the_service(experiment, "Deployment").items():
        host, port = environment[f"{arm.upper()}_DNS"].split(":")
        name, namespace, *_ = host.split(".")
        service = of_kind(experiment, "Service")[name]
        assert service["metadata"]["namespace"] == namespace
        assert service["spec"]["clusterIP"] == "None"
        assert [each["port"] for each in service["spec"]["ports"]] == [int(port)]
        assert selects(service["spec"]["selector"], workload)
        [most] = re.findall(rf"server-template {arm} (\d+) ", routing)
        scaler = of_kind(experiment, "HorizontalPodAutoscaler")[ARMS[arm]]
        assert scaler["spec"]["scaleTargetRef"]["name"] == ARMS[arm]
        assert int(most) >= scaler["spec"]["maxReplicas"]


def test_callers_reach_the_router_and_the_router_reaches_the_arms(experiment: list[Manifest]) -> None:
    workloads = of_kind(experiment, "Deployment")
    router, policies = workloads["notegrade-router"], of_kind(experiment, "NetworkPolicy")
    services = of_kind(experiment, "Service")
    for name in ("notegrade", "notegrade-router"):
        assert selects(services[name]["spec"]["selector"], router)
    mine = policies["notegrade-router"]["spec"]
    assert selects(mine["podSelector"]["matchLabels"], router)
    environment = config_of(experiment, "notegrade-router")
    ports = [f":{port['port']}" for rule in mine["ingress"] for port in rule["ports"]]
    assert ports == [environment["LISTEN"], environment["METRICS_LISTEN"]]
    # Prometheus uses the second port.
    [metrics] = services["notegrade-router"]["spec"]["ports"]
    assert f":{metrics['port']}" == environment["METRICS_LISTEN"]
    arms_rule, _ = mine["egress"]
    for name, peer in zip(ARMS.values(), arms_rule["to"], strict=True):
        theirs = policies[name]["spec"]["ingress"][0]
        assert selects(theirs["from"][0]["podSelector"]["matchLabels"], router)
        assert selects(peer["podSelector"]["matchLabels"], workloads[name])
        assert arms_rule["ports"] == theirs["ports"]
        assert mine["ingress"][0]["from"] == theirs["from"], "the router admits the same callers as the arms"


def test_the_router_stops_after_the_longest_request(experiment: list[Manifest]) -> None:
    spec = of_kind(experiment, "Deployment")["notegrade-router"]["spec"]["template"]["spec"]
    [longest_s] = re.findall(r"timeout server (\d+)s", (ROUTING / "defaults.cfg").read_text())
    sleep_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= sleep_s + int(longest_s)


def test_saturated_routers_leave_connections_for_probes_and_scrapes(experiment: list[Manifest]) -> None:
    router = of_kind(experiment, "Deployment")["notegrade-router"]["spec"]
    # During a rollout as many routers stop, with requests open, as start.
    routers = 2 * router["replicas"]
    assert router["strategy"]["rollingUpdate"]["maxSurge"] <= router["replicas"]
    [(busy, idle)] = re.findall(
        r"^    default-server .*maxconn (\d+) pool-max-conn (\d+)$",
        config_of(experiment, "notegrade-routing")["defaults.cfg"],
        re.MULTILINE,
    )
    settings = {
        "max_connections": Settings.model_fields["max_connections"].default,
        **{
            name.removeprefix("NOTEGRADE_").lower(): value
            for name, value in config_of(experiment, "notegrade-settings").items()
        },
    }
    assert routers * (int(busy) + int(idle)) <= int(str(settings["max_connections"])) - RESERVED_CONNECTIONS


def test_haproxy_counts_its_own_503s(tmp_path: Path) -> None:
    """It counts only those in the metric that docs/kubernetes.md names."""
    metric = r'^haproxy_backend_connection_errors_total\{proxy="replicas"\} (\d+)'

    def counted(address: str, folder: Path) -> int:
        folder.mkdir()
        with routed(folder, BY_QUERY, replica_addresses([address] * 3)) as router:
            assert router.score("quiet cafes").status_code == 503
            [found] = re.findall(metric, httpx.get(router.metrics_url).text, re.MULTILINE)
        return int(found)

    with failing(503, []) as theirs:
        assert counted(theirs, tmp_path / "theirs") == 0
    assert counted(f"127.0.0.1:{free_port()}", tmp_path / "its own") == 1
