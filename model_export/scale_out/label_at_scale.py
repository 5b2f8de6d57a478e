"""Soft labels for files of any size: the work of teacher/label.py by shards, on one engine or many, and resumable.

A shard is done when its file exists. A rerun after a kill labels the missing shards only.
One pass is enough: the engine returns the labels' logprobs at every sampled token. Those at the answer are the answer
distribution, so no path has to be scored again.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from model_export.data.pairs import Pair, listed, read_pairs
from model_export.data.prompting import PromptForm, Prompting, teacher_template
from model_export.progress import OnProgress
from model_export.scale_out.label_plan import LabelError, LabelPlan, PathSampling, path_requests
from model_export.scale_out.trace_engine import Completion, EngineSetup, StartEngine, TraceEngine
from model_export.stages import lock
from model_export.teacher.label import SoftLabel, average, read_soft_labels, write_soft_labels
from model_export.teacher.rollout import read_path
from service.contract.labels import LabelDistribution
from service.contract.prompt import PromptRenderer

INPUTS_NAME, UNLABELLED_NAME = "label.json", "unlabelled.jsonl"


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """The result of labelling. `made` counts the pairs that this run labelled in `seconds`, engine start included."""

    pairs: int
    labelled: int
    made: int
    seconds: float

    def __str__(self) -> str:
        unlabelled = self.pairs - self.labelled
        line = f"{self.labelled:,} of {self.pairs:,} pairs are labelled"
        if unlabelled:
            line += f"; {unlabelled:,} have no path that parses, see {UNLABELLED_NAME}"
        if self.made:
            rate = self.made / self.seconds
            line += f" ({self.made:,} in this run, in {self.seconds:.0f} s: {rate:.1f} per second)"
        return line


def label_file(
    plan: LabelPlan, out: Path, start_engine: StartEngine, on_progress: OnProgress
) -> LabelSummary:
    """Label the plan's pairs into `out`; shards from an earlier run of the same plan are kept.

    Writes `labels-00000.jsonl` and so on, for `read_soft_labels`, `label.json` (the plan's inputs) and `unlabelled.jsonl` (ids
    of pairs none of whose paths parses). All pairs are in memory, about 2 KB each. A rerun samples the same paths where the
    engine computes the same logits; different batches may change their last bits.
    Raises DataError, LabelError, PromptingError for queries that are too long, and RunError when another run holds `out`.
    """
    with lock(out):
        started = time.monotonic()
        pairs = read_pairs(plan.pairs, plan.source, judged=False)
        prompting = Prompting.load(plan.form, plan.teacher)
        prompting.check_queries(pairs)
        _claim(out, plan.inputs())
        shards = split(pairs, plan.shard_size, out)
        missing = {path: shard for path, shard in shards.items() if not path.is_file()}
        if missing:
            with start_engine(_setup(plan, prompting)) as engine:
                _label_shards(missing, engine, PathReader(prompting), plan.sampling, on_progress)
        return _finish(shards, out, sum(map(len, missing.values())), time.monotonic() - started)


def split(pairs: Sequence[Pair], shard_size: int, out: Path) -> dict[Path, Sequence[Pair]]:
    """Return the pairs of each shard, by the shard's file."""
    starts = range(0, len(pairs), shard_size)
    return {
        out / f"labels-{number:05}.jsonl": pairs[start : start + shard_size]
        for number, start in enumerate(starts)
    }


@dataclass(frozen=True, slots=True)
class PathReader:
    """Reads completions of the teacher that uses this prompting."""

    prompting: Prompting

    def soft_label(self, pair: Pair, completions: Sequence[Completion]) -> SoftLabel | None:
        """Average the paths that parse; None where none does."""
        paths = [path for each in completions if (path := self._read(pair, each))]
        return average(pair.id, paths) if paths else None

    def _read(self, pair: Pair, completion: Completion) -> tuple[str, tuple[float, ...]] | None:
        steps = self.prompting.steps(pair.criteria)
        path = read_path([], completion.token_ids, self.prompting.reader, steps)
        if path is None:
            return None
        at_answer = completion.label_logprobs[len(path.before_answer)]
        return path.steps, LabelDistribution.from_logprobs(at_answer).probabilities


def _label_shards(
    shards: Mapping[Path, Sequence[Pair]],
    engine: TraceEngine,
    reader: PathReader,
    sampling: PathSampling,
    on_progress: OnProgress,
) -> None:
    pairs = [pair for shard in shards.values() for pair in shard]
    on_progress("Label", 0, len(pairs))
    # One stream over all shards, so that engines never wait between shards.
    answers = engine.complete(pairs, partial(path_requests, prompting=reader.prompting, sampling=sampling))
    done = 0
    for path, shard in shards.items():
        labels = []
        for pair, completions in zip(shard, islice(answers, len(shard)), strict=True):
            labels.append(reader.soft_label(pair, completions))
            done += 1
            on_progress("Label", done, len(pairs))
        _put(path, partial(write_soft_labels, labels=[label for label in labels if label]))


def _setup(plan: LabelPlan, prompting: Prompting) -> EngineSetup:
    form = plan.form
    renderer = PromptRenderer(
        PromptForm(teacher_template(form.template), form.criteria, form.limits), prompting.tokenizer
    )
    return EngineSetup(
        teacher=plan.teacher,
        label_token_ids=prompting.label_token_ids,
        end_token_id=prompting.end_token_id,
        max_prompt_tokens=renderer.max_prompt_tokens,
        max_tokens=plan.sampling.max_tokens,
        temperature=plan.sampling.temperature,
    )


def _claim(out: Path, inputs: Mapping[str, object]) -> None:
    path = out / INPUTS_NAME
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if other := sorted(key for key in inputs.keys() | before if inputs.get(key) != before.get(key)):
            raise LabelError(f"{out} holds labels made with different {listed(other)}: choose another --out")
    _put(path, lambda partial_: partial_.write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8"))


def _finish(shards: Mapping[Path, Sequence[Pair]], out: Path, made: int, seconds: float) -> LabelSummary:
    unlabelled: list[str] = []
    for path, shard in shards.items():
        labelled = read_soft_labels(path)
        unlabelled += (pair.id for pair in shard if pair.id not in labelled)
    lines = "".join(json.dumps({"id": id_}, ensure_ascii=False) + "\n" for id_ in unlabelled)
    _put(out / UNLABELLED_NAME, lambda partial_: partial_.write_text(lines, encoding="utf-8"))
    total = sum(map(len, shards.values()))
    return LabelSummary(total, total - len(unlabelled), made, seconds)


def _put(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically."""
    partial_ = path.with_name(f"{path.name}.partial")
    write(partial_)
    os.replace(partial_, path)
