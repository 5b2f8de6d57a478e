"""The manifest: everything that varies between checkpoints, as data.

`manifest.json` lies in the checkpoint folder; its JSON Schema is published as docs/manifest.schema.json.
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from service.contract.validation import one_line
from service.errors import CheckpointError, ManifestError

FORMAT_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"

Slot = Literal["criteria", "query", "title", "body"]
Probability = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Temperature = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Strict):
    """One grade, the single token that names it, and its gain (nDCG's 2^grade - 1 unless stated otherwise)."""

    grade: int = Field(ge=0)
    token: str = Field(min_length=1)
    token_id: int = Field(ge=0)
    gain: float = Field(ge=0)


class TextPiece(_Strict):
    """Literal template text. With `only_with`, it is rendered only where that slot's text is not empty."""

    text: str = Field(min_length=1)
    only_with: Literal["title", "body"] | None = None


class SlotPiece(_Strict):
    """A place for text. `lead` (a blank, mostly) is encoded together with the text that follows it."""

    slot: Slot
    lead: str = ""


class Template(_Strict):
    """The prompt as an ordered list of pieces; the last one is the cue, and the label is the very next token."""

    name: Name
    pieces: tuple[TextPiece | SlotPiece, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _slots_are_whole(self) -> Self:
        slots = [piece.slot for piece in self.pieces if isinstance(piece, SlotPiece)]
        if sorted(slots) != ["body", "criteria", "query", "title"]:
            raise ValueError(f"the template needs each of criteria, query, title, body once, and has {slots}")
        if not isinstance(self.pieces[-1], TextPiece) or self.pieces[-1].only_with:
            raise ValueError("the template must end with a cue: literal text that is always rendered")
        return self

    @property
    def cue(self) -> str:
        """The literal tail that asks for the grade."""
        tail = self.pieces[-1]
        assert isinstance(tail, TextPiece)  # noqa: S101 - held by the validator
        return tail.text


class Criteria(_Strict):
    """A named statement of what makes a note relevant, and the steps of reasoning that a trace goes through, in order."""

    name: Name
    text: str = Field(min_length=1)
    steps: tuple[Name, ...] = ()


class Limits(_Strict):
    """Longest query that is taken, and longest part of a note (title + body) that is read, in tokens."""

    max_query_tokens: int = Field(ge=1)
    max_note_tokens: int = Field(ge=1)


class Calibration(_Strict):
    """How raw label probabilities become trusted ones. `temperature` T: p_i^(1/T), renormalised (arXiv 1706.04599).

    `temperatures` are of the criteria that have one of their own.
    """

    name: Name = "identity"
    method: Literal["identity", "temperature"] = "identity"
    temperature: Temperature = 1.0
    temperatures: dict[Name, Temperature] = Field(default_factory=dict)
    ece_before: float | None = None
    ece_after: float | None = None
    data: str | None = None

    @model_validator(mode="after")
    def _identity_has_no_parameter(self) -> Self:
        if self.method == "identity" and (self.temperature != 1.0 or self.temperatures):
            raise ValueError("the identity calibration takes no temperature")
        return self

    def temperature_under(self, criteria: str) -> float:
        """The temperature of label probabilities that were read under these criteria."""
        return self.temperatures.get(criteria, self.temperature)


class Decision(_Strict):
    """How a grade is chosen under one criteria: the one of the greatest expected utility; without it, the most probable one.

    Attributes:
        utilities: [true grade][chosen grade], whatever their unit; they are weighed with calibrated probabilities.
        goal: the measure that they were fitted to, in words; before, after: its value on dev by the most probable grade, and by
            utilities fitted on other queries than they are measured on.
    Source: Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001.
    """

    criteria: Name
    utilities: tuple[tuple[FiniteFloat, ...], ...]
    goal: str | None = None
    before: float | None = None
    after: float | None = None
    data: str | None = None


class Base(_Strict):
    """The model that the checkpoint was made from."""

    name: str
    licence: str
    source: str


class Lineage(_Strict):
    """What the checkpoint was made of and by; empty where a step did not take place."""

    recipe_hash: Sha256 | None = None
    data_hashes: dict[str, Sha256] = Field(default_factory=dict)
    teacher_fingerprint: Sha256 | None = None
    code_version: str


class Manifest(_Strict):
    """The whole of `manifest.json`."""

    format_version: Literal[1]
    name: Name
    created: datetime
    lineage: Lineage
    base: Base
    labels: tuple[Label, ...] = Field(min_length=2, max_length=16)
    template: Template
    criteria: tuple[Criteria, ...] = Field(min_length=1, max_length=32)
    limits: Limits
    calibration: Calibration = Calibration()
    decisions: tuple[Decision, ...] = Field(
        default=(), description="criteria that are not named here choose the most probable grade"
    )
    quantization: str | None = None
    dev_metrics: dict[str, float] = Field(default_factory=dict)
    probe_tolerance: dict[str, Probability] = Field(
        description="largest allowed difference of a label probability on the probes, by engine dtype"
    )
    files: dict[FileName, Sha256] = Field(
        min_length=1, description="hash of every file that changes a number"
    )
    fingerprint: Sha256

    @model_validator(mode="after")
    def _labels_are_ordered(self) -> Self:
        grades = [label.grade for label in self.labels]
        if grades != list(range(len(grades))):
            raise ValueError(f"labels must carry the grades 0, 1, 2, ... in order, not {grades}")
        gains = [label.gain for label in self.labels]
        if gains != sorted(gains) or gains[-1] <= 0:
            raise ValueError(
                f"gains must not fall with the grade and the top one must be positive, not {gains}"
            )
        return self

    @model_validator(mode="after")
    def _criteria_names_are_distinct(self) -> Self:
        names = [criteria.name for criteria in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"criteria names must be distinct, not {names}")
        return self

    @model_validator(mode="after")
    def _temperatures_fit(self) -> Self:
        if unknown := self.calibration.temperatures.keys() - {criteria.name for criteria in self.criteria}:
            raise ValueError(f"temperatures are of this manifest's criteria, not of {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _decisions_fit(self) -> Self:
        decided = [decision.criteria for decision in self.decisions]
        known = {criteria.name for criteria in self.criteria}
        if len(set(decided)) < len(decided) or not known.issuperset(decided):
            raise ValueError(
                f"decisions must be one for a criteria of this manifest at most, not for {decided}"
            )
        for decision in self.decisions:
            if {len(decision.utilities), *map(len, decision.utilities)} != {len(self.labels)}:
                raise ValueError(
                    f"the decision for {decision.criteria} needs a row and a column of utilities for each label"
                )
        return self

    def utilities(self, criteria: str) -> tuple[tuple[float, ...], ...] | None:
        """[true grade][chosen grade] of the criteria's decision; None where the most probable grade is chosen."""
        return next((each.utilities for each in self.decisions if each.criteria == criteria), None)

    @property
    def label_token_ids(self) -> tuple[int, ...]:
        """Token ids of the labels, lowest grade first."""
        return tuple(label.token_id for label in self.labels)


def compute_fingerprint(manifest: dict[str, Any]) -> str:
    """Hash of all that changes a raw label probability or a gain; not of calibration, decisions, names or dates.

    Takes the manifest as JSON-like data, so that a writer can compute it before the manifest is whole.
    """
    counted = ("format_version", "labels", "template", "criteria", "limits", "quantization", "files")
    canonical = json.dumps({key: manifest.get(key) for key in counted}, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def hash_file(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder, its fingerprint checked against its own contents (not yet the files').

    Raises CheckpointError when there is none, ManifestError when it is not valid.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} is no checkpoint: {MANIFEST_NAME} can't be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise ManifestError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        found = raw.get("format_version") if isinstance(raw, dict) else None
        raise ManifestError(f"{path} has format version {found!r}; this release reads {FORMAT_VERSION}")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise ManifestError(f"{path} is not valid: {one_line(error, 'manifest')}") from error
    # Over the parsed manifest, so that defaults left out of the file don't change it.
    expected = compute_fingerprint(manifest.model_dump(mode="json"))
    if manifest.fingerprint != expected:
        raise ManifestError(
            f"{path} states fingerprint {manifest.fingerprint} but its contents make {expected}"
        )
    return manifest
