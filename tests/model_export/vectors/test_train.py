from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from model_export.data.pairs import UNJUDGED, Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.synthetic import generate, tasks
from model_export.data.template import find_template
from model_export.models.model_io import load_model, speed_up
from model_export.recipe_stages import EncodeConfig
from model_export.training.supervised import OUTPUTS_NAME, TrainingError
from model_export.vectors.predict import VectorScorer
from model_export.vectors.text_readings import TextReadings, read_texts
from model_export.vectors.train import VectorExamples, plan_draws, render_vector_pairs, train_vectors
from service.contract.manifest import ENCODER_NAME, Limits
from tests.tiny_teacher import micro_recipe

SEED = 5
MADE = generate(SEED, train_queries=3, dev_queries=1, notes_per_query=4)
# Eight pairs of two queries, with all four grades.
PAIRS = MADE.train[:8]
CONFIG: dict[str, Any] = {"batch_size": 8, "learning_rate": 3e-3, "max_note_tokens": 128, "vectors": (1, 4)}


@pytest.fixture(scope="module")
def prompting(tiny_base: Path) -> Prompting:
    criteria = tuple(task.criteria for task in tasks("three"))
    form = PromptForm(
        find_template("note-first-plain-1"), criteria, Limits(max_query_tokens=200, max_note_tokens=200)
    )
    return Prompting.load(form, tiny_base)


def read_as_text(folder: Path, prompting: Prompting, file: Path) -> TextReadings:
    model = load_model(folder)
    speed_up(model, compiled=False)
    prompts = [prompting.student_prompt(pair) for pair in PAIRS]
    return read_texts(model, prompts, prompting.label_token_ids, 3, file, lambda *_: None)


@pytest.fixture(scope="module")
def readings(tiny_base: Path, prompting: Prompting, tmp_path_factory: pytest.TempPathFactory) -> TextReadings:
    """Read the pairs as the random student does, but for the grades, which are the gold ones."""
    found = read_as_text(tiny_base, prompting, tmp_path_factory.mktemp("readings") / "readings.npz")
    return TextReadings(np.eye(4, dtype=np.float32)[[pair.label for pair in PAIRS]], found.hidden)


class Stopped(Exception):
    """Raised by the test in the middle of the training."""


def run(
    tiny_base: Path,
    prompting: Prompting,
    readings: TextReadings,
    folder: Path,
    stop_at: int | None = None,
    **changes: Any,
) -> Path:
    def on_step(done: int, _total: int) -> None:
        if done == stop_at:
            raise Stopped

    folder.mkdir(exist_ok=True)
    recipe = micro_recipe(seed=SEED, encode=CONFIG | changes)
    examples = VectorExamples.render(PAIRS, readings, prompting, prompting.of_vectors(recipe.encode))
    torch.manual_seed(SEED)
    train_vectors(tiny_base, examples, recipe, prompting.label_token_ids, folder, on_step)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {f"reader {name}": weight for name, weight in load_model(folder).state_dict().items()}
    encoder = load_model(folder / ENCODER_NAME).state_dict()
    return found | {f"encoder {name}": weight for name, weight in encoder.items()}


def differing(one: Path, other: Path) -> list[str]:
    theirs = weights(other)
    return [name for name, weight in weights(one).items() if not weight.equal(theirs[name])]


def test_grades_are_learned_from_vectors_and_kept_from_text(
    tiny_base: Path, prompting: Prompting, readings: TextReadings, tmp_path: Path
) -> None:
    folder = run(tiny_base, prompting, readings, tmp_path / "run", steps=120, align_steps=10, text_share=0.5)
    renderer = prompting.of_vectors(EncodeConfig(**CONFIG))
    scorer = VectorScorer(folder, renderer.cue, prompting.label_token_ids, "float32")
    gold = [pair.label for pair in PAIRS]
    for parts in (1, 4):
        found = scorer.probabilities(render_vector_pairs(PAIRS, renderer), parts, 3, lambda *_: None)
        assert found.argmax(-1).tolist() == gold, parts
    as_text = read_as_text(folder, prompting, tmp_path / "as_text.npz")
    assert as_text.probabilities.argmax(-1).tolist() == gold
    assert not (folder / "state").exists()


