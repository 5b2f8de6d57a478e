from pathlib import Path

import pytest

from model_export.data.prompting import PromptForm, Prompting
from model_export.pipeline import Pipeline
from model_export.stages import RunError, Stages
from tests.tiny_teacher import micro_recipe


def test_adapter_without_soft_labels_is_refused(tmp_path: Path) -> None:
    recipe = micro_recipe(export={"adapter_rank": 4})
    pipeline = Pipeline(recipe, tmp_path, Stages(tmp_path), lambda *_: None)
    base = pipeline.base("student_base", "tiny")
    form = PromptForm.of(recipe.model, pipeline.data.criteria)
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "soft_labels.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="no pair has a soft label"):
        pipeline.as_adapter(base, base, labels, Prompting.load(form, base))
