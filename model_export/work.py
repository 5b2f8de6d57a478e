"""The work of each stage of a run, and what its folder is named by: all that goes into it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from transformers import set_seed

from model_export.checkpoint.adapter import merge_folder
from model_export.checkpoint.extract_lora import extract_lora
from model_export.checkpoint.writer import OnProgress
from model_export.data.pairs import Pair
from model_export.data.prepare import (
    Data,
    data_inputs,
    load_data,
    prepare_base,
    prepare_data,
    read_base,
    sample_dev,
)
from model_export.data.prompting import Prompting
from model_export.data.sampling import pick_distinct
from model_export.evaluation import predict
from model_export.evaluation.evaluate import Predictions
from model_export.models.model_io import average_weights
from model_export.recipe import PARSE_SAMPLE, TINY_BASE, Recipe, RlConfig, TrainConfig
from model_export.scale_out.launch import StageJob, launch
from model_export.stages import RunError, Stages, hash_of
from model_export.student.distil import make_example, train_student
from model_export.teacher.label import label_pairs, read_soft_labels, write_soft_labels
from model_export.teacher.rollout import OnBatch, Sampler, Sampling
from model_export.teacher.sft import LOG_NAME, Workplace, train_cot, train_label_only
from service.contract.manifest import hash_file

ADAPTER, CUT = "adapter", "cut.json"
_SOFT_LABELS = "soft_labels.jsonl"
_PREDICTIONS = "predictions.npz"
_PARSE_RATE = "parse_rate.json"
# How often a stage keeps its state, and what is made of its result, change no result of its own.
_NOT_COUNTED = {"save_steps", "min_parse_rate", "control_share"}
_CUT_PAIRS = 256  # whose prompts and traces tell the cut what the student reads and writes


class Work:
    """The stages of one run. Each method gives the folder of its stage, made now or found."""

    def __init__(self, recipe: Recipe, root: Path, stages: Stages, on_progress: OnProgress) -> None:
        self._recipe = recipe
        self._root = root
        self._stages = stages
        self._on_progress = on_progress
        self._data_name = ""
        self.logs: list[Path] = []

    def data(self) -> Data:
        """The pairs, read and checked. Raises DataError."""
        self._on_progress("Read data", 0, 1)
        inputs = data_inputs(self._recipe, self._root)
        folder = self._stages.do("data", inputs, partial(prepare_data, self._recipe, self._root))
        self._data_name = folder.name
        return load_data(folder)

    def base(self, stage: str, name: str, data: Data) -> Path:
        """A base as a plain transformers folder. Raises BaseModelError."""
        self._on_progress(f"Load base {name}", 0, 1)
        inputs: dict[str, object] = {"base": name}
        if name == TINY_BASE:
            made_of = {"tiny": self._recipe.model.tiny.model_dump(), "data": self._data_name}
            inputs |= {**made_of, "seed": self._recipe.seed}
        return self._stages.do(stage, inputs, partial(prepare_base, name, self._recipe, data))

    def label_only(self, data: Data, prompting: Prompting, start: Path) -> Path:
        """The control."""
        config = self._recipe.label_only_sft
        work = partial(train_label_only, data.train, prompting, config)
        return self._train("label_only_sft", prompting, config, {"start": start}, work)

    def warm_up(self, data: Data, prompting: Prompting, start: Path) -> Path:
        """The teacher after its warm-up on gold traces."""
        config = self._recipe.cot_sft
        work = partial(train_cot, data.train, prompting, config)
        return self._train("cot_sft", prompting, config, {"start": start}, work)

    def check_parse_rate(self, data: Data, prompting: Prompting, warm: Path) -> None:
        """Raise RunError where too few sampled traces parse: RL would see no reward, and the student no traces to learn from."""
        least = self._recipe.cot_sft.min_parse_rate
        pairs = Random(self._recipe.seed).sample(data.dev, min(PARSE_SAMPLE, len(data.dev)))
        sampling = self._sampling(self._recipe.rl.temperature)

        def work(folder: Path) -> None:
            set_seed(self._recipe.seed)
            on_batch = partial(self._on_progress, "Parse rate")
            sampler = Sampler.load(warm, prompting, self._recipe.evaluate.precision)
            found = predict.by_reasoning("cot_sft", pairs, prompting, sampler, sampling, on_batch)
            (folder / _PARSE_RATE).write_text(json.dumps(float(np.mean(found.parsed))), encoding="utf-8")

        inputs = {
            "teacher": warm.name,
            "sampling": asdict(sampling),
            "precision": self._recipe.evaluate.precision,
            "seed": self._recipe.seed,
        }
        folder = self._stages.do("parse_rate", inputs, work)
        rate = json.loads((folder / _PARSE_RATE).read_text(encoding="utf-8"))
        if rate < least:
            raise RunError(
                f"after the warm-up {rate:.0%} of sampled traces parse, and {least:.0%} must "
                "(cot_sft.min_parse_rate): give cot_sft more steps"
            )

    def reinforce(self, stage: str, data: Data, prompting: Prompting, warm: Path) -> Path:
        """The teacher after RL: `sam` with the step mask, `grpo` without."""
        from model_export.teacher.rl import train_rl  # here, since TRL imports vLLM: ten seconds

        config = self._recipe.rl
        work = partial(train_rl, data.train, prompting, config, masked=stage == "sam")
        return self._train(stage, prompting, config, {"start": warm}, work)

    def label(self, data: Data, prompting: Prompting, teacher: Path) -> Path:
        """The teacher's soft labels."""
        config, seed, max_tokens = self._recipe.label, self._recipe.seed, self._recipe.rl.max_tokens
        if config.folder is not None:
            return self._labels_made_before(self._root / config.folder)
        most = len(data.train) if config.pairs is None else min(config.pairs, len(data.train))
        pairs = pick_distinct(data.train, most, config.source_exponent, seed)

        def work(folder: Path) -> None:
            set_seed(seed)
            on_batch = partial(self._on_progress, "Soft labels")
            labels = label_pairs(pairs, prompting, teacher, config, max_tokens, on_batch)
            write_soft_labels(folder / _SOFT_LABELS, labels)

        inputs = {
            "teacher": teacher.name,
            "config": config.model_dump(exclude={"folder"}),
            "max_tokens": max_tokens,
            "seed": seed,
        }
        return self._stages.do("label", inputs, work)

    def _labels_made_before(self, made: Path) -> Path:
        def work(folder: Path) -> None:
            labels = [label for shard in shards for label in read_soft_labels(shard).values()]
            write_soft_labels(folder / _SOFT_LABELS, labels)

        shards = sorted(made.glob("labels-*.jsonl"))
        if not shards:
            raise RunError(f"{made} has no labels-*.jsonl: make them by `notegrade-train label`")
        return self._stages.do("label", {"shards": [hash_file(shard) for shard in shards]}, work)

    def distil(self, data: Data, soft_labels: Path, prompting: Prompting, start: Path) -> Path:
        """The student."""
        config = self._recipe.distil
        labels = read_soft_labels(soft_labels / _SOFT_LABELS)
        work = partial(train_student, data.train, labels, prompting, config)
        return self._train("distil", prompting, config, {"start": start, "labels": soft_labels}, work)

    def average(self, student: Path, control: Path) -> Path:
        """The student, or what the recipe makes of its weights and the control's."""
        share = self._recipe.distil.control_share
        if not share:
            return student
        work = partial(average_weights, student, control, share)
        inputs = {"student": student.name, "control": control.name, "share": share}
        return self._stages.do("average", inputs, work)

    def cut(self, student: Path, base: Path, data: Data, soft_labels: Path, prompting: Prompting) -> Path:
        """The student as it is served: where the recipe asks for an adapter, base and adapter merged."""
        rank, config = self._recipe.export.adapter_rank, self._recipe.distil
        if rank is None:
            return student
        self._on_progress("Cut to an adapter", 0, 1)

        def work(folder: Path) -> None:
            labels = read_soft_labels(soft_labels / _SOFT_LABELS)
            taught = [pair for pair in data.train if pair.id in labels]
            read = Random(self._recipe.seed).sample(taught, min(_CUT_PAIRS, len(taught)))
            examples = [make_example(pair, labels[pair.id], prompting, config) for pair in read]
            rows = [example.prompt + example.completion for example in examples]
            report = extract_lora(str(base), student, folder / ADAPTER, rank, rows, name=read_base(base).name)
            (folder / CUT).write_text(json.dumps(asdict(report)), encoding="utf-8")
            merge_folder(str(base), folder / ADAPTER, folder)

        inputs = {"student": student.name, "base": base.name, "rank": rank, "labels": soft_labels.name}
        return self._stages.do("cut", {**inputs, "pairs": _CUT_PAIRS, "seed": self._recipe.seed}, work)

    def dev_pairs(self, data: Data) -> list[Pair]:
        """What every system is measured on."""
        return sample_dev(data.dev, self._recipe.evaluate.max_pairs, Random(self._recipe.seed))

    def predict_directly(
        self, system: str, pairs: Sequence[Pair], prompting: Prompting, model: Path
    ) -> Predictions:
        """What a model that answers first says of the pairs."""
        batch_size = self._recipe.evaluate.batch_size

        def work(sampler: Sampler, on_batch: OnBatch) -> Predictions:
            return predict.directly(system, pairs, prompting, sampler, batch_size, on_batch)

        return self._predict(system, pairs, prompting, model, work)

    def predict_by_reasoning(
        self, system: str, pairs: Sequence[Pair], prompting: Prompting, model: Path
    ) -> Predictions:
        """What a model that reasons first says of them, on its most probable path."""

        def work(sampler: Sampler, on_batch: OnBatch) -> Predictions:
            return predict.by_reasoning(system, pairs, prompting, sampler, self._sampling(0.0), on_batch)

        return self._predict(system, pairs, prompting, model, work)

    def _predict(
        self,
        system: str,
        pairs: Sequence[Pair],
        prompting: Prompting,
        model: Path,
        work: Callable[[Sampler, OnBatch], Predictions],
    ) -> Predictions:
        def write(folder: Path) -> None:
            sampler = Sampler.load(model, prompting, precision)
            found = work(sampler, partial(self._on_progress, f"Predict {system}"))
            predict.write_predictions(folder / _PREDICTIONS, found)

        precision = self._recipe.evaluate.precision
        inputs = {
            "model": model.name,
            "form": prompting.form.to_json(),
            "pairs": hash_of([pair.id for pair in pairs]),
            "data": self._data_name,
            "sampling": asdict(self._sampling(0.0)),
            "precision": precision,
        }
        folder = self._stages.do(f"predict_{system}", inputs, write)
        return predict.read_predictions(folder / _PREDICTIONS, system)

    def _sampling(self, temperature: float) -> Sampling:
        return Sampling(self._recipe.rl.max_tokens, temperature, self._recipe.evaluate.batch_size)

    def _train(
        self,
        stage: str,
        prompting: Prompting,
        config: TrainConfig | RlConfig,
        before: Mapping[str, Path],
        work: Callable[[Workplace], None],
    ) -> Path:
        def inside(folder: Path) -> None:
            set_seed(self._recipe.seed)
            place = Workplace.of(
                self._recipe, stage, before["start"], folder, partial(self._on_progress, f"Train {stage}")
            )
            if self._recipe.launch.processes == 1:
                work(place)
            else:
                launch(self._job(place, before.get("labels")), place.on_step)

        inputs = {
            **{key: folder.name for key, folder in before.items()},
            "data": self._data_name,
            "form": prompting.form.to_json(),
            "config": config.model_dump(exclude=_NOT_COUNTED),
            "seed": self._recipe.seed,
        }
        folder = self._stages.do(stage, inputs, inside)
        self.logs.append(folder / LOG_NAME)
        return folder

    def _job(self, place: Workplace, labels: Path | None) -> StageJob:
        return StageJob(
            stage=place.stage,
            recipe=self._recipe,
            data=self._stages.folder / self._data_name,
            start=place.start,
            folder=place.folder,
            soft_labels=labels and labels / _SOFT_LABELS,
        )
