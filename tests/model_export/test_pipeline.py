import tomllib
from pathlib import Path

import pytest

from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.pipeline import Pipeline
from model_export.recipe import Recipe
from model_export.stages import RunError, Stages
from tests.tiny_teacher import MICRO


def test_adapter_without_soft_labels_is_refused(tmp_path: Path) -> None:
    stated = tomllib.loads(MICRO)
    recipe = Recipe.model_validate({**stated, "export": {**stated["export"], "adapter_rank": 4}})
    pipeline = Pipeline(recipe, tmp_path, Stages(tmp_path), lambda *_: None)
    base = pipeline.base("student_base", "tiny")
    form = PromptForm(find_template(recipe.model.template), pipeline.data.criteria, recipe.model.limits)
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "soft_labels.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="no pair has a soft label"):
        pipeline.as_adapter(base, base, labels, Prompting.load(form, base))
