"""The stages of a run that make the second reading: note vectors, the student that reads them, and its predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from transformers import set_seed

from model_export.checkpoint.gates import Gate
from model_export.checkpoint.trained import TrainedVectors
from model_export.data.encoder import row_cosines
from model_export.data.mine import read_mined
from model_export.data.pairs import GRADES, Pair
from model_export.data.prompting import Prompting
from model_export.data.sampling import pick
from model_export.evaluation.baselines import by_cosine
from model_export.evaluation.evaluate import ALL, LONG_TAIL, Evaluation, Predictions, evaluate
from model_export.evaluation.fitted import fit
from model_export.evaluation.predict import make_predictions, read_predictions, write_predictions
from model_export.evaluation.winners import METRIC_TITLES
from model_export.measuring import PREDICTIONS, predict, predict_by_cosine, predict_stage
from model_export.models.model_io import load_model, speed_up
from model_export.pipeline import Pipeline
from model_export.recipe_stages import EncodeConfig
from model_export.stages import hash_of
from model_export.vectors.predict import VectorScorer
from model_export.vectors.text_readings import TextReadings, read_texts
from model_export.vectors.train import VectorExamples, render_vector_pairs, train_vectors
from service.contract.prompt import Note
from service.contract.vector_prompt import VectorRenderer

TEXT_STUDENT = "text_student"
MIXED = "mixed"
_TEXT_READINGS = "text_readings.npz"


def encode(run: Pipeline, prompting: Prompting, student: Path, unlabelled: Path | None) -> Path:
    """Train an encoder of note vectors and a reader of them from a text student; return the reader's folder, with the encoder in it.

    They learn from the training pairs, and from the unlabelled pairs if there are any.
    """
    config, seed = run.recipe.encode, run.recipe.seed
    mined = read_mined(unlabelled) if unlabelled else []
    pairs = pick([*run.data.train, *mined], config, seed)
    renderer = prompting.of_vectors(config)
    readings = _read_texts(run, prompting, student, pairs)

    def work(folder: Path) -> None:
        set_seed(seed)
        examples = VectorExamples.render(pairs, readings, prompting, renderer)
        on_step = partial(run.on_progress, "Train encode")
        train_vectors(student, examples, run.recipe, prompting.label_token_ids, folder, on_step)

    config_json = config.model_dump(exclude={"served", "save_steps", "min_share", "micro_batch"})
    inputs = {
        **_inputs(run, prompting, pairs),
        "student": student.name,
        "config": config_json,
        "precision": run.recipe.model.precision,
        "seed": seed,
    }
    return run.stages.do("encode", inputs, work)


def compare_readings(
    run: Pipeline,
    pairs: Sequence[Pair],
    prompting: Prompting,
    student: Path,
    text_student: Path,
    as_text: Predictions,
) -> Evaluation | None:
    """Compare the readings of notes as vectors, for each number of vectors, with that of their text; None without an encoder.

    The text student is the one that `encode` started from: it reads text alone. A random half of the pairs read from vectors and
    the others as text show whether the two readings rank together. Bi-encoders, which compare a note's vector with the query's and
    read neither, are compared as well: this encoder, and the recipe's.
    """
    recipe = run.recipe
    if not recipe.encode.steps:
        return None
    systems = [predict(run, TEXT_STUDENT, pairs, prompting, text_student)]
    by_parts = {
        parts: predict_by_vectors(run, pairs, prompting, student, parts) for parts in recipe.encode.vectors
    }
    systems += by_parts.values()
    systems.append(mix(pairs, as_text, by_parts[recipe.encode.served], recipe.seed))
    systems.append(predict_by_own_cosine(run, pairs, prompting, student))
    systems += [predict_by_cosine(run, encoder, pairs) for encoder in recipe.evaluate.encoders]
    draws, long_tail = recipe.evaluate.draws, run.data.long_tail
    controls = [as_text.system]
    return evaluate([as_text, *systems], pairs, long_tail, controls=controls, seed=recipe.seed, draws=draws)


def mix(pairs: Sequence[Pair], as_text: Predictions, by_vectors: Predictions, seed: int) -> Predictions:
    """Read a random half of the pairs from vectors and the others as text, each calibrated as the service does."""
    criteria = [pair.criteria for pair in pairs]
    calibrated = [
        fit(each.probabilities, pairs, seed).calibrate(each.probabilities, criteria)
        for each in (by_vectors, as_text)
    ]
    half = np.random.default_rng(seed).random(len(pairs)) < 0.5
    return make_predictions(MIXED, np.where(half[:, None], *calibrated), None)


def gate_readings(compared: Evaluation, text: str, config: EncodeConfig) -> list[Gate]:
    """Gate what each reading that is served reaches of the text student's figures, on all pairs and on every source.

    They are the served number of vectors, a mix of both readings, and the text: to learn vectors must not cost what it was.
    """
    readings = {"vectors": f"vectors_{config.served}", MIXED: MIXED, "text": text}
    gates = []
    for (split, figures), (reading, system) in product(compared.rows[TEXT_STUDENT].items(), readings.items()):
        if split.endswith(LONG_TAIL):
            continue
        for metric in ("macro_f1", "ndcg_at_10"):
            before, after = figures[metric], compared.rows[system][split][metric]
            if before and after is not None:
                what = f"the share of the text student's {METRIC_TITLES[metric]} on {split} that the reading {reading!r} reaches"
                name = f"{reading}_{metric}_{split}"
                gates.append(Gate(name, what, after / before, config.min_share, at_least=True))
    return gates


@dataclass(frozen=True, slots=True)
class SecondReading:
    """The second reading to export, and the gates on it."""

    trained: TrainedVectors
    gates: Sequence[Gate]


def second_reading(
    run: Pipeline, prompting: Prompting, student: Path, compared: Evaluation | None, text: str
) -> SecondReading | None:
    """Fit the second reading, and gate it by its comparison with the text reading; None without an encoder."""
    if compared is None:
        return None
    gates = gate_readings(compared, text, run.recipe.encode)
    return SecondReading(fit_vectors(run, prompting, student), gates)


def fit_vectors(run: Pipeline, prompting: Prompting, student: Path) -> TrainedVectors:
    """Fit calibration and decisions on the grades that are read from the served number of vectors, on all dev pairs."""
    recipe, config, dev = run.recipe, run.recipe.encode, run.data.dev
    found = predict_by_vectors(run, dev, prompting, student, config.served)
    fitted = fit(found.probabilities, dev, recipe.seed)
    measured = evaluate([found], dev, run.data.long_tail, seed=recipe.seed, draws=recipe.evaluate.draws)
    figures = {name: value for name, value in measured.rows[found.system][ALL].items() if value is not None}
    return TrainedVectors(
        per_note=config.served,
        max_note_tokens=config.max_note_tokens,
        block=config.block,
        calibration=fitted.calibration,
        decisions=fitted.decisions,
        dev_metrics={name: round(value, 4) for name, value in figures.items()},
    )


def predict_by_vectors(
    run: Pipeline, pairs: Sequence[Pair], prompting: Prompting, student: Path, parts: int
) -> Predictions:
    """Predict the pairs' grades with that many vectors a note, by a student whose folder holds its encoder."""
    system = f"vectors_{parts}"

    def find(scorer: VectorScorer, renderer: VectorRenderer) -> Predictions:
        tokens, on_batch = render_vector_pairs(pairs, renderer), partial(run.on_progress, f"Predict {system}")
        found = scorer.probabilities(tokens, parts, run.recipe.evaluate.batch_size, on_batch)
        return make_predictions(system, found, None)

    return _predict(run, system, pairs, prompting, student, find)


