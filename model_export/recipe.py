"""A recipe: everything that a training run is made of. model_export/recipe_file.py reads one."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model_export.recipe_data import DataConfig, Positive, Strict
from service.contract.manifest import Limits, Name

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
TINY_BASE = "tiny"
PARSE_SAMPLE = 96  # traces whose parse rate gates what comes after the warm-up
Precision = Literal["float32", "bfloat16"]


class TinyConfig(Strict):
    """Shape of the model made from scratch for the base `tiny`; heads of 32, the least that vLLM takes on a CPU."""

    vocabulary: Positive = 1024
    hidden: Annotated[int, Field(ge=64, multiple_of=32)] = 192
    layers: Positive = 4

    @property
    def heads(self) -> int:
        """Attention heads, each with keys and values of its own."""
        return self.hidden // 32

    @property
    def intermediate(self) -> int:
        """Width inside a layer."""
        return self.hidden * 3


class ModelConfig(Strict):
    """Bases by name as `notegrade-train assemble` takes them, or `tiny`; the student's is the teacher's by default."""

    teacher: str
    student: str | None = None
    template: str = "note-first-1"
    limits: Limits = Limits(max_query_tokens=128, max_note_tokens=256)
    tiny: TinyConfig = TinyConfig()

    @property
    def student_base(self) -> str:
        """The base that the student and the label-only control start from."""
        return self.student or self.teacher


class TrainConfig(Strict):
    """One supervised stage. `train` says which weights learn: all linear ones, or those of the upper layers alone.

    Attributes:
        schedule: of the learning rate, after its warm-up.
        pairs: how many pairs an epoch takes; all by default.
        source_exponent: a source of n pairs is read as often as n to this power: 1 takes the pairs as they are, less repeats those
            of small sources, 0 reads all sources alike often.
        keep_outputs: what the frozen layers make of each pair is computed once and kept on disk while the stage trains: worth
            it from the second epoch on.
        save_steps: how often the stage's state is kept, for a rerun to go on from; never by default.
        precision: arithmetic of forward and backward passes; weights and optimizer are float32.
        compile: the layers, by torch.compile: a minute at the start of the stage for a third less in each step.
    """

    steps: Positive
    batch_size: Positive = 16
    learning_rate: Rate = 1e-4
    warmup_share: Share = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Share = 0.0
    pairs: Positive | None = None
    source_exponent: Share = 1.0
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    keep_outputs: bool = False
    save_steps: Positive | None = None
    precision: Precision = "float32"
    compile: bool = False

    @model_validator(mode="after")
    def _outputs_are_of_frozen_layers(self) -> Self:
        if self.keep_outputs and not self.frozen_layers:
            raise ValueError(
                "keep_outputs: no layers are frozen (frozen_layers), so there are no outputs to keep"
            )
        return self


class LabelOnlyConfig(TrainConfig):
    """Settings of the label-only control: cross-entropy on the grade token, and no trace."""

    smoothing: Share = 0.0


class CotConfig(TrainConfig):
    """The warm-up on reasoning traces. Below `min_parse_rate` the run stops: RL would see no reward, the student no traces."""

    min_parse_rate: Share = 0.9
    start: Literal["base", "label_only_sft"] = "base"


class RlConfig(Strict):
    """GRPO on TRL, with and without the step mask; both start from the warm-up and take the same steps.

    Attributes:
        steps: of each; 0 leaves both out, and the warm-up is the teacher.
        prompts: prompts a step; `rollouts` is the group of each.
        distance_weight: share of the reward that falls with the distance of the grade; the rest is for the exact one.
        format_weight: reward of a trace that parses, added to the grade's.
        loss: TRL's loss type; sequence-level ones are refused, since they would undo the step mask.
    """

    steps: Annotated[int, Field(ge=0)]
    prompts: Positive = 8
    rollouts: Annotated[int, Field(ge=2)] = 8
    learning_rate: Rate = 1e-5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Positive = 96
    beta: Annotated[float, Field(ge=0)] = 0.0
    iterations: Positive = 1
    loss: str = "dapo"
    importance_sampling: str = "token"
    distance_weight: Share = 0.0
    format_weight: Share = 0.1
    vllm: bool = False
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    save_steps: Positive | None = None
    precision: Precision = "float32"

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages: without the step mask, and with it."""
        return ("grpo", "sam") if self.steps else ()


