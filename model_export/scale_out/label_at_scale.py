"""Soft labels for files of any size: the work of teacher/label.py by shards, on one engine or many, and resumable.

One pass is enough: the engine returns the labels' logprobs at every sampled token. Those at the answer are the answer
distribution, so no path has to be scored again.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from model_export.data.pairs import Pair, listed, read_pairs
from model_export.data.prompting import Prompting
from model_export.data.soft_labels import SoftLabel, read_soft_labels, write_soft_labels
from model_export.progress import OnProgress
from model_export.scale_out.label_plan import Completion, LabelError, LabelPlan, TraceEngine
from model_export.scale_out.shards import Shards, fill, read_paths, split
from model_export.stages import lock, write_whole
from model_export.teacher.label import average, honest_steps
from service.contract.labels import LabelDistribution

INPUTS_NAME, UNLABELLED_NAME = "label.json", "unlabelled.jsonl"


def label_file(plan: LabelPlan, out: Path, engine: TraceEngine, on_progress: OnProgress) -> str:
    """Label the plan's pairs into `out` and return a summary; shards from an earlier run of the same plan are kept.

    Writes `labels-00000.jsonl` and so on, for `read_soft_labels`, `label.json` (the plan's inputs) and `unlabelled.jsonl` (ids
    of pairs none of whose paths parses). All pairs are in memory, about 2 KB each. A rerun samples the same paths where the
    engine computes the same logits; different batches may change their last bits.
    Raises DataError, LabelError, PromptingError for queries that are too long, and RunError when another run holds `out`.
    """
    with lock(out):
        started = time.monotonic()
        pairs = read_pairs(plan.pairs, plan.source, judged=False)
        job = plan.job()
        job.prompting.check_queries(pairs)
        _claim(out, plan.inputs())
        shards = split(pairs, out, "labels", plan.shard_size)
        read = partial(soft_label, prompting=job.prompting)
        on_batch = partial(on_progress, "Label")
        made = fill(shards, lambda missing: engine(missing, job), read, write_soft_labels, on_batch)
        unlabelled, seconds = _list_unlabelled(shards, out), time.monotonic() - started
    return _summarize(len(pairs), unlabelled, made, seconds)


def _claim(out: Path, inputs: Mapping[str, object]) -> None:
    path = out / INPUTS_NAME
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if other := sorted(key for key in inputs.keys() | before if inputs.get(key) != before.get(key)):
            raise LabelError(f"{out} holds labels made with different {listed(other)}: choose another --out")
    write_whole(path, json.dumps(inputs, indent=1) + "\n")


def soft_label(pair: Pair, completions: Sequence[Completion], prompting: Prompting) -> SoftLabel | None:
    """Average the paths that parse; None where none does."""
    paths = []
    for each, path in read_paths(pair, completions, prompting):
        at_answer = each.label_logprobs[len(path.before_answer)]
        answer = LabelDistribution.from_logprobs(at_answer).probabilities
        paths.append((honest_steps(pair, path.steps, answer), answer))
    return average(pair.id, paths) if paths else None


def _list_unlabelled(shards: Shards, out: Path) -> int:
    """Write the ids of the pairs without a label, and return their number."""
    unlabelled: list[str] = []
    for path, shard in shards.items():
        labelled = read_soft_labels(path)
        unlabelled += (pair.id for pair in shard if pair.id not in labelled)
    lines = (json.dumps({"id": id_}, ensure_ascii=False) + "\n" for id_ in unlabelled)
    write_whole(out / UNLABELLED_NAME, "".join(lines))
    return len(unlabelled)


def _summarize(pairs: int, unlabelled: int, made: int, seconds: float) -> str:
    line = f"{pairs - unlabelled:,} of {pairs:,} pairs are labelled"
    if unlabelled:
        line += f"; {unlabelled:,} have no path that parses, see {UNLABELLED_NAME}"
    if made:
        line += f" ({made:,} in this run, in {seconds:.0f} s: {made / seconds:.1f} per second)"
    return line
