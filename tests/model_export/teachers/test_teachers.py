"""Behaviour tests that every teacher passes, whether it learns or is used as it is."""

import json
import pickle
from pathlib import Path

import httpx2
import numpy as np
import pytest
from openai import OpenAI

from model_export.data.soft_labels import write_soft_labels
from model_export.recipe_stack import EndpointConfig
from model_export.scale_out.launch import run_job
from model_export.teachers.base import Features, Learner, Teacher
from model_export.teachers.cosine import CosineTeacher
from model_export.teachers.endpoint import EndpointTeacher
from model_export.teachers.fold_training import FoldTraining
from model_export.teachers.label_only import LabelOnlyTeacher
from model_export.teachers.lexical import LexicalTeacher
from model_export.teachers.reasoning import ReasoningTeacher
from model_export.teachers.roster import make_teachers
from model_export.training.stage_job import StageJob
from tests.tiny_teacher import TinyTeacher, micro_recipe

KINDS = ["lexical", "tiny-encoder", "endpoint", "label_only", "reasoning"]


def nothing(*_: object) -> None:
    pass


def fold_training(tiny: TinyTeacher, **changes: object) -> FoldTraining:
    data = tiny.folder.parent / "data"
    return FoldTraining(micro_recipe(**changes), data, tiny.base, tiny.prompting, run_job)


def answering(grade_logprobs: dict[str, float]) -> OpenAI:
    """Return a client whose server answers every chat with these tokens."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked = json.loads(request.content)
        assert asked["max_completion_tokens"] == 1
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in grade_logprobs.items()]
        content = [{**top[0], "top_logprobs": top}]
        message = {"role": "assistant", "content": top[0]["token"]}
        choice = {"index": 0, "finish_reason": "length", "message": message, "logprobs": {"content": content}}
        return httpx2.Response(
            200,
            json={"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]},
        )

    transport = httpx2.MockTransport(answer)
    return OpenAI(
        base_url="http://teacher/v1", api_key="none", http_client=httpx2.Client(transport=transport)
    )


@pytest.fixture(scope="module", params=KINDS)
def teacher(
    request: pytest.FixtureRequest,
    tiny_teacher: TinyTeacher,
    tiny_encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Teacher | Learner, Features, int]:
    """Return a teacher, its features of pairs (trained if it learns), and their width."""
    kind = request.param
    config = EndpointConfig(url="http://teacher/v1", model="m")
    client = answering({"2": -0.5, "3": -1.5, "x": -3.0})
    others: dict[str, tuple[Teacher, int]] = {
        "lexical": (LexicalTeacher(), 7),
        "tiny-encoder": (CosineTeacher(str(tiny_encoder)), 1),
        "endpoint": (EndpointTeacher(config, tiny_teacher.prompting.form.criteria, client), 4),
    }
    if kind in others:
        found, width = others[kind]
        return found, found.load(nothing), width
    # At this temperature the most probable token is always sampled.
    training = fold_training(tiny_teacher, label={"temperature": 1e-3})
    learner = LabelOnlyTeacher(training) if kind == "label_only" else ReasoningTeacher(training, None)
    folder = tmp_path_factory.mktemp(kind)
    learner.train(tiny_teacher.pairs, None, folder, nothing)
    return learner, learner.load(folder, nothing), 4


def test_features_are_finite_and_of_one_width(
    teacher: tuple[Teacher | Learner, Features, int], tiny_teacher: TinyTeacher
) -> None:
    described, features, width = teacher
    found = features(tiny_teacher.pairs)
    assert described.name in KINDS
    assert found.shape == (len(tiny_teacher.pairs), width)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def test_features_are_those_of_the_pair_wherever_it_stands(
    teacher: tuple[Teacher | Learner, Features, int], tiny_teacher: TinyTeacher
) -> None:
    _, features, _ = teacher
    forwards, backwards = features(tiny_teacher.pairs), features(tiny_teacher.pairs[::-1])
    assert np.allclose(forwards, backwards[::-1], atol=1e-4)


def test_settings_can_be_hashed(teacher: tuple[Teacher | Learner, Features, int]) -> None:
    assert json.loads(json.dumps(teacher[0].settings)) == teacher[0].settings


def test_parallel_teachers_can_be_sent_to_another_process(
    teacher: tuple[Teacher | Learner, Features, int],
) -> None:
    described, *_ = teacher
    assert described.parallel == (described.name not in ("lexical", "endpoint"))
    if described.parallel:
        assert pickle.loads(pickle.dumps(described)).settings == described.settings


def test_only_learners_learn(teacher: tuple[Teacher | Learner, Features, int]) -> None:
    assert isinstance(teacher[0], Learner) == (teacher[0].name in ("label_only", "reasoning"))


def test_reasoning_starts_from_the_label_only_model_of_its_fold(
    tiny_teacher: TinyTeacher, tmp_path: Path
) -> None:
    started: list[StageJob] = []
    changes = {"stack": {"teachers": ["label_only", "reasoning"]}, "cot_sft": {"start": "label_only_sft"}}
    student = fold_training(tiny_teacher, **changes)
    teacher = FoldTraining(
        student.recipe,
        student.data,
        student.base,
        student.prompting,
        run=lambda job, *_: started.append(job),
    )
    label_only, reasoning = make_teachers(student, teacher)
    assert isinstance(reasoning, Learner)
    assert reasoning.starts_from is label_only
    reasoning.train(tiny_teacher.pairs[:2], tmp_path / "fold", tmp_path / "out", nothing)
    assert (started[0].start, started[0].stage) == (tmp_path / "fold", "cot_sft")
    assert started[0].ids == frozenset(pair.id for pair in tiny_teacher.pairs[:2])


def test_evidence_is_part_of_the_reasoning_teachers_settings(
    tiny_teacher: TinyTeacher, tmp_path: Path
) -> None:
    training = fold_training(tiny_teacher)
    write_soft_labels(tmp_path / "evidence.jsonl", [])
    with_evidence = FoldTraining(
        training.recipe,
        training.data,
        training.base,
        training.prompting,
        training.run,
        evidence=tmp_path / "evidence.jsonl",
    )
    assert ReasoningTeacher(training, None).settings != ReasoningTeacher(with_evidence, None).settings
