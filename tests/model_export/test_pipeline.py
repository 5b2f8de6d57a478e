import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from model_export.data.mine import read_mined
from model_export.data.pairs import UNJUDGED
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.soft_labels import SOFT_LABELS
from model_export.models.model_io import load_model, load_tokenizer
from model_export.pipeline import Pipeline
from model_export.stages import RunError, Stages, hash_of
from tests.byte_tokens import TOKENIZER
from tests.killable_run import StoppedError
from tests.tiny_teacher import micro_recipe

STACK = {"teachers": ["lexical"]}
SHOP = {"name": "shop", "train": "train.jsonl", "dev": "dev.jsonl", "criteria": "product-2"}


class NamedStages(Stages):
    """Does no work but that of the stage `data`: returns the folder that each stage would have."""

    def do(self, name: str, inputs: Mapping[str, object], work: Callable[[Path], None]) -> Path:
        return super().do(name, inputs, work) if name == "data" else Path(f"{name}-{hash_of(inputs)}")


def write_shop(folder: Path, split: str, count: int = 3, body: str = "Red.") -> None:
    rows = [
        {
            "id": f"{split}{n}",
            "query": f"{split} lamp {n % 9}",
            "label": n % 4,
            "note": {"title": f"lamp {n}", "body": body},
        }
        for n in range(count)
    ]
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def folders(root: Path, out: Path, **changes: Any) -> dict[str, Path]:
    """Return the folders that stages would have."""
    recipe = micro_recipe(data={"synthetic": None, "sources": [SHOP]}, **changes)
    pipeline = Pipeline(recipe, root, NamedStages(out), lambda *_: None)
    prompting = Prompting(PromptForm.of(recipe.model, pipeline.data.criteria), TOKENIZER, 0)
    start = Path("start")
    found = {stage: pipeline.train(stage, prompting, start) for stage in ("label_only_sft", "distil", "rl")}
    found |= {
        "evidence": pipeline.evidence(prompting, start) or start,
        "unlabelled": pipeline.unlabelled() or start,
    }
    return {**found, "reduce": pipeline.reduce(start, start, prompting, 2)}


def test_stages_that_read_only_training_pairs_do_not_depend_on_others(tmp_path: Path) -> None:
    def changed() -> set[str]:
        after = folders(tmp_path, tmp_path, stack=STACK, unlabelled={"pairs": 12})
        return {stage for stage, folder in after.items() if folder != before[stage]}

    for split in ("train", "dev"):
        write_shop(tmp_path, split)
    before = folders(tmp_path, tmp_path, stack=STACK, unlabelled={"pairs": 12})
    write_shop(tmp_path, "dev", body="Blue.")
    assert changed() == {
        "rl",
        "unlabelled",
    }  # RL chooses weights by dev pairs, and mining refuses their queries
    write_shop(tmp_path, "train", body="Blue.")
    assert changed() == before.keys()


def test_only_settings_that_change_weights_repeat_a_stage(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write_shop(tmp_path, split)
    before = folders(tmp_path, tmp_path)
    assert folders(tmp_path, tmp_path, rl={"micro_batch": 2}, label_only_sft={"save_steps": 7}) == before
    for change in ({"save_steps": 2}, {"min_parse_rate": 0.1}):
        after = folders(tmp_path, tmp_path, rl=change)
        assert {stage for stage, folder in after.items() if folder != before[stage]} == {"rl"}


def test_base_depends_on_the_files_in_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()

    def folder(content: bytes) -> Path:
        weights.write_bytes(content)
        pipeline = Pipeline(micro_recipe(), tmp_path, NamedStages(tmp_path), lambda *_: None)
        return pipeline.base("student_base", f"{weights.parent}:1")

    assert folder(b"one") == folder(b"one") != folder(b"two")


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


def test_start_is_reduced_to_a_rank(tmp_path: Path) -> None:
    pipeline = Pipeline(micro_recipe(), tmp_path, Stages(tmp_path), lambda *_: None)
    base = pipeline.base("student_base", "tiny")
    prompting = Prompting.load(PromptForm.of(pipeline.recipe.model, pipeline.data.criteria), base)
    tuned, model = tmp_path / "tuned", load_model(base)
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tuned)
    load_tokenizer(base).save_pretrained(tuned)
    reduced = load_model(pipeline.reduce(tuned, base, prompting, 3)).state_dict()
    before = load_model(base).state_dict()
    for name, after in reduced.items():
        rank = int(torch.linalg.matrix_rank(after - before[name], rtol=1e-3)) if after.dim() == 2 else 0
        assert rank == (3 if name == "model.layers.1.mlp.up_proj.weight" else 0), name


