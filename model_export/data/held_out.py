"""Reads the test split: pairs that nothing may train on, fit to or choose by.

Only `notegrade-train evaluate --test` and the plan of a dry run may import this module; an import contract checks it.
`prepare` leaves the test queries out of training and keeps none of their pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_export.data.long_tail import long_tail_ids
from model_export.data.pairs import DataError, Pair, check_split, leaking_ids, read_pairs
from model_export.data.prepare import Data, held_out_key, recipe_sources
from model_export.data.sampling import set_aside
from model_export.recipe import Recipe


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The test pairs of all sources that have some.

    Attributes:
        long_tail: ids of the pairs with rare queries.
        left_out: ids of pairs that were dropped because training or dev has their query.
        hashes: of the test files or of the ids set aside, as in `Data.hashes`.
    """

    pairs: tuple[Pair, ...]
    long_tail: frozenset[str]
    left_out: tuple[str, ...]
    hashes: Mapping[str, str]


def read_test(recipe: Recipe, root: Path, data: Data) -> HeldOut:
    """Read the test pairs under `root`; `data` is the same recipe's.

    Pairs whose query is in training or dev are an error, or are dropped with `leaking_dev = "drop"`.
    Raises DataError, also for a recipe without a test split.
    """
    pairs: list[Pair] = []
    long_tail: frozenset[str] = frozenset()
    hashes: dict[str, str] = {}
    known = (*data.train, *data.dev)
    sources = recipe_sources(recipe.data)
    for config in recipe.data.sources:
        source = sources[config.name]
        if config.test is not None:
            own, key = read_pairs(root / config.test, source), config.test
        elif config.test_share is not None:
            own, key = (
                set_aside(read_pairs(root / config.train, source), config.test_share)[1],
                held_out_key(config.name),
            )
        else:
            continue
        pairs += own
        hashes[key] = data.hashes[key]
        long_tail |= long_tail_ids([pair for pair in data.train if pair.source == config.name], own)
    leaking = leaking_ids(known, pairs) if recipe.data.leaking_dev == "drop" else []
    kept = tuple(pair for pair in pairs if pair.id not in frozenset(leaking))
    if not kept:
        raise DataError("the recipe has no test pairs: set test or test_share of a source")
    check_split(known, kept, known="train or dev", measured="test")
    return HeldOut(kept, long_tail - frozenset(leaking), tuple(leaking), hashes)


def check_untouched(checkpoint: str, seen: Mapping[str, str], held_out: HeldOut) -> None:
    """Raise DataError for a checkpoint that was trained without setting aside these test pairs.

    `seen` are the `data_hashes` of its lineage; they are empty for a zero-shot checkpoint, which has seen no pair.
    """
    if seen and (missing := [key for key, value in held_out.hashes.items() if seen.get(key) != value]):
        raise DataError(
            f"{checkpoint} may have trained on the test pairs: its lineage does not set aside {', '.join(missing)}. "
            "Train it with this recipe's test split"
        )
