"""The run log: one JSON object a line, `{"time", "stage", "step", ...metrics}`, as dashboards for training runs read it."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class RunLog:
    """Appends rows to `log.jsonl` of a stage's folder; a row is whole or, after a kill, ignored when read."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path = path
        self._stage = stage
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # a kill has cut the last row: the next one must not be joined to it

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one row. Numbers that are none become null, which every JSON reader takes."""
        row = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stage": self._stage,
            "step": step,
        }
        row |= {key: _finite(value) for key, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """A row for each step, of the last values: what a resumed stage does again, and a summary, have a step's row twice."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the end of the file, or the middle of a line that a kill cut
            continue
        rows.setdefault((row["stage"], row["step"]), {}).update(row)
    return [rows[key] for key in sorted(rows)]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
