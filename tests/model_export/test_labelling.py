"""The labelling stages of a run on a scripted engine; scale_out/test_ray_run.py runs them on Ray."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from model_export import labelling
from model_export.data.gold_traces import gold_steps
from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.soft_labels import SOFT_LABELS, read_soft_labels
from model_export.labelling import own_traces, soft_labels
from model_export.pipeline import Pipeline
from model_export.run import run as run_recipe
from model_export.scale_out.label_plan import Completion, LabelError, TraceJob
from model_export.stages import Stages
from service.contract.trace import write_step
from service.errors import NotegradeError
from tests.killable_run import StoppedError
from tests.tiny_teacher import micro_recipe


@dataclass
class HonestEngine:
    """Writes a true trace of each path, which ends on the pair's gold grade or, where it is wrong, on another."""

    wrong: Sequence[str] = ()
    lost_at: int = -1
    asked: list[str] = field(default_factory=list)
    jobs: list[TraceJob] = field(default_factory=list)

    def __call__(self, pairs: Sequence[Pair], job: TraceJob) -> Generator[list[Completion]]:
        self.jobs.append(job)
        for number, pair in enumerate(pairs):
            if number == self.lost_at:
                raise LabelError("the engine is lost")
            self.asked.append(pair.id)
            grade = (pair.label + 1) % 4 if pair.id in self.wrong else pair.label
            yield [self.complete(pair, grade, job.prompting)] * job.paths

    def complete(self, pair: Pair, grade: int, prompting: Prompting) -> Completion:
        names = prompting.steps(pair.criteria)
        wrong = "".join(write_step(name, "nothing", grade) for name in names)
        text = f"{gold_steps(pair, names) if grade == pair.label else wrong}Grade: {grade}"
        token_ids = [*prompting.tokenizer.encode_template(text), prompting.end_token_id]
        at_answer = [-0.1 if label == grade else -9.0 for label in range(4)]
        return Completion(token_ids, [at_answer] * len(token_ids))


def make_run(folder: Path, engine: HonestEngine | None) -> tuple[Pipeline, Prompting, Path]:
    """Return a pipeline with this engine, the prompts, and an untrained teacher."""
    recipe = micro_recipe(label={"pairs": 20}, own_traces={"pairs": 12, "paths": 3, "temperature": 0.7})
    run = Pipeline(recipe, folder, Stages(folder), lambda *_: None)
    run.trace_engine = engine
    base = run.base("student_base", "tiny")
    return run, Prompting.load(PromptForm.of(recipe.model, run.data.criteria), base), base


def test_labels_of_an_engine_resume_by_shards(tmp_path: Path) -> None:
    first, second = HonestEngine(lost_at=7), HonestEngine()
    with pytest.raises(LabelError, match="the engine is lost"):
        soft_labels(*make_run(tmp_path, first))
    run, prompting, teacher = make_run(tmp_path, second)
    folder = soft_labels(run, prompting, teacher)
    assert sorted(first.asked + second.asked) == sorted(set(first.asked + second.asked))
    assert (len(first.asked), len(second.asked)) == (7, 13)
    labels = read_soft_labels(folder / SOFT_LABELS)
    gold = {pair.id: pair.label for pair in run.data.train}
    assert len(labels) == 20
    for label in labels.values():
        assert label.distribution.index(max(label.distribution)) == gold[label.id]
        assert label.traces


def test_a_run_whose_labels_or_key_are_missing_ends_before_its_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTEGRADE_TEST_KEY", raising=False)
    endpoint = {"url": "http://127.0.0.1:1/v1", "model": "any", "key_variable": "NOTEGRADE_TEST_KEY"}
    cases = (
        ({"label": {"folder": "nowhere"}}, "nowhere has no labels-"),
        ({"stack": {"teachers": ["endpoint"], "endpoint": endpoint}}, "NOTEGRADE_TEST_KEY"),
    )
    for changes, complaint in cases:
        with pytest.raises(NotegradeError, match=complaint):
            run_recipe(micro_recipe(**changes), "", tmp_path, tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["label", "own_traces"])
def test_paths_that_were_sampled_here_before_a_kill_are_kept(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "PAIRS_HERE", 8)
    seen: list[int] = []
    first_shard = 8 * {"label": 2, "own_traces": 3}[stage]  # paths

    def files(folder: Path, *, stops: bool) -> dict[str, str]:
        run, prompting, teacher = make_run(folder, None)

        def on_progress(what: str, done: int, _: int) -> None:
            if what.startswith(("Soft labels", "Own traces")):
                seen.append(done)
                if stops and done > first_shard:
                    raise StoppedError

        run.on_progress = on_progress
        made = (soft_labels if stage == "label" else own_traces)(run, prompting, teacher)
        return {file.name: file.read_text(encoding="utf-8") for file in made.glob("*.jsonl")}

    with pytest.raises(StoppedError):
        files(tmp_path / "killed", stops=True)
    before = len(seen)
    resumed = files(tmp_path / "killed", stops=False)
    assert seen[before] > first_shard, "it sampled the first shard again"
    assert resumed == files(tmp_path / "whole", stops=False)


def test_engine_samples_as_the_stage_of_the_recipe_says(tmp_path: Path) -> None:
    engine = HonestEngine()
    run, prompting, teacher = make_run(tmp_path, engine)
    soft_labels(run, prompting, teacher)
    own_traces(run, prompting, teacher)
    stated = [(job.teacher, job.paths, job.temperature, job.max_tokens, job.seed) for job in engine.jobs]
    assert stated == [(teacher, 2, 1.0, 48, 3), (teacher, 3, 0.7, 48, 3)]


def test_only_good_traces_of_an_engine_are_learned(tmp_path: Path) -> None:
    run, prompting, teacher = make_run(tmp_path, None)
    wrong = [pair.id for pair in run.data.train if pair.label == 0]
    run.trace_engine = HonestEngine(wrong)
    found = read_soft_labels(own_traces(run, prompting, teacher) / SOFT_LABELS)
    assert 0 < len(found) < 12
    assert found.keys().isdisjoint(wrong)
    gold = {pair.id: pair.label for pair in run.data.train}
    assert all(list(each.traces) == [gold[id_]] for id_, each in found.items())
