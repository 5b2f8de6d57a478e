import json
from pathlib import Path

import pytest

from model_export.data.prompting import PromptForm, Prompting
from model_export.evaluation.explanations import Figures
from model_export.evaluation.fitted import Fitted
from model_export.measuring import explain
from model_export.pipeline import Pipeline
from model_export.stages import Stages
from service.contract.manifest import Calibration
from tests.tiny_teacher import micro_recipe

SOURCES = ("lamps", "chairs")


class StoppedError(Exception):
    """Ends a run as a kill would."""


def write_pairs(folder: Path, name: str) -> dict[str, str]:
    """Write a source of eight pairs to train on and eight dev pairs, and return its part of the recipe."""
    for split in ("train", "dev"):
        rows = [
            {
                "id": f"{name}-{split}-{n}",
                "query": f"{split} {name} {n % 2}",
                "note": {"body": f"Red {n}."},
                "label": n % 4,
            }
            for n in range(8)
        ]
        (folder / f"{name}.{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "name": name,
        "train": f"{name}.train.jsonl",
        "dev": f"{name}.dev.jsonl",
        "criteria": "product-2",
    }


def test_sources_that_were_explained_before_a_kill_are_kept(tmp_path: Path) -> None:
    recipe = micro_recipe(
        data={"synthetic": None, "sources": [write_pairs(tmp_path, name) for name in SOURCES]}
    )
    seen: list[str] = []

    def figures(folder: Path, *, stops: bool) -> dict[str, Figures]:
        def on_progress(what: str, done: int, total: int) -> None:
            if what.startswith("Explain") and done == total:
                seen.append(what)
                if stops and what == "Explain chairs":
                    raise StoppedError

        pipeline = Pipeline(recipe, tmp_path, Stages(folder), on_progress)
        base = pipeline.base("student_base", "tiny")
        form = PromptForm.of(recipe.model, pipeline.data.criteria)
        return explain(pipeline, Prompting.load(form, base), base, Fitted(Calibration(), ()))

    with pytest.raises(StoppedError):
        figures(tmp_path / "killed", stops=True)
    resumed, whole = figures(tmp_path / "killed", stops=False), figures(tmp_path / "whole", stops=False)
    assert resumed == whole
    assert list(resumed) == list(SOURCES)
    lamps, chairs = (f"Explain {name}" for name in SOURCES)
    assert seen == [lamps, chairs, chairs, lamps, chairs]