def predict_by_own_cosine(
    run: Pipeline, pairs: Sequence[Pair], prompting: Prompting, student: Path
) -> Predictions:
    """Predict the pairs' grades with the encoder as a bi-encoder: by the cosine of its mean vectors of query and note."""
    system = "encoder_cosine"

    def find(scorer: VectorScorer, renderer: VectorRenderer) -> Predictions:
        def cosines(of: Sequence[Pair]) -> np.ndarray:
            texts = renderer.notes([*(Note("", pair.query) for pair in of), *(pair.note for pair in of)])
            token_ids, on_batch = (
                [text.token_ids for text in texts],
                partial(run.on_progress, f"Encode {system}"),
            )
            return row_cosines(scorer.mean_vectors(token_ids, run.recipe.evaluate.batch_size, on_batch))

        return by_cosine(system, cosines, run.data.train, pairs, len(GRADES))

    return _predict(run, system, pairs, prompting, student, find)


def _predict(
    run: Pipeline,
    system: str,
    pairs: Sequence[Pair],
    prompting: Prompting,
    student: Path,
    find: Callable[[VectorScorer, VectorRenderer], Predictions],
) -> Predictions:
    """Keep, as a stage of the run, what `find` predicts with the student and its encoder."""
    config, precision, renderer = (
        run.recipe.encode,
        run.recipe.model.precision,
        prompting.of_vectors(run.recipe.encode),
    )

    def work(folder: Path) -> None:
        scorer = VectorScorer(student, renderer.cue, prompting.label_token_ids, precision)
        write_predictions(folder / PREDICTIONS, find(scorer, renderer))

    inputs = {
        **_inputs(run, prompting, pairs),
        "model": student.name,
        "max_note_tokens": config.max_note_tokens,
        "block": config.block,
        "precision": precision,
    }
    folder = run.stages.do(predict_stage(run, system, pairs), inputs, work)
    return read_predictions(folder / PREDICTIONS, system)


def _read_texts(run: Pipeline, prompting: Prompting, student: Path, pairs: Sequence[Pair]) -> TextReadings:
    config = run.recipe.evaluate

    def work(folder: Path) -> None:
        prompts = [prompting.student_prompt(pair) for pair in pairs]
        on_batch = partial(run.on_progress, "Read texts")
        model = load_model(student, run.recipe.model.precision)
        speed_up(model, compiled=False)
        labels, file = prompting.label_token_ids, folder / _TEXT_READINGS
        read_texts(model, prompts, labels, config.batch_size, file, on_batch)

    inputs = {
        **_inputs(run, prompting, pairs),
        "student": student.name,
        "precision": run.recipe.model.precision,
    }
    return TextReadings.load(run.stages.do("text_readings", inputs, work) / _TEXT_READINGS)


def _inputs(run: Pipeline, prompting: Prompting, pairs: Sequence[Pair]) -> dict[str, object]:
    return {
        "form": prompting.form.of_student.to_json(),
        "pairs": hash_of([pair.id for pair in pairs]),
        "data": run.data_folder.name,
    }
