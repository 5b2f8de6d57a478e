"""The stages of a run that measure its models: predictions of dev pairs, and explanations. Kept like all stages."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

from model_export.data.encoder import Encoder
from model_export.data.pairs import GRADES, Pair
from model_export.data.prompting import Prompting
from model_export.data.sampling import group, sample_each
from model_export.evaluation.baselines import by_cosine
from model_export.evaluation.evaluate import Predictions
from model_export.evaluation.explanations import Explainer, Figures, read_figures, serve_by, to_json
from model_export.evaluation.fitted import Fitted
from model_export.evaluation.predict import (
    by_log_probabilities,
    by_reasoning,
    directly,
    read_predictions,
    write_predictions,
)
from model_export.pipeline import Pipeline
from model_export.stages import hash_of, write_whole
from model_export.teacher.rollout import Sampler
from model_export.teachers.cross_encoder import CrossEncoderTeacher

PREDICTIONS, _EXPLANATIONS = "predictions.npz", "explanations.json"


def predict(
    run: Pipeline,
    system: str,
    pairs: Sequence[Pair],
    prompting: Prompting,
    model: Path,
    *,
    reasons: bool = False,
) -> Predictions:
    """Predict the pairs' grades with a model that writes the grade first or, if it `reasons`, a trace first."""
    config, greedy = run.recipe.evaluate, run.sampling(0.0)

    def work(folder: Path) -> None:
        sampler = Sampler.load(model, prompting, run.recipe.model.precision)
        on_batch = partial(run.on_progress, f"Predict {system}")
        if reasons:
            found = by_reasoning(system, pairs, prompting, sampler, greedy, on_batch)
        else:
            found = directly(system, pairs, prompting, sampler, config.batch_size, on_batch)
        write_predictions(folder / PREDICTIONS, found)

    inputs = {
        "model": model.name,
        "form": (prompting.form if reasons else prompting.form.of_student).to_json(),
        "pairs": hash_of([pair.id for pair in pairs]),
        "data": run.data_folder.name,
        **({"sampling": asdict(greedy)} if reasons else {}),
        "precision": run.recipe.model.precision,
    }
    folder = run.stages.do(predict_stage(run, system, pairs), inputs, work)
    return read_predictions(folder / PREDICTIONS, system)


def predict_by_cosine(run: Pipeline, encoder: str, pairs: Sequence[Pair]) -> Predictions:
    """Predict the pairs' grades with an off-the-shelf encoder. Raises EncoderError."""
    name = Path(encoder).name

    def work(folder: Path) -> None:
        loaded = Encoder(encoder, run.on_progress)
        found = by_cosine(loaded.name, loaded.cosines, run.data.train, pairs, len(GRADES))
        write_predictions(folder / PREDICTIONS, found)

    inputs = {
        "encoder": encoder,
        "pairs": hash_of([pair.id for pair in pairs]),
        "data": run.data_folder.name,
    }
    folder = run.stages.do(predict_stage(run, name, pairs), inputs, work)
    return read_predictions(folder / PREDICTIONS, name)


def predict_by_cross_encoder(run: Pipeline, pairs: Sequence[Pair], model: Path) -> Predictions:
    """Predict the pairs' grades with the cross-encoder."""
    recipe = run.recipe
    teacher = CrossEncoderTeacher(recipe.cross_encoder, recipe.model.precision, recipe.seed)

    def work(folder: Path) -> None:
        found = by_log_probabilities(teacher.name, teacher.load(model, run.on_progress)(pairs))
        write_predictions(folder / PREDICTIONS, found)

    ids = hash_of([pair.id for pair in pairs])
    inputs = {"model": model.name, "data": run.data_folder.name, "pairs": ids}
    folder = run.stages.do(predict_stage(run, teacher.name, pairs), inputs, work)
    return read_predictions(folder / PREDICTIONS, teacher.name)


def explain(run: Pipeline, prompting: Prompting, student: Path, fitted: Fitted) -> dict[str, Figures]:
    """Measure the student's explanations of the grades that these fits give, on some dev pairs of each source.

    A killed stage keeps the sources that it has measured.
    """
    config, seed = run.recipe.evaluate, run.recipe.seed
    if not config.explanations:
        return {}
    pairs = sample_each(run.data.dev, config.explanations, Random(seed))

    def work(folder: Path) -> None:
        sampler = Sampler.load(student, prompting, run.recipe.model.precision)
        explainer = Explainer(prompting, sampler, run.sampling(0.0), serve_by(fitted))
        found: dict[str, Figures] = {}
        for number, (source, own) in enumerate(group(pairs, lambda pair: pair.source).items()):
            file = folder / f"explanations-{number}.json"
            if not file.is_file():
                on_batch = partial(run.on_progress, f"Explain {source}")
                write_whole(file, json.dumps(to_json(explainer.measure(own, seed, on_batch))))
            found |= read_figures(file.read_text(encoding="utf-8"))
        write_whole(folder / _EXPLANATIONS, json.dumps(to_json(found)))

    inputs = {
        "student": student.name,
        "form": prompting.form.of_student.to_json(),
        "fitted": fitted.to_json(),
        "data": run.data_folder.name,
        "pairs": hash_of([pair.id for pair in pairs]),
        "sampling": asdict(run.sampling(0.0)),
        "writes": "within the grammar",
        "spans": "of what the prompt holds",
        "precision": run.recipe.model.precision,
        "seed": seed,
    }
    folder = run.stages.do("explain", inputs, work)
    return read_figures((folder / _EXPLANATIONS).read_text(encoding="utf-8"))


def predict_stage(run: Pipeline, system: str, pairs: Sequence[Pair]) -> str:
    """Name the stage that predicts the pairs that systems are compared on, or all dev pairs where these are more."""
    return f"predict_{system}_on_all" if len(pairs) > len(run.dev_pairs()) else f"predict_{system}"
