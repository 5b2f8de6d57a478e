"""The stack's stages, with teachers that count what they are asked."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export.data.pairs import UNJUDGED, Pair, folded_query
from model_export.data.soft_labels import SOFT_LABELS, SoftLabel, read_soft_labels, write_soft_labels
from model_export.data.synthetic import generate
from model_export.progress import OnProgress
from model_export.stacking import STACK, Stacked, Stacking
from model_export.stages import Stages
from model_export.teachers.base import FeatureEngine, Features, Learner, Loader, features_here
from tests.tiny_teacher import micro_recipe

FOLDS = 3
MADE = generate(seed=1, train_queries=40, dev_queries=10, notes_per_query=4)


class Knowing:
    """A teacher that knows the grade, and counts how many pairs it described."""

    name = "knowing"
    settings: Mapping[str, object] = {"version": 1}
    chunk: int | None = 50
    parallel = True

    def __init__(self) -> None:
        self.described = 0
        self.loaded = 0
        self.fails_after: int | None = None

    def load(self, on_progress: OnProgress) -> Features:
        self.loaded += 1
        return self.describe

    def describe(self, pairs: Sequence[Pair]) -> np.ndarray:
        if self.fails_after is not None and self.described >= self.fails_after:
            raise KeyboardInterrupt
        self.described += len(pairs)
        return np.array([[float(max(pair.label, 0))] for pair in pairs])


class Remembering:
    """A learner whose feature tells whether it was trained on the pair's query, or its start model was."""

    name = "remembering"
    settings: Mapping[str, object] = {"version": 1}
    chunk: int | None = None
    parallel = False

    def __init__(self, starts_from: Learner | None = None) -> None:
        self.starts_from = starts_from
        self.trained = 0
        if starts_from:
            self.name = "after"

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path, on_progress: OnProgress) -> None:
        self.trained += 1
        queries = {folded_query(pair) for pair in pairs}
        if start:
            queries |= set(json.loads((start / "queries.json").read_text(encoding="utf-8")))
        (folder / "queries.json").write_text(json.dumps(sorted(queries)), encoding="utf-8")

    def load(self, model: Path, on_progress: OnProgress) -> Features:
        known = json.loads((model / "queries.json").read_text(encoding="utf-8"))
        return lambda pairs: np.array([[float(folded_query(pair) in known)] for pair in pairs])


def nothing(*_: object) -> None:
    pass


def stacking(
    folder: Path, stack: dict[str, int] | None = None, engine: FeatureEngine = features_here
) -> Stacking:
    recipe = micro_recipe(stack={"folds": FOLDS} | (stack or {}))
    return Stacking(recipe, MADE.train, "data-1", Stages(folder), nothing, engine=engine)


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    """Return a folder with the label of one training pair, which has a trace."""
    folder = tmp_path / "label-1"
    folder.mkdir()
    label = SoftLabel(MADE.train[0].id, (0.25, 0.25, 0.25, 0.25), {3: "quiet: body says quiet => 3"})
    write_soft_labels(folder / SOFT_LABELS, [label])
    return folder


def test_learners_never_saw_the_queries_that_they_describe(tmp_path: Path) -> None:
    first = Remembering()
    after = Remembering(starts_from=first)
    found = stacking(tmp_path)
    for learner in (first, after):
        features = found.features(learner, [*MADE.train, *MADE.dev])
        assert features.shape == (len(MADE.train) + len(MADE.dev), 1)
        assert not features.any()
    assert (first.trained, after.trained) == (FOLDS, FOLDS)


def test_finished_teachers_are_kept_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    teacher = Knowing()
    teacher.fails_after = 100
    with pytest.raises(KeyboardInterrupt):
        stacking(tmp_path).features(teacher, MADE.train)
    teacher.fails_after = None
    found = stacking(tmp_path).features(teacher, MADE.train)
    assert np.array_equal(found[:, 0], [pair.label for pair in MADE.train])
    assert teacher.described == len(MADE.train)
    stacking(tmp_path).features(teacher, MADE.train)
    assert teacher.described == len(MADE.train)
    assert teacher.loaded == 2  # once in each attempt


def test_engine_computes_missing_chunks_of_parallel_teachers_in_any_order(tmp_path: Path) -> None:
    asked: list[int] = []

    def backwards(
        load: Loader, chunks: Sequence[Sequence[Pair]], on_progress: OnProgress
    ) -> Generator[tuple[int, np.ndarray]]:
        features = load(on_progress)
        for index in reversed(range(len(chunks))):
            asked.append(len(chunks[index]))
            yield index, features(chunks[index])

    teacher = Knowing()
    teacher.fails_after = 60  # the last chunk has ten pairs, the one before fifty
    with pytest.raises(KeyboardInterrupt):
        stacking(tmp_path, engine=backwards).features(teacher, MADE.train)
    teacher.fails_after = None
    found = stacking(tmp_path, engine=backwards).features(teacher, MADE.train)
    assert np.array_equal(found[:, 0], [pair.label for pair in MADE.train])
    assert teacher.described == len(MADE.train) == sum(asked) - 50
    stacking(tmp_path, engine=backwards).features(Remembering(), MADE.train)
    assert teacher.described == sum(asked) - 50


def grade(tmp_path: Path, traced: Path, unlabelled: Sequence[Pair] = (), **stack: int) -> Stacked:
    return stacking(tmp_path, stack).grade([Knowing(), Remembering()], traced, unlabelled, MADE.dev)


def test_labels_are_the_stacks_and_keep_their_traces(tmp_path: Path, traced: Path) -> None:
    labels = read_soft_labels(grade(tmp_path, traced).labels / SOFT_LABELS)
    assert labels.keys() == {pair.id for pair in MADE.train}
    first = labels[MADE.train[0].id]
    assert first.traces == {3: "quiet: body says quiet => 3"}
    for pair in MADE.train:
        label = labels[pair.id]
        assert label.distribution.index(max(label.distribution)) == pair.label
        assert sum(label.distribution) == pytest.approx(1)


def test_unlabelled_pairs_are_labelled(tmp_path: Path, traced: Path) -> None:
    mined = [replace(pair, id=f"mined-{pair.id}", label=UNJUDGED) for pair in MADE.train[:8]]
    labels = read_soft_labels(grade(tmp_path, traced, mined).labels / SOFT_LABELS)
    assert {pair.id for pair in mined} <= labels.keys()


def test_only_some_pairs_are_asked_about_and_those_with_a_trace_always(tmp_path: Path, traced: Path) -> None:
    labels = read_soft_labels(grade(tmp_path, traced, pairs=60).labels / SOFT_LABELS)
    assert MADE.train[0].id in labels
    assert 60 <= len(labels) <= 61


def test_table_shows_what_each_teacher_adds(tmp_path: Path, traced: Path) -> None:
    stacked = grade(tmp_path, traced)
    teachers = stacked.teachers
    assert list(teachers.rows) == [STACK, "knowing", "without knowing", "remembering", "without remembering"]
    accuracy = {name: rows["all"]["accuracy"] for name, rows in teachers.rows.items()}
    assert accuracy[STACK] == accuracy["knowing"] == 1.0
    assert (accuracy["without knowing"] or 0) < 0.6
    lost = teachers.differences[STACK]["without knowing"]["accuracy"]
    assert lost.excludes_zero
    assert stacked.predictions.system == STACK
    assert len(stacked.predictions.probabilities) == len(MADE.dev)
