"""Writes the experiment's report: figures as JSON, tables as Markdown, and the learning curves as a picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from model_export.experiment.by_query import gains_by_query, gains_to_markdown
from model_export.experiment.measure import figures_of
from model_export.experiment.results import Measured, arms_of, curve, splits_of, to_json, to_markdown
from model_export.experiment.warm_up import Readings
from model_export.reports.plots import Curve, plot_curves

_TITLES = {"random": "random queries", "long_tail": "rare words", "unseen": "unseen criteria"}
_NAMES = {
    "sft": "more supervised steps",
    "grpo": "GRPO",
    "dense": "dense rewards",
    "prefix": "verified prefixes",
    "final": "mask by the gold grade",
    "step": "step mask",
}


def write_experiment(found: Mapping[int, Mapping[str, Readings]], out: Path) -> str:
    """Write experiment.json, experiment.md and experiment.png to the folder, and return the tables.

    `found` has the readings by seed and arm.
    """
    measured = {
        seed: {
            arm: {step: figures_of(each) for step, each in readings.items()} for arm, readings in arms.items()
        }
        for seed, arms in found.items()
    }
    gains = gains_by_query(found)
    tables = to_markdown(measured) + gains_to_markdown(gains)
    as_json = to_json(measured) | {"gains_by_query": gains}
    text = json.dumps(as_json, indent=1, default=asdict)
    (out / "experiment.json").write_text(text + "\n", encoding="utf-8")
    (out / "experiment.md").write_text(tables, encoding="utf-8")
    panels = {
        _TITLES.get(split, split): {_NAMES[arm]: _mean(measured, arm, split) for arm in arms_of(measured)}
        for split in splits_of(measured)
    }
    (out / "experiment.png").write_bytes(plot_curves(panels, "RL step", "exact-grade accuracy"))
    return tables


def _mean(measured: Measured, arm: str, split: str) -> Curve:
    """Return the RL steps, and the accuracy at each, averaged over the seeds."""
    curves = [curve(arms[arm], split) for arms in measured.values()]
    means = np.mean([[value for _, value in each] for each in curves], axis=0)
    return [step for step, _ in curves[0]], means.tolist()
