"""The stages of a run, each with its work and its inputs. `run.py` calls them in order."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from pydantic import BaseModel
from transformers import set_seed

from model_export.checkpoint.adapter import merge_folder
from model_export.checkpoint.extract_lora import extract_lora
from model_export.data.encoder import Encoder
from model_export.data.mine import mine, read_mined, write_mined
from model_export.data.pairs import Pair, query_hash
from model_export.data.prepare import (
    data_inputs,
    hash_train,
    load_data,
    measured_queries,
    prepare_base,
    prepare_data,
    read_base,
)
from model_export.data.prompting import Prompting
from model_export.data.sampling import pick_distinct, sample, sample_dev
from model_export.data.soft_labels import SOFT_LABELS, SoftLabel, read_soft_labels, write_soft_labels
from model_export.evaluation.predict import by_reasoning
from model_export.models.base_model import hash_base
from model_export.progress import OnProgress
from model_export.recipe import PARSE_SAMPLE, TINY_BASE, Recipe
from model_export.scale_out.label_plan import TraceEngine
from model_export.scale_out.launch import run_job
from model_export.scale_out.ray_engine import complete_on_ray, features_on_ray
from model_export.scale_out.shards import split
from model_export.stacking import Stacked, Stacking
from model_export.stages import RunError, Stages
from model_export.student.distil import make_example
from model_export.teacher.occlusion import check_steps, find_evidence
from model_export.teacher.rollout import Sampler, Sampling
from model_export.teachers.base import FeatureEngine, features_here
from model_export.teachers.cross_encoder import CrossEncoderTeacher
from model_export.teachers.fold_training import FoldTraining
from model_export.teachers.roster import make_teachers
from model_export.training.stage_job import TEACHER_STAGES, StageJob
from service.contract.manifest import ENCODER_NAME

ADAPTER, CUT = "adapter", "cut.json"
_PARSE_RATE = "parse_rate.json"
# Keys that change no result, but for rounding: the gate on a stage, how often it saves its state, and how much it computes at
# once. In RL, though, weights are chosen at `save_steps`, and a low parse rate ends it.
_NOT_HASHED = {"save_steps", "min_parse_rate", "micro_batch"}
_NOT_HASHED_IN_RL = {"micro_batch"}
_EVIDENCE_SHARD = 64  # pairs between two savings: one to two minutes of SmolLM2-135M on two cores
_CUT_PAIRS = 256  # labelled pairs whose prompts and traces weigh the adapter's errors


class Pipeline:
    """The stages of one run, on data that is prepared.

    Each stage returns its folder: made now, or kept from an earlier run with the same inputs.

    Attributes:
        recipe, root, stages, on_progress: as given.
        data, data_folder: the pairs, and the folder of their stage.
        train_hash: of the training pairs, for stages that read no others.
        trace_engine: samples the generative teacher's paths; None lets the stages sample in this process.
        feature_engine: computes the features of teachers.
    """

    def __init__(self, recipe: Recipe, root: Path, stages: Stages, on_progress: OnProgress) -> None:
        """Read and check the pairs under `root`. Raises DataError."""
        on_progress("Read data", 0, 1)
        work = partial(prepare_data, recipe, root)
        self.data_folder = stages.do("data", data_inputs(recipe, root), work)
        self.data = load_data(self.data_folder)
        self.train_hash = hash_train(self.data_folder, self.data.train)
        self.recipe = recipe
        self.root = root
        self.stages = stages
        self.on_progress = on_progress
        self.trace_engine: TraceEngine | None = None
        self.feature_engine: FeatureEngine = features_here
        workers, address = recipe.launch.ray_workers, recipe.launch.ray_address
        if workers:
            self.trace_engine = partial(complete_on_ray, engines=workers, address=address)
            self.feature_engine = partial(features_on_ray, workers=workers, address=address)

    def dev_pairs(self) -> list[Pair]:
        """Return the dev pairs that all systems are measured on."""
        return sample_dev(self.data.dev, self.recipe.evaluate.max_pairs, Random(self.recipe.seed))

    def check_criteria(self) -> None:
        """Check before hours of work whether evidence can be written under the criteria. Raises DataError."""
        teacher = self.recipe.cot_sft
        if self.recipe.label.teacher == "label_only_sft" or (teacher.steps and teacher.traces == "gold"):
            check_steps(self.data.criteria, (pair for pair in self.data.train if not pair.findings))

    def base(self, stage: str, name: str) -> Path:
        """Write a base as a plain transformers folder. Raises BaseModelError."""
        self.on_progress(f"Load base {name}", 0, 1)
        inputs: dict[str, object] = {"base": name}
        if files := hash_base(name):
            inputs["files"] = files
        if name == TINY_BASE:
            made_of = {"tiny": self.recipe.model.tiny.model_dump(), "data": self.data_folder.name}
            inputs |= {**made_of, "seed": self.recipe.seed}
        return self.stages.do(stage, inputs, partial(prepare_base, name, self.recipe, self.data))

    def evidence(self, prompting: Prompting, control: Path) -> Path | None:
        """Find the evidence for the control's grades on pairs without findings; None where all pairs have findings."""
        config = self.recipe.evidence
        bare = [pair for pair in self.data.train if not pair.findings]
        if not bare:
            return None
        pairs = pick_distinct(bare, config.pairs, config.source_exponent, self.recipe.seed)

        def work(folder: Path) -> None:
            sampler = Sampler.load(control, prompting, self.recipe.model.precision)
            found: list[SoftLabel] = []
            for file, shard in split(pairs, folder, "evidence", _EVIDENCE_SHARD).items():
                if not file.is_file():
                    write_soft_labels(file, find_evidence(shard, prompting, sampler, config))
                found += read_soft_labels(file).values()
                self.on_progress("Find evidence", len(found), len(pairs))
            write_soft_labels(folder / SOFT_LABELS, found)

        inputs = {
            "control": control.name,
            "form": prompting.form.of_student.to_json(),
            "config": config.model_dump(exclude={"batch_size"}),
            "precision": self.recipe.model.precision,
            "train": self.train_hash,
            "seed": self.recipe.seed,
            "grades": "all",
            "spans": "of what the prompt holds",
        }
        return self.stages.do("evidence", inputs, work)

    def train(
        self,
        stage: str,
        prompting: Prompting,
        start: Path,
        *,
        evidence: Path | None = None,
        soft_labels: Path | None = None,
        unlabelled: Path | None = None,
    ) -> Path:
        """Train the model of this stage from the one in `start`.

        `evidence` is for the SFT teacher; `soft_labels` and the unlabelled pairs that have some are for the student.
        """
        recipe = self.recipe

        def work(folder: Path) -> None:
            job = StageJob(
                stage=stage,
                recipe=recipe,
                data=self.data_folder,
                start=start,
                folder=folder,
                evidence=evidence and evidence / SOFT_LABELS,
                soft_labels=soft_labels and soft_labels / SOFT_LABELS,
                unlabelled=unlabelled,
            )
            run_job(job, prompting, self.on_progress)

        config: BaseModel = getattr(recipe, stage)
        form = prompting.form if stage in TEACHER_STAGES else prompting.form.of_student
        in_rl = stage == "rl"  # reads dev pairs too
        inputs = {
            "start": start.name,
            **({"data": self.data_folder.name} if in_rl else {"train": self.train_hash}),
            "form": form.to_json(),
            "config": config.model_dump(exclude=_NOT_HASHED_IN_RL if in_rl else _NOT_HASHED),
            "precision": recipe.model.precision,
            "seed": recipe.seed,
            **({"evidence": evidence.name} if evidence else {}),
            **({"labels": soft_labels.name} if soft_labels else {}),
        }
        return self.stages.do(stage, inputs, work)

    def cross_encoder(self) -> Path:
        """Fine-tune the cross-encoder on the training pairs. Raises EncoderError."""
        teacher = CrossEncoderTeacher(
            self.recipe.cross_encoder, self.recipe.model.precision, self.recipe.seed
        )
        work = partial(teacher.train, self.data.train, None, on_progress=self.on_progress)
        inputs = {"train": self.train_hash, **teacher.settings}
        return self.stages.do(teacher.name, inputs, work)

    def check_parse_rate(self, prompting: Prompting, teacher: Path) -> None:
        """Raise RunError where too few sampled traces parse: RL would see no reward, and the student no traces."""
        required = self.recipe.cot_sft.min_parse_rate
        pairs = Random(self.recipe.seed).sample(self.data.dev, min(PARSE_SAMPLE, len(self.data.dev)))
        sampling = self.sampling(self.recipe.rl.temperature)

        def work(folder: Path) -> None:
            set_seed(self.recipe.seed)
            on_batch = partial(self.on_progress, "Parse rate")
            sampler = Sampler.load(teacher, prompting, self.recipe.model.precision)
            found = by_reasoning("cot_sft", pairs, prompting, sampler, sampling, on_batch)
            (folder / _PARSE_RATE).write_text(json.dumps(float(np.mean(found.parsed))), encoding="utf-8")

        inputs = {
            "teacher": teacher.name,
            "data": self.data_folder.name,
            "sampling": asdict(sampling),
            "precision": self.recipe.model.precision,
            "seed": self.recipe.seed,
        }
        folder = self.stages.do("parse_rate", inputs, work)
        rate = json.loads((folder / _PARSE_RATE).read_text(encoding="utf-8"))
        if rate < required:
            raise RunError(
                f"{rate:.0%} of the SFT teacher's sampled traces parse, below cot_sft.min_parse_rate = "
                f"{required:.0%}: raise cot_sft.steps"
            )

    def stack(
        self,
        student: tuple[Path, Prompting],
        teacher: tuple[Path, Prompting],
        evidence: Path | None,
        soft_labels: Path,
        unlabelled: Path | None,
    ) -> Stacked:
        """Let the recipe's stack of teachers grade training, unlabelled and dev pairs; `soft_labels` have the traces.

        `student` and `teacher` are the bases that learners start from, with their prompts. Raises StackError and EndpointError.
        """
        shared = partial(FoldTraining, self.recipe, self.data_folder, run=run_job)
        traces = evidence and evidence / SOFT_LABELS
        teachers = make_teachers(shared(*student), shared(*teacher, evidence=traces))
        stacking = Stacking(
            self.recipe,
            self.data.train,
            self.train_hash,
            self.stages,
            self.on_progress,
            engine=self.feature_engine,
        )
        mined = read_mined(unlabelled) if unlabelled else []
        return stacking.grade(teachers, soft_labels, mined, self.dev_pairs())

    def unlabelled(self) -> Path | None:
        """Mine pairs that nobody judged from the training pairs; None where the recipe asks for none. Raises EncoderError."""
        recipe, config = self.recipe, self.recipe.unlabelled
        if not config.pairs:
            return None

        def work(folder: Path) -> None:
            encode = Encoder(config.encoder, self.on_progress).encode if config.encoder else None
            # Under cross-validation the dev pairs are training pairs of the files.
            measured = measured_queries(recipe, self.root) | {
                query_hash(pair.query) for pair in self.data.dev
            }
            write_mined(folder, mine(self.data.train, measured, recipe, encode, self.on_progress))

        inputs = {
            "data": self.data_folder.name,
            "config": config.model_dump(),
            "max_query_tokens": recipe.model.limits.max_query_tokens,
            "seed": recipe.seed,
        }
        return self.stages.do("unlabelled", inputs, work)

    def as_adapter(self, student: Path, base: Path, soft_labels: Path, prompting: Prompting) -> Path:
        """Return the student to serve: base and low-rank adapter merged where the recipe asks for an adapter, as its encoder is.

        Raises RunError when no pair has a soft label, on which the adapter is fitted.
        """
        rank, config = self.recipe.export.adapter_rank, self.recipe.distil
        if rank is None:
            return student
        self.on_progress("Extract the adapter", 0, 1)

        def work(folder: Path) -> None:
            labels = read_soft_labels(soft_labels / SOFT_LABELS)
            labelled = [pair for pair in self.data.train if pair.id in labels]
            if not labelled:
                raise RunError(
                    "no pair has a soft label to fit the adapter on, because no sampled trace of the teacher parses: "
                    'lower rl.learning_rate, or set label.teacher = "cot_sft"'
                )
            sampled = sample(labelled, _CUT_PAIRS, Random(self.recipe.seed))
            examples = [make_example(pair, labels[pair.id], prompting, config) for pair in sampled]
            _cut(base, student, folder, rank, [example.prompt + example.completion for example in examples])
            if (student / ENCODER_NAME).is_dir():
                notes = prompting.of_vectors(self.recipe.encode).notes([pair.note for pair in sampled])
                rows = [list(note.token_ids) for note in notes]
                _cut(base, student / ENCODER_NAME, folder / ENCODER_NAME, rank, rows)

        inputs = {"student": student.name, "base": base.name, "rank": rank, "labels": soft_labels.name}
        return self.stages.do("cut", {**inputs, "pairs": _CUT_PAIRS, "seed": self.recipe.seed}, work)

    def reduce(self, tuned: Path, base: Path, prompting: Prompting, rank: int) -> Path:
        """Return a model whose difference to the base is reduced to this rank, so that what it learns next still fits an adapter."""
        pairs = sample(self.data.train, _CUT_PAIRS, Random(self.recipe.seed))
        rows = [prompting.student_prompt(pair) for pair in pairs]
        inputs = {
            "tuned": tuned.name,
            "base": base.name,
            "rank": rank,
            "train": self.train_hash,
            "form": prompting.form.of_student.to_json(),
            "seed": self.recipe.seed,
        }
        return self.stages.do("reduce", inputs, lambda folder: _cut(base, tuned, folder, rank, rows))

    def sampling(self, temperature: float) -> Sampling:
        """Return how measured traces are sampled; a temperature of 0 decodes greedily."""
        return Sampling(self.recipe.rl.max_tokens, temperature, self.recipe.evaluate.batch_size)


def _cut(base: Path, tuned: Path, folder: Path, rank: int, rows: Sequence[Sequence[int]]) -> None:
    """Write base and low-rank adapter merged, the adapter, and how much of the difference it keeps on these token ids."""
    energy = extract_lora(str(base), tuned, folder / ADAPTER, rank, rows, name=read_base(base).name)
    (folder / CUT).write_text(json.dumps({"energy_kept": energy}), encoding="utf-8")
    merge_folder(str(base), folder / ADAPTER, folder)
