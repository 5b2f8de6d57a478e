"""Generated docs equal the code that they describe, and links have a target."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic_core import PydanticUndefined

from service.app import build_app, build_stack
from service.contract.manifest import Manifest
from service.errors import (
    CacheUnavailableError,
    CheckpointError,
    CommandError,
    ConfigurationError,
    EncoderError,
    LabelTokenError,
    ManifestError,
    NotegradeError,
    ShadowError,
)
from service.observability.engine_use import EngineUse
from service.observability.metrics import Metrics, ModeGauge
from service.settings import PREFIX, Settings
from tests.checkpoints import fake_engine_for, load_tiny
from tests.deploy.prometheus_rig import RUNBOOKS, rules, runbook_of
from tests.processes import ROOT, output_of


def settings_table() -> str:
    """Generate the table of docs/settings.md from Settings."""
    rows = ["| setting | default | what it does |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        assert field.default is not PydanticUndefined
        default = field.default
        shown = (
            "unset"
            if default is None
            else "empty"
            if not str(getattr(default, "get_secret_value", lambda d=default: d)())
            else f"`{default}`"
        )
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_settings_are_documented() -> None:
    documented = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings_table() in documented


def problems_table() -> str:
    """Generate the table of docs/errors.md: every error class that answers a request."""
    rows = ["| `type` | status | title | retry | error |", "| --- | --- | --- | --- | --- |"]
    for error in sorted(answering_errors(), key=lambda error: (error.status, error.type)):
        retry = "yes" if error.retryable else "no"
        rows.append(f"| `{error.type}` | {error.status} | {error.title} | {retry} | `{error.__name__}` |")
    return "\n".join(rows)


def answering_errors() -> list[type[NotegradeError]]:
    silent = (
        CacheUnavailableError,
        CheckpointError,
        ManifestError,
        LabelTokenError,
        CommandError,
        ConfigurationError,
        EncoderError,
        ShadowError,
    )
    found, todo = [], [NotegradeError]
    while todo:
        error = todo.pop()
        found.append(error)
        todo += error.__subclasses__()
    return [e for e in found if e.__module__ == "service.errors" and e not in silent]


def metrics_table() -> str:
    """Generate the table of docs/metrics.md from Metrics."""
    rows = ["| metric | type | labels | what it counts |", "| --- | --- | --- | --- |"]
    for metric in vars(Metrics(CollectorRegistry())).values():
        is_one = isinstance(metric, MetricWrapperBase | ModeGauge | EngineUse)
        for family in metric.describe() if is_one else ():
            named: Any = metric if isinstance(metric, MetricWrapperBase) else family
            labels = ", ".join(f"`{label}`" for label in named._labelnames)
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows)


def test_problem_types_are_documented() -> None:
    assert problems_table() in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def test_metrics_are_documented() -> None:
    assert metrics_table() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_manifest_schema_is_published() -> None:
    published = json.loads((ROOT / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))
    assert published == json.loads(json.dumps(Manifest.model_json_schema()))


def published_openapi() -> str:
    """Generate docs/openapi.json from the application; no part of it depends on the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_tiny(Path(folder))
        settings = Settings()
        stack = build_stack(settings, checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
        return json.dumps(build_app(settings, stack).openapi(), indent=1, ensure_ascii=False) + "\n"


def test_the_api_is_published() -> None:
    assert (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8") == published_openapi()


@pytest.mark.parametrize(
    ("picture", "package"), [("request-path", "service"), ("training-path", "model_export")]
)
def test_pictures_name_files_that_exist(picture: str, package: str) -> None:
    drawn = (ROOT / "docs" / f"{picture}.svg").read_text(encoding="utf-8")
    named = [name for text in re.findall(r'class="code"[^>]*>([^<]+)<', drawn) for name in text.split(", ")]
    assert len(named) > 10
    assert [name for name in named if not any((ROOT / package).rglob(name))] == []


def test_the_site_builds_without_dead_links(tmp_path: Path) -> None:
    options = ("--strict", "--quiet", "--site-dir")
    output_of(sys.executable, "-m", "mkdocs", "build", *options, tmp_path / "site")
    for page in ("index", "api", "settings", "reliability", "decisions/index"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
    # An alert's link leads to its runbook in the repository and on the site: the address is the same.
    for name, alert in rules("alert").items():
        path, anchor = runbook_of(alert)
        runbook = (tmp_path / "site" / path / "index.html").read_text(encoding="utf-8")
        assert f"<code>{name}</code>" in runbook
        assert not anchor or f'id="{anchor}"' in runbook
    # The site fetches nothing from other hosts.
    for file in (tmp_path / "site").rglob("*.html"):
        html = file.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', html), file


def test_the_site_s_menu_lists_every_runbook() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {path.name for path in RUNBOOKS.glob("*.md")} == set(re.findall(r"- deploy/runbooks/(.+)", menu))


def test_decisions_are_numbered_and_have_a_status() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(path.name[:4]) for path in decisions]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all("\nStatus: " in path.read_text(encoding="utf-8") for path in decisions)


def test_every_fault_has_its_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    rows = [row for row in rows if row.count("|") > 4 and not row.startswith("| fault ")]
    assert len(rows) >= 30
    for row in rows:
        found = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)` \|$", row)
        assert found, f"no test: {row}"
        assert re.search(rf"def {found[2]}\(", (ROOT / found[1]).read_text(encoding="utf-8")), row


def test_raw_results_and_the_pages_that_name_them_agree() -> None:
    """A page may name several files by a pattern."""
    folder = "load_tests/results"
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    found = {pattern: set(ROOT.glob(pattern)) for pattern in re.findall(rf"{folder}/[\w.*-]+\.json", text)}
    assert [pattern for pattern, files in found.items() if not files] == []
    assert set((ROOT / folder).iterdir()) == set().union(*found.values())
