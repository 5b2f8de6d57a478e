from pathlib import Path

import pytest

from model_export.checkpoint.gates import Gate
from model_export.checkpoint.model_card import render_model_card
from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import Base, Calibration, Criteria, Limits, Lineage, Manifest
from tests.checkpoints import make_checkpoint, make_vector_checkpoint
from tests.tiny_adapter import NOTES


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_checkpoint(make_checkpoint(tmp_path / "checkpoint")).manifest


def test_zero_shot_card_warns_and_claims_no_training(manifest: Manifest) -> None:
    card = render_model_card(manifest)
    assert "**Not trained for relevance.**" in card
    assert "## Training" not in card
    assert "## Export gates" not in card


def test_trained_card_has_data_recipe_controls_and_limits(manifest: Manifest) -> None:
    lineage = Lineage(recipe_hash="sha256:" + "a" * 64, code_version="1")
    card = render_model_card(manifest.model_copy(update={"lineage": lineage}), NOTES)
    assert "Not trained for relevance" not in card
    assert "## Training data\n\n- made-up pairs, cc0-1.0\n" in card
    assert f"Recipe: `{lineage.recipe_hash}`" in card
    assert "| run | macro-F1 |\n| --- | --- |\n| majority | 0.187 |\n| student | 0.317 |\n" in card
    assert "- Knows nothing.\n" in card


def test_card_has_test_figures_once_they_are_noted(manifest: Manifest) -> None:
    assert "## On the test pairs" not in render_model_card(manifest, NOTES)
    rows = (("test pairs", "system", "QWK decided"), ("all: 8", "student", "0.500"))
    card = render_model_card(manifest, NOTES.model_copy(update={"test": rows}))
    assert (
        "| test pairs | system | QWK decided |\n| --- | --- | --- |\n| all: 8 | student | 0.500 |\n" in card
    )


def test_card_has_the_figures_of_note_vectors_beside_those_of_text(tmp_path: Path) -> None:
    manifest = load_checkpoint(make_vector_checkpoint(tmp_path / "checkpoint")).manifest
    assert manifest.vectors
    measured = manifest.vectors.model_copy(update={"dev_metrics": {"macro_f1": 0.3}})
    card = render_model_card(
        manifest.model_copy(update={"dev_metrics": {"macro_f1": 0.317}, "vectors": measured}), NOTES
    )
    assert f"| Note vectors | a note is also read as {manifest.vectors.per_note} vectors" in card
    assert "| macro_f1 | 0.317 |\n| macro_f1, from note vectors | 0.3 |\n" in card


def test_card_has_intervals_and_known_failures(manifest: Manifest) -> None:
    notes = NOTES.model_copy(
        update={
            "differences": (("on", "student less", "QWK"), ("all", "bm25", "+0.100 [+0.050, +0.150]")),
            "failures": ("Of 40 cases 30 are right.", "Query “tea” ..."),
        }
    )
    card = render_model_card(manifest, notes)
    assert "| all | bm25 | +0.100 [+0.050, +0.150] |" in card
    assert "## Known failures\n\n- Of 40 cases 30 are right.\n- Query “tea” ...\n" in card
    without = render_model_card(manifest, NOTES)
    assert "Difference to the controls" not in without
    assert "Known failures" not in without


def test_card_has_calibration_error_before_and_after(manifest: Manifest) -> None:
    stated = {"name": "temperature-1", "method": "temperature", "temperature": 1.5, "data": "dev"}
    found = {"ece_before": 0.21, "ece_after": 0.04, "temperatures": {"forum-1": 2.25}}
    calibration = Calibration.model_validate({**stated, **found})
    card = render_model_card(manifest.model_copy(update={"calibration": calibration}), NOTES)
    assert (
        "temperature-1 (T = 1.5, 2.25 under `forum-1`; expected calibration error 0.210 before, 0.040 after, on dev)"
        in card
    )


def test_card_shows_gates_and_dev_metrics(manifest: Manifest) -> None:
    gates = [Gate("int8_macro_f1", "the drop of macro-F1", 0.0042, 0.01)]
    manifest = manifest.model_copy(update={"dev_metrics": {"macro_f1": 0.31714}, "quantization": "w8a8"})
    card = render_model_card(manifest, NOTES, gates)
    assert "| the drop of macro-F1 | 0.0042 | at most 0.01 | yes |" in card
    assert "| macro_f1 | 0.3171 |" in card
    assert "| Weights | int8" in card


def test_every_criteria_is_spelled_out(manifest: Manifest) -> None:
    criteria = (Criteria(name="a-1", text="Grade {braces}."), Criteria(name="b-1", text="Grade b."))
    card = render_model_card(manifest.model_copy(update={"criteria": criteria}))
    assert "`a-1`, the default:\n\n```text\nGrade {braces}.\n```\n\n`b-1`:\n\n```text\nGrade b.\n```" in card


def test_card_has_the_limits_of_criteria_and_the_terms_of_the_base(manifest: Manifest) -> None:
    wide = Criteria(name="zh-1", text="x", limits=Limits(max_query_tokens=256, max_note_tokens=144))
    gemma = Base(name="gemma-3-270m", licence="gemma", source="made by a test")
    changed = manifest.model_copy(update={"criteria": (*manifest.criteria, wide), "base": gemma})
    card = render_model_card(changed)
    assert "48 of a note; 256 tokens of a query and 144 of a note under zh-1; longer" in card
    assert "## Terms of the base\n\nGemma is provided under and subject to the Gemma Terms of Use" in card
    assert "Terms of the base" not in render_model_card(manifest)
