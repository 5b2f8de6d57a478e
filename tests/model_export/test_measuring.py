from pathlib import Path

import pytest

from model_export.data.pairs import Pair, write_pairs
from model_export.data.prompting import PromptForm, Prompting
from model_export.evaluation.explanations import Figures
from model_export.evaluation.fitted import Fitted
from model_export.measuring import explain
from model_export.pipeline import Pipeline
from model_export.stages import Stages
from service.contract.manifest import Calibration
from service.contract.prompt import Note
from tests.killable_run import StoppedError
from tests.tiny_teacher import micro_recipe

SOURCES = ("lamps", "chairs")


def pairs_of(source: str, split: str) -> list[Pair]:
    return [
        Pair(
            f"{source} {split} {n}",
            f"{split} {source} {n % 2}",
            Note("", f"Red {n}."),
            n % 4,
            source,
            "product-2",
        )
        for n in range(8)
    ]


def test_sources_that_were_explained_before_a_kill_are_kept(tmp_path: Path) -> None:
    sources = []
    for name in SOURCES:
        files = {split: f"{name}.{split}.jsonl" for split in ("train", "dev")}
        for split, file in files.items():
            write_pairs(tmp_path / file, pairs_of(name, split))
        sources.append({"name": name, "criteria": "product-2", **files})
    recipe = micro_recipe(data={"synthetic": None, "sources": sources})
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
