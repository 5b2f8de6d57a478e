"""The first stages of a run: read and check the data, and write the bases as plain transformers folders."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from pydantic import TypeAdapter

from model_export.data.criteria import load_criteria, load_teacher_criteria
from model_export.data.gold_traces import gold_steps
from model_export.data.long_tail import long_tail_ids, read_long_tail
from model_export.data.pairs import (
    GRADES,
    DataError,
    Pair,
    Source,
    check_split,
    leaking_ids,
    listed,
    query_hash,
    read_pairs,
    write_pairs,
)
from model_export.data.sampling import fold_of, sample, sample_queries, set_aside
from model_export.data.synthetic import generate, source_of, tasks
from model_export.recipe import TINY_BASE, Recipe
from model_export.recipe_data import DataConfig, SourceConfig, SyntheticConfig
from model_export.stages import hash_of
from service.contract.manifest import Base, Criteria, hash_file
from service.contract.trace import ANSWER_CUE, EXPLANATION_CUE

_INDEX = "data.json"
_BASE_FILE = "base.json"
_LOADERS = (load_criteria, load_teacher_criteria)


@dataclass(frozen=True, slots=True)
class Data:
    """The pairs that a run trains on and measures on.

    Attributes:
        long_tail: ids of the dev pairs with rare queries.
        criteria: all criteria that pairs were judged by, the default first, as the student reads them.
        teacher_criteria: the same as the teacher reads them; empty where they do not differ.
        hashes: of the sources' files, by name, and of the ids set aside for the test, or of the generator's configuration.
        left_out: ids of dev pairs that were dropped because another source trains on their query.
    """

    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    long_tail: frozenset[str]
    criteria: tuple[Criteria, ...]
    hashes: dict[str, str]
    left_out: tuple[str, ...] = ()
    teacher_criteria: tuple[Criteria, ...] = ()


def data_inputs(recipe: Recipe, root: Path) -> dict[str, object]:
    """Return everything that the data depends on, for hashing. Raises CriteriaError."""
    files = {name: hash_file(path) for name, path in _data_files(recipe.data, root).items() if path.is_file()}
    named = [source.criteria for source in recipe.data.sources]
    criteria = [load(name).model_dump(mode="json") for load in _LOADERS for name in named]
    return {
        "data": recipe.data.model_dump(mode="json"),
        "files": files,
        "criteria": criteria,
        "seed": recipe.seed,
    }


def read_data(recipe: Recipe, root: Path) -> Data:
    """Read, check and sample the pairs of all sources. Raises DataError naming lines and ids."""
    synthetic = recipe.data.synthetic
    data = _generate(recipe.seed, synthetic) if synthetic else _read_sources(recipe, root)
    if recipe.data.fold is not None and recipe.data.folds is not None:
        data = _take_fold(data, recipe.data.fold, recipe.data.folds)
    if recipe.data.leaking_dev == "drop":
        data = _without_leaks(data)
    check_split(data.train, data.dev)
    _check_ids((*data.train, *data.dev))
    return data


def _take_fold(data: Data, fold: int, folds: int) -> Data:
    """Return the training pairs of the other folds, and as dev pairs those of this fold. The data's own dev pairs are left out."""
    train = tuple(pair for pair in data.train if fold_of(pair, folds, "measure") != fold)
    dev = tuple(pair for pair in data.train if fold_of(pair, folds, "measure") == fold)
    long_tail = frozenset[str]().union(
        *(
            long_tail_ids(*([pair for pair in pairs if pair.source == source] for pairs in (train, dev)))
            for source in {pair.source for pair in dev}
        )
    )
    return replace(data, train=train, dev=dev, long_tail=long_tail)


def _check_ids(pairs: Sequence[Pair]) -> None:
    counts = Counter(pair.id for pair in pairs)
    if repeated := [id_ for id_, count in counts.items() if count > 1]:
        raise DataError(f"ids that occur in several sources: {listed(repeated)}")


