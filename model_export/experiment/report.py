"""Writes the experiment's report: figures as JSON, tables as Markdown, and the learning curves as a picture."""

import json
from pathlib import Path

import numpy as np

from model_export.experiment.results import Measured, arms_of, curve, splits_of, to_json, to_markdown
from model_export.reports.plots import plot_bands

_TITLES = {"random": "random queries", "long_tail": "rare words", "unseen": "unseen criteria"}


def write_experiment(measured: Measured, out: Path) -> str:
    """Write experiment.json, experiment.md and experiment.png to the folder, and return the tables."""
    tables = to_markdown(measured)
    (out / "experiment.json").write_text(json.dumps(to_json(measured), indent=1) + "\n", encoding="utf-8")
    (out / "experiment.md").write_text(tables, encoding="utf-8")
    panels = {
        _TITLES.get(split, split): {arm: _band(measured, arm, split) for arm in arms_of(measured)}
        for split in splits_of(measured)
    }
    (out / "experiment.png").write_bytes(plot_bands(panels, "RL step", "exact-grade accuracy"))
    return tables


def _band(measured: Measured, arm: str, split: str) -> tuple[list[int], np.ndarray]:
    """Return the RL steps, and an accuracy for each seed and step."""
    curves = [curve(arms[arm], split) for arms in measured.values()]
    return [step for step, _ in curves[0]], np.array([[value for _, value in each] for each in curves])
