"""The sections of a recipe about the stages that train, label and mine."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model_export.recipe_data import Positive, Strict

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class TrainConfig(Strict):
    """Settings of one supervised stage."""

    steps: Positive
    batch_size: Positive = 16
    micro_batch: Positive | None = None
    learning_rate: Rate = 1e-4
    warmup_share: Share = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Share = 0.0
    pairs: Positive | None = None
    source_exponent: Share = 1.0
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    lora_rank: Positive | None = None
    keep_outputs: bool = False
    save_steps: Positive | None = None
    compile: bool = False

    @model_validator(mode="after")
    def _kept_outputs_need_frozen_layers(self) -> Self:
        if self.keep_outputs and not self.frozen_layers:
            raise ValueError(
                "keep_outputs: there are no frozen layers whose outputs could be kept; set frozen_layers"
            )
        return self


class EvidenceConfig(Strict):
    """Settings of the search for the spans that the label-only control's grades rest on, for pairs without findings."""

    pairs: Positive = 2000
    source_exponent: Share = 0.5
    words: Positive = 8
    spans: Positive = 12
    min_effect: Annotated[float, Field(gt=0)] = 0.05
    batch_size: Positive = 64


class LabelOnlyConfig(TrainConfig):
    """Settings of the label-only control, which learns the grade token and no trace."""

    smoothing: Share = 0.0


class CrossEncoderConfig(Strict):
    """Settings of the cross-encoder, an encoder fine-tuned on gold grades as another control; 0 steps leave it out."""

    warmup_share: ClassVar[float] = 0.1
    schedule: ClassVar[str] = "cosine"
    weight_decay: ClassVar[float] = 0.01

    base: str = "minilm"
    steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Positive = 32
    learning_rate: Rate = 1e-4
    max_tokens: Positive = 128
    smoothing: Share = 0.05
    pairs: Positive | None = None
    source_exponent: Share = 1.0
    save_steps: Positive | None = None


class CotConfig(TrainConfig):
    """Settings of supervised training on reasoning traces; 0 steps leave out all generative teachers."""

    steps: Annotated[int, Field(ge=0)] = 0
    min_parse_rate: Share = 0.9
    start: Literal["base", "label_only_sft"] = "base"
    traces: Literal["gold", "own"] = "gold"
    grade_weight: Annotated[float, Field(gt=0)] = 1.0


class OwnTracesConfig(Strict):
    """Settings of the traces that the teacher samples itself, of which those to learn from are kept."""

    pairs: Positive = 2000
    source_exponent: Share = 0.5
    paths: Positive = 4
    temperature: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 64


class SelfConfig(TrainConfig):
    """Settings of the SFT teacher's training on its own traces; 0 steps leave it out."""

    steps: Annotated[int, Field(ge=0)] = 0


class RlConfig(Strict):
    """Settings of GRPO on TRL, which starts from the SFT teacher; 0 steps leave it out."""

    steps: Annotated[int, Field(ge=0)] = 0
    mask: Literal["none", "final", "step"] = "step"
    prompts: Positive = 8
    rollouts: Annotated[int, Field(ge=2)] = 8
    micro_batch: Positive | None = None
    learning_rate: Rate = 1e-5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Positive = 96
    beta: Annotated[float, Field(ge=0)] = 0.0
    iterations: Positive = 1
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"] = "dapo"
    importance_sampling: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "batch"
    distance_weight: Share = 0.0
    format_weight: Share = 0.1
    truth_weight: Share = 0.0
    consistency_weight: Share = 0.0
    class_weighted: bool = True
    resamples: Annotated[int, Field(ge=0)] = 0
    min_parse_rate: Share = 0.5
    dev_pairs: Annotated[int, Field(ge=0)] = 128
    vllm: bool = False
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    save_steps: Positive | None = None
    eval_steps: Positive | None = None

    @model_validator(mode="after")
    def _mask_can_work(self) -> Self:
        if self.mask != "none" and self.importance_sampling != "token":
            raise ValueError(
                f"importance_sampling: {self.importance_sampling!r} gives all tokens of a rollout one ratio, so masked "
                "tokens would change with the others; use 'token', or mask = 'none'"
            )
        if self.class_weighted and self.scale_rewards == "group":
            raise ValueError(
                "scale_rewards: 'group' divides the class weight out again; use 'batch' or 'none', or class_weighted = false"
            )
        return self