def _without_leaks(data: Data) -> Data:
    leaking = frozenset(leaking_ids(data.train, data.dev))
    dev = tuple(pair for pair in data.dev if pair.id not in leaking)
    return replace(data, dev=dev, long_tail=data.long_tail - leaking, left_out=tuple(sorted(leaking)))


def prepare_data(recipe: Recipe, root: Path, folder: Path) -> None:
    """Read the data and write it to the stage's folder."""
    data = read_data(recipe, root)
    sources = dict.fromkeys((pair.source, pair.criteria) for pair in (*data.train, *data.dev))
    for source, _ in sources:
        write_pairs(folder / f"{source}.train.jsonl", (p for p in data.train if p.source == source))
        write_pairs(folder / f"{source}.dev.jsonl", (p for p in data.dev if p.source == source))
    index = {
        "sources": list(sources),
        "long_tail": sorted(data.long_tail),
        "criteria": [criteria.model_dump(mode="json") for criteria in data.criteria],
        "teacher_criteria": [criteria.model_dump(mode="json") for criteria in data.teacher_criteria],
        "hashes": data.hashes,
        "left_out": data.left_out,
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def hash_train(folder: Path, train: Iterable[Pair]) -> str:
    """Return a hash of the training pairs, which `prepare_data` wrote to this folder, and of the criteria of each source."""
    criteria = {pair.source: pair.criteria for pair in train}
    return hash_of([criteria, *map(hash_file, sorted(folder.glob("*.train.jsonl")))])


def load_data(folder: Path) -> Data:
    """Load what `prepare_data` wrote."""
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    train: list[Pair] = []
    dev: list[Pair] = []
    for name, criteria in index["sources"]:
        source = Source(name, criteria, GRADES)
        for split, pairs in (("train", train), ("dev", dev)):
            file = folder / f"{name}.{split}.jsonl"
            # A source may have none to train on, and its dev pairs may all have been dropped as leaking.
            pairs += read_pairs(file, source) if file.stat().st_size else []
    return TypeAdapter(Data).validate_python({**index, "train": train, "dev": dev})


def prepare_base(name: str, recipe: Recipe, data: Data, folder: Path) -> None:
    """Write the base's weights, tokenizer and description. Raises BaseModelError."""
    from model_export.models.base_model import load_base, locate_base, save_base

    if name == TINY_BASE:
        from model_export.models.tiny_model import make_tiny_model

        make_tiny_model(_texts(data), recipe.model.tiny, recipe.seed, folder)
        base = Base(name="tiny", licence="Apache-2.0", source=f"made from scratch with seed {recipe.seed}")
    else:
        loaded = load_base(locate_base(name))
        save_base(loaded, folder)
        base = loaded.base
    (folder / _BASE_FILE).write_text(base.model_dump_json(), encoding="utf-8")


def read_base(folder: Path) -> Base:
    """Read the description of the base in a folder."""
    return Base.model_validate_json((folder / _BASE_FILE).read_text(encoding="utf-8"))


def missing_files(data: DataConfig, root: Path) -> list[str]:
    """Name the recipe's data files that are not under `root`."""
    return [name for name, path in _data_files(data, root).items() if not path.is_file()]


def _data_files(data: DataConfig, root: Path) -> dict[str, Path]:
    return {name: root / name for source in data.sources for name in source.files}


def recipe_sources(data: DataConfig) -> dict[str, Source]:
    """Return what the pairs of each source have in common, by its name. Raises CriteriaError."""
    if data.synthetic:
        return {
            source_of(task): Source(source_of(task), task.criteria.name, GRADES)
            for task in tasks(data.synthetic.task)
        }
    return {
        config.name: Source(config.name, load_criteria(config.criteria).name, config.grades)
        for config in data.sources
    }


def recipe_criteria(data: DataConfig) -> tuple[Criteria, ...]:
    """Return all criteria that the pairs were judged by, as the student reads them, the default first. Raises CriteriaError."""
    if data.synthetic:
        return tuple(task.criteria for task in tasks(data.synthetic.task))
    return _by_name(load_criteria, data.sources)


def recipe_teacher_criteria(data: DataConfig) -> tuple[Criteria, ...]:
    """Return the same criteria as the teacher reads them: at length, if the recipe says so. Raises CriteriaError."""
    return _by_name(load_teacher_criteria if data.teacher_text else load_criteria, data.sources)


def _by_name(load: Callable[[str], Criteria], sources: Iterable[SourceConfig]) -> tuple[Criteria, ...]:
    found: dict[str, Criteria] = {}
    for config in sources:
        criteria = load(config.criteria).model_copy(update={"limits": config.limits})
        found.setdefault(criteria.name, criteria)
    return tuple(found.values())


def _generate(seed: int, config: SyntheticConfig) -> Data:
    made = generate(seed, config.train_queries, config.dev_queries, config.notes_per_query, config.task)
    stated = hash_of({"seed": seed, **config.model_dump()})
    criteria = tuple(task.criteria for task in tasks(config.task))
    return Data(made.train, made.dev, made.long_tail, criteria, {"synthetic": stated})


def _read_sources(recipe: Recipe, root: Path) -> Data:
    train: list[Pair] = []
    dev: list[Pair] = []
    long_tail: set[str] = set()
    sources = recipe_sources(recipe.data)
    aside_hashes: dict[str, str] = {}
    for config in recipe.data.sources:
        judged = read_pairs(root / config.train, sources[config.name])
        own_train, aside = set_aside(judged, config.test_share)
        if config.test_share is not None:
            aside_hashes[held_out_key(config.name)] = hash_of(sorted(pair.id for pair in aside))
        own_dev = read_pairs(root / config.dev, sources[config.name])
        check_split(own_train, own_dev)
        long_tail |= (
            read_long_tail(root / config.long_tail, own_dev)
            if config.long_tail
            else long_tail_ids(own_train, own_dev)
        )
        random = Random(f"{recipe.seed} {config.name}")
        train += sample(own_train, config.max_train, random)
        dev += sample_queries(own_dev, config.max_dev, random)
    kept = frozenset(pair.id for pair in dev) & long_tail
    hashes = {name: hash_file(path) for name, path in _data_files(recipe.data, root).items()}
    return Data(
        tuple(train),
        tuple(dev),
        kept,
        recipe_criteria(recipe.data),
        hashes | aside_hashes,
        teacher_criteria=recipe_teacher_criteria(recipe.data),
    )


def measured_queries(recipe: Recipe, root: Path) -> frozenset[str]:
    """Return hashes of the dev and test queries of all sources, sampled or not, so that mining can refuse them.

    They are hashes so that mining learns nothing else about the test queries. Raises DataError.
    """
    synthetic = recipe.data.synthetic
    measured = list(_generate(recipe.seed, synthetic).dev) if synthetic else []
    sources = recipe_sources(recipe.data)
    for config in recipe.data.sources:
        source = sources[config.name]
        measured += set_aside(read_pairs(root / config.train, source), config.test_share)[1]
        measured += read_pairs(root / config.dev, source)
        measured += read_pairs(root / config.test, source) if config.test else []
    return frozenset(query_hash(pair.query) for pair in measured)


def held_out_key(source: str) -> str:
    """Name the hash of the source's test pairs in `Data.hashes`."""
    return f"{source}: test pairs"


def _texts(data: Data) -> list[str]:
    texts = [criteria.text for criteria in (*data.criteria, *data.teacher_criteria)]
    steps = {criteria.name: criteria.steps for criteria in data.criteria}
    for pair in data.train:
        texts += [f" {pair.query}", f" {pair.note.title}", f" {pair.note.body}"]
        texts.append(f"{EXPLANATION_CUE}{gold_steps(pair, steps[pair.criteria])}{ANSWER_CUE}{pair.label}")
    return texts
