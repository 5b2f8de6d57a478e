"""Compares recipes by cross-validation: each fold of the training queries is predicted by students trained on the others.

Pooled over the folds, every training query is measured, and recipes are compared pair by pair on the same queries: several
times as many as a dev set has. Stages that recipes share are trained once per fold.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from model_export.data.pairs import Pair
from model_export.evaluation.evaluate import ALL, Evaluation, Predictions, evaluate, format_table
from model_export.evaluation.winners import METRIC_TITLES
from model_export.measuring import predict
from model_export.pipeline import Pipeline
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.reports.report import difference_cell
from model_export.run import train_control, train_student
from model_export.stages import RunError, Stages, lock

FIGURES = "cross_validation.json"


def cross_validate(
    recipes: Sequence[Recipe],
    root: Path,
    folds: int,
    out: Path,
    on_progress: OnProgress,
    *,
    control_only: bool = False,
) -> Evaluation:
    """Compare the recipes with the first, on their students or, with `control_only`, on their label-only controls.

    A rerun in the folder `out` keeps finished stages. Writes cross_validation.json.
    Raises RunError for recipes that share a name, or that differ in data or seed: their pairs could not be compared.
    """
    _check(recipes)
    pairs: list[Pair] = []
    long_tail: frozenset[str] = frozenset()
    found: dict[str, list[Predictions]] = {recipe.name: [] for recipe in recipes}
    for fold in range(folds):
        folder = out / f"fold-{fold}"
        data = recipes[0].data.model_copy(update={"fold": fold, "folds": folds})
        with lock(folder):
            for recipe in recipes:
                on_stage = partial(_report, on_progress, f"Fold {fold + 1} of {folds}, {recipe.name}")
                on_fold = recipe.model_copy(update={"data": data})
                pipeline = Pipeline(on_fold, root, Stages(folder), on_stage)
                found[recipe.name].append(_predict(pipeline, control_only=control_only))
        pairs += pipeline.data.dev
        long_tail |= pipeline.data.long_tail
    first = recipes[0]
    pooled = [_pool(name, predictions) for name, predictions in found.items()]
    evaluation = evaluate(
        pooled, pairs, long_tail, controls=[first.name], seed=first.seed, draws=first.evaluate.draws
    )
    (out / FIGURES).write_text(json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8")
    return evaluation


def format_comparison(evaluation: Evaluation) -> str:
    """Format the figures of all recipes, and their differences to the first with 95 % intervals, by source."""
    [first] = evaluation.controls
    blocks = [format_table(evaluation)]
    for split, by_control in ({ALL: evaluation.differences} | evaluation.split_differences).items():
        for system, differences in by_control[first].items():
            lines = [
                f"  {METRIC_TITLES[metric]}: {difference_cell(each).text}"
                for metric, each in differences.items()
            ]
            blocks.append("\n".join([f"{split}, {system} minus {first}:", *lines]))
    return "\n\n".join(blocks)


def _check(recipes: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in recipes]
    if len(recipes) < 2 or len(set(names)) < len(names):
        raise RunError(f"cross-validation needs two or more recipes with distinct names, and has {names}")
    first = recipes[0]
    for recipe in recipes[1:]:
        if (recipe.data, recipe.seed) != (first.data, first.seed):
            raise RunError(
                f"{recipe.name} and {first.name} differ in [data] or seed, so their pairs can't be compared: make them equal"
            )


def _report(on_progress: OnProgress, about: str, stage: str, done: int, total: int) -> None:
    on_progress(f"{about}: {stage}", done, total)


def _predict(pipeline: Pipeline, *, control_only: bool) -> Predictions:
    control = train_control(pipeline)
    name, model = "label_only_sft", control.folder
    if not control_only:
        name, model = "student", train_student(pipeline, control).folder
    return predict(pipeline, name, pipeline.data.dev, control.prompting, model)


def _pool(name: str, folds: Sequence[Predictions]) -> Predictions:
    probabilities, ranking = (
        np.concatenate([getattr(each, part) for each in folds]) for part in ("probabilities", "ranking")
    )
    return Predictions(name, probabilities, ranking)
