"""Distillation: the student learns the teacher's answer distribution on its first token, and then the teacher's trace."""

from collections.abc import Mapping, Sequence

from model_export.data.gold_traces import read_grade
from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting, gold_label
from model_export.data.sampling import mix
from model_export.recipe import DistilConfig
from model_export.teacher.label import SoftLabel
from model_export.teacher.sft import graded_example, train_examples
from model_export.training.batches import Example
from model_export.training.stage_job import OnStep, StageJob


def train_student(
    pairs: Sequence[Pair],
    labels: Mapping[str, SoftLabel],
    prompting: Prompting,
    job: StageJob,
    on_step: OnStep,
) -> None:
    """Train the student and write it to the stage's folder.

    Labelled pairs teach the soft label and the trace, other pairs the gold grade; `labelled_share` sets their proportion.
    """
    config = job.recipe.distil
    chosen = mix(pairs, labels, config, job.recipe.seed)
    examples = [make_example(pair, labels.get(pair.id), prompting, config) for pair in chosen]
    train_examples(examples, prompting, config, job, on_step, trace_weight=config.trace_weight)


def make_example(pair: Pair, label: SoftLabel | None, prompting: Prompting, config: DistilConfig) -> Example:
    """Return an example whose target mixes the gold label (`gold_weight`) with the teacher's distribution at the temperature."""
    if label is None:
        return graded_example(pair, prompting, config.smoothing)
    flattened = [p ** (1 / config.temperature) for p in label.distribution]
    total = sum(flattened)
    gold = gold_label(pair, config.smoothing)
    target = [
        config.gold_weight * g + (1 - config.gold_weight) * (p / total)
        for g, p in zip(gold, flattened, strict=True)
    ]
    grade = target.index(max(target))
    # A trace for another grade would teach the student to contradict itself.
    has_trace = config.trace_weight and read_grade(label.steps) == grade
    completion = prompting.student_completion(label.steps, grade) if has_trace else []
    return Example(prompting.student_prompt(pair), completion, target, pair.label)
