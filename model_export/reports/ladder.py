"""Writes the ladder page: metrics and compute of each training step (rung) of a recipe over several seeds, and of variants.

The input is `results.json` of finished runs, which contains figures only, no text of queries or notes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from model_export.evaluation.evaluate import ALL, LONG_TAIL
from model_export.evaluation.paired_bootstrap import Difference
from model_export.evaluation.winners import METRIC_TITLES
from model_export.recipe import Recipe
from model_export.recipe_file import parse_recipe, read_changes
from model_export.reports.plots import plot_spread
from model_export.reports.report import Picture, difference_cell, render_page
from service.errors import NotegradeError

_TEMPLATE = "ladder_template.html"
_STUDENT = "student"
_COMPARED = ("macro_f1", "qwk", "ndcg_at_10")
_SHOWN = (
    "macro_f1",
    "qwk",
    "macro_f1_decided",
    "qwk_decided",
    "ndcg_at_10",
    "auc",
    "ece_after",
    "parse_rate",
)
_LEVER_METRICS = ("macro_f1_decided", "qwk_decided", "ndcg_at_10", "auc")
# The stages that train each rung, without the stages it starts from.
_OWN_STAGES = {
    "label_only_sft": ("label_only_sft",),
    "cross_encoder": ("cross_encoder",),
    "cot_sft": ("evidence", "cot_sft"),
    "self_sft": ("own_traces", "self_sft"),
    "rl": ("rl",),
    "student": ("label", "unlabelled", "stack", "reduce", "distil", "cut", "encode"),
}


class LadderError(NotegradeError):
    """The runs can't be shown on one ladder."""


@dataclass(frozen=True)
class Results:
    """One run's `results.json`."""

    path: Path
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `results.json`, or the one in a run's folder. Raises LadderError if it is missing or invalid."""
        file = path / "results.json" if path.is_dir() else path
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LadderError(f"{file} can't be read as a run's results: {error}") from error
        if not isinstance(raw, dict) or "recipe_text" not in raw:
            raise LadderError(
                f"{file} is not a results.json of this release: it has no recipe_text; run the recipe again"
            )
        return cls(file, raw)

    @property
    def systems(self) -> list[str]:
        """The systems, from the lowest rung to the highest."""
        return list(self.raw["rows"])

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe. Raises RecipeError if this release can't parse it."""
        return parse_recipe(self.raw["recipe_text"], f"the recipe of {self.path}")

    @property
    def changes(self) -> tuple[str, ...]:
        """The run's changes to the recipe (`--set`), without its name."""
        return tuple(line for line in read_changes(self.raw["recipe_text"]) if not line.startswith("name="))

    def figure(self, system: str, split: str, metric: str) -> float | None:
        """Return a system's metric on a split; None if undefined."""
        value = self.raw["rows"][system][split][metric]
        return None if value is None else float(value)

    def difference(self, split: str, control: str, metric: str) -> Difference:
        """Return the student's metric minus the control's."""
        by_control = self.raw["differences"] if split == ALL else self.raw["split_differences"][split]
        return Difference(**by_control[control][_STUDENT][metric])

    def seconds(self, names: Iterable[str]) -> float:
        """Sum the durations of these stages."""
        of_stage = {stage["name"]: stage["seconds"] for stage in self.raw["stages"]}
        return float(sum(of_stage.get(name, 0.0) for name in names))

    def stages_below(self, system: str) -> list[str]:
        """List all training stages that a rung depends on, its own last."""
        below: list[str] = []
        if system == "cot_sft" and self.recipe.cot_sft.start == "label_only_sft":
            below = ["label_only_sft"]
        elif system == "self_sft":
            below = self.stages_below("cot_sft")
        elif system == "rl":
            below = self.stages_below("self_sft" if self.recipe.self_sft.steps else "cot_sft")
        elif system == _STUDENT:
            below = self.stages_below(self.recipe.label.teacher)
            if self.recipe.label.teacher == "label_only_sft":
                below.append("evidence")
            uses_control = self.recipe.distil.start == "label_only_sft"
            if uses_control and "label_only_sft" not in below:
                below = ["label_only_sft", *below]
        return [*below, *_OWN_STAGES.get(system, ())]

    def seconds_per_pair(self, system: str) -> float | None:
        """Return the prediction time per dev pair, including loading the model; None for a system without a model."""
        seconds = self.seconds([f"predict_{system}"])
        return seconds / self.raw["sizes"][ALL]["pairs"] if seconds else None


