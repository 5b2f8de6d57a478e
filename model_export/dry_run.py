"""The plan of a run: its data, models and stages, without training anything or loading weights.

Parameters are counted on the models themselves, built on torch's meta device, where weights take no memory.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from model_export.data.criteria import load_criteria
from model_export.data.held_out import HeldOut, read_test
from model_export.data.pairs import listed
from model_export.data.prepare import Data, missing_files, read_data
from model_export.data.template import find_template
from model_export.gpu_plan import describe_on_gpus, large_stages
from model_export.models.base_model import empty_base, locate_base
from model_export.models.tiny_model import empty_tiny_model
from model_export.recipe import PARSE_SAMPLE, TINY_BASE, Recipe
from model_export.recipe_stages import CrossEncoderConfig, LabelConfig, OwnTracesConfig, TrainConfig
from model_export.training.learned_weights import learn_linears

_GIB = 1024**3
# Bytes of a float32 weight, and of the gradient and Adam's two moments of one that learns.
_WEIGHT_BYTES, _LEARNING_BYTES = 4, 12


def describe_plan(recipe: Recipe, data_root: Path) -> str:
    """Describe what `notegrade-train run` would do with the data under `data_root`.

    Pairs are read and checked where all files are there. Raises NotegradeError for what the run would refuse:
    bad rows, an unknown template or criteria, a base that is not there.
    """
    find_template(recipe.model.template)
    for source in recipe.data.sources:
        load_criteria(source.criteria)
    missing = missing_files(recipe.data, data_root)
    data = None if missing else read_data(recipe, data_root)
    plan = _Plan(recipe, len(data.train) if data else None)
    lines = [f"Plan of recipe {recipe.name}, seed {recipe.seed}. Nothing is trained.", ""]
    held_out = read_test(recipe, data_root, data) if data and recipe.data.has_test else None
    about = (
        _describe_data(data, held_out) if data else [f"missing under DATA, needed to run: {listed(missing)}"]
    )
    lines += ["Data", *(f"  {line}" for line in about), ""]
    lines += ["Models", *(f"  {line}" for line in plan.models()), ""]
    lines += ["Stages", *(f"  {name:<30} {what}" for name, what in plan.stages()), ""]
    if on_gpus := list(plan.on_gpus()):
        lines += ["On H100 GPUs", *(f"    {line}".rstrip() for line in on_gpus), ""]
    lines.append(
        "A stage's weights, gradients and Adam leave out activations, logits, KV caches and libraries."
    )
    return "\n".join(lines)


def _describe_data(data: Data, held_out: HeldOut | None) -> Iterator[str]:
    """Describe the numbers of pairs of each source."""
    test = Counter(pair.source for pair in held_out.pairs) if held_out else Counter[str]()
    train, dev = (Counter(pair.source for pair in pairs) for pairs in (data.train, data.dev))
    for name in train:
        aside = f", {test[name]:,} set aside to test" if test[name] else ""
        yield f"{name}: {train[name]:,} pairs to train on, {dev[name]:,} to measure on{aside}"


class _Plan:
    def __init__(self, recipe: Recipe, train_pairs: int | None) -> None:
        self._recipe = recipe
        self._train_pairs = train_pairs
        model = recipe.model
        self._student = _empty_model(model.student_base, recipe, model.student_base_config)
        one_base = model.teacher == model.student_base
        self._teacher = (
            self._student if one_base else _empty_model(model.teacher, recipe, model.teacher_config)
        )

    def models(self) -> Iterator[str]:
        model, launch = self._recipe.model, self._recipe.launch
        if model.teacher == model.student_base:
            yield f"teacher and student: {_describe_model(model.teacher, self._teacher)}"
        else:
            yield f"teacher: {_describe_model(model.teacher, self._teacher)}"
            yield f"student: {_describe_model(model.student_base, self._student)}"
        shared = f"; sharded (FSDP): {', '.join(launch.fsdp)}" if launch.fsdp else ""
        yield f"processes of each training stage: {launch.processes}{shared}"
        if launch.ray_workers:
            yield f"workers on Ray that label and compute the features of the stack's models: {launch.ray_workers}"

    def on_gpus(self) -> Iterator[str]:
        """Yield the table of the large stages on GPUs; nothing for a recipe of one process, or a base of unknown size."""
        if self._recipe.launch.processes > 1 and self._student is not None and self._teacher is not None:
            stages = large_stages(self._recipe, self._student, self._teacher, self._train_pairs)
            yield from describe_on_gpus(list(stages), self._recipe.launch.processes)

    @property
    def _dev(self) -> str:
        most = self._recipe.evaluate.max_pairs
        return "all dev pairs" if most is None else f"at most {most:,} dev pairs"

    def stages(self) -> Iterator[tuple[str, str]]:
        """Name each stage and say what it does, in the order in which the run comes to them."""
        recipe, model = self._recipe, self._recipe.model
        most, dev = recipe.evaluate.max_pairs, self._dev
        yield "data", "read and check the pairs"
        yield "student_base", f"write {model.student_base} as a float32 transformers folder"
        yield "label_only_sft", self._supervised("label_only_sft", self._student)
        if recipe.cross_encoder.steps:
            yield "cross_encoder", self._cross_encoder()
        for encoder in recipe.evaluate.encoders:
            yield (
                f"predict_{Path(encoder).name}",
                f"cosines of {dev} and of 500 training pairs of each source",
            )
        if recipe.cross_encoder.steps:
            yield "predict_cross_encoder", f"direct grades of {dev}"
        for system in ("zero_shot", "label_only_sft"):
            yield f"predict_{system}", f"direct grades of {dev}"
        if model.teacher != model.student_base:
            yield "teacher_base", f"write {model.teacher} as a float32 transformers folder"
        own = (
            f"the teacher's own traces of {recipe.own_traces.pairs:,} pairs: those that are true and reach the gold grade"
            f"{self._sampling(recipe.own_traces, recipe.own_traces.pairs)}"
        )
        if recipe.cot_sft.traces == "own":
            yield "own_traces", own
        elif recipe.data.sources:
            searched = recipe.evidence.pairs
            yield (
                "evidence",
                f"spans that the control's grades rest on, for {searched:,} pairs without findings",
            )
        if recipe.cot_sft.steps:
            yield "cot_sft", self._supervised("cot_sft", self._teacher)
            rate = recipe.cot_sft.min_parse_rate
            yield "parse_rate", f"gate: at least {rate:.0%} of up to {PARSE_SAMPLE} sampled traces parse"
        if recipe.self_sft.steps:
            yield "own_traces", own
            yield "self_sft", self._supervised("self_sft", self._teacher)
        if recipe.rl.steps:
            yield "rl", self._rl()
        if recipe.label.teacher != "label_only_sft":
            yield "label", self._label()
        if mined := recipe.unlabelled.pairs:
            by = f"BM25 and {Path(recipe.unlabelled.encoder).name}" if recipe.unlabelled.encoder else "BM25"
            yield "unlabelled", f"mine about {mined:,} unjudged pairs by {by}"
        yield from self._stack()
        if rank := recipe.distil.start_rank:
            yield (
                "reduce",
                f"reduce what the student starts from to a difference of rank {rank} from its base",
            )
        yield "distil", self._supervised("distil", self._student)
        if recipe.encode.steps:
            yield "text_readings", "the student's own readings, which the readers of vectors learn from"
            yield "encode", f"two models, {self._supervised('encode', self._student)} for each"
        if rank := recipe.export.adapter_rank:
            yield "cut", f"reduce the student's difference to its base to an adapter of rank {rank}"
        for system in self._teachers():
            yield f"predict_{system}", f"grades after reasoning of {dev}"
        yield "predict_student", f"direct grades of {dev}"
        if most is not None:
            yield from self._predicted_on_all()
        if explained := recipe.evaluate.explanations:
            yield "explain", f"explanations of at most {explained:,} dev pairs of each source"
        if recipe.encode.steps:
            yield "predict_text_student", f"direct grades of {dev} by the student before `encode`"
            for parts in recipe.encode.vectors:
                yield f"predict_vectors_{parts}", f"grades of {dev} from {parts} vectors a note"
            yield "predict_encoder_cosine", f"grades of {dev} by the cosine of the encoder's vectors"
        yield "export", f"calibrate, write the checkpoint and check its gates: {', '.join(self._gates())}"

    def _predicted_on_all(self) -> Iterator[tuple[str, str]]:
        encoders = [Path(encoder).name for encoder in self._recipe.evaluate.encoders]
        if self._recipe.cross_encoder.steps:
            encoders.append("cross_encoder")
        for system in ("student", *encoders):
            yield f"predict_{system}_on_all", "grades of all dev pairs, if these are more"

    def _teachers(self) -> Iterator[str]:
        recipe = self._recipe
        steps = {"cot_sft": recipe.cot_sft.steps, "self_sft": recipe.self_sft.steps, "rl": recipe.rl.steps}
        return (stage for stage, count in steps.items() if count)

    def _supervised(self, stage: str, model: PreTrainedModel | None, steps: int | None = None) -> str:
        config: TrainConfig = getattr(self._recipe, stage)
        config = config.model_copy(update={"steps": steps}) if steps else config
        return f"{self._steps(config)}{self._memory(stage, model, config.frozen_layers, config.lora_rank)}"

    def _cross_encoder(self) -> str:
        config = self._recipe.cross_encoder
        return f"{self._steps(config)}; all weights of {config.base} learn, in one process"

    def _steps(self, config: TrainConfig | CrossEncoderConfig) -> str:
        examples = config.steps * config.batch_size
        pairs = config.pairs or self._train_pairs
        each = f", {examples / pairs:.1f} per pair" if pairs else ""
        return f"{config.steps:,} steps of {config.batch_size:,} examples: {examples:,} in all{each}"

    def _rl(self) -> str:
        config = self._recipe.rl
        rollouts = -(-config.steps // config.iterations) * config.prompts * config.rollouts
        mask = "without a step mask" if config.mask == "none" else f"with the step mask {config.mask}"
        steps = f"{config.steps:,} steps of {config.prompts:,} prompts with {config.rollouts} rollouts each"
        memory = self._memory("rl", self._teacher, config.frozen_layers, copies=2 if config.beta else 1)
        return f"GRPO {mask}, {steps}: {rollouts:,} rollouts in all{memory}"

    def _label(self) -> str:
        config = self._recipe.label
        if config.folder is not None:
            return f"read the labels in DATA/{config.folder}"
        pairs = "all pairs" if config.pairs is None else f"at most {config.pairs:,} pairs"
        sampling = self._sampling(config, config.pairs or self._train_pairs)
        return (
            f"soft labels by {config.teacher} for {pairs}; reasoning paths per pair: {config.paths}{sampling}"
        )

    def _sampling(self, config: LabelConfig | OwnTracesConfig, pairs: int | None) -> str:
        """Say how many tokens are sampled at most, where Ray does it."""
        if not self._recipe.launch.ray_workers or pairs is None:
            return ""
        tokens = pairs * config.paths * self._recipe.rl.max_tokens
        return f"; at most {tokens / 1e6:,.1f}M tokens"

    def _stack(self) -> Iterator[tuple[str, str]]:
        """Name the stages of the stack."""
        recipe, config = self._recipe, self._recipe.stack
        if not config.teachers:
            return
        taught = "all training pairs" if config.pairs is None else f"at least {config.pairs:,} training pairs"
        about = f"{taught} and {self._dev}"
        learners = {
            "label_only": self._supervised("label_only_sft", self._student, config.label_only_steps),
            "cross_encoder": self._cross_encoder(),
            "reasoning": self._supervised("cot_sft", self._teacher),
        }
        trained: set[str] = set()
        for kind in config.teachers:
            if kind not in learners:
                names = [Path(each).name for each in config.encoders] if kind == "cosine" else [kind]
                yield from ((f"features_{name}", f"of {about}") for name in names)
                continue
            needed = (
                ["label_only"] if kind == "reasoning" and recipe.cot_sft.start == "label_only_sft" else []
            )
            for fold in range(config.folds):
                for name in [*needed, kind]:
                    if name not in trained:
                        yield f"teacher_{name}_{fold}", learners[name]
                yield f"features_{kind}_{fold}", f"of those of {about} that are in the fold"
            trained |= {*needed, kind}
        yield "stack", "a regression from the features to the grade, for each fold and source"

    def _gates(self) -> Iterator[str]:
        export = self._recipe.export
        yield "label mass"
        if export.int8:
            yield "int8 against float32"
        if export.with_vllm:
            yield f"vLLM against transformers on probes and {export.gate_pairs} dev pairs"

    def _memory(
        self,
        stage: str,
        model: PreTrainedModel | None,
        frozen_layers: int,
        lora_rank: int | None = None,
        copies: int = 1,
    ) -> str:
        if model is None:
            return ""
        from_scratch = self._recipe.model.student_base == TINY_BASE
        with nullcontext() if from_scratch else learn_linears(model, frozen_layers, lora_rank):
            learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            weights, optimizer = _WEIGHT_BYTES * copies * model.num_parameters(), _LEARNING_BYTES * learning
        launch = self._recipe.launch
        per_process = 1 / launch.processes if stage in launch.fsdp else 1.0
        return (
            f"; {learning / 1e6:,.1f}M parameters learn; weights {_bytes(weights * per_process)}, "
            f"gradients and Adam {_bytes(optimizer * per_process)} a process"
        )


def _empty_model(name: str, recipe: Recipe, stated: Mapping[str, object] | None) -> PreTrainedModel | None:
    return empty_tiny_model(recipe.model.tiny) if name == TINY_BASE else empty_base(locate_base(name), stated)


def _describe_model(name: str, model: PreTrainedModel | None) -> str:
    if model is None:
        return f"{name}, of unknown size until its configuration is cached: hf download {name} config.json"
    parameters = model.num_parameters()
    layers = model.config.num_hidden_layers
    size = _bytes(_WEIGHT_BYTES * parameters)
    return f"{name}, {parameters / 1e6:,.1f}M parameters, {layers} layers, {size} as float32"


def _bytes(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB else f"{size / 1024**2:,.0f} MiB"
