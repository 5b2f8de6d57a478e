"""The recipe: every setting of a training run, as typed sections. recipe_file.py reads one from a file.

docs/recipe.md explains each field; a test compares it with these classes.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model_export.recipe_data import DataConfig, Positive, Strict
from model_export.recipe_stack import StackConfig
from model_export.recipe_stages import (
    CotConfig,
    CrossEncoderConfig,
    DistilConfig,
    EncodeConfig,
    EvidenceConfig,
    LabelConfig,
    LabelOnlyConfig,
    OwnTracesConfig,
    RlConfig,
    SelfConfig,
    Share,
    UnlabelledConfig,
)
from service.contract.manifest import Limits
from service.contract.template import Name

TINY_BASE = "tiny"
PARSE_SAMPLE = 96  # traces sampled to measure the SFT teacher's parse rate
Precision = Literal["float32", "bfloat16"]


class TinyConfig(Strict):
    """Shape of the base `tiny`, which is made from scratch. Its attention heads are 32 wide, the smallest that vLLM runs on a CPU."""

    vocabulary: Positive = 1024
    hidden: Annotated[int, Field(ge=64, multiple_of=32)] = 192
    layers: Positive = 4

    @property
    def heads(self) -> int:
        """Number of attention heads; each has its own keys and values."""
        return self.hidden // 32

    @property
    def intermediate(self) -> int:
        """Width of the feed-forward part of a layer."""
        return self.hidden * 3


class ModelConfig(Strict):
    """The base models, by name as in `notegrade-train assemble`, or `tiny`, and what all models share.

    The student's base is the teacher's by default.
    """

    teacher: str
    student: str | None = None
    teacher_config: dict[str, bool | int | float | str] | None = None
    student_config: dict[str, bool | int | float | str] | None = None
    template: str = "note-first-1"
    limits: Limits = Limits(max_query_tokens=128, max_note_tokens=256)
    precision: Precision = "float32"
    tiny: TinyConfig = TinyConfig()

    @property
    def student_base(self) -> str:
        """Base of the student and of the label-only control."""
        return self.student or self.teacher

    @property
    def student_base_config(self) -> dict[str, bool | int | float | str] | None:
        """Stated configuration of the student's base."""
        return self.student_config if self.student else self.teacher_config


class EvaluateConfig(Strict):
    """Settings of the evaluation."""

    max_pairs: Positive | None = None
    encoders: tuple[str, ...] = ("minilm",)
    explanations: Annotated[int, Field(ge=0)] = 300
    draws: Positive = 1000
    batch_size: Positive = 32


class ExportConfig(Strict):
    """Settings of the exported checkpoint."""

    name: Name | None = None
    int8: bool = False
    adapter_rank: Positive | None = None
    gate_pairs: Positive = 100
    with_vllm: bool = True


