"""The run log: one JSON object per line, `{"time", "stage", "step", ...metrics}`, as training dashboards read it."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"


class RunLog:
    """Appends rows to a stage's `log.jsonl`. A row that a kill cut short is ignored when the log is read."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path = path
        self._stage = stage
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # a kill cut the last row: the next row must start on a new line

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row. NaN and infinity become null, because JSON has no such numbers."""
        row = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stage": self._stage,
            "step": step,
        }
        row |= {key: _finite(value) for key, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read one row per stage and step, with the last value of each metric.

    A step can have several rows: a resumed stage repeats steps, and a training summary shares the last step.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the end of the file, or a row that a kill cut short
            continue
        rows.setdefault((row["stage"], row["step"]), {}).update(row)
    return [rows[key] for key in sorted(rows)]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