class LabelConfig(Strict):
    """Soft labels: the teacher's answer distribution, averaged over `paths` sampled reasoning paths of each pair.

    Attributes:
        source_exponent: as in training, but no pair is labelled twice.
        folder: what `notegrade-train label` made, under the data folder; then nothing is sampled here.
        precision: of the teacher's weights and arithmetic.
    """

    teacher: Literal["cot_sft", "grpo", "sam"] = "sam"
    pairs: Positive | None = None
    source_exponent: Share = 1.0
    paths: Positive = 4
    temperature: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 64
    folder: str | None = None
    precision: Precision = "float32"


class DistilConfig(TrainConfig):
    """The student: answers first, by soft labels, then writes the teacher's trace.

    Attributes:
        start: what it is trained from; `teacher`, where both have one base, is the model that wrote the labels.
        gold_weight: share of the gold label in the target, beside the teacher's distribution.
        temperature: of the teacher's distribution: above 1 flattens it.
        trace_weight: weight of the loss on the trace's tokens; the grade token's is 1.
        labelled_share: of all that it reads in its steps, so much are pairs that the teacher has labelled, again and again where
            they are few, and the rest others; unset, it reads the pairs as they are. Where the teacher has labelled few, a student that learns from all pairs sees too few
            traces to write one, and a student that learns from those few alone forgets what it knew of grades.
    """

    start: Literal["base", "label_only_sft", "teacher"] = "base"
    gold_weight: Share = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    trace_weight: Annotated[float, Field(ge=0)] = 0.1
    smoothing: Share = 0.0
    labelled_share: Annotated[float, Field(gt=0, le=1)] | None = None


class EvaluateConfig(Strict):
    """How many dev pairs (whole queries) the systems are measured on: reasoning costs several times more.

    What is exported is measured and calibrated on all.

    Attributes:
        precision: of the weights and arithmetic of what is measured; bfloat16 is what the service runs in where it can.
    """

    max_pairs: Positive | None = None
    draws: Positive = 1000
    batch_size: Positive = 32
    precision: Precision = "float32"


class ExportConfig(Strict):
    """The checkpoint.

    Attributes:
        name: in its manifest; the recipe's by default.
        adapter_rank: cut the student's difference to its base to this rank first, and write the adapter too.
        gate_pairs: how many dev pairs the gates measure macro-F1 on.
        with_vllm: start plain vLLM on the folder and hold it against transformers.
    """

    name: Name | None = None
    int8: bool = False
    adapter_rank: Positive | None = None
    gate_pairs: Positive = 100
    with_vllm: bool = True


class LaunchConfig(Strict):
    """How training stages start: in one process, or by torchrun on several, which share each batch.

    Attributes:
        fsdp: they share the weights as well, and compute activations twice.
    """

    processes: Positive = 1
    fsdp: bool = False


class Recipe(Strict):
    """The whole file."""

    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig
    data: DataConfig
    label_only_sft: LabelOnlyConfig
    cot_sft: CotConfig
    rl: RlConfig
    label: LabelConfig
    distil: DistilConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if self.model.teacher != self.model.student_base and self.cot_sft.start == "label_only_sft":
            raise ValueError(
                "cot_sft.start: label_only_sft is trained on the student's base, the teacher has another"
            )
        if self.model.teacher != self.model.student_base and self.distil.start == "teacher":
            raise ValueError("distil.start: the student can't start from the teacher, which has another base")
        if self.distil.labelled_share is not None and self.distil.pairs is not None:
            raise ValueError(
                "distil.pairs: with distil.labelled_share, steps and batch_size say how many are read; leave one out"
            )
        if self.rl.steps == 0 and self.label.teacher != "cot_sft":
            raise ValueError(
                f"label.teacher: without RL (rl.steps = 0) there is no {self.label.teacher}; take cot_sft"
            )
        return self

    @model_validator(mode="after")
    def _processes_can_share(self) -> Self:
        processes = self.launch.processes
        if processes > 1 and any(
            stage.keep_outputs for stage in (self.label_only_sft, self.cot_sft, self.distil)
        ):
            raise ValueError("keep_outputs: one process keeps them, and launch.processes asks for more")
        if self.launch.fsdp and processes == 1:
            raise ValueError("launch.fsdp: one process has none to share its weights with")
        batches = {
            "label_only_sft.batch_size": self.label_only_sft.batch_size,
            "cot_sft.batch_size": self.cot_sft.batch_size,
            "rl.prompts * rl.rollouts": self.rl.prompts * self.rl.rollouts,
            "distil.batch_size": self.distil.batch_size,
        }
        if uneven := [name for name, size in batches.items() if size % processes]:
            raise ValueError(f"launch.processes: {processes} can't share {', '.join(uneven)} evenly")
        return self
