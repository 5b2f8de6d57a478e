"""Trains the encoder of note vectors and the reader of them, together, from one text student.

Both learn from the text student's own reading of each pair: first to reproduce its last hidden state and its grades, and then
its grades mixed with the gold ones. A share of the pairs is also read as text, so that the reader keeps its text reading.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import PretrainedConfig, PrinterCallback

from model_export.data.pairs import UNJUDGED, Pair
from model_export.data.prompting import Prompting, gold_label
from model_export.models.model_io import keep_first_layers, load_model, load_tokenizer, speed_up
from model_export.models.packing import pack_prompts, pack_whole, with_outputs
from model_export.models.vector_batches import VectorPair, collate_pairs, distinct_notes
from model_export.models.vector_student import VectorStudent
from model_export.recipe import LaunchConfig, Recipe
from model_export.recipe_stages import EncodeConfig
from model_export.run_log import LOG_NAME, RunLog
from model_export.student.distil import query_groups
from model_export.training.batches import plan_order
from model_export.training.frozen_outputs import cache_frozen_activations, run_layers
from model_export.training.learned_weights import learn_linears
from model_export.training.processes import share
from model_export.training.stage_job import OnStep
from model_export.training.supervised import (
    OUTPUTS_NAME,
    GradingTrainer,
    Reporter,
    TrainingError,
    saved_state,
    training_arguments,
)
from model_export.vectors.text_readings import TextReadings
from service.contract.manifest import ENCODER_NAME
from service.contract.vector_prompt import VectorRenderer

Rows = Mapping[tuple[int, ...], torch.Tensor]
"""The activations of a note's tokens after the frozen layers, (tokens, hidden), by its token ids."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A pair's place in a batch: its number, into how many vectors its note goes, the phase, and whether it is read as text too."""

    pair: int
    parts: int
    aligns: bool
    as_text: bool


class VectorTrainer(GradingTrainer):
    """Learns grades from vectors, the text student's hidden state while it aligns, and the text reading of some pairs."""

    def __init__(self, *args: Any, align_weight: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._align_weight = align_weight

    def compute_loss(self, model: VectorStudent, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        """Return the sum of the losses."""
        gold = inputs.pop("labels")
        hidden = model.read(model.encode(inputs), inputs)
        found = self._grades(model, hidden)
        losses = {"grade_loss": -(inputs["targets"] * found).sum(-1).mean()}
        loss = losses["grade_loss"]
        if "hidden" in inputs:
            cosine = torch.nn.functional.cosine_similarity(hidden.float(), inputs["hidden"], dim=-1)
            losses["align_loss"] = (1 - cosine).mean()
            loss = loss + self._align_weight * losses["align_loss"]
        if "prompts" in inputs:
            as_text = self._grades(model, model.read_text(inputs["prompts"]))
            losses["text_loss"] = -(inputs["text_targets"] * as_text).sum() / len(gold)
            loss = loss + losses["text_loss"]
        self.note(losses, found.softmax(-1), gold, torch.ones_like(gold, dtype=torch.bool))
        return loss

    def _grades(self, model: VectorStudent, hidden: torch.Tensor) -> torch.Tensor:
        """Return the labels' log-probabilities over the whole vocabulary, (rows, grades): label mass is learned too."""
        return torch.log_softmax(model.logits(hidden).float(), dim=-1)[:, self.label_token_ids]


@dataclass(frozen=True, slots=True)
class VectorExamples:
    """The pairs to learn from: as token ids, both ways of reading, and what to learn from each."""

    pairs: Sequence[Pair]
    tokens: Sequence[VectorPair]
    prompts: Sequence[Sequence[int]]
    readings: TextReadings
    cue: Sequence[int]

    @classmethod
    def render(
        cls, pairs: Sequence[Pair], readings: TextReadings, prompting: Prompting, renderer: VectorRenderer
    ) -> "VectorExamples":
        """Render the pairs for both readings. Raises InvalidRequestError for a query that is too long."""
        prompts = [prompting.student_prompt(pair) for pair in pairs]
        return cls(pairs, render_vector_pairs(pairs, renderer), prompts, readings, renderer.cue)

    def collate(
        self, draws: Sequence[Draw], config: EncodeConfig, model: PretrainedConfig, rows: Rows | None
    ) -> dict[str, Any]:
        """Return the batch of these draws for both models; `rows` are cached activations of all notes, if there are any."""
        numbers = [draw.pair for draw in draws]
        tokens = [self.tokens[number] for number in numbers]
        notes = distinct_notes(tokens)
        batch: dict[str, Any] = collate_pairs(tokens, self.cue, draws[0].parts)
        batch["notes"] = pack_whole(notes, model)
        if rows:
            batch["notes"] = with_outputs(batch["notes"], [rows[note] for note in notes])
        of_text = torch.from_numpy(self.readings.probabilities[numbers])
        gold = [self.pairs[number].label for number in numbers]
        batch |= {"labels": torch.tensor(gold), "targets": of_text}
        if draws[0].aligns:
            batch["hidden"] = torch.from_numpy(self.readings.hidden[numbers]).float()
        else:
            batch["targets"] = torch.stack(
                [self._mix(number, row, config) for number, row in zip(numbers, of_text, strict=True)]
            )
        if any(draw.as_text for draw in draws):
            chosen = [place for place, draw in enumerate(draws) if draw.as_text]
            batch["prompts"] = pack_prompts([self.prompts[numbers[place]] for place in chosen], model)
            batch["text_targets"] = of_text[chosen]
        return batch

    def _mix(self, number: int, of_text: torch.Tensor, config: EncodeConfig) -> torch.Tensor:
        pair = self.pairs[number]
        if pair.label == UNJUDGED:
            return of_text
        gold = torch.tensor(gold_label(pair, config.smoothing))
        return config.gold_weight * gold + (1 - config.gold_weight) * of_text


def render_vector_pairs(pairs: Sequence[Pair], renderer: VectorRenderer) -> list[VectorPair]:
    """Return the token ids of the pairs' prefixes and notes. Raises InvalidRequestError for a query that is too long."""
    notes = renderer.notes([pair.note for pair in pairs])
    prefixes = {
        key: renderer.prefix(*key) for key in dict.fromkeys((pair.query, pair.criteria) for pair in pairs)
    }
    return [
        VectorPair(prefixes[pair.query, pair.criteria], note.token_ids)
        for pair, note in zip(pairs, notes, strict=True)
    ]


def train_vectors(
    student: Path,
    examples: VectorExamples,
    recipe: Recipe,
    label_token_ids: Sequence[int],
    folder: Path,
    on_step: OnStep,
) -> None:
    """Train both models from the text student in `student`: write the reader to `folder`, and in it the encoder.

    The encoder has the first `layers` of the student's, and keeps its frozen layers; the reader learns all, as its lowest must
    learn to read vectors. A saved state in the folder is resumed.
    """
    config, precision, seed = recipe.encode, recipe.model.precision, recipe.seed
    encoder, reader = load_model(student), load_model(student)
    if config.layers:
        try:
            keep_first_layers(encoder, config.layers)
        except ValueError as error:
            raise TrainingError(f"encode.layers: {error}") from error
    file = folder / OUTPUTS_NAME
    frozen, rank = config.frozen_layers, config.lora_rank
    with learn_linears(encoder, frozen, rank), learn_linears(reader, 0, rank):
        for model in (encoder, reader):
            speed_up(model, compiled=config.compile)
        rows: Rows | None = None
        if config.keep_outputs:
            notes = distinct_notes(examples.tokens)
            found = cache_frozen_activations(encoder, frozen, notes, file, precision, on_step)
            rows = dict(zip(notes, found, strict=True))
        parts_of_batch = share(LaunchConfig(), "encode", config.batch_size, config.micro_batch)
        with run_layers(encoder, slice(frozen if rows else 0, None)):
            trainer = VectorTrainer(
                VectorStudent(encoder, reader),
                training_arguments(config, folder, seed, precision, **parts_of_batch),
                train_dataset=plan_draws(examples, config, seed),
                data_collator=partial(examples.collate, config=config, model=encoder.config, rows=rows),
                callbacks=[Reporter(RunLog(folder / LOG_NAME, "encode"), on_step)],
                label_token_ids=label_token_ids,
                align_weight=config.align_weight,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=saved_state(folder / "state"))
    tokenizer = load_tokenizer(student)
    for model, own in ((encoder, folder / ENCODER_NAME), (reader, folder)):
        model.eval().save_pretrained(own)
        tokenizer.save_pretrained(own)
    file.unlink(missing_ok=True)
    shutil.rmtree(folder / "state", ignore_errors=True)


def plan_draws(examples: VectorExamples, config: EncodeConfig, seed: int) -> list[Draw]:
    """Return every place of every batch of the stage, so that a resumed stage sees the same batches."""
    order = plan_order(
        [len(pair.note) for pair in examples.tokens],
        config.batch_size,
        config.steps,
        seed,
        groups=query_groups(examples.pairs),
        group_size=config.group_size,
    )
    random = Random(seed)
    draws = []
    for step in range(config.steps):
        parts = random.choice(config.vectors)
        draws += [
            Draw(number, parts, step < config.align_steps, random.random() < config.text_share)
            for number in order[step * config.batch_size : (step + 1) * config.batch_size]
        ]
    return draws
