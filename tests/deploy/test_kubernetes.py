"""The manifests of deploy/kubernetes, built by kustomize, fit their schemas and rules that schemas cannot express."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]  # it comes with vLLM, its stubs don't
from prometheus_client import CollectorRegistry, generate_latest

from service.contract.checkpoint import Checkpoint
from service.http.auth import Keyring, hash_key, new_key
from service.observability.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.deploy.deployed_settings import load_settings, seconds_to_stop
from tests.deploy.kustomize_rig import (
    MANIFESTS,
    OVERLAYS,
    Manifest,
    build,
    build_mine,
    build_with,
    container_of,
    found_by,
    labels_of,
    of_kind,
    selects,
    validate,
)
from tests.deploy.prometheus_rig import query_case, run_query_cases
from tests.processes import ROOT, output_of, run
from tests.served import served
from tests.waiting import wait_until

NAMES = sorted(path.name for path in OVERLAYS.iterdir())
COMPONENTS = sorted(path.name for path in (MANIFESTS / "components").iterdir())
# This overlay has two Deployments of the service: the install's own and one whose name ends in -treatment.
WITH_ARMS = "experiment"
# Secrets that users create, as docs/kubernetes.md describes.
SECRETS = {"notegrade-keys": {"keys"}, "notegrade-redis": {"url"}, "notegrade-shadow": {"key"}}
CLAIMS = {"notegrade-checkpoint"}


@pytest.fixture(
    scope="module",
    params=[
        *(name for name in NAMES if name != WITH_ARMS),
        *(f"cpu+{name}" for name in COMPONENTS if name != "hpa"),
        *(f"{WITH_ARMS}{more}:{arm}" for more in ("", "+monitoring") for arm in ("control", "treatment")),
    ],
)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """Build each overlay or arm of one (without the other arm), alone and with each component that it does not include."""
    what, _, arm = request.param.partition(":")
    name, _, component = what.partition("+")
    built = build_with(name, component, tmp_path_factory.mktemp("kubernetes"))
    if not arm:
        return built
    # A generated name ends in a hash.
    suffix = re.compile(r"-treatment\b")
    treated = [each for each in built if suffix.search(each["metadata"]["name"])]
    twins = {(each["kind"], suffix.sub("", each["metadata"]["name"])) for each in treated}
    if arm == "treatment":
        return [each for each in built if (each["kind"], each["metadata"]["name"]) not in twins]
    return [each for each in built if each not in treated]


def choosing(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the only manifest of the kind whose selector matches the service's pods."""
    service = deployment(manifests)
    [only] = [each for each in of_kind(manifests, kind).values() if selects(labels_of(each), service)]
    return only


def deployment(manifests: list[Manifest]) -> Manifest:
    [only] = [
        each
        for each in of_kind(manifests, "Deployment").values()
        if each["metadata"]["labels"]["app.kubernetes.io/name"] in ("notegrade", "notegrade-treatment")
    ]
    return only


