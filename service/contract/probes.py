"""Probes: known pairs and their expected distributions. An engine that does not reproduce them must not serve."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from service.contract.labels import LabelDistribution
from service.contract.manifest import Manifest, VectorReading
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.validation import one_line
from service.errors import CheckpointError, ManifestError, ProbeMismatchError

PROBES_NAME = "probes.jsonl"
VECTOR_PROBES_NAME = "vector_probes.jsonl"


_AnyProbe = TypeVar("_AnyProbe", bound="Probe")


class ProbeNote(BaseModel):
    """A note as data files contain it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str | None = None
    body: str = ""


class Probe(BaseModel):
    """One line of `probes.jsonl`. The distribution is raw, lowest grade first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str
    note: ProbeNote
    criteria: str
    distribution: tuple[float, ...] = Field(min_length=2)
    label_mass: float = Field(ge=0, le=1)

    def canonical(self) -> tuple[str, Note]:
        """Return the query and the note as canonical text."""
        return canonicalize(self.query), Note(canonicalize(self.note.title), canonicalize(self.note.body))


class VectorProbe(Probe):
    """One line of `vector_probes.jsonl`. `vectors` are the note's, as the encoder made them: base64 of float16 rows."""

    vectors: Base64Bytes


def read_probes(folder: Path, manifest: Manifest) -> tuple[Probe, ...]:
    """Read the probes of a checkpoint folder. Raises CheckpointError when they are missing, ManifestError when invalid."""
    return _read(folder / PROBES_NAME, Probe, manifest)


def read_vector_probes(folder: Path, manifest: Manifest, reading: VectorReading) -> tuple[VectorProbe, ...]:
    """Read the probes of the second reading; the errors are those of `read_probes`."""
    path = folder / VECTOR_PROBES_NAME
    probes = _read(path, VectorProbe, manifest)
    row = 2 * reading.width
    if any(len(probe.vectors) not in range(row, reading.per_note * row + 1, row) for probe in probes):
        raise ManifestError(f"{path} has vectors of another number or width than the manifest states")
    return probes


def _read(path: Path, kind: type[_AnyProbe], manifest: Manifest) -> tuple[_AnyProbe, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may contain U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path.parent} is not a complete checkpoint: {path.name} can't be read ({error})"
        ) from error
    probes = tuple(_parse(path, kind, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not probes:
        raise ManifestError(f"{path} has no probe")
    known = {criteria.name for criteria in manifest.criteria}
    for probe in probes:
        if len(probe.distribution) != len(manifest.labels) or probe.criteria not in known:
            raise ManifestError(f"{path} does not match the manifest's labels and criteria")
    return probes


def _parse(path: Path, kind: type[_AnyProbe], number: int, line: str) -> _AnyProbe:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise ManifestError(f"{path} line {number} is not valid: {one_line(error)}") from error


def largest_difference(probe: Probe, found: LabelDistribution) -> float:
    """Return the largest difference between expected and found, over label probabilities and the label mass."""
    pairs = zip(probe.distribution, found.probabilities, strict=True)
    return max(*(abs(a - b) for a, b in pairs), abs(probe.label_mass - found.label_mass))


def check_probes(probes: Sequence[Probe], found: Sequence[LabelDistribution], tolerance: float) -> float:
    """Return the largest difference over all probes. Raises ProbeMismatchError when one is over the tolerance."""
    differences = [largest_difference(p, f) for p, f in zip(probes, found, strict=True)]
    worst = max(differences)
    # `not <=` and not `>`, so that NaN fails.
    missed = sum(not difference <= tolerance for difference in differences)
    if missed:
        raise ProbeMismatchError(
            f"{missed} of {len(probes)} probes differ by more than {tolerance:g} (worst {worst:.4g}): "
            "the engine's weights, dtype, kernels or template are not the checkpoint's"
        )
    return worst
