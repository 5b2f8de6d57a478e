"""Which pairs a stage learns from, and how often."""

from collections.abc import Container, Sequence
from random import Random

from model_export.data.pairs import Pair
from model_export.recipe import DistilConfig, TrainConfig


def pick(pairs: Sequence[Pair], config: TrainConfig, seed: int) -> list[Pair]:
    """The pairs of an epoch: all, balanced by source, or as many of those at random as the stage asks for."""
    balanced = balance(pairs, config.source_exponent, seed)
    if config.pairs is None or config.pairs >= len(balanced):
        return balanced
    return Random(seed).sample(balanced, config.pairs)


def balance(pairs: Sequence[Pair], exponent: float, seed: int) -> list[Pair]:
    """All pairs, and those of the smaller sources again, until a source of n pairs has a share that goes as n ** exponent.

    1 leaves them as they are, 0 gives each source as many as the largest has: temperature sampling (arXiv 1907.05019, 3.2).
    """
    by_source: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, []).append(pair)
    most = max(map(len, by_source.values()), default=0)
    random = Random(seed)
    return [
        pair
        for theirs in by_source.values()
        for pair in repeat(theirs, round(most * (len(theirs) / most) ** exponent), random)
    ]


def repeat(pairs: Sequence[Pair], count: int, random: Random) -> list[Pair]:
    """So many: all of them as often as they fit in, and the rest at random."""
    whole, rest = divmod(count, len(pairs))
    return [*pairs] * whole + random.sample(pairs, rest)


def pick_distinct(pairs: Sequence[Pair], most: int, exponent: float, seed: int) -> list[Pair]:
    """At most so many, none twice, drawn from the balanced ones."""
    balanced = balance(pairs, exponent, seed)
    drawn = {pair.id: pair for pair in Random(seed).sample(balanced, len(balanced))}
    return list(drawn.values())[:most]


def mix(pairs: Sequence[Pair], labelled: Container[str], config: DistilConfig, seed: int) -> list[Pair]:
    """What a student reads: pairs that the teacher has labelled, `labelled_share` of all its steps read, and balanced others.

    Those that are few come again and again; where one kind is missing, the other is all. Without a share it is as in other stages.
    """
    if config.labelled_share is None:
        return pick(pairs, config, seed)
    taught = [pair for pair in pairs if pair.id in labelled]
    others = balance([pair for pair in pairs if pair.id not in labelled], config.source_exponent, seed)
    if not taught or not others:
        return [*taught, *others]
    total, random = config.steps * config.batch_size, Random(seed)
    wanted = round(total * config.labelled_share)
    return repeat(taught, wanted, random) + repeat(others, total - wanted, random)