def pod(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = deployment(manifests)["spec"]["template"]["spec"]
    return spec


def container(manifests: list[Manifest]) -> Manifest:
    return container_of(deployment(manifests))


def settings_data(manifests: list[Manifest]) -> dict[str, str]:
    [source] = container(manifests)["envFrom"]
    return dict(of_kind(manifests, "ConfigMap")[source["configMapRef"]["name"]]["data"])


def settings_of(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings as the service would in the pod."""
    return load_settings(settings_data(manifests), monkeypatch)


def test_every_manifest_fits_its_schema(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "ServiceMonitor", "NetworkPolicy"])
def test_schemas_refuse_a_misspelt_field(kind: str) -> None:
    full = build(OVERLAYS / "full")
    manifest = next(each for each in full if each["kind"] == kind)
    manifest["spec"]["misspelt"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, ValueError), match="misspelt"):
        validate(manifest)


def test_the_settings_are_valid(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(manifests, monkeypatch)
    mine = {each["name"] for each in container(manifests)["env"] if each["name"].startswith(PREFIX)}
    assert mine == {"NOTEGRADE_REDIS_URL", *(["NOTEGRADE_SHADOW_KEY"] if settings.shadow_url else [])}
    # Otherwise the Service of that name would set NOTEGRADE_PORT to an address.
    assert pod(manifests)["enableServiceLinks"] is False


def test_ports_match_those_that_the_service_listens_on(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(manifests, monkeypatch)
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    assert ports == {"http": settings.port, "admin": settings.admin_port}
    for service in of_kind(manifests, "Service").values():
        labels = service["spec"]["selector"]
        [chosen] = [each for each in of_kind(manifests, "Deployment").values() if selects(labels, each)]
        names = {port["name"]: port["containerPort"] for port in container_of(chosen)["ports"]}
        for port in service["spec"]["ports"]:
            assert names[port["targetPort"]] == port["port"]


def test_probes_use_the_service_s_paths(manifests: list[Manifest]) -> None:
    names = ("startupProbe", "livenessProbe", "readinessProbe")
    asked = {name: container(manifests)[name]["httpGet"] for name in names}
    assert {name: (get["path"], get["port"]) for name, get in asked.items()} == {
        # A start that failed must be ended soon, a long load must not.
        "startupProbe": ("/livez", "http"),
        "livenessProbe": ("/livez", "http"),
        "readinessProbe": ("/readyz", "http"),
    }


def test_probed_paths_need_no_key(checkpoint: Checkpoint) -> None:
    with served(checkpoint, admin_port=0, keys=f"score:{hash_key(new_key())}") as service:
        for path in ("/livez", "/readyz"):
            assert httpx.get(f"{service.url}{path}").status_code == 200
        service.stack.readiness.set("engine_starting", "as a test will have it")
        assert httpx.get(f"{service.url}/livez").status_code == 200
        assert httpx.get(f"{service.url}/readyz").status_code == 503


def test_the_grace_period_covers_a_stop(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(manifests, monkeypatch)
    assert pod(manifests)["terminationGracePeriodSeconds"] >= seconds_to_stop(settings)
    assert "lifecycle" not in container(manifests)
    # The endpoint is removed after the probe failed; until then the service must answer.
    probe = container(manifests)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.drain_delay_s


def test_referenced_objects_exist(manifests: list[Manifest]) -> None:
    secrets = SECRETS | {name: set(each["data"]) for name, each in of_kind(manifests, "Secret").items()}
    for each in container(manifests)["env"]:
        if wanted := each.get("valueFrom", {}).get("secretKeyRef"):
            assert wanted["key"] in secrets[wanted["name"]]
            # The service runs without Redis. It must not run without keys: they are a volume, without which no pod starts.
            assert wanted["optional"] is (wanted["name"] == "notegrade-redis")
    volumes = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    mounts = {mount["name"]: mount for mount in container(manifests)["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["keys"]["secret"]["secretName"] in secrets
    assert "optional" not in volumes["keys"]["secret"]
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
    ]
    assert set(claims) <= CLAIMS
    accounts = of_kind(manifests, "ServiceAccount")
    assert accounts[pod(manifests)["serviceAccountName"]]["automountServiceAccountToken"] is False
    spaces = {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"}
    assert spaces == set(of_kind(manifests, "Namespace"))


def test_secrets_are_documented() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for name, keys in SECRETS.items():
        for key in keys:
            assert re.search(rf"create secret generic {name} .*--from-\w+={key}=", page)
    assert all(claim in page for claim in CLAIMS)
    assert all(f"`{name}`" in page for name in [*NAMES, *COMPONENTS])


def test_the_keys_are_mounted_where_the_service_reads_them(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_file = settings_of(manifests, monkeypatch).keys_file
    assert keys_file is not None
    [mount] = [each for each in container(manifests)["volumeMounts"] if each["name"] == "keys"]
    assert keys_file == Path(mount["mountPath"]) / "keys"
    assert "subPath" not in mount, "a file mounted by subPath is never updated"
    for secret in of_kind(manifests, "Secret").values():
        assert secret["metadata"]["name"] in SECRETS, (
            "with a hash in its name, a new key would restart the pods"
        )


def test_the_local_key_works() -> None:
    keyring = Keyring.load("", OVERLAYS / "local" / "keys")
    assert keyring.check("local", "admin").key_id == "local"


def test_keys_are_reloaded_when_the_kubelet_updates_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The kubelet writes a new folder and switches a link to it in one step."""
    mount = tmp_path / "keys"
    mount.mkdir()
    (mount / "keys").symlink_to("..data/keys")
    old, new = new_key(), new_key()

    def write(version: str, *keys: str) -> None:
        (mount / version).mkdir()
        (mount / version / "keys").write_text("".join(f"score:{hash_key(key)}\n" for key in keys))
        (mount / "..next").symlink_to(version)
        (mount / "..next").replace(mount / "..data")

    def status(key: str) -> int:
        body = {"query": "quiet cafes", "notes": [{"id": "n", "body": "A quiet cafe."}]}
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{service.url}/score", json=body, headers=headers).status_code

    write("..1", old)
    with served(checkpoint, keys_file=mount / "keys") as service:
        assert (status(old), status(new)) == (200, 401)
        write("..2", old, new)
        wait_until(lambda: (status(old), status(new)) == (200, 200))
        write("..3", new)
        wait_until(lambda: (status(old), status(new)) == (401, 200))


def test_selectors_match_the_pods(manifests: list[Manifest]) -> None:
    workload = deployment(manifests)
    assert selects(workload["spec"]["selector"]["matchLabels"], workload)
    assert choosing(manifests, "PodDisruptionBudget")
    assert choosing(manifests, "NetworkPolicy")
    for spread in pod(manifests)["topologySpreadConstraints"]:
        assert selects(spread["labelSelector"]["matchLabels"], workload)
    for monitor in of_kind(manifests, "ServiceMonitor").values():
        found = found_by(monitor, manifests)
        ports = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
        for service in found:
            assert len(ports & {port["name"] for port in service["spec"]["ports"]}) == 1
        # The rules use the first of these job names.
        jobs = [service["metadata"]["labels"][monitor["spec"]["jobLabel"]] for service in found]
        routers = [name for name in of_kind(manifests, "Deployment") if name == "notegrade-router"]
        assert sorted(jobs) == ["notegrade", *routers]


def test_the_network_policy_allows_only_what_is_needed(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(manifests, monkeypatch)
    policy = choosing(manifests, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    callers, operators = policy["ingress"]
    assert [port["port"] for port in callers["ports"]] == [settings.port]
    assert [port["port"] for port in operators["ports"]] == [settings.admin_port]
    redis, dns, *others = policy["egress"]
    assert [port["port"] for port in redis["ports"]] == [6379]
    assert [(port["port"], port["protocol"]) for port in dns["ports"]] == [(53, "UDP"), (53, "TCP")]
    # The settings also send traces and mirrored requests to other namespaces.
    urls = [settings_data(manifests).get("OTEL_EXPORTER_OTLP_ENDPOINT"), settings.shadow_url]
    leaves = [
        f"http://{{}}.{to['namespaceSelector']['matchLabels']['kubernetes.io/metadata.name']}.svc:{port['port']}"
        for rule in others
        for to in rule["to"]
        for port in rule["ports"]
    ]
    services = {"4318": "otel-collector", "8000": "notegrade"}
    assert [leave.format(services[leave[-4:]]) for leave in leaves] == [url for url in urls if url]
    # The candidate has the same policy, which admits callers by their label.
    calls = selects(callers["from"][0]["podSelector"]["matchLabels"], deployment(manifests))
    assert calls is bool(settings.shadow_url)
    # A rule without `from` or `to` would allow everybody.
    assert all(rule.get("from") or rule.get("to") for rule in policy["ingress"] + policy["egress"])
    for name, workload in of_kind(manifests, "Deployment").items():
        if name == "redis":
            assert selects(redis["to"][0]["podSelector"]["matchLabels"], workload)


def test_pods_have_no_unneeded_privileges(manifests: list[Manifest]) -> None:
    namespace = of_kind(manifests, "Namespace")["notegrade"]["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in of_kind(manifests, "Deployment").values():
        spec = workload["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for each in spec["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["limits"]["memory"] == each["resources"]["requests"]["memory"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    context = pod(manifests)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))
    writable = {
        mount["mountPath"]: volume["emptyDir"]
        for mount in container(manifests)["volumeMounts"]
        for volume in pod(manifests)["volumes"]
        if volume["name"] == mount["name"] and "emptyDir" in volume
    }
    assert set(writable) == {"/tmp", "/dev/shm"}
    assert all(volume["sizeLimit"] for volume in writable.values())


def test_the_engine_starts_as_many_threads_as_its_cpu_limit(manifests: list[Manifest]) -> None:
    limits = container(manifests)["resources"]["limits"]
    threads = [each for each in container(manifests)["env"] if each["name"] == "OMP_NUM_THREADS"]
    if "nvidia.com/gpu" in limits:
        assert not threads
    else:
        assert limits["cpu"]
        assert threads[0]["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"


def test_autoscalers_use_existing_metrics(manifests: list[Manifest]) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    exposed = generate_latest(registry).decode()
    known = set(re.findall(r"^# TYPE (notegrade_\w+) (?:gauge|counter)$", exposed, re.MULTILINE))
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    kinds = ("HorizontalPodAutoscaler", "ScaledObject")
    used: set[str] = set()
    for scaler in [each for each in manifests if each["kind"] in kinds]:
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment(manifests)["metadata"]["name"]
        used |= {each["pods"]["metric"]["name"] for each in scaler["spec"].get("metrics", ())}
        for trigger in scaler["spec"].get("triggers", ()):
            used |= set(re.findall(r"notegrade_\w+", trigger["metadata"]["query"]))
        # Otherwise each apply would undo the autoscaler's work.
        assert "replicas" not in deployment(manifests)["spec"]
    assert used <= known
    assert all(f"`{metric}`" in documented for metric in used)


def keda_triggers() -> list[Manifest]:
    """Return what KEDA's triggers ask Prometheus: the load, then the backlog."""
    scaler = of_kind(build(OVERLAYS / "full"), "ScaledObject")["notegrade"]
    load, backlog = (trigger["metadata"] for trigger in scaler["spec"]["triggers"])
    return [load, backlog]


def test_keda_s_queries_compute_the_load_and_the_backlog_in_seconds(tmp_path: Path) -> None:
    """promtool evaluates the queries: per replica, and no value where nothing is known."""
    load, backlog = keda_triggers()

    def case(asked: Manifest, values: list[int], rates: list[int], *expected: float) -> dict[str, Any]:
        series = {}
        for pod, (value, rate) in enumerate(zip(values, rates, strict=True)):
            labels = f'namespace="notegrade",pod="{pod}"'
            series[f"notegrade_backlog_tokens{{{labels}}}"] = f"{value}x40"
            series[f"notegrade_service_rate_tokens{{{labels}}}"] = f"{rate}x40"
            # Each second computes a tenth of the value.
            for kind, each in (("computed", value * 1.5), ("reused", value)):
                series[f'notegrade_prompt_tokens_total{{kind="{kind}",{labels}}}'] = f"0+{each}x40"
        return query_case(asked["query"], series, *(("{}", number) for number in expected))

    run_query_cases(
        tmp_path,
        case(backlog, [6000, 1000], [2000, 500], 5),
        case(backlog, [6000, 1000], [2000, 0], 3),
        case(backlog, [6000, 1000], [0, 0], 0),
        case(backlog, [], []),
        case(load, [6000, 1000], [1000, 500], 0.8),
        case(load, [6000, 1000], [1000, 0], 0.6),
        case(load, [6000, 1000], [0, 0], 0),
        case(load, [], []),
    )
    assert {load["ignoreNullValues"], backlog["ignoreNullValues"]} == {"false"}


def test_the_autoscalers_thresholds_are_computed_from_the_bench() -> None:
    bench = json.loads((ROOT / "load_tests" / "results" / "bench-avx512.json").read_text(encoding="utf-8"))
    ours = [row for row in bench["summary"] if row["peer"] == "Notegrade"]
    [cold] = [row for row in ours if row["part"] == "cold"]
    # Little's law: pairs in the service = arrivals a second x latency; over the rate at saturation, seconds of work.
    full = bench["saturation"]["Notegrade (tuned)"]["kept_up"] * bench["plan"]["open_shape"]["notes"]
    at_load = [row for row in ours if row["part"] == "p99"]
    loads = [row["pairs_per_s"]["median"] / full for row in at_load]
    p50_s = [row["latency_ms"]["p50"] / 1000 for row in at_load]
    backlog_s = np.interp([0.6, 0.8], loads, np.multiply(loads, p50_s))
    load, backlog = keda_triggers()
    assert float(load["threshold"]) == 0.6
    assert float(backlog["threshold"]) == pytest.approx(backlog_s[1], rel=0.05)
    hpa = of_kind(build(OVERLAYS / "cpu"), "HorizontalPodAutoscaler")["notegrade"]
    four_cores = 2 * cold["pairs_per_s"]["median"] * cold["computed_tokens_per_pair"]
    [metric] = hpa["spec"]["metrics"]
    target = float(metric["pods"]["target"]["averageValue"])
    assert target == pytest.approx(backlog_s[0] * four_cores, rel=0.05)


@pytest.mark.parametrize("overlay", NAMES)
def test_an_overlay_has_at_most_one_autoscaler(overlay: str) -> None:
    manifests = build(OVERLAYS / overlay)
    scalers = {each["kind"] for each in manifests} & {"HorizontalPodAutoscaler", "ScaledObject"}
    assert scalers == {"local": set(), "full": {"ScaledObject"}}.get(overlay, {"HorizontalPodAutoscaler"})


def test_the_script_prints_prometheus_s_rules() -> None:
    made = list(yaml.safe_load_all(output_of(MANIFESTS / "prometheus_rules.sh")))
    files = sorted((ROOT / "deploy" / "prometheus" / "rules").iterdir())
    assert [each["spec"] for each in made] == [yaml.safe_load(file.read_text()) for file in files]
    for each in made:
        validate(each)
        assert each["metadata"]["namespace"] == "notegrade"
    assert sum(len(group["rules"]) for each in made for group in each["spec"]["groups"]) > 0


def test_the_script_adds_labels_to_the_rules() -> None:
    script = MANIFESTS / "prometheus_rules.sh"
    printed = output_of(script, "release=kube-prometheus-stack", "team=a: b", NAMESPACE="other")
    for each in yaml.safe_load_all(printed):
        validate(each)
        assert each["metadata"]["namespace"] == "other"
        labels = each["metadata"]["labels"]
        assert (labels["release"], labels["team"]) == ("kube-prometheus-stack", "a: b")
    refused = run(script, "release")
    assert (refused.returncode, refused.stdout) == (2, "")


def documented(beginning: str) -> list[Manifest]:
    """Return the kustomizations in docs/kubernetes.md, or parts of one, that begin with such a comment."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    first = rf"# {beginning}/overlays/mine/kustomization\.yaml"
    found = re.findall(rf"```yaml\n{first}\n(.*?)```", page, re.DOTALL)
    return [yaml.safe_load(each) for each in found]


def test_the_documented_overlay_builds(tmp_path: Path) -> None:
    [whole] = documented("deploy/kubernetes")
    for manifest in build_mine(yaml.safe_dump(whole), tmp_path):
        validate(manifest)


def test_the_documented_patches_have_their_effect(tmp_path: Path) -> None:
    [whole] = documented("deploy/kubernetes")
    parts = documented("in deploy/kubernetes")
    assert len(parts) == 3
    whole["patches"] = [patch for part in parts for patch in part["patches"]]
    built = build_mine(yaml.safe_dump(whole), tmp_path)
    for manifest in built:
        validate(manifest)
    assert of_kind(built, "ServiceMonitor")["notegrade"]["metadata"]["labels"]["release"]
    [mount] = [each for each in container(built)["volumeMounts"] if each["name"] == "redis-ca"]
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert f"?ssl_ca_certs={mount['mountPath']}/ca.crt" in page
    *_, redis, hub = choosing(built, "NetworkPolicy")["spec"]["egress"]
    assert [each["ports"][0]["port"] for each in (redis, hub)] == [6379, 443]
