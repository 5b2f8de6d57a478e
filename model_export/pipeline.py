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
from model_export.data.gold_traces import write_evidence
from model_export.data.mine import mine, read_mined, write_mined
from model_export.data.pairs import GRADES, Pair, query_hash
from model_export.data.prepare import (
    data_inputs,
    load_data,
    measured_queries,
    prepare_base,
    prepare_data,
    read_base,
)
from model_export.data.prompting import Prompting
from model_export.data.sampling import pick_distinct, sample_dev, sample_each
from model_export.evaluation.baselines import by_cosine
from model_export.evaluation.evaluate import Predictions
from model_export.evaluation.explanations import Explainer, Figures, read_figures, serve_by, to_json
from model_export.evaluation.fitted import Fitted
from model_export.evaluation.predict import (
    by_log_probabilities,
    by_reasoning,
    directly,
    read_predictions,
    write_predictions,
)
from model_export.progress import OnProgress
from model_export.recipe import PARSE_SAMPLE, TINY_BASE, Recipe
from model_export.scale_out.launch import launch, train_stage
from model_export.stacking import Stacked, Stacking
from model_export.stages import RunError, Stages, hash_of, write_whole
from model_export.student.distil import make_example
from model_export.teacher.label import SOFT_LABELS, label_pairs, read_soft_labels, write_soft_labels
from model_export.teacher.occlusion import find_evidence
from model_export.teacher.own_traces import sample_own_traces
from model_export.teacher.rollout import Sampler, Sampling
from model_export.teachers.cross_encoder import CrossEncoderTeacher
from model_export.teachers.label_only import FoldTraining
from model_export.teachers.roster import make_teachers
from model_export.training.stage_job import TEACHER_STAGES, StageJob
from service.contract.manifest import hash_file

ADAPTER, CUT = "adapter", "cut.json"
EVIDENCE = "evidence.jsonl"
_PREDICTIONS, _EXPLANATIONS = "predictions.npz", "explanations.json"
_PARSE_RATE = "parse_rate.json"
# Keys that change no weight: how often a stage saves its state, and the gate on its result.
_NOT_HASHED = {"save_steps", "min_parse_rate"}
_CUT_PAIRS = 256  # labelled pairs whose prompts and traces weigh the adapter's errors


