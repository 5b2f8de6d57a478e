"""The ladder: what each rung of a recipe gave over several seeds, what it cost, and what else was tried.

Read from `results.json` of finished runs, which hold figures alone: no text of a query or a note.
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
from model_export.reports.plots import plot_intervals, plot_spread
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
# What each rung is trained by, beside what it starts from.
_OWN_STAGES = {
    "label_only_sft": ("label_only_sft",),
    "cot_sft": ("cot_sft",),
    "grpo": ("grpo",),
    "sam": ("sam",),
    "student": ("label", "distil"),
}


class LadderError(NotegradeError):
    """Runs that make no ladder."""


@dataclass(frozen=True)
class Results:
    """One run's `results.json`."""

    path: Path
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of a file, or of a run's folder. Raises LadderError for what is none."""
        file = path / "results.json" if path.is_dir() else path
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LadderError(f"{file} can't be read as a run's results: {error}") from error
        if not isinstance(raw, dict) or "recipe_text" not in raw:
            raise LadderError(f"{file} is no results.json of this release: run the recipe again")
        return cls(file, raw)

    @property
    def systems(self) -> list[str]:
        """From the lowest rung up."""
        return list(self.raw["rows"])

    @cached_property
    def recipe(self) -> Recipe:
        """What it was run by. Raises RecipeError where this release has no such recipes."""
        return parse_recipe(self.raw["recipe_text"], f"the recipe of {self.path}")

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed of the recipe, beside its name."""
        return tuple(line for line in read_changes(self.raw["recipe_text"]) if not line.startswith("name="))

    def figure(self, system: str, split: str, metric: str) -> float | None:
        """A cell of the table; None where undefined."""
        value = self.raw["rows"][system][split][metric]
        return None if value is None else float(value)

    def difference(self, split: str, control: str, metric: str) -> Difference:
        """The student less a control."""
        by_control = self.raw["differences"] if split == ALL else self.raw["split_differences"][split]
        return Difference(**by_control[control][_STUDENT][metric])

    def seconds(self, names: Iterable[str]) -> float:
        """What these stages took together."""
        of_stage = {stage["name"]: stage["seconds"] for stage in self.raw["stages"]}
        return float(sum(of_stage.get(name, 0.0) for name in names))

    def stages_below(self, system: str) -> list[str]:
        """All training that a rung stands on, its own last."""
        below: list[str] = []
        if system == "cot_sft" and self.recipe.cot_sft.start == "label_only_sft":
            below = ["label_only_sft"]
        elif system in ("grpo", "sam"):
            below = self.stages_below("cot_sft")
        elif system == _STUDENT:
            below = self.stages_below(self.recipe.label.teacher)
            uses_control = self.recipe.distil.start == "label_only_sft"
            if uses_control and "label_only_sft" not in below:
                below = ["label_only_sft", *below]
        return [*below, *_OWN_STAGES.get(system, ())]

    def seconds_a_pair(self, system: str) -> float | None:
        """What its predictions took for each dev pair, the start of its process included; None where it needs no model."""
        took = self.seconds([f"predict_{system}"])
        return took / self.raw["sizes"][ALL]["pairs"] if took else None


def write_ladder(runs: Sequence[Path], levers: Sequence[Path], out: Path) -> None:
    """Write the page of these runs (one recipe, several seeds) and of runs of the control alone with something changed.

    Raises LadderError for runs that don't belong together.
    """
    results, tried = [Results.read(path) for path in runs], [Results.read(path) for path in levers]
    _check(results)
    first = results[0]
    splits = list(first.raw["sizes"])
    # A run of one source has no split of that name.
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
        levers=[_describe_lever(each, sources) for each in tried],
        pictures=_pictures(results, sources),
        recipe_text=first.raw["recipe_text"],
    )
    out.write_text(page, encoding="utf-8")


def _check(results: Sequence[Results]) -> None:
    if not results:
        raise LadderError("a ladder needs at least one run")
    if _STUDENT not in results[0].systems:
        raise LadderError(f"{results[0].path} is of the control alone: a ladder needs the whole run")
    seeds = [each.raw["seed"] for each in results]
    if len(set(seeds)) < len(seeds):
        raise LadderError(f"runs must have distinct seeds, not {seeds}")
    for other in results[1:]:
        if other.recipe != results[0].recipe or other.systems != results[0].systems:
            raise LadderError(f"{other.path} is of another recipe than {results[0].path}")


def _describe_split(results: Sequence[Results], split: str) -> dict[str, Any]:
    first = results[0]
    controls = [system for system in first.raw["controls"] if system != _STUDENT]
    sizes = [each.raw["sizes"][split] for each in results]
    return {
        "name": split,
        # Seeds may draw other dev pairs.
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
    """Mean, and least to greatest where there are several."""
    defined = [value for value in values if value is not None]
    if not defined:
        return "–"
    if len(values) == 1:
        return f"{defined[0]:.3f}"
    return f"{fmean(defined):.3f} ({min(defined):.3f}–{max(defined):.3f})"


def _describe_compute(results: Sequence[Results], system: str) -> dict[str, Any]:
    first, own = results[0], _OWN_STAGES.get(system, ())
    per_pair = [value for each in results if (value := each.seconds_a_pair(system)) is not None]
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


def _pictures(results: Sequence[Results], sources: Sequence[str]) -> list[Picture]:
    systems = results[0].systems
    panels = {
        f"{source}: {METRIC_TITLES[metric]}": {
            system: [value for each in results if (value := each.figure(system, source, metric)) is not None]
            for system in systems
        }
        for source in sources
        for metric in ("macro_f1_decided", "qwk_decided", "ndcg_at_10")
    }
    over_bm25 = {
        f"{source}, seed {each.raw['seed']}": each.difference(source, "bm25", "ndcg_at_10")
        for source in sources
        for each in results
    }
    return [
        Picture(
            "The rungs",
            "A dot for each seed. Grades are chosen by utilities that were fitted on the other half of the queries, for every rung alike.",
            f"Macro-F1, QWK and nDCG of {', '.join(systems)} on {', '.join(sources)}.",
            plot_spread(panels, columns=3),
        ),
        Picture(
            "The student's nDCG@10 less BM25's",
            "With 95 % intervals of a paired bootstrap by query. A source that is not shown has too few queries with two notes.",
            f"Differences in nDCG to BM25 with intervals on {', '.join(sources)}.",
            plot_intervals(over_bm25, "nDCG@10, student less BM25"),
        ),
    ]
