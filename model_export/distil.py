"""Distillation: the student learns the teacher's answer distribution on its first token, and the trace after it."""

from collections.abc import Container, Mapping, Sequence
from random import Random

from model_export.batches import Example
from model_export.pairs import Pair
from model_export.prompting import Prompting, gold_label, soft_label
from model_export.recipe import DistilConfig
from model_export.teacher_label import SoftLabel
from model_export.teacher_sft import Workplace, pick, train_examples


def train_student(
    pairs: Sequence[Pair],
    labels: Mapping[str, SoftLabel],
    prompting: Prompting,
    config: DistilConfig,
    place: Workplace,
) -> None:
    """Train on the teacher's soft label and trace, and on pairs without them, as many as `labelled_share` lets in, by gold alone."""
    if config.labelled_share is not None:
        pairs = mix(pairs, labels, config.labelled_share, place.seed)
    examples = [
        make_example(pair, labels.get(pair.id), prompting, config) for pair in pick(pairs, config, place.seed)
    ]
    train_examples(examples, prompting, config, place, trace_weight=config.trace_weight, layers=config.layers)


def mix(pairs: Sequence[Pair], labels: Container[str], share: float, seed: int) -> list[Pair]:
    """All pairs with a label, and as many others, at random, as make the labelled ones `share` of the whole; fewer where there are fewer."""
    labelled = [pair for pair in pairs if pair.id in labels]
    others = [pair for pair in pairs if pair.id not in labels]
    wanted = round(len(labelled) * (1 - share) / share)
    return labelled + Random(seed).sample(others, min(wanted, len(others)))


def make_example(pair: Pair, label: SoftLabel | None, prompting: Prompting, config: DistilConfig) -> Example:
    """The target is `gold_weight` of the gold label and the rest of the teacher's, softened by the temperature."""
    gold = gold_label(pair, config.smoothing, by_variance=config.variance_smoothing)
    prompt = prompting.student_prompt(pair)
    if label is None:
        return Example(prompt, [], gold, pair.label)
    teacher = soft_label([p ** (1 / config.temperature) for p in label.distribution])
    target = [
        config.gold_weight * g + (1 - config.gold_weight) * t for g, t in zip(gold, teacher, strict=True)
    ]
    grade = target.index(max(target))
    completion = prompting.student_completion(label.steps, grade) if config.trace_weight else []
    return Example(prompt, completion, target, pair.label)
