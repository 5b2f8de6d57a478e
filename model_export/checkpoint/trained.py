"""Hold the fields that training sets in a checkpoint beside its weights: prompt, limits, calibration and metrics."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model_export.checkpoint.model_card import TrainingNotes
from service.contract.manifest import Calibration, Criteria, Decision, Limits, Lineage


class TrainedVectors(BaseModel):
    """The fields of a checkpoint's second reading that training sets; `VectorReading` describes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_note: int = Field(ge=1)
    max_note_tokens: int = Field(ge=1)
    block: int = Field(ge=1)
    calibration: Calibration = Calibration()
    decisions: tuple[Decision, ...] = ()
    dev_metrics: dict[str, float] = Field(default_factory=dict)


class Trained(BaseModel):
    """The fields that a checkpoint's spec and an adapter's description share.

    Attributes:
        criteria: the first is the default, with which the probes are rendered.
        vectors: the second reading; None without an encoder.
        training: the training sections of the card; None for a zero-shot checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    criteria: tuple[Criteria, ...] = Field(min_length=1)
    lineage: Lineage
    limits: Limits = Limits(max_query_tokens=128, max_note_tokens=256)
    calibration: Calibration = Calibration()
    decisions: tuple[Decision, ...] = ()
    dev_metrics: dict[str, float] = Field(default_factory=dict)
    vectors: TrainedVectors | None = None
    training: TrainingNotes | None = None

    def shared(self) -> dict[str, Any]:
        """Return these fields, to make the spec from a description or the other way round."""
        return {name: getattr(self, name) for name in Trained.model_fields}
