"""Pairs are labelled in shards on a scripted engine; test_ray_engine.py runs the real one."""

import json
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from model_export.data.pairs import UNJUDGED, Pair, Source
from model_export.data.prompting import PromptingError
from model_export.data.soft_labels import SoftLabel, read_soft_labels
from model_export.scale_out.label_at_scale import label_file
from model_export.scale_out.label_plan import Completion, LabelError, LabelPlan, TraceJob
from service.contract.prompt import Note
from tests.byte_tokens import TOKENIZER, encode
from tests.tiny_teacher import micro_recipe

[END] = TOKENIZER.encode_template("<|im_end|>")
SOURCE = Source("shop", "topic-1", (0, 1, 2, 3))
PAIRS = [Pair(f"p{n}", f"wish {n}", Note("", "a scarf"), UNJUDGED, "shop", "topic-1") for n in range(5)]
ONE, TWO, PROSE = "topic: one => 1\nGrade: 1", "topic: two => 2\nGrade: 2", "I would say 2"


@dataclass
class ScriptedEngine:
    """Returns scripted traces for each pair, fails at one of them, and records the requested pairs."""

    traces: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lost_at: str = ""
    asked: list[str] = field(default_factory=list)

    def __call__(self, pairs: Sequence[Pair], job: TraceJob) -> Generator[list[Completion]]:
        for pair in pairs:
            if pair.id == self.lost_at:
                raise LabelError("the engine is lost")
            self.asked.append(pair.id)
            texts = self.traces.get(pair.id, (ONE, TWO))
            yield [complete(text) for text, _ in zip(texts, range(job.paths), strict=True)]


def complete(text: str) -> Completion:
    """Encode the text with its end token; at the answer the labels have mass 0.4, of which 0.3 on the answered grade."""
    token_ids = [*encode(text), END]
    flat = [-9.0] * 4
    at_answer = [-1.2 if text.endswith(str(grade)) else -3.4 for grade in range(4)]
    return Completion(token_ids, [*[flat] * (len(token_ids) - 2), at_answer, flat])


def write_unjudged(path: Path, pairs: Sequence[Pair]) -> None:
    rows = ({"id": pair.id, "query": pair.query, "note": {"body": pair.note.body}} for pair in pairs)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def make_plan(teacher: Path, folder: Path, **changes: Any) -> LabelPlan:
    """Write the pairs and their criteria, and plan two paths each; `changes` are to the recipe."""
    write_unjudged(folder / "pairs.jsonl", PAIRS)
    criteria = folder / "topic.toml"
    criteria.write_text('name = "topic-1"\ntext = "Grade it."\nsteps = ["topic"]\n', encoding="utf-8")
    files = {"train": "train.jsonl", "dev": "dev.jsonl", "criteria": str(criteria)}
    stated = {
        "seed": 7,
        "model": {"template": "note-first-1", "limits": {"max_query_tokens": 16, "max_note_tokens": 32}},
        "data": {"synthetic": None, "sources": [{"name": "shop", **files}]},
    }
    return LabelPlan(micro_recipe(**stated | changes), folder / "pairs.jsonl", SOURCE, teacher, shard_size=2)


@pytest.fixture
def plan(tiny_base: Path, tmp_path: Path) -> LabelPlan:
    return make_plan(tiny_base, tmp_path)


def run(plan: LabelPlan, out: Path, engine: ScriptedEngine) -> str:
    return label_file(plan, out, engine, lambda *_: None).split(" (")[0]


def contents(out: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(out.glob("*.json*"))}


def read_all(out: Path) -> dict[str, SoftLabel]:
    labels: dict[str, SoftLabel] = {}
    for path in out.glob("labels-*.jsonl"):
        labels |= read_soft_labels(path)
    return labels


