"""Supervised stages: the label-only control, and the teacher on gold traces."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_export.data.gold_traces import gold_steps
from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting, gold_label
from model_export.data.sampling import pick
from model_export.models.model_io import load_model, load_tokenizer, speed_up
from model_export.recipe import TINY_BASE, CotConfig, LabelOnlyConfig, LaunchConfig, Recipe, TrainConfig
from model_export.run_log import LOG_NAME, RunLog
from model_export.training.batches import Example
from model_export.training.processes import save_trained
from model_export.training.supervised import (
    Job,
    OnStep,
    Reporter,
    freeze_all_but_linears,
    train,
    unfreeze_all,
)


@dataclass(frozen=True, slots=True)
class StageContext:
    """The start model and the work folder of a training stage.

    Attributes:
        start: transformers folder to start from.
        folder: the stage's own; a saved state in it is resumed.
        from_scratch: whether all weights learn, because those of the start are random.
        launch: processes that the stage trains on.
    """

    stage: str
    start: Path
    folder: Path
    seed: int
    from_scratch: bool
    on_step: OnStep
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    @classmethod
    def of(cls, recipe: Recipe, stage: str, start: Path, folder: Path, on_step: OnStep) -> "StageContext":
        """Return the context of a stage of the recipe."""
        teaches = stage in ("cot_sft", "grpo", "sam")
        base = recipe.model.teacher if teaches else recipe.model.student_base
        from_scratch = base == TINY_BASE
        return cls(stage, start, folder, recipe.seed, from_scratch, on_step, recipe.launch)


def train_label_only(
    pairs: Sequence[Pair], prompting: Prompting, config: LabelOnlyConfig, context: StageContext
) -> None:
    """Train the control on the grade right after the prompt, without reasons."""
    examples = [label_only_example(pair, prompting, config) for pair in pick(pairs, config, context.seed)]
    train_examples(examples, prompting, config, context)


def label_only_example(pair: Pair, prompting: Prompting, config: LabelOnlyConfig) -> Example:
    """Return an example with the gold grade, smoothed as the stage sets, and no completion."""
    target = gold_label(pair, config.smoothing)
    return Example(prompting.student_prompt(pair), [], target, pair.label)


def train_cot(pairs: Sequence[Pair], prompting: Prompting, config: CotConfig, context: StageContext) -> None:
    """Train the teacher on traces built from gold grades: steps first, then the grade."""
    examples = []
    for pair in pick(pairs, config, context.seed):
        steps = gold_steps(pair, prompting.steps(pair.criteria))
        completion = prompting.teacher_completion(steps, pair.label)
        examples.append(Example(prompting.teacher_prompt(pair), completion, None, pair.label))
    train_examples(examples, prompting, config, context)


def train_examples(
    examples: Sequence[Example],
    prompting: Prompting,
    config: TrainConfig,
    context: StageContext,
    *,
    trace_weight: float = 1.0,
) -> None:
    """Train the model of the start folder, and write it to the stage's folder."""
    model, tokenizer = load_model(context.start), load_tokenizer(context.start)
    if context.from_scratch:
        unfreeze_all(model)
    else:
        freeze_all_but_linears(model, config.frozen_layers)
    speed_up(model, compiled=config.compile)
    job = Job(config, context.seed, context.folder, prompting.label_token_ids, trace_weight, context.launch)
    report = Reporter(RunLog(context.folder / LOG_NAME, context.stage), context.on_step)
    save_trained(train(model, tokenizer, examples, job, report), tokenizer, context.folder)
