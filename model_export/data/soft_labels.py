"""Soft labels: what a teacher says of a pair, as distribution and as traces to learn."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from model_export.stages import write_whole

SOFT_LABELS = "soft_labels.jsonl"  # in the folder of a stage that labels


@dataclass(frozen=True, slots=True)
class SoftLabel:
    """The label of one pair by a model or by the stack.

    Attributes:
        distribution: probability of each grade, lowest first; empty where only a trace was asked for.
        traces: texts of steps, by the grade that they explain and end on. Each quotes only what is there.
    """

    id: str
    distribution: tuple[float, ...]
    traces: Mapping[int, str]


def write_soft_labels(path: Path, labels: Iterable[SoftLabel]) -> None:
    """Write JSON lines, one per pair. A kill leaves no incomplete file."""
    write_whole(path, "".join(json.dumps(asdict(label), ensure_ascii=False) + "\n" for label in labels))


def read_soft_labels(path: Path) -> dict[str, SoftLabel]:
    """Read soft labels by id of their pair."""
    lines, parser = path.read_text(encoding="utf-8").split("\n"), TypeAdapter(SoftLabel)
    labels = (parser.validate_json(line) for line in lines if line)
    return {label.id: label for label in labels}
