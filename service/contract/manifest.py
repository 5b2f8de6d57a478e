"""The manifest: states as data everything that varies between checkpoints.

It is `manifest.json` in the checkpoint folder; its JSON Schema is docs/manifest.schema.json.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from service.contract.template import Name, Strict, Template, VectorTemplate
from service.contract.validation import one_line
from service.errors import CheckpointError, ManifestError

FORMAT_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"

Probability = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^(encoder/)?[A-Za-z0-9][A-Za-z0-9._-]*$")]
ReadingKind = Literal["text", "vectors"]
ENCODER_NAME = "encoder"
_ENCODING = {"per_note", "max_note_tokens"}
Temperature = Annotated[float, Field(gt=0)]


class Label(Strict):
    """One grade, the single token that names it, and its gain (nDCG's 2^grade - 1 unless stated otherwise)."""

    grade: int = Field(ge=0)
    token: str = Field(min_length=1)
    token_id: int = Field(ge=0)
    gain: float = Field(ge=0)


class Limits(Strict):
    """The longest query that is accepted, and the longest part of a note (title and body) that is read, in tokens."""

    max_query_tokens: int = Field(ge=1)
    max_note_tokens: int = Field(ge=1)


class Criteria(Strict):
    """A named statement of what makes a note relevant, and the reasoning steps of a trace, in order.

    `limits` replaces the checkpoint's under these criteria: another language may take twice the tokens for the same text.
    """

    name: Name
    text: str = Field(min_length=1)
    steps: tuple[Name, ...] = ()
    # Left out of the JSON where there are none, so that the fingerprint of a checkpoint without them is as it was.
    limits: Limits | None = Field(default=None, exclude_if=lambda limits: limits is None)


class Calibration(Strict):
    """Calibrates raw label probabilities. `temperature` T: p_i^(1/T), renormalised (arXiv 1706.04599).

    `temperatures` holds the temperatures of criteria that have their own.
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
        """Return the temperature for label probabilities under these criteria."""
        return self.temperatures.get(criteria, self.temperature)


class Decision(Strict):
    """Chooses the grade of the greatest expected utility under one criteria. Without it, the most probable grade is chosen.

    Attributes:
        utilities: [true grade][chosen grade], in any unit; they are weighted with calibrated probabilities.
        goal: the measure that they were fitted to, in words.
        before: its value on dev for the most probable grade.
        after: its value on dev for utilities that were fitted on other queries than they are measured on.
    Source: Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001.
    """

    criteria: Name
    utilities: tuple[tuple[FiniteFloat, ...], ...]
    goal: str | None = None
    before: float | None = None
    after: float | None = None
    data: str | None = None


class VectorReading(Strict):
    """The second reading of a checkpoint: it reads a note as vectors, which the model in its folder `encoder` makes once.

    Attributes:
        per_note: the number of vectors; a note with fewer tokens has one for each.
        width: the length of a vector, which is the model's hidden size.
        max_note_tokens: how much of a note the encoder reads.
        calibration, decisions: of the grades that are read from vectors.
        probe_tolerance: as for text.
    """

    template: VectorTemplate
    per_note: int = Field(ge=1, le=64)
    width: int = Field(ge=1)
    max_note_tokens: int = Field(ge=1)
    calibration: Calibration = Calibration()
    decisions: tuple[Decision, ...] = ()
    dev_metrics: dict[str, float] = Field(default_factory=dict)
    probe_tolerance: dict[str, Probability]


class Base(Strict):
    """The model that the checkpoint was trained from."""

    name: str
    licence: str
    source: str


class Lineage(Strict):
    """The recipe, data, teacher and code that produced the checkpoint. A field is empty where its step did not run."""

    recipe_hash: Sha256 | None = None
    data_hashes: dict[str, Sha256] = Field(default_factory=dict)
    teacher_fingerprint: Sha256 | None = None
    # Left out of the JSON where it is the student's.
    teacher_base: Base | None = Field(default=None, exclude_if=lambda base: base is None)
    code_version: str


class Manifest(Strict):
    """The whole content of `manifest.json`."""

    format_version: Literal[1]
    name: Name
    created: datetime
    lineage: Lineage
    base: Base
    labels: tuple[Label, ...] = Field(min_length=2, max_length=10)  # a trace writes a grade as one digit
    template: Template
    criteria: tuple[Criteria, ...] = Field(min_length=1, max_length=32)
    limits: Limits
    calibration: Calibration = Calibration()
    decisions: tuple[Decision, ...] = Field(
        default=(), description="criteria without a decision choose the most probable grade"
    )
    # Left out of the JSON where there is none, as the limits of criteria.
    vectors: VectorReading | None = Field(default=None, exclude_if=lambda vectors: vectors is None)
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
    def _criteria_are_known(self) -> Self:
        names = [criteria.name for criteria in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"criteria names must be distinct, not {names}")
        for calibration, decisions in self._gradings:
            if unknown := calibration.temperatures.keys() - set(names):
                raise ValueError(
                    f"temperatures must be for criteria of this manifest, not for {sorted(unknown)}"
                )
            decided = [decision.criteria for decision in decisions]
            if len(set(decided)) < len(decided) or not set(decided) <= set(names):
                raise ValueError(
                    f"each criteria of this manifest may have one decision; found decisions for {decided}"
                )
        return self

    @model_validator(mode="after")
    def _utilities_are_square(self) -> Self:
        for decision in (decision for _, decisions in self._gradings for decision in decisions):
            if {len(decision.utilities), *map(len, decision.utilities)} != {len(self.labels)}:
                raise ValueError(
                    f"the decision for {decision.criteria} needs a row and a column of utilities for each label"
                )
        return self

    @model_validator(mode="after")
    def _encoder_is_whole(self) -> Self:
        inside = [name for name in self.files if name.startswith(f"{ENCODER_NAME}/")]
        if bool(inside) != bool(self.vectors):
            raise ValueError("a checkpoint has `vectors` and the files of its encoder, or neither")
        return self

    @property
    def _gradings(self) -> list[tuple[Calibration, tuple[Decision, ...]]]:
        second = [(self.vectors.calibration, self.vectors.decisions)] if self.vectors else []
        return [(self.calibration, self.decisions), *second]

    def calibration_of(self, kind: ReadingKind) -> Calibration:
        """Return the calibration of grades that are read this way."""
        return self.vectors.calibration if self.vectors and kind == "vectors" else self.calibration

    def utilities(self, criteria: str, kind: ReadingKind = "text") -> tuple[tuple[float, ...], ...] | None:
        """Return the utilities [true grade][chosen grade] of the criteria's decision; None if it has no decision."""
        decisions = self.vectors.decisions if self.vectors and kind == "vectors" else self.decisions
        return next((each.utilities for each in decisions if each.criteria == criteria), None)

    @property
    def grading_version(self) -> str:
        """Return `sha256:<hex>` of what turns raw label probabilities into a score and a grade: calibration and decisions.

        The fingerprint does not cover them. Their names, data and measured figures do not count.
        """
        counted = _grading(self.calibration, self.decisions)
        if self.vectors:
            counted["vectors"] = _grading(self.vectors.calibration, self.vectors.decisions)
        return _hash_json(counted)

    @property
    def encoder_fingerprint(self) -> str:
        """Return `sha256:<hex>` of what makes a note's vectors: the encoder's files, what it reads, and into how many vectors.

        Empty without `vectors`.
        """
        if not self.vectors:
            return ""
        # The encoder reads tokens of the checkpoint's tokenizer.
        read = (f"{ENCODER_NAME}/", "tokenizer.json")
        files = {name: digest for name, digest in self.files.items() if name.startswith(read)}
        template = self.vectors.template.model_dump(include={"note"})
        return _hash_json({**template, **self.vectors.model_dump(include=_ENCODING), "files": files})

    @property
    def versions(self) -> dict[str, str]:
        """Return the hashes that identify the checkpoint in answers, metrics, logs and traces: `fingerprint` and `grading_version`."""
        return {"fingerprint": self.fingerprint, "grading_version": self.grading_version}

    @property
    def label_token_ids(self) -> tuple[int, ...]:
        """Token ids of the labels, lowest grade first."""
        return tuple(label.token_id for label in self.labels)


def describe_limits(manifest: Manifest) -> str:
    """Return the limits in words, those of criteria that have their own last."""
    own = [(f" under {each.name}", each.limits) for each in manifest.criteria if each.limits]
    return "; ".join(
        f"{limits.max_query_tokens} tokens of a query and {limits.max_note_tokens} of a note{where}"
        for where, limits in [("", manifest.limits), *own]
    )


def compute_fingerprint(manifest: dict[str, Any]) -> str:
    """Hash everything that changes a raw label probability or a gain, but not calibration, decisions, names or dates.

    Calibration and decisions have their own hash, `Manifest.grading_version`.
    It takes the manifest as JSON-like data, so that a writer can compute it before the manifest is complete.
    """
    keys = ("format_version", "labels", "template", "criteria", "limits", "quantization", "files")
    counted = {key: manifest.get(key) for key in keys}
    if vectors := manifest.get("vectors"):
        counted["vectors"] = {key: vectors[key] for key in ("template", "width", *sorted(_ENCODING))}
    return _hash_json(counted)


def _grading(calibration: Calibration, decisions: Sequence[Decision]) -> dict[str, Any]:
    return {
        "calibration": calibration.model_dump(include={"method", "temperature", "temperatures"}),
        "decisions": {decision.criteria: decision.utilities for decision in decisions},
    }


def _hash_json(data: dict[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def hash_file(path: Path) -> str:
    """Return `sha256:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint folder, and check its fingerprint against its own contents, not against the files.

    Raises CheckpointError when there is none, ManifestError when it is not valid.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} is not a checkpoint: {MANIFEST_NAME} can't be read ({error.strerror})"
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
    # Computed from the parsed manifest, so that defaults which the file leaves out do not change it.
    expected = compute_fingerprint(manifest.model_dump(mode="json"))
    if manifest.fingerprint != expected:
        raise ManifestError(
            f"{path} states fingerprint {manifest.fingerprint}, but its contents have {expected}"
        )
    return manifest
