"""The stages of a run, each with its work and its inputs. `run.py` calls them in order."""

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
from model_export.data.pairs import Pair
from model_export.data.prepare import (
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
from model_export.progress import OnProgress
from model_export.recipe import PARSE_SAMPLE, TINY_BASE, Recipe, RlConfig, TrainConfig
from model_export.scale_out.launch import StageJob, launch
from model_export.stages import RunError, Stages, hash_of
from model_export.student.distil import make_example, train_student
from model_export.teacher.label import label_pairs, read_soft_labels, write_soft_labels
from model_export.teacher.rollout import OnBatch, Sampler, Sampling
from model_export.teacher.sft import StageContext, train_cot, train_label_only
from service.contract.manifest import hash_file

ADAPTER, CUT = "adapter", "cut.json"
_SOFT_LABELS = "soft_labels.jsonl"
_PREDICTIONS = "predictions.npz"
_PARSE_RATE = "parse_rate.json"
# Keys that change no weight: how often a stage saves its state, and the gate on its result.
_NOT_HASHED = {"save_steps", "min_parse_rate"}
_CUT_PAIRS = 256  # labelled pairs whose prompts and traces weigh the adapter's errors


class Pipeline:
    """The stages of one run, on data that is prepared.

    Each stage returns its folder: made now, or kept from an earlier run with the same inputs.
    """

    def __init__(self, recipe: Recipe, stages: Stages, data_folder: Path, on_progress: OnProgress) -> None:
        self.data = load_data(data_folder)
        self._recipe = recipe
        self._stages = stages
        self._data_folder = data_folder
        self._on_progress = on_progress

    @classmethod
    def prepare(cls, recipe: Recipe, root: Path, stages: Stages, on_progress: OnProgress) -> "Pipeline":
        """Read and check the pairs under `root`, and return the pipeline on them. Raises DataError."""
        on_progress("Read data", 0, 1)
        inputs = data_inputs(recipe, root)
        folder = stages.do("data", inputs, partial(prepare_data, recipe, root))
        return cls(recipe, stages, folder, on_progress)

    def base(self, stage: str, name: str) -> Path:
        """Write a base as a plain transformers folder. Raises BaseModelError."""
        self._on_progress(f"Load base {name}", 0, 1)
        inputs: dict[str, object] = {"base": name}
        if name == TINY_BASE:
            made_of = {"tiny": self._recipe.model.tiny.model_dump(), "data": self._data_folder.name}
            inputs |= {**made_of, "seed": self._recipe.seed}
        return self._stages.do(stage, inputs, partial(prepare_base, name, self._recipe, self.data))

    def label_only_control(self, prompting: Prompting, start: Path) -> Path:
        """Train the label-only control."""
        config = self._recipe.label_only_sft
        work = partial(train_label_only, self.data.train, prompting, config)
        return self._train("label_only_sft", prompting, config, {"start": start}, work)

    def sft_teacher(self, prompting: Prompting, start: Path) -> Path:
        """Train the teacher on gold traces."""
        config = self._recipe.cot_sft
        work = partial(train_cot, self.data.train, prompting, config)
        return self._train("cot_sft", prompting, config, {"start": start}, work)

    def check_parse_rate(self, prompting: Prompting, teacher: Path) -> None:
        """Raise RunError where too few sampled traces parse: RL would see no reward, and the student no traces."""
        required = self._recipe.cot_sft.min_parse_rate
        pairs = Random(self._recipe.seed).sample(self.data.dev, min(PARSE_SAMPLE, len(self.data.dev)))
        sampling = self._sampling(self._recipe.rl.temperature)

        def work(folder: Path) -> None:
            set_seed(self._recipe.seed)
            on_batch = partial(self._on_progress, "Parse rate")
            sampler = Sampler.load(teacher, prompting, self._recipe.evaluate.precision)
            found = predict.by_reasoning("cot_sft", pairs, prompting, sampler, sampling, on_batch)
            (folder / _PARSE_RATE).write_text(json.dumps(float(np.mean(found.parsed))), encoding="utf-8")

        inputs = {
            "teacher": teacher.name,
            "sampling": asdict(sampling),
            "precision": self._recipe.evaluate.precision,
            "seed": self._recipe.seed,
        }
        folder = self._stages.do("parse_rate", inputs, work)
        rate = json.loads((folder / _PARSE_RATE).read_text(encoding="utf-8"))
        if rate < required:
            raise RunError(
                f"{rate:.0%} of the SFT teacher's sampled traces parse, below cot_sft.min_parse_rate = "
                f"{required:.0%}: raise cot_sft.steps"
            )

    def train_rl_teacher(self, stage: str, prompting: Prompting, start: Path) -> Path:
        """Train the teacher by GRPO, with the step mask (stage `sam`) or without it (`grpo`)."""
        from model_export.teacher.rl import train_rl  # TRL imports vLLM, which takes ten seconds

        config = self._recipe.rl
        work = partial(train_rl, self.data.train, prompting, config, masked=stage == "sam")
        return self._train(stage, prompting, config, {"start": start}, work)

    def soft_labels(self, prompting: Prompting, root: Path, teacher: Path) -> Path:
        """Let the teacher label training pairs, or take the labels that `label.folder` names under `root`."""
        config, seed, max_tokens = self._recipe.label, self._recipe.seed, self._recipe.rl.max_tokens
        if config.folder is not None:
            return self._copy_labels(root / config.folder)
        train = self.data.train
        most = len(train) if config.pairs is None else min(config.pairs, len(train))
        pairs = pick_distinct(train, most, config.source_exponent, seed)

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

    def _copy_labels(self, source: Path) -> Path:
        def work(folder: Path) -> None:
            labels = [label for shard in shards for label in read_soft_labels(shard).values()]
            write_soft_labels(folder / _SOFT_LABELS, labels)

        shards = sorted(source.glob("labels-*.jsonl"))
        if not shards:
            raise RunError(f"{source} has no labels-*.jsonl: make them with `notegrade-train label`")
        return self._stages.do("label", {"shards": [hash_file(shard) for shard in shards]}, work)

    def distil(self, soft_labels: Path, prompting: Prompting, start: Path) -> Path:
        """Train the student on the teacher's soft labels and traces."""
        config = self._recipe.distil
        labels = read_soft_labels(soft_labels / _SOFT_LABELS)
        work = partial(train_student, self.data.train, labels, prompting, config)
        return self._train("distil", prompting, config, {"start": start, "labels": soft_labels}, work)

    def as_adapter(self, student: Path, base: Path, soft_labels: Path, prompting: Prompting) -> Path:
        """Return the student to serve: base and low-rank adapter merged where the recipe asks for an adapter.

        Raises RunError when no pair has a soft label, on which the adapter is fitted.
        """
        rank, config = self._recipe.export.adapter_rank, self._recipe.distil
        if rank is None:
            return student
        self._on_progress("Extract the adapter", 0, 1)

        def work(folder: Path) -> None:
            labels = read_soft_labels(soft_labels / _SOFT_LABELS)
            labelled = [pair for pair in self.data.train if pair.id in labels]
            if not labelled:
                raise RunError(
                    "no pair has a soft label to fit the adapter on, because no sampled trace of the teacher parses: "
                    'lower rl.learning_rate, or set label.teacher = "cot_sft"'
                )
            sampled = Random(self._recipe.seed).sample(labelled, min(_CUT_PAIRS, len(labelled)))
            examples = [make_example(pair, labels[pair.id], prompting, config) for pair in sampled]
            rows = [example.prompt + example.completion for example in examples]
            report = extract_lora(str(base), student, folder / ADAPTER, rank, rows, name=read_base(base).name)
            (folder / CUT).write_text(json.dumps(asdict(report)), encoding="utf-8")
            merge_folder(str(base), folder / ADAPTER, folder)

        inputs = {"student": student.name, "base": base.name, "rank": rank, "labels": soft_labels.name}
        return self._stages.do("cut", {**inputs, "pairs": _CUT_PAIRS, "seed": self._recipe.seed}, work)

    def dev_pairs(self) -> list[Pair]:
        """Return the dev pairs that all systems are measured on."""
        return sample_dev(self.data.dev, self._recipe.evaluate.max_pairs, Random(self._recipe.seed))

    def predict_directly(
        self, system: str, pairs: Sequence[Pair], prompting: Prompting, model: Path
    ) -> Predictions:
        """Predict the pairs' grades with a model that writes the grade first."""
        batch_size = self._recipe.evaluate.batch_size

        def work(sampler: Sampler, on_batch: OnBatch) -> Predictions:
            return predict.directly(system, pairs, prompting, sampler, batch_size, on_batch)

        return self._predict(system, pairs, prompting, model, work)

    def predict_by_reasoning(
        self, system: str, pairs: Sequence[Pair], prompting: Prompting, model: Path
    ) -> Predictions:
        """Predict the pairs' grades with a model that writes a trace first, decoded greedily."""

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
            "data": self._data_folder.name,
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
        work: Callable[[StageContext], None],
    ) -> Path:
        def train(folder: Path) -> None:
            set_seed(self._recipe.seed)
            on_step = partial(self._on_progress, f"Train {stage}")
            context = StageContext.of(self._recipe, stage, before["start"], folder, on_step)
            if self._recipe.launch.processes == 1:
                work(context)
            else:
                launch(self._job(context, before.get("labels")), on_step)

        inputs = {
            **{key: folder.name for key, folder in before.items()},
            "data": self._data_folder.name,
            "form": prompting.form.to_json(),
            "config": config.model_dump(exclude=_NOT_HASHED),
            "seed": self._recipe.seed,
        }
        return self._stages.do(stage, inputs, train)

    def _job(self, context: StageContext, labels: Path | None) -> StageJob:
        return StageJob(
            stage=context.stage,
            recipe=self._recipe,
            data=self._data_folder,
            start=context.start,
            folder=context.folder,
            soft_labels=labels and labels / _SOFT_LABELS,
        )
