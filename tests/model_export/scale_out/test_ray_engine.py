import os
import sys
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from model_export.data.pairs import Pair, write_pairs
from model_export.data.soft_labels import SoftLabel, read_soft_labels
from model_export.models.encoders import EncoderError
from model_export.progress import OnProgress
from model_export.scale_out.label_at_scale import label_file
from model_export.scale_out.label_plan import Completion, LabelError, LabelPlan, TraceJob, recipe_source
from model_export.scale_out.launch import run_job
from model_export.scale_out.ray_engine import complete_on_ray, features_on_ray, reason_of
from model_export.teacher.label import average
from model_export.teacher.rollout import Sampler, read_path
from model_export.teachers.base import FeatureEngine, Features, features_here
from model_export.teachers.fold_training import FoldTraining
from model_export.teachers.label_only import LabelOnlyTeacher
from service.errors import NotegradeError
from tests.tiny_teacher import TinyTeacher, micro_recipe

on_one_engine = partial(complete_on_ray, engines=1, address="local")


@pytest.fixture
def plan(tiny_teacher: TinyTeacher, tmp_path: Path) -> LabelPlan:
    write_pairs(tmp_path / "pairs.jsonl", tiny_teacher.pairs)
    recipe = micro_recipe(label={"paths": 3})
    return LabelPlan(recipe, tmp_path / "pairs.jsonl", recipe_source(recipe, None), tiny_teacher.folder, 4)


# Ray and the libraries that it and vLLM import warn of themselves, under Python's warnings as errors.
quiet_ray = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
patient = pytest.mark.timeout(900)  # several processes import vLLM or torch, on a machine that may be busy


@quiet_ray
@patient
@pytest.mark.engine
@pytest.mark.slow
def test_labels_equal_those_of_transformers_on_the_same_paths(
    plan: LabelPlan, tiny_teacher: TinyTeacher, tmp_path: Path
) -> None:
    heard: list[list[Completion]] = []

    def listen(pairs: Sequence[Pair], job: TraceJob) -> Generator[list[Completion]]:
        for completions in on_one_engine(pairs, job):
            heard.append(completions)
            yield completions

    summary = label_file(plan, tmp_path / "out", listen, lambda *_: None)
    found: dict[str, SoftLabel] = {}
    for shard in sorted((tmp_path / "out").glob("labels-*.jsonl")):
        found |= read_soft_labels(shard)

    prompting = tiny_teacher.prompting
    sampler = Sampler.load(plan.teacher, prompting)
    reader = prompting.reader
    distinct = 0
    for pair, completions in zip(tiny_teacher.pairs, heard, strict=True):
        assert len(completions) == plan.recipe.label.paths
        distinct += len({tuple(each.token_ids) for each in completions}) > 1
        prompt = prompting.teacher_prompt(pair)
        read = (
            read_path(prompt, each.token_ids, reader, prompting.steps(pair.criteria)) for each in completions
        )
        paths = [path for path in read if path]
        if not paths:
            assert pair.id not in found
            continue
        answers, _ = sampler.distributions([path.before_answer for path in paths], batch_size=8)
        expected = average(
            pair.id, [(path.steps, row) for path, row in zip(paths, answers.tolist(), strict=True)]
        )
        assert found[pair.id].distribution == pytest.approx(expected.distribution, abs=1e-3)
        # Two paths are equally near to their mean, and rounding picks one.
        assert {*found[pair.id].traces.values()} <= {path.steps for path in paths}
    assert summary.startswith(f"{len(found)} of 8 pairs are labelled")
    assert len(found) >= 5  # traces parse, so that there was something to compare
    assert distinct > 0  # each path has a seed of its own


class Failing:
    """A teacher that can't be loaded."""

    def load(self, _: OnProgress) -> Features:
        raise EncoderError("no such encoder: use minilm")


class Nodes:
    """A teacher whose feature is a number of the process that computes it."""

    def load(self, _: OnProgress) -> Features:
        return lambda pairs: np.full((len(pairs), 1), float(os.getpid()))


@pytest.fixture(
    params=["here", pytest.param("ray", marks=[quiet_ray, patient, pytest.mark.slow, pytest.mark.engine])]
)
def engine(request: pytest.FixtureRequest) -> FeatureEngine:
    return features_here if request.param == "here" else partial(features_on_ray, workers=2, address="local")


def test_features_of_all_chunks_are_computed(engine: FeatureEngine, tiny_teacher: TinyTeacher) -> None:
    folders = tiny_teacher.base, tiny_teacher.base
    training = FoldTraining(micro_recipe(), *folders, tiny_teacher.prompting, run_job)
    load = partial(LabelOnlyTeacher(training).load, tiny_teacher.folder)
    chunks = [tiny_teacher.others[start : start + 3] for start in range(0, 15, 3)]
    found = dict(engine(load, chunks, lambda *_: None))
    features = load(lambda *_: None)
    assert sorted(found) == list(range(len(chunks)))
    for index, chunk in enumerate(chunks):
        assert found[index].dtype == np.float64
        np.testing.assert_allclose(found[index], features(chunk), atol=1e-4)


@pytest.fixture
def cluster() -> Iterator[str]:
    """Run a Ray cluster of two nodes, each with room for one worker, and return its address."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, include_dashboard=False)
        yield nodes.address
    finally:
        nodes.shutdown()


@quiet_ray
@patient
@pytest.mark.slow
@pytest.mark.engine
def test_a_running_cluster_computes_features_and_goes_on(cluster: str, tiny_teacher: TinyTeacher) -> None:
    chunks = [tiny_teacher.pairs[:2], tiny_teacher.pairs[2:5]]
    for _ in range(2):
        found = dict(features_on_ray(Nodes().load, chunks, lambda *_: None, workers=2, address=cluster))
        assert sorted(found) == [0, 1]
        assert found[0].shape == (2, 1)
        # Each of the two workers is on a node of its own, and loads the teacher once.
        assert found[0][0, 0] != found[1][0, 0]


@quiet_ray
def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(LabelError, match=r"^no Ray cluster at 127\.0\.0\.1:9: .+$"):
        list(features_on_ray(Nodes().load, [[]], lambda *_: None, workers=1, address="127.0.0.1:9"))


def test_nothing_is_loaded_for_no_chunks(engine: FeatureEngine) -> None:
    assert list(engine(Failing().load, [], lambda *_: None)) == []


def test_teacher_that_cant_be_loaded_is_one_line(engine: FeatureEngine, tiny_teacher: TinyTeacher) -> None:
    with pytest.raises(NotegradeError, match=r"no such encoder: use minilm$") as raised:
        list(engine(Failing().load, [tiny_teacher.pairs], lambda *_: None))
    assert "\n" not in str(raised.value)


def test_missing_vllm_is_one_line(plan: LabelPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LabelError, match="vLLM is not installed here"):
        label_file(plan, tmp_path / "out", on_one_engine, lambda *_: None)


def test_reason_is_the_exception_at_the_end_of_the_tracebacks() -> None:
    text = """Traceback (most recent call last):
  File "engine.py", line 1, in start
ray.exceptions.RayTaskError(ValueError): ray::MapWorker.__init__()
  File "config.py", line 2, in check
pydantic.ValidationError: 1 validation error
  Value error, no such model
"""
    assert (
        reason_of(RuntimeError(text))
        == "pydantic.ValidationError: 1 validation error Value error, no such model"
    )
    assert reason_of(RuntimeError("two\nlines")) == "lines"
    assert reason_of(RuntimeError()) == ""