def write_ladder(runs: Sequence[Path], levers: Sequence[Path], out: Path) -> None:
    """Write the page of `runs` (one recipe, distinct seeds) and of `levers` (runs of the recipe with a change).

    Raises LadderError when the runs have different recipes or systems.
    """
    results, changed = [Results.read(path) for path in runs], [Results.read(path) for path in levers]
    _check(results)
    first = results[0]
    splits = list(first.raw["sizes"])
    # A run on a single source has no split for it.
    sources = [split for split in splits if split != ALL and not split.endswith(LONG_TAIL)] or [ALL]
    page = render_page(
        _TEMPLATE,
        name=first.raw["recipe"],
        seeds=[each.raw["seed"] for each in results],
        titles={metric: METRIC_TITLES[metric] for metric in _SHOWN},
        splits=[_describe_split(results, split) for split in splits],
        compared={metric: METRIC_TITLES[metric] for metric in _COMPARED},
        compute=[_describe_compute(results, system) for system in first.systems],
        lever_splits=sources,
        lever_titles=[METRIC_TITLES[metric] for metric in _LEVER_METRICS],
        levers=[_describe_lever(each, sources) for each in changed],
        rungs=_plot_rungs(results, sources),
        recipe_text=first.raw["recipe_text"],
    )
    out.write_text(page, encoding="utf-8")


def _check(results: Sequence[Results]) -> None:
    if not results:
        raise LadderError("a ladder needs at least one run")
    if _STUDENT not in results[0].systems:
        raise LadderError(f"{results[0].path} has no student (--control-only): a ladder needs complete runs")
    seeds = [each.raw["seed"] for each in results]
    if len(set(seeds)) < len(seeds):
        raise LadderError(f"the runs must have distinct seeds, and the seeds are {seeds}")
    for other in results[1:]:
        if other.recipe != results[0].recipe or other.systems != results[0].systems:
            raise LadderError(f"{other.path} has another recipe than {results[0].path}")


def _describe_split(results: Sequence[Results], split: str) -> dict[str, Any]:
    first = results[0]
    controls = [system for system in first.raw["controls"] if system != _STUDENT]
    sizes = [each.raw["sizes"][split] for each in results]
    return {
        "name": split,
        # The dev pairs may differ between seeds.
        "sizes": [size for number, size in enumerate(sizes) if size not in sizes[:number]],
        "rows": {
            system: [_spread([each.figure(system, split, metric) for each in results]) for metric in _SHOWN]
            for system in first.systems
        },
        "against": {
            control: [
                [difference_cell(each.difference(split, control, metric)) for each in results]
                for metric in _COMPARED
            ]
            for control in controls
        },
    }


def _spread(values: Sequence[float | None]) -> str:
    """Format the mean and, for several values, the range."""
    defined = [value for value in values if value is not None]
    if not defined:
        return "–"
    if len(values) == 1:
        return f"{defined[0]:.3f}"
    return f"{fmean(defined):.3f} ({min(defined):.3f}–{max(defined):.3f})"


def _describe_compute(results: Sequence[Results], system: str) -> dict[str, Any]:
    first = results[0]
    ran = [stage["name"] for stage in first.raw["stages"]]
    own = [name for name in _OWN_STAGES.get(system, ()) if name in ran]
    per_pair = [value for each in results if (value := each.seconds_per_pair(system)) is not None]
    return {
        "system": system,
        "stages": ", ".join(own) or "none",
        "own": fmean(each.seconds(own) for each in results) / 60,
        "whole": fmean(each.seconds(first.stages_below(system)) for each in results) / 60,
        "per_pair": 1000 * fmean(per_pair) if per_pair else None,
    }


def _describe_lever(lever: Results, sources: Sequence[str]) -> dict[str, Any]:
    system = lever.systems[-1]
    cells = {
        source: [_spread([lever.figure(system, source, metric)]) for metric in _LEVER_METRICS]
        for source in sources
    }
    return {
        "name": lever.raw["recipe"],
        "changes": lever.changes,
        "rung": system,
        "cells": cells,
        "minutes": lever.seconds(lever.stages_below(system)) / 60,
    }


def _plot_rungs(results: Sequence[Results], sources: Sequence[str]) -> Picture:
    systems = results[0].systems
    panels = {
        f"{source}: {METRIC_TITLES[metric]}": {
            system: [value for each in results if (value := each.figure(system, source, metric)) is not None]
            for system in systems
        }
        for source in sources
        for metric in ("macro_f1_decided", "qwk_decided", "ndcg_at_10")
    }
    return Picture(
        "The rungs",
        "One dot per seed. For every rung, grades are chosen by utilities fitted on the other half of the queries.",
        f"Macro-F1, QWK and nDCG of {', '.join(systems)} on {', '.join(sources)}.",
        plot_spread(panels),
    )
