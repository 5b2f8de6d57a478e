"""The plan of a run: its stages with their sizes, without training or loading anything.

All of it is arithmetic on the recipe, the shapes of its bases and the number of its data's lines, so that a recipe for
a machine with GPUs can be looked at anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_export.data.data_size import DataSize, measure_data
from model_export.estimates import (
    BACKWARD,
    FORWARD,
    GIB,
    Batch,
    Memory,
    Training,
    inference_memory,
)
from model_export.models.model_shape import Shape, find_shape
from model_export.recipe import PARSE_SAMPLE, TINY_BASE, LaunchConfig, Recipe, TrainConfig

# Two cores in bfloat16, as they trained SmolLM2-135M; what a current data-centre GPU may sustain: an assumption.
CPU_FLOPS, GPU_FLOPS = 0.25e12, 300e12


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage, in words, and in figures where they are known. `processes` is how many share the compute."""

    name: str
    what: str
    memory: tuple[str, ...] = ()
    flops: float = 0
    processes: int = 1


def describe_plan(recipe: Recipe, data_root: Path) -> str:
    """What `notegrade-train run` would do with the data under `data_root`, as text.

    Raises NotegradeError for what the recipe names and nobody has: a template, criteria, a folder that is no model.
    """
    plan = _Plan(recipe, measure_data(recipe, data_root))
    stages = list(plan.stages())
    lines = [f"Plan of recipe {recipe.name}, seed {recipe.seed}: nothing is trained or loaded", ""]
    lines += ["Data", *(f"  {line}" for line in plan.data.lines), ""]
    lines += ["Models", *(f"  {line}" for line in plan.models()), ""]
    lines += ["Stages", *(line for stage in stages for line in _stage_lines(stage)), ""]
    lines += _totals(stages)
    return "\n".join(lines)