def test_an_encoder_of_the_lowest_layers_alone_is_learned(
    tiny_base: Path, prompting: Prompting, readings: TextReadings, tmp_path: Path
) -> None:
    layers = load_model(tiny_base).config.num_hidden_layers
    folder = run(tiny_base, prompting, readings, tmp_path / "run", steps=120, layers=1)
    assert load_model(folder / ENCODER_NAME).config.num_hidden_layers == 1
    assert load_model(folder).config.num_hidden_layers == layers
    renderer = prompting.of_vectors(EncodeConfig(**CONFIG))
    scorer = VectorScorer(folder, renderer.cue, prompting.label_token_ids, "float32")
    found = scorer.probabilities(render_vector_pairs(PAIRS, renderer), 4, 3, lambda *_: None)
    assert found.argmax(-1).tolist() == [pair.label for pair in PAIRS]
    with pytest.raises(TrainingError, match=f"encode.layers: it has {layers} layers"):
        run(tiny_base, prompting, readings, tmp_path / "deep", steps=1, layers=layers + 1)


@pytest.mark.parametrize(
    "changes", [{}, {"frozen_layers": 1, "keep_outputs": True}], ids=["plain", "kept outputs"]
)
@pytest.mark.parametrize("stop_at", [3, 7])
def test_resumed_training_gives_the_same_weights(
    tiny_base: Path,
    prompting: Prompting,
    readings: TextReadings,
    tmp_path: Path,
    changes: dict[str, Any],
    stop_at: int,
) -> None:
    settings = {"steps": 8, "align_steps": 4, "save_steps": 2, **changes}
    whole = run(tiny_base, prompting, readings, tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        run(tiny_base, prompting, readings, tmp_path / "cut", stop_at=stop_at, **settings)
    resumed = run(tiny_base, prompting, readings, tmp_path / "cut", **settings)
    assert differing(whole, resumed) == []
    assert not (resumed / OUTPUTS_NAME).exists()


def test_frozen_layers_do_not_learn_in_the_encoder(
    tiny_base: Path, prompting: Prompting, readings: TextReadings, tmp_path: Path
) -> None:
    folder = run(tiny_base, prompting, readings, tmp_path / "run", steps=2, frozen_layers=1)
    before = load_model(tiny_base).state_dict()
    changed = [name for name, weight in weights(folder).items() if not weight.equal(before[name.split()[1]])]
    assert all("proj" in name for name in changed)
    layers = {(name.split()[0], name.split(".layers.")[1].split(".")[0]) for name in changed}
    assert layers == {("encoder", "1"), ("reader", "0"), ("reader", "1")}


def test_an_unjudged_pair_learns_the_text_reading_alone(prompting: Prompting, readings: TextReadings) -> None:
    config = EncodeConfig(**CONFIG, steps=1, gold_weight=1.0, text_share=0.0)
    unjudged: list[Pair] = [replace(PAIRS[0], label=UNJUDGED), *PAIRS[1:]]
    flat = TextReadings(np.full((8, 4), 0.25, np.float32), readings.hidden)
    examples = VectorExamples.render(unjudged, flat, prompting, prompting.of_vectors(config))
    draws = sorted(plan_draws(examples, config, SEED), key=lambda draw: draw.pair)
    targets = examples.collate(draws, config, PretrainedConfig(), None)["targets"]
    assert targets[0].tolist() == [0.25] * 4
    assert targets[1:].argmax(-1).tolist() == [pair.label for pair in PAIRS[1:]]


def test_each_batch_has_one_number_of_vectors_and_one_phase(
    prompting: Prompting, readings: TextReadings
) -> None:
    config = EncodeConfig(**CONFIG, steps=40, align_steps=10, text_share=0.25)
    examples = VectorExamples.render(PAIRS, readings, prompting, prompting.of_vectors(config))
    draws = plan_draws(examples, config, SEED)
    assert draws == plan_draws(examples, config, SEED)
    batches = [draws[start : start + 8] for start in range(0, 320, 8)]
    assert all(len({(draw.parts, draw.aligns) for draw in batch}) == 1 for batch in batches)
    assert [batch[0].aligns for batch in batches] == [True] * 10 + [False] * 30
    assert {batch[0].parts for batch in batches} == {1, 4}
    assert 0.15 < sum(draw.as_text for draw in draws) / 320 < 0.35
