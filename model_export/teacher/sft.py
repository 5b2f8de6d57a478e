"""Supervised stages: the label-only control, and the teacher on gold traces."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from transformers import PreTrainedModel

from model_export.data.gold_traces import gold_steps
from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting, gold_label
from model_export.data.sampling import pick
from model_export.data.soft_labels import SoftLabel
from model_export.models.model_io import load_model, load_tokenizer
from model_export.recipe_stages import TrainConfig
from model_export.training.batches import Example
from model_export.training.learned_weights import learn_linears
from model_export.training.processes import save_trained
from model_export.training.ranking import Ranking
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import Reporter, StageSettings, TrainingError, train


def train_label_only(pairs: Sequence[Pair], prompting: Prompting, job: StageJob, on_step: OnStep) -> None:
    """Train the control on the grade right after the prompt, without reasons."""
    config = job.recipe.label_only_sft
    picked = pick(pairs, config, job.recipe.seed)
    examples = [graded_example(pair, prompting, config.smoothing) for pair in picked]
    train_examples(examples, prompting, config, job, Reporter.of(job, on_step))


def graded_example(pair: Pair, prompting: Prompting, smoothing: float) -> Example:
    """Return an example with the smoothed gold grade and no completion."""
    return Example(prompting.student_prompt(pair), [], gold_label(pair, smoothing), pair.label)


def train_cot(
    pairs: Sequence[Pair],
    evidence: Mapping[str, SoftLabel],
    prompting: Prompting,
    job: StageJob,
    on_step: OnStep,
) -> None:
    """Train the teacher on traces that end on the gold grade: steps first, then the grade.

    They come from the findings of the data, or else from evidence for that grade; other pairs are left out. Where the teacher
    learns from its own traces, these are the evidence, and findings are not used. Raises TrainingError where no trace is left.
    """
    config = job.recipe.self_sft if job.stage == "self_sft" else job.recipe.cot_sft
    if job.stage == "self_sft" or job.recipe.cot_sft.traces == "own":
        pairs = [replace(pair, findings={}) for pair in pairs]
    steps = {pair.id: found for pair in pairs if (found := trace_of(pair, evidence, prompting)) is not None}
    traced = [pair for pair in pairs if pair.id in steps]
    if not traced:
        raise TrainingError(
            "no pair has a trace to learn: none has findings or evidence for its gold grade; raise evidence.pairs and "
            "label_only_sft.steps, or own_traces.pairs and paths where the teacher learns from its own traces"
        )
    picked, weight = pick(traced, config, job.recipe.seed), job.recipe.cot_sft.grade_weight
    examples = [traced_example(pair, steps[pair.id], prompting, weight) for pair in picked]
    train_examples(examples, prompting, config, job, Reporter.of(job, on_step))


def traced_example(pair: Pair, steps: str, prompting: Prompting, grade_weight: float) -> Example:
    """Return an example of the steps and the gold grade after them, whose grades weigh `grade_weight` times as much as its words."""
    completion = prompting.teacher_completion(steps, pair.label)
    rollout = prompting.reader.read(completion, prompting.steps(pair.criteria))
    weights, ends = [1.0] * len(completion), [end for _, end in rollout.spans]
    if rollout.trace:
        # A grade's digit is a token of its own, as every digit is (checked at load).
        for end in (*(step.grade_span[1] for step in rollout.trace.steps), rollout.trace.answer_span[1]):
            weights[ends.index(end)] = grade_weight
    return Example(prompting.teacher_prompt(pair), completion, None, pair.label, weights=weights)


def trace_of(pair: Pair, evidence: Mapping[str, SoftLabel], prompting: Prompting) -> str | None:
    """Return the steps of a pair's gold trace; None where it has neither findings nor evidence for its gold grade."""
    if pair.findings:
        return gold_steps(pair, prompting.steps(pair.criteria))
    found = evidence.get(pair.id)
    return found.traces.get(pair.label) if found else None


def train_examples(
    examples: Sequence[Example],
    prompting: Prompting,
    config: TrainConfig,
    job: StageJob,
    report: Reporter,
    *,
    trace_weight: float = 1.0,
    ranking: Ranking | None = None,
) -> PreTrainedModel:
    """Train the model of the start folder, write it to the stage's folder, and return it."""
    model, tokenizer = load_model(job.start), load_tokenizer(job.start)
    settings = StageSettings(
        job.stage,
        config,
        job.recipe.seed,
        job.folder,
        prompting.label_token_ids,
        job.recipe.model.precision,
        trace_weight,
        ranking,
        job.recipe.launch,
    )
    with nullcontext() if job.from_scratch else learn_linears(model, config.frozen_layers, config.lora_rank):
        trainer = train(model, examples, settings, report)
    save_trained(trainer, tokenizer, job.folder)
    return model
