import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_export.checkpoint.writer import CheckpointSpec, SpecError, write_contract
from model_export.data.criteria import load_criteria
from model_export.data.template import find_template
from model_export.models.base_model import GEMMA_PACKAGE
from service.contract.checkpoint import Checkpoint
from service.contract.manifest import Base, Calibration, Criteria, Limits, Lineage
from tests.tiny_adapter import NOTES

STRICT = Criteria(name="strict-1", text="Grade the note, strictly.")


@pytest.fixture(scope="module")
def spec() -> CheckpointSpec:
    return CheckpointSpec(
        name="tiny",
        base=Base(name="tiny-base", licence="cc0-1.0", source="made by a test"),
        template=find_template("note-first-1"),
        criteria=(load_criteria("general-1"), STRICT),
        lineage=Lineage(code_version="0"),
    )


@pytest.fixture(scope="module")
def written(spec: CheckpointSpec, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write(spec, tiny_base, tmp_path_factory.mktemp("written") / "checkpoint")


def write(spec: CheckpointSpec, weights: Path, folder: Path) -> Checkpoint:
    shutil.copytree(weights, folder)
    return write_contract(folder, spec, lambda *_: None)


def test_first_criteria_are_the_default_and_used_for_probes(written: Checkpoint) -> None:
    assert written.renderer.criteria_names == ("general-1", "strict-1")
    assert {probe.criteria for probe in written.probes} == {"general-1"}


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": Calibration(name="t-1", method="temperature", temperature=2.0)},
        {"lineage": Lineage(code_version="1")},
        {"dev_metrics": {"macro_f1": 0.5}},
        {"training": NOTES},
        {"name": "other"},
    ],
)
def test_fingerprint_ignores_metadata(
    change: dict[str, Any], spec: CheckpointSpec, written: Checkpoint, tiny_base: Path, tmp_path: Path
) -> None:
    other = write(spec.model_copy(update=change), tiny_base, tmp_path / "other")
    assert other.manifest.fingerprint == written.manifest.fingerprint


@pytest.mark.parametrize("change", [{"criteria": (STRICT,)}, {"template": find_template("query-first-1")}])
def test_fingerprint_depends_on_the_prompt(
    change: dict[str, Any], spec: CheckpointSpec, written: Checkpoint, tiny_base: Path, tmp_path: Path
) -> None:
    other = write(spec.model_copy(update=change), tiny_base, tmp_path / "other")
    assert other.manifest.fingerprint != written.manifest.fingerprint


def test_query_limit_too_low_for_a_probe_is_refused(
    spec: CheckpointSpec, tiny_base: Path, tmp_path: Path
) -> None:
    short = spec.model_copy(update={"limits": Limits(max_query_tokens=4, max_note_tokens=64)})
    with pytest.raises(SpecError, match=r"a probe can't be rendered: .* limit 4; raise max_query_tokens"):
        write(short, tiny_base, tmp_path / "checkpoint")


@pytest.fixture
def gemma_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a package with the terms of Gemma, which other tests expect not to be installed."""
    terms = tmp_path / GEMMA_PACKAGE / "data" / "GEMMA_TERMS.html"
    terms.parent.mkdir(parents=True)
    terms.write_text("The terms.", encoding="utf-8")
    (terms.parent.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield
    del sys.modules[GEMMA_PACKAGE]


@pytest.mark.usefixtures("gemma_package")
@pytest.mark.parametrize("taught", [False, True])
def test_terms_of_the_base_and_of_the_teacher_s_are_in_the_folder(
    spec: CheckpointSpec, written: Checkpoint, tiny_base: Path, tmp_path: Path, taught: bool
) -> None:
    gemma = Base(name="gemma-3", licence="gemma", source="made by a test")
    lineage = spec.lineage.model_copy(update={"teacher_base": gemma})
    bound = spec.model_copy(update={"lineage": lineage} if taught else {"base": gemma})
    found = write(bound, tiny_base, tmp_path / "gemma").folder
    notice = (found / "NOTICE").read_text(encoding="utf-8")
    # The sentence that the terms ask for, word by word.
    asked = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    assert notice.splitlines()[0] == asked
    assert "made from gemma-3, from its weights or from what it wrote, and changed" in " ".join(
        notice.split()
    )
    assert (found / "GEMMA_TERMS.html").read_text(encoding="utf-8") == "The terms."
    assert ("teacher_base" in (found / "manifest.json").read_text(encoding="utf-8")) == taught
    assert not (written.folder / "NOTICE").exists()
    assert not (written.folder / "GEMMA_TERMS.html").exists()
    assert "teacher_base" not in (written.folder / "manifest.json").read_text(encoding="utf-8")
