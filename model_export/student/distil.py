"""Distillation: the student learns the teacher's answer distribution on its first token, and then the teacher's trace."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from model_export.data.pairs import UNJUDGED, Pair, folded_query
from model_export.data.prompting import Prompting, gold_label
from model_export.data.sampling import mix
from model_export.data.soft_labels import SoftLabel
from model_export.recipe_stages import DistilConfig
from model_export.teacher.sft import graded_example, train_examples
from model_export.training.batches import Example
from model_export.training.ranking import Ranking
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import Reporter


def train_student(
    pairs: Sequence[Pair],
    labels: Mapping[str, SoftLabel],
    prompting: Prompting,
    job: StageJob,
    on_step: OnStep,
) -> None:
    """Train the student and write it to the stage's folder.

    Labelled pairs teach the soft label and its trace if it has one, other pairs the gold grade. `traced_share` sets the
    proportion of pairs with a trace.
    """
    config = job.recipe.distil
    examples = student_examples(pairs, labels, prompting, config, job.recipe.seed)
    weight, ranking = config.trace_weight, ranking_of(config)
    report = Reporter.of(job, on_step)
    train_examples(examples, prompting, config, job, report, trace_weight=weight, ranking=ranking)


def student_examples(
    pairs: Sequence[Pair],
    labels: Mapping[str, SoftLabel],
    prompting: Prompting,
    config: DistilConfig,
    seed: int,
) -> list[Example]:
    """Return an epoch of what the student learns, in groups by query. Each copy of a pair draws one of its traces."""
    traced = {id_ for id_, label in labels.items() if label.traces}
    chosen, random = mix(pairs, traced, config, seed), Random(seed)
    drawn = [_with_one_trace(labels[pair.id], random) if pair.id in labels else None for pair in chosen]
    return [
        replace(make_example(pair, label, prompting, config), group=group)
        for pair, label, group in zip(chosen, drawn, query_groups(chosen), strict=True)
    ]


def _with_one_trace(label: SoftLabel, random: Random) -> SoftLabel:
    """Draw a trace: half of the time by the probability of its grade, else with the same chance for each.

    From traces of probable grades alone a student learns to infer the grade from the texts, and then explains another one than
    is served.
    """
    if len(label.traces) < 2:
        return label
    chances = [label.distribution[grade] + 1 / len(label.traces) for grade in label.traces]
    [grade] = random.choices(list(label.traces), chances)
    return replace(label, traces={grade: label.traces[grade]})


def ranking_of(config: DistilConfig) -> Ranking | None:
    """Return how the student learns the order of a query's pairs, None where it does not."""
    if config.ranking == "none":
        return None
    return Ranking(config.ranking, config.ranking_weight, config.group_size)


def query_groups(pairs: Sequence[Pair]) -> list[str]:
    """Name the group in which each pair is ranked: those of its source and query. Copies of a pair are in different groups."""
    copies: Counter[str] = Counter()
    groups = []
    for pair in pairs:
        copies[pair.id] += 1
        groups.append(f"{pair.source} {copies[pair.id]} {folded_query(pair)}")
    return groups


def make_example(pair: Pair, label: SoftLabel | None, prompting: Prompting, config: DistilConfig) -> Example:
    """Return an example whose target mixes the gold label (`gold_weight`) with the teacher's distribution at the temperature.

    Its completion is the label's first trace, behind the grade that this explains. That need not be the target's grade: a
    served grade need not be the most probable one either, and its explanation must follow it.
    An unjudged pair learns the teacher's distribution alone. Raises DataError for one without a soft label.
    """
    if label is None:
        return graded_example(pair, prompting, config.smoothing)
    flattened = [p ** (1 / config.temperature) for p in label.distribution]
    target = [p / sum(flattened) for p in flattened]
    if pair.label != UNJUDGED:
        gold = gold_label(pair, config.smoothing)
        target = [
            config.gold_weight * g + (1 - config.gold_weight) * p for g, p in zip(gold, target, strict=True)
        ]
    traces = label.traces.items() if config.trace_weight else ()
    completion = next((prompting.student_completion(steps, grade) for grade, steps in traces), [])
    weights = [1.0] * len(completion)
    if completion:
        weights[prompting.place_of_grade(completion)] = config.agreement_weight
    return Example(prompting.student_prompt(pair), completion, target, pair.label, weights=weights)
