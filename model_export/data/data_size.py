"""How much data a recipe has, without checking it: for the plan of a run that may be meant for another machine."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

from model_export.data.criteria import load_criteria
from model_export.data.pairs import Pair
from model_export.data.synthetic import CRITERIA, SOURCE, generate
from model_export.data.template import find_template
from model_export.recipe import Recipe
from model_export.recipe_data import SourceConfig, SyntheticConfig
from service.contract.manifest import Limits, TextPiece

_CHARS_A_TOKEN = 4
_SAMPLE_LINES = 1000
_SAMPLE_QUERIES = 20


@dataclass(frozen=True, slots=True)
class DataSize:
    """Numbers of pairs, None where files are missing, and the mean length of a prompt in tokens.

    Attributes:
        lines: what there is, for a person to read.
        prompt: with the longest query and note that are allowed, where no text is here to be measured.
    """

    train: int | None
    dev: int | None
    prompt: int
    lines: tuple[str, ...]


def measure_data(recipe: Recipe, root: Path) -> DataSize:
    """Count the lines of the recipe's files under `root`, and look at the first of them.

    Raises TemplateError or CriteriaError for what the recipe names and this machine does not have.
    """
    if recipe.data.synthetic:
        return _synthetic(recipe, recipe.data.synthetic)
    train = [_count(root / source.train) for source in recipe.data.sources]
    dev = [_count(root / source.dev) for source in recipe.data.sources]
    lines = [
        _describe(source, *counts) for source, *counts in zip(recipe.data.sources, train, dev, strict=True)
    ]
    lines += [f"not found here: DATA/{name}, needed to run" for name in _missing(recipe, root)]
    texts = [
        _text_tokens(root / source.train, recipe.model.limits)
        for source, count in zip(recipe.data.sources, train, strict=True)
        if count
    ]
    limits = recipe.model.limits
    text = fmean(texts) if texts else limits.max_query_tokens + limits.max_note_tokens
    fixed = fmean(len(load_criteria(source.criteria).text) for source in recipe.data.sources) / _CHARS_A_TOKEN
    most_train = [source.max_train for source in recipe.data.sources]
    most_dev = [source.max_dev for source in recipe.data.sources]
    return DataSize(
        train=_sum(map(_capped, train, most_train)),
        dev=_sum(map(_capped, dev, most_dev)),
        prompt=round(fixed + _template_tokens(recipe) + text),
        lines=tuple(lines),
    )


def _synthetic(recipe: Recipe, config: SyntheticConfig) -> DataSize:
    train, dev = (queries * config.notes_per_query for queries in (config.train_queries, config.dev_queries))
    made = generate(recipe.seed, _SAMPLE_QUERIES, _SAMPLE_QUERIES, config.notes_per_query)
    text = fmean(_tokens_of_pair(pair) for pair in made.train)
    return DataSize(
        train=train,
        dev=dev,
        prompt=round(len(CRITERIA.text) / _CHARS_A_TOKEN + _template_tokens(recipe) + text),
        lines=(f"{SOURCE}: {train:,} pairs to train, {dev:,} to measure, made from the seed",),
    )


def _tokens_of_pair(pair: Pair) -> float:
    return len(pair.query + pair.note.title + pair.note.body) / _CHARS_A_TOKEN


def _template_tokens(recipe: Recipe) -> float:
    pieces = find_template(recipe.model.template).pieces
    return sum(len(piece.text) for piece in pieces if isinstance(piece, TextPiece)) / _CHARS_A_TOKEN


def _count(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return sum(not line.isspace() for line in file)
    except OSError:
        return None


def _describe(source: SourceConfig, train: int | None, dev: int | None) -> str:
    to_train, to_measure = _taken(train, source.max_train), _taken(dev, source.max_dev)
    return f"{source.name}: {to_train} pairs to train, {to_measure} to measure"


def _taken(there: int | None, most: int | None) -> str:
    if there is None:
        return "?" if most is None else f"at most {most:,}"
    return f"{there:,}" if most is None or most >= there else f"{most:,} of {there:,}"


def _missing(recipe: Recipe, root: Path) -> Iterator[str]:
    for source in recipe.data.sources:
        yield from (name for name in source.files if not (root / name).is_file())


def _capped(there: int | None, most: int | None) -> int | None:
    return there if there is None or most is None else min(there, most)


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _text_tokens(path: Path, limits: Limits) -> float:
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = (line for line in file if not line.isspace())
        return fmean(_row_tokens(line, limits) for line in islice(lines, _SAMPLE_LINES))


def _row_tokens(line: str, limits: Limits) -> float:
    try:
        row = json.loads(line)
        query, note = row["query"], f"{row['note']['title'] or ''}{row['note']['body']}"
    except (ValueError, KeyError, TypeError):  # the run itself will say so, by line
        return limits.max_query_tokens + limits.max_note_tokens
    return min(len(query) / _CHARS_A_TOKEN, limits.max_query_tokens) + min(
        len(note) / _CHARS_A_TOKEN, limits.max_note_tokens
    )