class Pipeline:
    """The stages of one run, on data that is prepared.

    Each stage returns its folder: made now, or kept from an earlier run with the same inputs.
    """

    def __init__(self, recipe: Recipe, root: Path, stages: Stages, on_progress: OnProgress) -> None:
        """Read and check the pairs under `root`. Raises DataError."""
        on_progress("Read data", 0, 1)
        work = partial(prepare_data, recipe, root)
        self.data_folder = stages.do("data", data_inputs(recipe, root), work)
        self.data = load_data(self.data_folder)
        self._recipe = recipe
        self._root = root
        self._stages = stages
        self._on_progress = on_progress

    def base(self, stage: str, name: str) -> Path:
        """Write a base as a plain transformers folder. Raises BaseModelError."""
        self._on_progress(f"Load base {name}", 0, 1)
        inputs: dict[str, object] = {"base": name}
        if name == TINY_BASE:
            made_of = {"tiny": self._recipe.model.tiny.model_dump(), "data": self.data_folder.name}
            inputs |= {**made_of, "seed": self._recipe.seed}
        return self._stages.do(stage, inputs, partial(prepare_base, name, self._recipe, self.data))

    def evidence(self, prompting: Prompting, control: Path) -> Path | None:
        """Find the evidence for the control's grades on pairs without findings; None where all pairs have findings."""
        config, seed = self._recipe.evidence, self._recipe.seed
        bare = [pair for pair in self.data.train if not pair.findings]
        if not bare:
            return None
        pairs = pick_distinct(bare, config.pairs, config.source_exponent, seed)

        def work(folder: Path) -> None:
            sampler = Sampler.load(control, prompting, config.precision)
            on_batch = partial(self._on_progress, "Find evidence")
            write_evidence(folder / EVIDENCE, find_evidence(pairs, prompting, sampler, config, on_batch))

        inputs = {
            "control": control.name,
            "form": prompting.form.of_student.to_json(),
            "config": config.model_dump(),
            "data": self.data_folder.name,
            "seed": seed,
        }
        return self._stages.do("evidence", inputs, work)

    def own_traces(self, prompting: Prompting, teacher: Path) -> Path:
        """Let a teacher sample traces of training pairs, and keep those to learn from."""
        config, seed, max_tokens = self._recipe.own_traces, self._recipe.seed, self._recipe.rl.max_tokens
        pairs = pick_distinct(self.data.train, config.pairs, config.source_exponent, seed)

        def work(folder: Path) -> None:
            set_seed(seed)
            sampler = Sampler.load(teacher, prompting, config.precision)
            on_batch = partial(self._on_progress, f"Own traces of {teacher.name.rpartition('-')[0]}")
            found = sample_own_traces(pairs, prompting, sampler, config, max_tokens, on_batch)
            write_evidence(folder / EVIDENCE, found)

        inputs = {
            "teacher": teacher.name,
            "form": prompting.form.to_json(),
            "config": config.model_dump(),
            "max_tokens": max_tokens,
            "data": self.data_folder.name,
            "seed": seed,
        }
        return self._stages.do("own_traces", inputs, work)

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
        recipe = self._recipe

        def work(folder: Path) -> None:
            job = StageJob(
                stage=stage,
                recipe=recipe,
                data=self.data_folder,
                start=start,
                folder=folder,
                evidence=evidence and evidence / EVIDENCE,
                soft_labels=soft_labels and soft_labels / SOFT_LABELS,
                unlabelled=unlabelled,
            )
            self.run_job(job, prompting)

        config: BaseModel = getattr(recipe, stage)
        form = prompting.form if stage in TEACHER_STAGES else prompting.form.of_student
        inputs = {
            "start": start.name,
            "data": self.data_folder.name,
            "form": form.to_json(),
            "config": config.model_dump(exclude=_NOT_HASHED),
            "seed": recipe.seed,
            **({"evidence": evidence.name} if evidence else {}),
            **({"labels": soft_labels.name} if soft_labels else {}),
        }
        return self._stages.do(stage, inputs, work)

    def run_job(self, job: StageJob, prompting: Prompting) -> None:
        """Train in this process, or on as many as the recipe says."""
        on_step = partial(self._on_progress, f"Train {job.folder.name.rpartition('-')[0]}")
        if job.recipe.launch.processes == 1:
            train_stage(job, self.data, prompting, on_step)
        else:
            launch(job, on_step)

    def cross_encoder(self) -> Path:
        """Fine-tune the cross-encoder on the training pairs. Raises EncoderError."""
        config = self._recipe.cross_encoder
        inputs = {
            "data": self.data_folder.name,
            "config": config.model_dump(exclude=_NOT_HASHED),
            "seed": self._recipe.seed,
        }
        teacher = CrossEncoderTeacher(config, self._recipe.seed, self._on_progress)
        return self._stages.do(teacher.name, inputs, partial(teacher.train, self.data.train, None))

    def check_parse_rate(self, prompting: Prompting, teacher: Path) -> None:
        """Raise RunError where too few sampled traces parse: RL would see no reward, and the student no traces."""
        required = self._recipe.cot_sft.min_parse_rate
        pairs = Random(self._recipe.seed).sample(self.data.dev, min(PARSE_SAMPLE, len(self.data.dev)))
        sampling = self._sampling(self._recipe.rl.temperature)

        def work(folder: Path) -> None:
            set_seed(self._recipe.seed)
            on_batch = partial(self._on_progress, "Parse rate")
            sampler = Sampler.load(teacher, prompting, self._recipe.evaluate.precision)
            found = by_reasoning("cot_sft", pairs, prompting, sampler, sampling, on_batch)
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

    def soft_labels(self, prompting: Prompting, teacher: Path) -> Path:
        """Let the teacher label training pairs, or take the labels in the recipe's `label.folder`."""
        config, seed, max_tokens = self._recipe.label, self._recipe.seed, self._recipe.rl.max_tokens
        if config.folder is not None:
            return self._copy_labels(self._root / config.folder)
        train = self.data.train
        most = len(train) if config.pairs is None else min(config.pairs, len(train))
        pairs = pick_distinct(train, most, config.source_exponent, seed)

        def work(folder: Path) -> None:
            set_seed(seed)
            on_batch = partial(self._on_progress, "Soft labels")
            labels = label_pairs(pairs, prompting, teacher, config, max_tokens, on_batch)
            write_soft_labels(folder / SOFT_LABELS, labels)

        inputs = {
            "teacher": teacher.name,
            "config": config.model_dump(exclude={"folder"}),
            "max_tokens": max_tokens,
            "seed": seed,
        }
        return self._stages.do("label", inputs, work)

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
        shared = partial(
            FoldTraining, self._recipe, self.data_folder, run=self.run_job, on_progress=self._on_progress
        )
        traces = evidence and evidence / EVIDENCE
        teachers = make_teachers(shared(*student), shared(*teacher, evidence=traces), self._on_progress)
        stacking = Stacking(
            self._recipe, self.data.train, self.data_folder.name, self._stages, self._on_progress
        )
        mined = read_mined(unlabelled) if unlabelled else []
        return stacking.grade(teachers, soft_labels, mined, self.dev_pairs())

    def _copy_labels(self, source: Path) -> Path:
        def work(folder: Path) -> None:
            labels = [label for shard in shards for label in read_soft_labels(shard).values()]
            write_soft_labels(folder / SOFT_LABELS, labels)

        shards = sorted(source.glob("labels-*.jsonl"))
        if not shards:
            raise RunError(f"{source} has no labels-*.jsonl: make them with `notegrade-train label`")
        return self._stages.do("label", {"shards": [hash_file(shard) for shard in shards]}, work)

    def unlabelled(self) -> Path | None:
        """Mine pairs that nobody judged from the training pairs; None where the recipe asks for none. Raises EncoderError."""
        recipe, config = self._recipe, self._recipe.unlabelled
        if not config.pairs:
            return None

        def work(folder: Path) -> None:
            encode = Encoder(config.encoder, self._on_progress).encode if config.encoder else None
            # Under cross-validation the dev pairs are training pairs of the files.
            measured = measured_queries(recipe, self._root) | {
                query_hash(pair.query) for pair in self.data.dev
            }
            write_mined(folder, mine(self.data.train, measured, recipe, encode, self._on_progress))

        inputs = {
            "data": self.data_folder.name,
            "config": config.model_dump(),
            "max_query_tokens": recipe.model.limits.max_query_tokens,
            "seed": recipe.seed,
        }
        return self._stages.do("unlabelled", inputs, work)

    def as_adapter(self, student: Path, base: Path, soft_labels: Path, prompting: Prompting) -> Path:
        """Return the student to serve: base and low-rank adapter merged where the recipe asks for an adapter.

        Raises RunError when no pair has a soft label, on which the adapter is fitted.
        """
        rank, config = self._recipe.export.adapter_rank, self._recipe.distil
        if rank is None:
            return student
        self._on_progress("Extract the adapter", 0, 1)

        def work(folder: Path) -> None:
            labels = read_soft_labels(soft_labels / SOFT_LABELS)
            labelled = [pair for pair in self.data.train if pair.id in labels]
            if not labelled:
                raise RunError(
                    "no pair has a soft label to fit the adapter on, because no sampled trace of the teacher parses: "
                    'lower rl.learning_rate, or set label.teacher = "cot_sft"'
                )
            sampled = Random(self._recipe.seed).sample(labelled, min(_CUT_PAIRS, len(labelled)))
            examples = [make_example(pair, labels[pair.id], prompting, config) for pair in sampled]
            rows = [example.prompt + example.completion for example in examples]
            energy = extract_lora(str(base), student, folder / ADAPTER, rank, rows, name=read_base(base).name)
            (folder / CUT).write_text(json.dumps({"energy_kept": energy}), encoding="utf-8")
            merge_folder(str(base), folder / ADAPTER, folder)

        inputs = {"student": student.name, "base": base.name, "rank": rank, "labels": soft_labels.name}
        return self._stages.do("cut", {**inputs, "pairs": _CUT_PAIRS, "seed": self._recipe.seed}, work)

    def dev_pairs(self) -> list[Pair]:
        """Return the dev pairs that all systems are measured on."""
        return sample_dev(self.data.dev, self._recipe.evaluate.max_pairs, Random(self._recipe.seed))

    def predict(
        self, system: str, pairs: Sequence[Pair], prompting: Prompting, model: Path, *, reasons: bool = False
    ) -> Predictions:
        """Predict the pairs' grades with a model that writes the grade first or, if it `reasons`, a trace first."""
        config, greedy = self._recipe.evaluate, self._sampling(0.0)

        def work(folder: Path) -> None:
            sampler = Sampler.load(model, prompting, config.precision)
            on_batch = partial(self._on_progress, f"Predict {system}")
            if reasons:
                found = by_reasoning(system, pairs, prompting, sampler, greedy, on_batch)
            else:
                found = directly(system, pairs, prompting, sampler, config.batch_size, on_batch)
            write_predictions(folder / _PREDICTIONS, found)

        inputs = {
            "model": model.name,
            "form": (prompting.form if reasons else prompting.form.of_student).to_json(),
            "pairs": hash_of([pair.id for pair in pairs]),
            "data": self.data_folder.name,
            "sampling": asdict(greedy),
            "precision": config.precision,
        }
        folder = self._stages.do(self._predict_stage(system, pairs), inputs, work)
        return read_predictions(folder / _PREDICTIONS, system)

    def predict_by_cosine(self, encoder: str, pairs: Sequence[Pair]) -> Predictions:
        """Predict the pairs' grades with an off-the-shelf encoder. Raises EncoderError."""
        name = Path(encoder).name

        def work(folder: Path) -> None:
            loaded = Encoder(encoder, self._on_progress)
            write_predictions(folder / _PREDICTIONS, by_cosine(loaded, self.data.train, pairs, len(GRADES)))

        inputs = {
            "encoder": encoder,
            "pairs": hash_of([pair.id for pair in pairs]),
            "data": self.data_folder.name,
        }
        folder = self._stages.do(self._predict_stage(name, pairs), inputs, work)
        return read_predictions(folder / _PREDICTIONS, name)

    def predict_by_cross_encoder(self, pairs: Sequence[Pair], model: Path) -> Predictions:
        """Predict the pairs' grades with the cross-encoder."""
        teacher = CrossEncoderTeacher(self._recipe.cross_encoder, self._recipe.seed, self._on_progress)

        def work(folder: Path) -> None:
            found = by_log_probabilities(teacher.name, teacher.features(pairs, model))
            write_predictions(folder / _PREDICTIONS, found)

        inputs = {"model": model.name, "pairs": hash_of([pair.id for pair in pairs])}
        folder = self._stages.do(self._predict_stage(teacher.name, pairs), inputs, work)
        return read_predictions(folder / _PREDICTIONS, teacher.name)

    def explain(self, prompting: Prompting, student: Path, fitted: Fitted) -> dict[str, Figures]:
        """Measure the student's explanations of the grades that these fits give, on some dev pairs of each source."""
        config, seed = self._recipe.evaluate, self._recipe.seed
        if not config.explanations:
            return {}
        pairs = sample_each(self.data.dev, config.explanations, Random(seed))

        def work(folder: Path) -> None:
            sampler = Sampler.load(student, prompting, config.precision)
            explainer = Explainer(prompting, sampler, self._sampling(0.0), serve_by(fitted))
            found = explainer.measure(pairs, seed, partial(self._on_progress, "Explain"))
            write_whole(folder / _EXPLANATIONS, json.dumps(to_json(found)))

        inputs = {
            "student": student.name,
            "form": prompting.form.of_student.to_json(),
            "fitted": fitted.to_json(),
            "pairs": hash_of([pair.id for pair in pairs]),
            "sampling": asdict(self._sampling(0.0)),
            "precision": config.precision,
            "seed": seed,
        }
        folder = self._stages.do("explain", inputs, work)
        return read_figures((folder / _EXPLANATIONS).read_text(encoding="utf-8"))

    def _predict_stage(self, system: str, pairs: Sequence[Pair]) -> str:
        """Name the stage that predicts the pairs that systems are compared on, or all dev pairs where these are more."""
        return f"predict_{system}_on_all" if len(pairs) > len(self.dev_pairs()) else f"predict_{system}"

    def _sampling(self, temperature: float) -> Sampling:
        return Sampling(self._recipe.rl.max_tokens, temperature, self._recipe.evaluate.batch_size)
