"""Builds the manifests of deploy/kubernetes with kustomize."""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]  # it comes with vLLM, its stubs don't

from tests.processes import ROOT, run
from tests.tools import KUSTOMIZE, require

MANIFESTS = ROOT / "deploy" / "kubernetes"
OVERLAYS = MANIFESTS / "overlays"
# The Kubernetes versions whose schemas the manifests must fit. Image volumes are on by default in the newest.
KUBERNETES = ("1.33", "1.37")
# The schemas of operators, as models generated from their definitions.
DEFINITIONS = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}

Manifest = dict[str, Any]


def build(folder: Path) -> list[Manifest]:
    done = run(require(KUSTOMIZE), "build", folder)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize reports deprecated fields there"
    return list(yaml.safe_load_all(done.stdout))


def build_mine(kustomization: str, folder: Path) -> list[Manifest]:
    """Build an overlay `mine`, written beside the others in a copy of them."""
    copied = folder / "kubernetes"
    shutil.copytree(MANIFESTS, copied)
    mine = copied / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(kustomization, encoding="utf-8")
    return build(mine)


def build_with(name: str, component: str, folder: Path) -> list[Manifest]:
    """Build the overlay with a component that it does not include."""
    if not component:
        return build(OVERLAYS / name)
    lines = ["kind: Kustomization", f"resources: [../{name}]", f"components: [../../components/{component}]"]
    return build_mine("\n".join(lines), folder)


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def config_of(manifests: list[Manifest], name: str) -> dict[str, str]:
    """Return the data of the ConfigMap with that name before its hash."""
    [found] = [
        each
        for full, each in of_kind(manifests, "ConfigMap").items()
        if re.fullmatch(rf"{name}-[a-z0-9]{{10}}", full)
    ]
    return dict(found["data"])


def selects(labels: dict[str, str], workload: Manifest) -> bool:
    return bool(labels.items() <= workload["spec"]["template"]["metadata"]["labels"].items())


def labels_of(manifest: Manifest) -> dict[str, str]:
    """Return the labels of the pods that the manifest selects."""
    spec = manifest["spec"]
    return dict(spec["podSelector" if manifest["kind"] == "NetworkPolicy" else "selector"]["matchLabels"])


def container_of(workload: Manifest) -> Manifest:
    [only] = workload["spec"]["template"]["spec"]["containers"]
    return only  # type: ignore[no-any-return]


def found_by(monitor: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    """Return the Services that the ServiceMonitor selects."""
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = of_kind(manifests, "Service").values()
    return [each for each in services if wanted <= each["metadata"]["labels"].items()]


def validate(manifest: Manifest) -> None:
    module = DEFINITIONS.get(manifest["apiVersion"])
    if module:
        model = getattr(importlib.import_module(module), manifest["kind"])
        model.model_validate(manifest, extra="forbid")
    else:
        for version in KUBERNETES:
            kubernetes_validate.validate(manifest, version, strict=True)
