"""The stages of a run in which the generative teacher samples paths: traces to learn from, and soft labels.

Paths are sampled in this process or, with `launch.ray_workers`, by vLLM on Ray. A killed stage resumes by shards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import set_seed

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.sampling import pick_distinct
from model_export.data.soft_labels import SOFT_LABELS, SoftLabel, read_soft_labels, write_soft_labels
from model_export.pipeline import Pipeline
from model_export.recipe import Recipe
from model_export.recipe_stages import LabelConfig, OwnTracesConfig
from model_export.scale_out.label_at_scale import soft_label
from model_export.scale_out.label_plan import Completion, TraceJob
from model_export.scale_out.shards import Shards, fill, read_paths, split
from model_export.stages import RunError
from model_export.teacher.label import label_pairs
from model_export.teacher.own_traces import first_good_trace, sample_own_traces
from model_export.teacher.rollout import OnBatch, Sampler
from service.contract.manifest import hash_file

_SHARDS = 100  # so a kill loses about a hundredth of the work
PAIRS_HERE = 64  # pairs of a shard where paths are sampled in this process: a kill loses at most these


def own_traces(run: Pipeline, prompting: Prompting, teacher: Path) -> Path:
    """Let a teacher sample traces of training pairs, and keep those to learn from."""
    config = run.recipe.own_traces
    pairs = pick_distinct(run.data.train, config.pairs, config.source_exponent, run.recipe.seed)
    job = _Job(run, prompting, teacher, config, pairs, f"Own traces of {teacher.name.rpartition('-')[0]}")
    inputs = {**job.inputs(), "form": prompting.form.to_json(), "train": run.train_hash}
    return run.stages.do("own_traces", inputs, partial(job.write, _own_trace, sample_own_traces))


def soft_labels(run: Pipeline, prompting: Prompting, teacher: Path) -> Path:
    """Let the teacher label training pairs, or take the labels in the recipe's `label.folder`."""
    config, train = run.recipe.label, run.data.train
    if shards := find_labels(run.recipe, run.root):
        return _copy_labels(run, shards)
    most = len(train) if config.pairs is None else min(config.pairs, len(train))
    pairs = pick_distinct(train, most, config.source_exponent, run.recipe.seed)
    job = _Job(run, prompting, teacher, config, pairs, "Soft labels")
    return run.stages.do("label", job.inputs(), partial(job.write, soft_label, label_pairs))


@dataclass(frozen=True)
class _Job:
    """Pairs whose paths a stage samples from a teacher."""

    run: Pipeline
    prompting: Prompting
    teacher: Path
    config: LabelConfig | OwnTracesConfig
    pairs: Sequence[Pair]
    title: str

    def inputs(self) -> dict[str, object]:
        recipe = self.run.recipe
        return {
            "teacher": self.teacher.name,
            "config": self.config.model_dump(exclude={"folder"}),
            "max_tokens": recipe.rl.max_tokens,
            "precision": recipe.model.precision,
            "seed": recipe.seed,
            **({"sampler": "vllm"} if self.run.trace_engine else {}),
        }

    def write(
        self, read: Callable[..., SoftLabel | None], sample: Callable[..., list[SoftLabel]], folder: Path
    ) -> None:
        """Write the soft labels that `read` makes of vLLM's completions, or `sample` in this process."""
        shards, recipe = _shards(self.run, self.pairs, folder), self.run.recipe
        on_batch = partial(self.run.on_progress, self.title)
        if engine := self.run.trace_engine:
            job = TraceJob.of(recipe, self.config, self.teacher, self.prompting)
            of_pair = partial(read, prompting=self.prompting)
            fill(shards, lambda missing: engine(missing, job), of_pair, write_soft_labels, on_batch)
        else:
            sampler = Sampler.load(self.teacher, self.prompting, recipe.model.precision)
            for file, shard, on_path in _missing(shards, self.config.paths, recipe.seed, on_batch):
                found = sample(shard, self.prompting, sampler, self.config, recipe.rl.max_tokens, on_path)
                write_soft_labels(file, found)
        labels = [label for shard in shards for label in read_soft_labels(shard).values()]
        write_soft_labels(folder / SOFT_LABELS, labels)


def _shards(run: Pipeline, pairs: Sequence[Pair], folder: Path) -> Shards:
    size = -(-len(pairs) // _SHARDS) if run.trace_engine else PAIRS_HERE
    return split(pairs, folder, "labels", size)


def _missing(
    shards: Shards, paths: int, seed: int, on_batch: OnBatch
) -> Iterator[tuple[Path, Sequence[Pair], OnBatch]]:
    """Yield each missing shard, with a callback that reports the paths sampled so far in the whole stage.

    Each shard has a seed of its own, so that a resumed stage samples the paths of an undisturbed one.
    """
    total, before = paths * sum(map(len, shards.values())), 0
    for number, (file, shard) in enumerate(shards.items()):
        if not file.is_file():
            set_seed(seed + number)
            yield file, shard, partial(_count, on_batch, before, total)
        before += paths * len(shard)


def _count(on_batch: OnBatch, before: int, total: int, done: int, _: int) -> None:
    on_batch(before + done, total)


def _own_trace(pair: Pair, completions: Sequence[Completion], prompting: Prompting) -> SoftLabel | None:
    return first_good_trace(pair, [path for _, path in read_paths(pair, completions, prompting)])


def find_labels(recipe: Recipe, root: Path) -> list[Path]:
    """Return the files in the recipe's `label.folder`, if it has one. Raises RunError where there are none."""
    if recipe.label.folder is None:
        return []
    source = root / recipe.label.folder
    shards = sorted(source.glob("labels-*.jsonl"))
    if not shards:
        raise RunError(f"{source} has no labels-*.jsonl: make them with `notegrade-train label`")
    return shards


def _copy_labels(run: Pipeline, shards: Sequence[Path]) -> Path:
    def work(folder: Path) -> None:
        labels = [label for shard in shards for label in read_soft_labels(shard).values()]
        write_soft_labels(folder / SOFT_LABELS, labels)

    return run.stages.do("label", {"shards": [hash_file(shard) for shard in shards]}, work)
