"""Reasoning paths of any number of pairs, read into one file for each shard of the pairs.

A shard is done when its file exists. A rerun after a kill samples the paths of the missing shards only.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.scale_out.label_plan import Completion
from model_export.teacher.rollout import OnBatch, ReasoningPath, read_path

T = TypeVar("T")
Shards = Mapping[Path, Sequence[Pair]]


def split(pairs: Sequence[Pair], folder: Path, name: str, size: int) -> Shards:
    """Return shards of `size` pairs by their file: `<name>-00000.jsonl` and so on."""
    return {
        folder / f"{name}-{start // size:05}.jsonl": pairs[start : start + size]
        for start in range(0, len(pairs), size)
    }


def fill(
    shards: Shards,
    sample: Callable[[Sequence[Pair]], Generator[list[Completion]]],
    read: Callable[[Pair, Sequence[Completion]], T | None],
    write: Callable[[Path, Sequence[T]], None],
    on_batch: OnBatch,
) -> int:
    """Write what `read` makes of the sampled paths of each pair, for missing shards, and return the number of their pairs."""
    missing = {path: shard for path, shard in shards.items() if not path.is_file()}
    pairs = [pair for shard in missing.values() for pair in shard]
    if not pairs:
        return 0
    on_batch(0, len(pairs))
    done = 0
    # One stream over all shards, so that engines never wait between shards.
    with closing(sample(pairs)) as answers:
        for path, shard in missing.items():
            found = []
            for pair, completions in zip(shard, islice(answers, len(shard)), strict=True):
                found.append(read(pair, completions))
                done += 1
                on_batch(done, len(pairs))
            write(path, [each for each in found if each is not None])
    return len(pairs)


def read_paths(
    pair: Pair, completions: Sequence[Completion], prompting: Prompting
) -> Iterator[tuple[Completion, ReasoningPath]]:
    """Yield the completions that parse, with their paths."""
    for each in completions:
        if path := read_path([], each.token_ids, prompting.reader, prompting.steps(pair.criteria)):
            yield each, path
