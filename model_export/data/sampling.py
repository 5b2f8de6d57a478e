"""Samples pairs, and selects those that a stage trains on and how often it uses each."""

import hashlib
from collections.abc import Callable, Container, Sequence
from random import Random
from typing import Literal, TypeVar

from model_export.data.pairs import UNJUDGED, Pair, folded_query
from model_export.recipe_stages import CrossEncoderConfig, DistilConfig, TrainConfig

T = TypeVar("T")


def sample(items: Sequence[T], most: int | None, random: Random) -> list[T]:
    """Return `most` items at random, or all where there are no more."""
    return list(items) if most is None or len(items) <= most else random.sample(items, most)


def group(pairs: Sequence[Pair], key: Callable[[Pair], str]) -> dict[str, list[Pair]]:
    """Group the pairs by a key, in the order in which the keys occur."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return groups


def sample_each(pairs: Sequence[Pair], most: int, random: Random) -> list[Pair]:
    """Return at most `most` pairs of each source at random."""
    by_source = group(pairs, lambda pair: pair.source)
    return [pair for own in by_source.values() for pair in sample(own, most, random)]


def sample_queries(pairs: Sequence[Pair], most: int | None, random: Random) -> list[Pair]:
    """Sample pairs of whole queries until the next query would exceed `most` pairs; at least one query."""
    if most is None or len(pairs) <= most:
        return list(pairs)
    by_query = group(pairs, lambda pair: pair.query)
    taken: list[Pair] = []
    for query in random.sample(list(by_query), len(by_query)):
        if taken and len(taken) + len(by_query[query]) > most:
            break
        taken += by_query[query]
    return taken


def set_aside(pairs: Sequence[Pair], share: float | None) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those to train on and the test pairs: whole queries, about `share` of all.

    A hash of the query chooses, not the seed: the same query is a test query in every source, file and run.
    """
    if share is None:
        return list(pairs), []
    drawn = [_hash_to_unit(folded_query(pair)) < share for pair in pairs]
    kept = [pair for pair, is_test in zip(pairs, drawn, strict=True) if not is_test]
    return kept, [pair for pair, is_test in zip(pairs, drawn, strict=True) if is_test]


def fold_of(pair: Pair, folds: int, purpose: Literal["measure", "stack"]) -> int:
    """Return the fold of the pair's query, from 0: a hash of the query, the same in every source, file and run.

    Folds for different purposes are independent of one another, and of the test split.
    """
    return int(folds * _hash_to_unit(f"{purpose} {folded_query(pair)}"))


def _hash_to_unit(text: str) -> float:
    """Hash a text to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def sample_dev(pairs: Sequence[Pair], most: int | None, random: Random) -> list[Pair]:
    """Sample the same number of pairs from each source, in whole queries.

    Drawn from all sources at once, one source with long result lists could fill the sample.
    """
    if most is None:
        return list(pairs)
    by_source = group(pairs, lambda pair: pair.source)
    share = max(1, most // max(1, len(by_source)))
    return [pair for own in by_source.values() for pair in sample_queries(own, share, random)]


def pick(pairs: Sequence[Pair], config: TrainConfig | CrossEncoderConfig, seed: int) -> list[Pair]:
    """Return the pairs of an epoch: all, balanced by source, or a random sample of as many as the stage sets."""
    return sample(balance(pairs, config.source_exponent, seed), config.pairs, Random(seed))


def balance(pairs: Sequence[Pair], exponent: float, seed: int) -> list[Pair]:
    """Repeat pairs of the smaller sources until a source of n pairs has a share proportional to n ** exponent.

    1 leaves the pairs as they are; 0 gives each source as many as the largest has. Source: temperature sampling,
    arXiv 1907.05019, section 3.2.
    """
    by_source = group(pairs, lambda pair: pair.source).values()
    most = max(map(len, by_source), default=0)
    random = Random(seed)
    return [
        pair for own in by_source for pair in repeat(own, round(most * (len(own) / most) ** exponent), random)
    ]


def repeat(pairs: Sequence[Pair], count: int, random: Random) -> list[Pair]:
    """Return `count` pairs: all of them as often as they fit, and a random sample for the rest."""
    whole, rest = divmod(count, len(pairs))
    return [*pairs] * whole + random.sample(pairs, rest)


def pick_distinct(pairs: Sequence[Pair], most: int, exponent: float, seed: int) -> list[Pair]:
    """Return at most `most` pairs without repeats, drawn from the balanced ones."""
    balanced = balance(pairs, exponent, seed)
    drawn = {pair.id: pair for pair in Random(seed).sample(balanced, len(balanced))}
    return list(drawn.values())[:most]


def mix(pairs: Sequence[Pair], traced: Container[str], config: DistilConfig, seed: int) -> list[Pair]:
    """Return the student's training pairs: `traced_share` of them with a trace, `unlabelled_share` unjudged, the rest judged.

    Pairs of each kind repeat where they are few; unjudged and judged ones are balanced by source. Where a kind is missing, the
    others keep their proportion. Without shares, the pairs are picked as in other stages.
    """
    if config.traced_share is None:
        return pick(pairs, config, seed)
    rest = [pair for pair in pairs if pair.id not in traced]
    unjudged, judged = (
        balance([pair for pair in rest if (pair.label == UNJUDGED) == is_open], config.source_exponent, seed)
        for is_open in (True, False)
    )
    shares = (config.traced_share, config.unlabelled_share, 1 - config.traced_share - config.unlabelled_share)
    kinds = ([pair for pair in pairs if pair.id in traced], unjudged, judged)
    there = [(kind, share) for kind, share in zip(kinds, shares, strict=True) if kind]
    if len(there) == 1:
        return list(there[0][0])
    total, random = config.steps * config.batch_size / sum(share for _, share in there), Random(seed)
    return [pair for kind, share in there for pair in repeat(kind, round(total * share), random)]