class _Plan:
    def __init__(self, recipe: Recipe, data: DataSize) -> None:
        self.data = data
        self._recipe = recipe
        self._launch = recipe.launch
        self._trace = recipe.rl.max_tokens
        self._student = find_shape(recipe.model.student_base, recipe.model.tiny)
        self._teacher = find_shape(recipe.model.teacher, recipe.model.tiny)

    def models(self) -> Iterator[str]:
        model = self._recipe.model
        if model.teacher == model.student_base:
            yield f"teacher and student: {model.teacher}, {_describe_shape(self._teacher)}"
        else:
            yield f"teacher: {model.teacher}, {_describe_shape(self._teacher)}"
            yield f"student: {model.student_base}, {_describe_shape(self._student)}"
        yield f"a prompt is about {self.data.prompt:,} tokens, a trace at most {self._trace:,}"
        processes = self._launch.processes
        shared = " with FSDP" if self._launch.fsdp else ""
        yield f"training stages: {processes} process{'es' if processes > 1 else ''}{shared}; all others: 1 process"

    def stages(self) -> Iterator[PlannedStage]:
        recipe, model = self._recipe, self._recipe.model
        yield PlannedStage("data", "read, check and sample the pairs")
        yield PlannedStage("student_base", f"write {model.student_base} {_on_disk(self._student)}")
        if model.teacher != model.student_base:
            yield PlannedStage("teacher_base", f"write {model.teacher} {_on_disk(self._teacher)}")
        yield self._supervised("label_only_sft", recipe.label_only_sft, self._student, 0)
        yield self._supervised("cot_sft", recipe.cot_sft, self._teacher, self._trace)
        yield self._parse_rate()
        yield from map(self._reinforce, recipe.rl.stages)
        yield self._label()
        yield self._distil()
        if share := recipe.distil.control_share:
            yield PlannedStage("average", f"the student's weights, and {share:.0%} of label_only_sft's")
        if rank := recipe.export.adapter_rank:
            yield PlannedStage("cut", f"the student's difference to its base, to rank {rank}")
        yield from self._predictions()
        yield PlannedStage(
            "evaluation",
            f"{6 + len(recipe.rl.stages)} systems in one table, {recipe.evaluate.draws:,} bootstrap draws",
        )
        yield PlannedStage("export", f"calibrate, write and pass the gates: {', '.join(self._gates())}")

    def _supervised(self, name: str, config: TrainConfig, shape: Shape | None, tail: int) -> PlannedStage:
        examples, length = config.steps * config.batch_size, self.data.prompt + tail
        taken = self.data.train if config.pairs is None else config.pairs
        each = f", {examples / taken:.1f} for each pair" if taken else ""
        what = (
            f"{config.steps:,} steps of {config.batch_size:,} examples{self._each(config.batch_size)}: "
            f"{examples:,} in all{each}, "
            f"about {_short(examples * length)} tokens"
        )
        if shape is None:
            return PlannedStage(name, what)
        learning = self._learning(shape, config.frozen_layers)
        batch = Batch(config.batch_size // self._launch.processes, length, tail + 1)
        training = Training(shape, learning, batch, config.precision == "bfloat16")
        return PlannedStage(
            name,
            f"{what}; {_short(learning)} of {_short(shape.parameters)} parameters learn",
            self._training_memory(training),
            length * _passes(shape, learning, examples, once=config.keep_outputs and taken),
            self._launch.processes,
        )

    def _reinforce(self, name: str) -> PlannedStage:
        config, shape, length = self._recipe.rl, self._teacher, self.data.prompt + self._trace
        size = config.prompts * config.rollouts
        sampled, trained = -(-config.steps // config.iterations) * size, config.steps * size
        what = (
            f"GRPO {'with' if name == 'sam' else 'without'} the step mask: {config.steps:,} steps of {config.prompts} prompts with {config.rollouts} rollouts each"
            f"{self._each(size)}: {sampled:,} rollouts{' by vLLM' if config.vllm else ''}, "
            f"about {_short(sampled * length)} tokens"
        )
        if shape is None:
            return PlannedStage(name, what)
        learning = self._learning(shape, config.frozen_layers)
        training = Training(
            shape,
            learning,
            Batch(size // self._launch.processes, length, self._trace + 1),
            config.precision == "bfloat16",
            generates=not config.vllm,
            reference=config.beta > 0,
        )
        memory = self._training_memory(training)
        if config.vllm:
            memory += ("vLLM beside it: bfloat16 weights and KV cache in 0.3 of the GPU, TRL's default",)
        read = sampled + (trained if config.beta else 0)
        a_token = FORWARD * shape.parameters * read + _passes(shape, learning, trained)
        return PlannedStage(name, what, memory, length * a_token, self._launch.processes)

    def _parse_rate(self) -> PlannedStage:
        pairs = PARSE_SAMPLE if self.data.dev is None else min(PARSE_SAMPLE, self.data.dev)
        least = self._recipe.cot_sft.min_parse_rate
        what = f"gate: at least {least:.0%} of {pairs} sampled traces parse"
        return self._infer("parse_rate", what, self._teacher, pairs, self._recipe.evaluate.batch_size)

    def _label(self) -> PlannedStage:
        config = self._recipe.label
        pairs = _least(config.pairs, self.data.train)
        count = "all" if pairs is None else f"{pairs:,}"
        what = f"soft labels by {config.teacher} for {count} pairs, {config.paths} paths each"
        return self._infer("label", what, self._teacher, (pairs or 0) * config.paths, config.batch_size)

    def _distil(self) -> PlannedStage:
        config = self._recipe.distil
        shape = self._student
        if shape and config.layers:
            shape = shape.keep_layers(min(config.layers, shape.layers))
        return self._supervised("distil", config, shape, self._trace if config.trace_weight else 0)

    def _predictions(self) -> Iterator[PlannedStage]:
        pairs = _least(self._recipe.evaluate.max_pairs, self.data.dev)
        on = "all dev pairs" if pairs is None else f"{pairs:,} dev pairs"
        size = self._recipe.evaluate.batch_size
        direct = f"direct answers of zero_shot, label_only_sft, student on {on}"
        yield self._infer("predictions", direct, self._student, 3 * (pairs or 0), size, traces=False)
        teachers = ("cot_sft", *self._recipe.rl.stages)
        reasoned = f"reasoned answers of {', '.join(teachers)} on {on}"
        yield self._infer("predictions", reasoned, self._teacher, len(teachers) * (pairs or 0), size)

    def _infer(
        self, name: str, what: str, shape: Shape | None, sequences: int, size: int, *, traces: bool = True
    ) -> PlannedStage:
        if shape is None:
            return PlannedStage(name, what)
        trace = self._trace if traces else 0
        batch = Batch(size, self.data.prompt + trace, trace + 1)
        # A trace is read once more, for the answer distribution at its end.
        passes = 2 if traces else 1
        flops = passes * FORWARD * shape.parameters * sequences * batch.length
        return PlannedStage(name, what, (_describe_memory(inference_memory(shape, batch)),), flops)

    def _gates(self) -> Iterator[str]:
        export = self._recipe.export
        yield "label mass"
        if export.int8:
            yield "int8 against float32"
        if export.with_vllm:
            yield f"vLLM against transformers on probes and {export.gate_pairs} dev pairs"

    def _each(self, size: int) -> str:
        processes = self._launch.processes
        return "" if processes == 1 else f", {size // processes:,} a process"

    def _learning(self, shape: Shape, frozen_layers: int) -> int:
        if self._recipe.model.student_base == TINY_BASE:
            return shape.parameters
        return shape.linear * max(shape.layers - frozen_layers, 0) // shape.layers

    def _training_memory(self, training: Training) -> tuple[str, ...]:
        processes = self._launch.processes
        alone = _describe_memory(training.memory(LaunchConfig(processes=processes)))
        if processes == 1:
            return (alone,)
        shared = _describe_memory(training.memory(LaunchConfig(processes=processes, fsdp=True)))
        chosen = ("", ", as the recipe says") if self._launch.fsdp else (", as the recipe says", "")
        return f"without FSDP{chosen[0]}: {alone}", f"with FSDP{chosen[1]}: {shared}"


def _passes(shape: Shape, learning: int, examples: int, *, once: int | None = None) -> float:
    """FLOPs a token to train on so many examples. Frozen weights, the lower ones, are passed forward alone: `once` by so many."""
    frozen = FORWARD * (shape.parameters - learning) * min(once or examples, examples)
    return frozen + (FORWARD + BACKWARD) * learning * examples


def _least(first: int | None, second: int | None) -> int | None:
    return min((number for number in (first, second) if number is not None), default=None)


def _stage_lines(stage: PlannedStage) -> Iterator[str]:
    yield f"  {stage.name:<15} {stage.what}"
    yield from (f"{'':17} {line}" for line in stage.memory)
    if stage.flops:
        yield f"{'':17} {_describe_compute(stage.flops, _gpu_hours(stage))}"


def _totals(stages: list[PlannedStage]) -> Iterator[str]:
    total = sum(stage.flops for stage in stages)
    yield f"All stages: {_describe_compute(total, sum(map(_gpu_hours, stages)))}"
    yield (
        f"Estimates. Hours at {CPU_FLOPS / 1e12:g} TFLOP/s, two cores in bfloat16, and at {GPU_FLOPS / 1e12:g} TFLOP/s a "
        "process, an assumption for a GPU. Sampling and short sequences run far below that. Memory is that of a batch of "
        "mean length, beside a gigabyte or two for the libraries."
    )


def _gpu_hours(stage: PlannedStage) -> float:
    return stage.flops / GPU_FLOPS / stage.processes / 3600


def _describe_compute(flops: float, gpu_hours: float) -> str:
    cpu_hours = flops / CPU_FLOPS / 3600
    return f"{_figure(flops / 1e15)} PFLOP: {_duration(cpu_hours)} on a CPU, {_duration(gpu_hours)} on GPUs"


def _duration(hours: float) -> str:
    return f"{_figure(hours)} h" if hours >= 1 / 60 else "under a minute"


def _describe_memory(memory: Memory) -> str:
    parts = ", ".join(f"{name} {_figure(size / GIB)}" for name, size in memory.parts())
    return f"{_figure(memory.peak / GIB)} GiB a process ({parts})"


def _describe_shape(shape: Shape | None) -> str:
    if shape is None:
        return "of unknown size: neither its name nor a config.json here tells"
    return (
        f"{_short(shape.parameters)} parameters, {shape.layers} layers of {shape.hidden:,}, "
        f"vocabulary {shape.vocabulary:,} (from {shape.source})"
    )


def _on_disk(shape: Shape | None) -> str:
    return "as float32" if shape is None else f"as float32, {_figure(4 * shape.parameters / GIB)} GiB"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _short(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:g}"