def test_unlabelled_pairs_are_mined_once_and_kept(tmp_path: Path, tiny_encoder: Path) -> None:
    recipe = micro_recipe(stack=STACK, unlabelled={"pairs": 12, "encoder": str(tiny_encoder)})
    stages = Stages(tmp_path)
    first, again = (Pipeline(recipe, tmp_path, stages, lambda *_: None).unlabelled() for _ in range(2))
    assert first == again
    assert first
    assert {pair.label for pair in read_mined(first)} == {UNJUDGED}
    assert [record.status for record in stages.records if record.name == "unlabelled"] == ["done", "kept"]


def test_evidence_that_was_found_before_a_kill_is_kept(tmp_path: Path) -> None:
    for split, count in (("train", 70), ("dev", 10)):
        write_shop(tmp_path, split, count)
    recipe = micro_recipe(data={"synthetic": None, "sources": [SHOP]})
    seen: list[tuple[int, int]] = []

    def find(folder: Path, *, stops: bool) -> Path:
        def on_progress(what: str, done: int, total: int) -> None:
            if what == "Find evidence":
                seen.append((done, total))
                if stops:
                    raise StoppedError

        pipeline = Pipeline(recipe, tmp_path, Stages(folder), on_progress)
        base = pipeline.base("student_base", "tiny")
        form = PromptForm.of(recipe.model, pipeline.data.criteria)
        found = pipeline.evidence(Prompting.load(form, base), base)
        assert found
        return found / SOFT_LABELS

    with pytest.raises(StoppedError):
        find(tmp_path / "killed", stops=True)
    [kept] = (tmp_path / "killed").glob("evidence-*.partial/evidence-*.jsonl")
    written = kept.stat().st_mtime_ns
    resumed, whole = find(tmp_path / "killed", stops=False), find(tmp_path / "whole", stops=False)
    assert (resumed.parent / kept.name).stat().st_mtime_ns == written
    assert resumed.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")
    assert seen == [(64, 70), (64, 70), (70, 70), (64, 70), (70, 70)]


def test_no_unlabelled_pair_has_a_dev_or_test_query(tmp_path: Path) -> None:
    def write(split: str, *rows: tuple[str, str]) -> None:
        notes = [
            {"id": f"{split}{n}", "query": query, "note": {"title": title, "body": f"body {n}"}, "label": 1}
            for n, (query, title) in enumerate(rows)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, notes)), encoding="utf-8")

    # Every title of a training note is the query of a dev pair, of a test pair, or of neither.
    write("train", *((f"the lamp {n}", f"The LAMP {(n + 1) % 60}") for n in range(60)), ("tea", "Dev tea"))
    write("dev", ("dev tea", "A tea"), ("coat", "A coat"))
    source = {"name": "shop", "train": "train.jsonl", "dev": "dev.jsonl", "test_share": 0.5}
    recipe = micro_recipe(
        data={"synthetic": None, "sources": [source]},
        encode={"steps": 1},
        unlabelled={"pairs": 2000, "encoder": ""},
    )
    pipeline = Pipeline(recipe, tmp_path, Stages(tmp_path), lambda *_: None)
    folder = pipeline.unlabelled()
    assert folder
    mined = {pair.query.lower() for pair in read_mined(folder)}
    # The titles that are not training queries are all test queries, or the dev query.
    assert mined == {pair.query for pair in pipeline.data.train}