class ExperimentConfig(Strict):
    """Settings of the experiment with the step mask; `notegrade-train experiment` reads them."""

    seeds: Annotated[tuple[int, ...], Field(min_length=2)] = (1, 2, 3, 4, 5, 6, 7, 8)
    arms: tuple[Literal["sft", "grpo", "dense", "prefix", "final", "step"], ...] = (
        "sft",
        "grpo",
        "dense",
        "prefix",
        "final",
        "step",
    )
    warm_up_accuracy: Share = 0.6
    measure_at: tuple[Positive, ...] = (25, 50, 100, 150)
    sft_steps_per_rl_step: Annotated[float, Field(gt=0)] = 1.33

    @model_validator(mode="after")
    def _arms_can_be_compared(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: name each arm once")
        if "step" not in self.arms:
            raise ValueError("arms: all arms are compared with the step mask; add 'step'")
        return self


class RolloutsConfig(Strict):
    """The vLLM engines that sample rollouts (`rl.vllm`): in the training processes, or a server on GPUs of its own."""

    mode: Literal["colocate", "server"] = "colocate"
    tensor_parallel: Positive = 1
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    sleep: bool = False
    url: str | None = None

    @model_validator(mode="after")
    def _mode_has_its_fields(self) -> Self:
        if self.sleep and self.mode == "server":
            raise ValueError("sleep: a server has GPUs of its own and never sleeps; use mode = 'colocate'")
        if self.url and self.mode == "colocate":
            raise ValueError("url: the engines are in the training processes; use mode = 'server'")
        return self


class LaunchConfig(Strict):
    """Processes of each training stage, which share each batch, and Ray workers of the stages that label."""

    processes: Positive = 1
    fsdp: tuple[Literal["label_only_sft", "cot_sft", "self_sft", "rl", "distil"], ...] = ()
    ray_workers: Annotated[int, Field(ge=0)] = 0
    ray_address: str = "local"
    rollouts: RolloutsConfig = RolloutsConfig()


class Recipe(Strict):
    """All settings of a training run."""

    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig
    data: DataConfig
    label_only_sft: LabelOnlyConfig
    cross_encoder: CrossEncoderConfig = CrossEncoderConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    cot_sft: CotConfig = CotConfig()
    own_traces: OwnTracesConfig = OwnTracesConfig()
    self_sft: SelfConfig = SelfConfig()
    rl: RlConfig = RlConfig()
    label: LabelConfig
    stack: StackConfig = StackConfig()
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    distil: DistilConfig
    encode: EncodeConfig = EncodeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    experiment: ExperimentConfig = ExperimentConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if self.model.teacher != self.model.student_base and self.cot_sft.start == "label_only_sft":
            raise ValueError(
                "cot_sft.start: label_only_sft is trained from the student's base, and the teacher has another base"
            )
        if self.model.teacher != self.model.student_base and self.distil.start == "teacher":
            raise ValueError("distil.start: the student can't start from a teacher that has another base")
        if self.distil.traced_share is not None and self.distil.pairs is not None:
            raise ValueError(
                "distil.pairs: with distil.traced_share, steps and batch_size set the number of examples; remove one"
            )
        if self.rl.steps == 0 and self.label.teacher == "rl":
            raise ValueError("label.teacher: there is no RL teacher (rl.steps = 0); use cot_sft or self_sft")
        if "cross_encoder" in self.stack.teachers and not self.cross_encoder.steps:
            raise ValueError("stack.teachers: cross_encoder is not trained (cross_encoder.steps = 0)")
        if self.unlabelled.pairs and not self.stack.teachers and not self.encode.steps:
            raise ValueError(
                "unlabelled.pairs: no stage learns from them; set stack.teachers or encode.steps"
            )
        if self.distil.unlabelled_share and not (self.unlabelled.pairs and self.stack.teachers):
            raise ValueError(
                "distil.unlabelled_share: no teacher labels such pairs; set unlabelled.pairs and stack.teachers"
            )
        if self.export.int8 and self.encode.steps:
            raise ValueError("export.int8: int8 weights can't read note vectors; set encode.steps = 0")
        if self.self_sft.steps == 0 and self.label.teacher == "self_sft":
            raise ValueError("label.teacher: there is no self_sft (self_sft.steps = 0)")
        return self

    @model_validator(mode="after")
    def _labels_have_a_teacher(self) -> Self:
        if self.label.teacher != "label_only_sft":
            if not self.cot_sft.steps:
                raise ValueError(
                    "cot_sft.steps: state how many, or set label.teacher = 'label_only_sft', which needs no other teacher"
                )
            return self
        stages = {"cot_sft": self.cot_sft.steps, "self_sft": self.self_sft.steps, "rl": self.rl.steps}
        if trained := [stage for stage, steps in stages.items() if steps]:
            raise ValueError(
                f"label.teacher: the student of label_only_sft learns from no other teacher; leave out {', '.join(trained)}"
            )
        if "reasoning" in self.stack.teachers:
            raise ValueError("stack.teachers: reasoning is not trained (label.teacher = 'label_only_sft')")
        if sampled := self.label.model_fields_set - {"teacher"}:
            raise ValueError(
                f"label.{min(sampled)}: label_only_sft samples no paths, its labels are the evidence; see [evidence]"
            )
        return self

    @model_validator(mode="after")
    def _factors_have_a_base(self) -> Self:
        of_student = ("label_only_sft", "distil", "encode")
        for stage in (*of_student, "cot_sft", "self_sft"):
            base = self.model.student_base if stage in of_student else self.model.teacher
            if getattr(self, stage).lora_rank is None:
                continue
            if base == TINY_BASE:
                raise ValueError(
                    f"{stage}.lora_rank: all weights of {TINY_BASE!r} learn, from random ones; leave it out"
                )
            if stage in self.launch.fsdp:
                raise ValueError(f"{stage}.lora_rank: needs whole weights; leave {stage} out of launch.fsdp")
        return self

    @model_validator(mode="after")
    def _start_leaves_rank_to_learn(self) -> Self:
        start, learned, adapter = self.distil.start_rank, self.distil.lora_rank, self.export.adapter_rank
        if start is None:
            return self
        if self.distil.start == "base":
            raise ValueError("distil.start_rank: a base has no difference to reduce; set distil.start")
        if learned is None or adapter is None or start + learned > adapter:
            raise ValueError(
                "distil.start_rank: with distil.lora_rank it must be at most export.adapter_rank; set all three"
            )
        return self

    @model_validator(mode="after")
    def _processes_can_share(self) -> Self:
        processes = self.launch.processes
        if processes > 1 and any(
            stage.keep_outputs for stage in (self.label_only_sft, self.cot_sft, self.self_sft, self.distil)
        ):
            raise ValueError("keep_outputs: works in one process only, and launch.processes is higher")
        if self.distil.ranking != "none" and processes > 1:
            raise ValueError(
                "distil.ranking: works in one process only, because processes would tear groups apart; set "
                "launch.processes = 1"
            )
        if self.rl.resamples and self.rl.vllm:
            raise ValueError("rl.resamples: works with rollouts by transformers only; set rl.vllm = false")
        if self.rl.resamples and processes > 1:
            raise ValueError("rl.resamples: works in one process only, and launch.processes is higher")
        if self.launch.fsdp and processes == 1:
            raise ValueError("launch.fsdp: needs launch.processes of 2 or more")
        if "rl" in self.launch.fsdp and not self.rl.vllm:
            raise ValueError(
                "launch.fsdp: transformers can't sample from sharded weights; set rl.vllm = true"
            )
        rollouts = self.launch.rollouts
        if rollouts.mode == "colocate" and processes % rollouts.tensor_parallel:
            raise ValueError(
                f"launch.rollouts.tensor_parallel: {rollouts.tensor_parallel} does not divide the {processes} processes"
            )
        # A process holds whole groups of rollouts: the step mask compares the rollouts of a group.
        shares = {
            "label_only_sft.batch_size": (self.label_only_sft.batch_size, self.label_only_sft.micro_batch),
            "distil.batch_size": (self.distil.batch_size, self.distil.micro_batch),
        }
        if self.cot_sft.steps:
            shares["cot_sft.batch_size"] = (self.cot_sft.batch_size, self.cot_sft.micro_batch)
        if self.self_sft.steps:
            shares["self_sft.batch_size"] = (self.self_sft.batch_size, self.self_sft.micro_batch)
        if self.rl.steps:
            shares["rl.prompts"] = (self.rl.prompts, None)
            shares["rl.prompts * rl.rollouts"] = (self.rl.prompts * self.rl.rollouts, self.rl.micro_batch)
        if uneven := [name for name, (size, _) in shares.items() if size % processes]:
            raise ValueError(f"launch.processes: {processes} does not divide {', '.join(uneven)}")
        for name, (size, micro) in shares.items():
            if micro and size // processes % micro:
                raise ValueError(
                    f"micro_batch: {micro} does not divide the {size // processes} examples of a process ({name})"
                )
        return self