class LabelConfig(Strict):
    """Settings of soft labels: the teacher's answer distribution, averaged over `paths` sampled reasoning paths of each pair."""

    teacher: Literal["label_only_sft", "cot_sft", "self_sft", "rl"] = "rl"
    pairs: Positive | None = None
    source_exponent: Share = 1.0
    paths: Positive = 4
    temperature: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 64
    folder: str | None = None


class UnlabelledConfig(Strict):
    """Settings of the pairs that are mined from the training pairs for the teachers to label; 0 pairs mine none."""

    pairs: Annotated[int, Field(ge=0)] = 0
    source_exponent: Share = 0.5
    titles_share: Share = 0.5
    hard: Share = 0.5
    medium: Share = 0.3
    random: Share = 0.2
    encoder: str = "minilm"

    @model_validator(mode="after")
    def _tiers_are_all(self) -> Self:
        if not math.isclose(total := self.hard + self.medium + self.random, 1):
            raise ValueError(f"hard, medium and random are shares that sum to 1, not {total:g}")
        return self


class DistilConfig(TrainConfig):
    """Settings of the student, which writes the grade first and then a trace, trained on soft labels and the teacher's traces."""

    start: Literal["base", "label_only_sft", "teacher"] = "base"
    start_rank: Positive | None = None
    gold_weight: Share = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    trace_weight: Annotated[float, Field(ge=0)] = 0.1
    agreement_weight: Annotated[float, Field(gt=0)] = 1.0
    smoothing: Share = 0.0
    traced_share: Annotated[float, Field(gt=0, le=1)] | None = None
    unlabelled_share: Share = 0.0
    ranking: Literal["none", "margin", "listwise"] = "none"
    ranking_weight: Annotated[float, Field(ge=0)] = 0.0
    group_size: Annotated[int, Field(ge=2)] = 8

    @model_validator(mode="after")
    def _shares_and_ranking_are_whole(self) -> Self:
        if (self.ranking == "none") != (self.ranking_weight == 0):
            raise ValueError(
                f"ranking_weight: {self.ranking_weight} with ranking = {self.ranking!r}; set both, or neither"
            )
        if (self.traced_share or 1) + self.unlabelled_share > 1:
            raise ValueError("unlabelled_share: needs a traced_share, and both are at most 1 together")
        if self.ranking != "none" and self.group_size > self.batch_size:
            raise ValueError(
                f"group_size: {self.group_size} examples do not fit a batch of {self.batch_size}"
            )
        if self.ranking != "none" and self.micro_batch:
            raise ValueError("micro_batch: would tear the groups of distil.ranking apart; leave it out")
        return self


class EncodeConfig(TrainConfig):
    """Settings of the encoder of note vectors and of the student that reads them; 0 steps leave both out."""

    steps: Annotated[int, Field(ge=0)] = 0
    vectors: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    served: Positive = 4
    max_note_tokens: Positive = 512
    layers: Positive | None = None
    block: Positive = 32
    group_size: Positive = 8
    align_steps: Annotated[int, Field(ge=0)] = 0
    align_weight: Annotated[float, Field(ge=0)] = 1.0
    gold_weight: Share = 0.5
    smoothing: Share = 0.0
    text_share: Share = 0.25
    min_share: Share = 0.97

    @model_validator(mode="after")
    def _serves_what_it_trains(self) -> Self:
        if self.served not in self.vectors:
            raise ValueError(f"served: {self.served} vectors a note are not among the trained {self.vectors}")
        if self.align_steps > self.steps:
            raise ValueError(f"align_steps: {self.align_steps} is more than steps = {self.steps}")
        if self.layers and self.frozen_layers >= self.layers:
            raise ValueError(
                f"frozen_layers: {self.frozen_layers} leaves none of the encoder's layers = {self.layers} to train"
            )
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch: {self.micro_batch} does not divide batch_size = {self.batch_size}"
            )
        return self
