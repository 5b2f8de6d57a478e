"""The stages of a run that train the stack's teachers out of fold, compute their features, and fit the stack on them."""

from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from model_export.data.pairs import Pair
from model_export.data.sampling import fold_of, pick_distinct
from model_export.data.soft_labels import SOFT_LABELS, SoftLabel, read_soft_labels, write_soft_labels
from model_export.evaluation.evaluate import Evaluation, Predictions, evaluate
from model_export.evaluation.predict import make_predictions
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.stages import Stages, hash_of
from model_export.teachers.base import FeatureEngine, Learner, Loader, Teacher, features_here
from model_export.teachers.stack import Stack

_FEATURES = "features.npy"
STACK = "stack"


@dataclass(frozen=True, slots=True)
class Stacked:
    """Grades by the stack, as soft labels and as predictions, and the comparison of its teachers.

    Attributes:
        labels: folder of the soft labels: the stack's distributions, with the traces that pairs had before.
        predictions: the stack's, for the dev pairs.
        teachers: on the dev pairs, the stack, each teacher alone, and the stack without each; differences are to the stack.
    """

    labels: Path
    predictions: Predictions
    teachers: Evaluation


class Stacking:
    """Trains and asks the teachers of one run. Each model and each teacher's features are a stage, kept for the next run."""

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[Pair],
        train_hash: str,
        stages: Stages,
        on_progress: OnProgress,
        *,
        engine: FeatureEngine = features_here,
    ) -> None:
        """`train` are all training pairs, `train_hash` a hash of them; `engine` asks parallel teachers."""
        self._recipe = recipe
        self._train = train
        self._train_hash = train_hash
        self._stages = stages
        self._on_progress = on_progress
        self._engine = engine
        self._models: dict[tuple[str, int], Path] = {}

    def grade(
        self,
        teachers: Sequence[Teacher | Learner],
        traced: Path,
        unlabelled: Sequence[Pair],
        dev: Sequence[Pair],
    ) -> Stacked:
        """Grade training pairs, unlabelled pairs and dev pairs with the stack of these teachers.

        `traced` is the folder of the soft labels that have traces: their pairs are graded in any case. Raises StackError where
        a source has too few pairs to fit on.
        """
        known = read_soft_labels(traced / SOFT_LABELS)
        judged = self._judged(known)
        taught = [*judged, *unlabelled]
        asked = [*taught, *dev]
        fitted_on = [True] * len(taught) + [False] * len(dev)
        config, features = self._recipe.stack, {each.name: self.features(each, asked) for each in teachers}
        stack = Stack(features, asked, fitted_on, config.folds, config.strength)
        found = stack.predict(features)

        def work(folder: Path) -> None:
            untraced = SoftLabel("", (), {})
            labels = (
                replace(known.get(pair.id, untraced), id=pair.id, distribution=tuple(row))
                for pair, row in zip(taught, found[: len(taught)].tolist(), strict=True)
            )
            write_soft_labels(folder / SOFT_LABELS, labels)

        inputs = {
            "config": config.model_dump(exclude={"endpoint"}),
            "teachers": [teacher.settings for teacher in teachers],
            "train": self._train_hash,
            "traced": traced.name,
            "pairs": hash_of([pair.id for pair in taught]),
            "seed": self._recipe.seed,
        }
        labels = self._stages.do("stack", inputs, work)
        predictions = make_predictions(STACK, found[len(taught) :], None)
        return Stacked(labels, predictions, self._compare(predictions, stack, list(features), dev))

    def _judged(self, always: Container[str]) -> list[Pair]:
        """Return the training pairs that the stack is fitted on and grades: those of `always`, and `stack.pairs` of all."""
        config = self._recipe.stack
        most = config.pairs or len(self._train)
        drawn = pick_distinct(self._train, most, config.source_exponent, self._recipe.seed)
        traced = [pair for pair in self._train if pair.id in always]
        return list({pair.id: pair for pair in (*traced, *drawn)}.values())

    def features(self, teacher: Teacher | Learner, pairs: Sequence[Pair]) -> np.ndarray:
        """Compute a teacher's (pairs, width) features, those of a fold by the model that was trained on the others."""
        if not isinstance(teacher, Learner):
            return self._computed(teacher, f"features_{teacher.name}", pairs, {}, teacher.load)
        folds = np.array([fold_of(pair, self._recipe.stack.folds, "stack") for pair in pairs])
        found: dict[int, np.ndarray] = {}
        for fold in np.unique(folds).tolist():
            model, rows = self._trained(teacher, fold), np.flatnonzero(folds == fold)
            own, name = [pairs[row] for row in rows], f"features_{teacher.name}_{fold}"
            load = partial(teacher.load, model)
            features = self._computed(teacher, name, own, {"model": model.name}, load)
            found |= zip(rows, features, strict=True)
        return np.array([found[row] for row in range(len(pairs))])

    def _computed(
        self,
        teacher: Teacher | Learner,
        stage: str,
        pairs: Sequence[Pair],
        inputs: Mapping[str, object],
        load: Loader,
    ) -> np.ndarray:
        size = teacher.chunk or len(pairs)
        compute = self._engine if teacher.parallel else features_here

        def work(folder: Path) -> None:
            starts = range(0, len(pairs), size)
            parts = [folder / f"part-{start:07}-{size}.npy" for start in starts]
            missing = {
                part: pairs[start : start + size]
                for part, start in zip(parts, starts, strict=True)
                if not part.is_file()
            }
            with closing(compute(load, list(missing.values()), self._on_progress)) as computed:
                for index, features in computed:
                    _save_whole(list(missing)[index], features)
            np.save(folder / _FEATURES, np.concatenate([np.load(part) for part in parts]))
            for part in parts:
                part.unlink()

        inputs = {
            **inputs,
            "settings": teacher.settings,
            "train": self._train_hash,
            "pairs": hash_of([[pair.query, pair.note.title, pair.note.body] for pair in pairs]),
        }
        found: np.ndarray = np.load(self._stages.do(stage, inputs, work) / _FEATURES)
        return found

    def _trained(self, learner: Learner, fold: int) -> Path:
        if made := self._models.get((learner.name, fold)):
            return made
        start = self._trained(learner.starts_from, fold) if learner.starts_from else None
        folds = self._recipe.stack.folds
        others = [pair for pair in self._train if fold_of(pair, folds, "stack") != fold]
        inputs = {
            "settings": learner.settings,
            "start": start and start.name,
            "train": self._train_hash,
            "fold": [fold, folds],
        }
        work = partial(learner.train, others, start, on_progress=self._on_progress)
        made = self._stages.do(f"teacher_{learner.name}_{fold}", inputs, work)
        self._models[learner.name, fold] = made
        return made

    def _compare(
        self, whole: Predictions, stack: Stack, teachers: Sequence[str], dev: Sequence[Pair]
    ) -> Evaluation:
        """Compare the whole stack with each teacher alone and the others without it, on the dev pairs, its last ones."""
        used: dict[str, Sequence[str]] = {}
        for name in teachers:
            used[name] = [name]
            if len(teachers) > 1:
                used[f"without {name}"] = [other for other in teachers if other != name]
        parts = [
            make_predictions(name, stack.predict(some)[-len(dev) :], None) for name, some in used.items()
        ]
        seed, draws = self._recipe.seed, self._recipe.evaluate.draws
        return evaluate([whole, *parts], dev, frozenset(), controls=[STACK], seed=seed, draws=draws)


def _save_whole(path: Path, values: np.ndarray) -> None:
    incomplete = path.with_name(f"{path.name}.partial.npy")
    np.save(incomplete, values)
    incomplete.replace(path)
