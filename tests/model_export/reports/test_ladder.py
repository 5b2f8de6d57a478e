import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.evaluation.evaluate import evaluate
from model_export.reports.ladder import LadderError, Results, write_ladder
from tests.model_export.reports.made_systems import PAIRS, predict
from tests.tiny_teacher import MICRO

SYSTEMS = ("majority", "bm25", "zero_shot", "label_only_sft", "cot_sft", "rl", "student")
STAGES = {
    "label_only_sft": 600.0,
    "evidence": 240.0,
    "cot_sft": 60.0,
    "rl": 180.0,
    "label": 30.0,
    "distil": 90.0,
}


@cache
def measured(systems: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Evaluate systems that are better the later they come. Cached, because it takes a second."""
    found = [predict(system, min(8, number + seed)) for number, system in enumerate(systems)]
    tail = frozenset(f"p{number}" for number in (*range(8), *range(24, 32)))
    return evaluate(found, PAIRS, tail, seed=1, draws=50).to_json()


def write_results(folder: Path, seed: int, *, systems: tuple[str, ...] = SYSTEMS, text: str = MICRO) -> Path:
    stages = [{"name": name, "seconds": seconds} for name, seconds in STAGES.items()]
    stages.append({"name": "predict_student", "seconds": 4.8})
    results = {
        **measured(systems, seed),
        "recipe": "micro",
        "seed": seed,
        "recipe_text": text,
        "stages": stages,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"seed-{seed}.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    return path


class Text(HTMLParser):
    """Collects the page's table cells by row, and counts its images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images = 0
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, _attributes: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        self.images += tag == "img"

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data.strip()

    def row(self, name: str, number: int = 0) -> list[str]:
        return [row for row in self.rows if row[0] == name][number]


def page_of(tmp_path: Path, *runs: Path, levers: tuple[Path, ...] = ()) -> Text:
    write_ladder(runs, levers, tmp_path / "ladder.html")
    return Text((tmp_path / "ladder.html").read_text(encoding="utf-8"))


def test_rungs_show_mean_and_range_over_the_seeds(tmp_path: Path) -> None:
    runs = [write_results(tmp_path, seed) for seed in (0, 1)]
    page = page_of(tmp_path, *runs)
    found = (Results.read(run).figure("rl", "all", "macro_f1") for run in runs)
    figures = [value for value in found if value is not None]
    assert len(figures) == 2
    # The first row of that name is in the table of compute.
    mean, low, high = np.mean(figures), min(figures), max(figures)
    assert page.row("rl", 1)[1] == f"{mean:.3f} ({low:.3f}–{high:.3f})"
    assert low < high
    assert page.images == 1


def test_single_run_has_no_range_and_its_student_has_intervals(tmp_path: Path) -> None:
    path = write_results(tmp_path, 0)
    page, results = page_of(tmp_path, path), Results.read(path)
    assert page.row("student", 1)[1] == f"{results.figure('student', 'all', 'macro_f1'):.3f}"
    found = results.difference("forum", "bm25", "ndcg_at_10")
    expected = [f"{getattr(found, key):+.3f}".replace("-", "−") for key in ("difference", "low", "high")]
    rows = [row for row in page.rows if row[0] == "bm25" and len(row) == 4]
    assert f"{expected[0]} [{expected[1]}, {expected[2]}]" in [row[3] for row in rows]


@pytest.mark.parametrize(
    ("system", "own", "whole"),
    [
        ("bm25", 0, 0),
        ("label_only_sft", 10, 10),
        ("cot_sft", 5, 15),
        ("rl", 3, 18),
        # cot_sft labels, and both cot_sft and the student start from the control.
        ("student", 2, 17),
    ],
)
def test_compute_of_a_rung_is_its_own_and_the_total(
    tmp_path: Path, system: str, own: float, whole: float
) -> None:
    text = (
        MICRO.replace("[cot_sft]", '[cot_sft]\nstart = "label_only_sft"')
        .replace("[label]", '[label]\nteacher = "cot_sft"')
        .replace("[distil]", '[distil]\nstart = "label_only_sft"')
    )
    row = page_of(tmp_path, write_results(tmp_path, 0, text=text)).row(system)
    assert row[2:4] == [f"{own:.1f}", f"{whole:.1f}"]
    assert row[4] == ("100" if system == "student" else "–")


def test_control_that_teaches_needs_evidence(tmp_path: Path) -> None:
    text = re.sub(r"\[(cot_sft|rl|label)\][^\[]*", "", MICRO) + '[label]\nteacher = "label_only_sft"\n'
    row = page_of(tmp_path, write_results(tmp_path, 0, text=text)).row("student")
    assert row[2:4] == ["2.0", "16.0"]


def test_levers_are_shown_with_their_changes(tmp_path: Path) -> None:
    changed = MICRO + "# --set name=all-layers\n# --set label_only_sft.steps=9\n"
    lever = write_results(tmp_path / "lever", 5, systems=SYSTEMS[:4], text=changed)
    page = page_of(tmp_path, write_results(tmp_path, 0), levers=(lever,))
    row = page.row("micro")
    assert row[1:3] == ["label_only_sft.steps=9", "label_only_sft"]
    assert (
        row[3].split()[0]
        == f"{Results.read(lever).figure('label_only_sft', 'forum', 'macro_f1_decided'):.3f}"
    )
    assert row[-1] == "10.0"


def test_invalid_runs_are_refused(tmp_path: Path) -> None:
    whole = write_results(tmp_path, 0)
    control = write_results(tmp_path / "control", 1, systems=SYSTEMS[:4])
    other = write_results(tmp_path / "other", 2, text=MICRO.replace("steps = 60", "steps = 61"))
    broken, old = tmp_path / "broken.json", tmp_path / "old.json"
    broken.write_text("{", encoding="utf-8")
    old.write_text("{}", encoding="utf-8")
    refused: dict[str, list[Path]] = {
        "at least one run": [],
        "has no student": [control],
        "distinct seeds": [whole, whole],
        "has another recipe": [whole, other],
        "broken.json can't be read as a run's results": [broken],
        "is not a results.json of this release": [old],
        "results.json can't be read": [tmp_path],
    }
    for complaint, runs in refused.items():
        with pytest.raises(LadderError, match=complaint):
            write_ladder(runs, (), tmp_path / "ladder.html")
    assert not (tmp_path / "ladder.html").exists()
