"""Probes: known pairs and their expected distributions. An engine that misses them must not serve."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.labels import LabelDistribution
from service.contract.manifest import Manifest
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.validation import one_line
from service.errors import CheckpointError, ManifestError, ProbeMismatchError

PROBES_NAME = "probes.jsonl"


class ProbeNote(BaseModel):
    """A note as it is written in data files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str | None = None
    body: str = ""


class Probe(BaseModel):
    """One line of `probes.jsonl`; the distribution is the raw one, lowest grade first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str
    note: ProbeNote
    criteria: str
    distribution: tuple[float, ...] = Field(min_length=2)
    label_mass: float = Field(ge=0, le=1)

    def canonical(self) -> tuple[str, Note]:
        """Query and note in canonical text."""
        return canonicalize(self.query), Note(canonicalize(self.note.title), canonicalize(self.note.body))


def read_probes(folder: Path, manifest: Manifest) -> tuple[Probe, ...]:
    """The probes of a checkpoint folder. Raises CheckpointError when they are missing, ManifestError when not valid."""
    path = folder / PROBES_NAME
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 may stand in a text
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder} is no whole checkpoint: {PROBES_NAME} can't be read ({error})"
        ) from error
    probes = tuple(_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not probes:
        raise ManifestError(f"{path} holds no probe")
    known = {criteria.name for criteria in manifest.criteria}
    for probe in probes:
        if len(probe.distribution) != len(manifest.labels) or probe.criteria not in known:
            raise ManifestError(f"{path} does not fit the manifest's labels and criteria")
    return probes


def _parse(path: Path, number: int, line: str) -> Probe:
    try:
        return Probe.model_validate_json(line)
    except ValidationError as error:
        raise ManifestError(f"{path} line {number} is not valid: {one_line(error)}") from error


def largest_difference(probe: Probe, found: LabelDistribution) -> float:
    """Largest difference of a label probability, or of the label mass, between expected and found."""
    pairs = zip(probe.distribution, found.probabilities, strict=True)
    return max(*(abs(a - b) for a, b in pairs), abs(probe.label_mass - found.label_mass))


def check_probes(probes: Sequence[Probe], found: Sequence[LabelDistribution], tolerance: float) -> float:
    """Largest difference over all probes. Raises ProbeMismatchError when one is over the tolerance."""
    differences = [largest_difference(p, f) for p, f in zip(probes, found, strict=True)]
    worst = max(differences)
    # `not <=` rather than `>`: a NaN must fail.
    missed = sum(not difference <= tolerance for difference in differences)
    if missed:
        raise ProbeMismatchError(
            f"{missed} of {len(probes)} probes differ by more than {tolerance:g} (worst {worst:.4g}): "
            "the engine's weights, dtype, kernels or template are not those of the checkpoint"
        )
    return worst