def test_label_is_the_mean_over_paths_that_parse(plan: LabelPlan, tmp_path: Path) -> None:
    engine = ScriptedEngine({"p0": (ONE, TWO), "p1": (PROSE, TWO)})
    assert run(plan, tmp_path / "out", engine) == "5 of 5 pairs are labelled"
    labels = read_all(tmp_path / "out")
    high, low = 0.7503, 0.0832  # exp(-1.2) and exp(-3.4), renormalised
    both, one = labels["p0"], labels["p1"]
    assert both.distribution == pytest.approx((low, (high + low) / 2, (high + low) / 2, low), abs=1e-3)
    assert both.traces == {1: "topic: one => 1\n"}
    assert one.distribution == pytest.approx((low, low, high, low), abs=1e-3)
    assert one.traces == {2: "topic: two => 2\n"}


def test_shards_hold_the_pairs_in_order(plan: LabelPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", ScriptedEngine())
    shards = {path.name: list(read_soft_labels(path)) for path in (tmp_path / "out").glob("labels-*")}
    assert shards == {
        "labels-00000.jsonl": ["p0", "p1"],
        "labels-00001.jsonl": ["p2", "p3"],
        "labels-00002.jsonl": ["p4"],
    }


def test_pairs_without_a_path_that_parses_are_listed(plan: LabelPlan, tmp_path: Path) -> None:
    engine = ScriptedEngine({"p1": (PROSE, PROSE), "p4": (PROSE, "topic: one => 1\nGrade: 4")})
    said = run(plan, tmp_path / "out", engine)
    assert said == "3 of 5 pairs are labelled; 2 have no path that parses, see unlabelled.jsonl"
    assert contents(tmp_path / "out")["unlabelled.jsonl"] == '{"id": "p1"}\n{"id": "p4"}\n'
    assert set(read_all(tmp_path / "out")) == {"p0", "p2", "p3"}


def test_rerun_labels_only_the_missing_shards(plan: LabelPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "undisturbed", ScriptedEngine())
    out = tmp_path / "out"
    with pytest.raises(LabelError, match="the engine is lost"):
        run(plan, out, ScriptedEngine(lost_at="p3"))
    assert sorted(path.name for path in out.glob("labels-*")) == ["labels-00000.jsonl"]
    (out / "labels-00001.jsonl.partial").write_text('{"id": "p', encoding="utf-8")  # as a kill leaves it
    second = ScriptedEngine()
    assert run(plan, out, second) == "5 of 5 pairs are labelled"
    assert second.asked == ["p2", "p3", "p4"]
    assert contents(out) == contents(tmp_path / "undisturbed")
    (out / "labels-00000.jsonl").unlink()
    third = ScriptedEngine()
    run(plan, out, third)
    assert third.asked == ["p0", "p1"]
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_finished_run_starts_no_engine(plan: LabelPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", ScriptedEngine())

    def refuse(*_: object) -> Generator[list[Completion]]:
        raise AssertionError("an engine was started")

    assert label_file(plan, tmp_path / "out", refuse, lambda *_: None) == "5 of 5 pairs are labelled"


def test_all_changed_inputs_are_refused_by_name(plan: LabelPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", ScriptedEngine())
    teacher = shutil.copytree(plan.teacher, tmp_path / "teacher")
    (teacher / "model.safetensors").write_bytes(b"other weights")
    label = {"paths": 3, "temperature": 0.5}
    model = {"template": "query-first-1", "precision": "bfloat16"}
    other = make_plan(teacher, tmp_path, seed=8, model=model, label=label, rl={"max_tokens": 47})
    write_unjudged(plan.pairs, PAIRS[:4])
    other = replace(other, shard_size=3, source=replace(SOURCE, name="other"))
    named = "form, max_tokens, pairs, paths, precision, seed, shard_size, source, teacher, temperature"
    with pytest.raises(LabelError, match=f"labels made with different {named}: choose another"):
        run(other, tmp_path / "out", ScriptedEngine())


def test_too_long_query_is_named_before_an_engine_starts(plan: LabelPlan, tmp_path: Path) -> None:
    write_unjudged(plan.pairs, [*PAIRS, replace(PAIRS[0], id="long", query="b" * 40)])
    engine = ScriptedEngine()
    with pytest.raises(
        PromptingError, match=r"query is too long: long of .*: the query has 41 tokens, limit 16"
    ):
        run(plan, tmp_path / "out", engine)
    assert engine.asked == []
