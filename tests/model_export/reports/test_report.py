import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from model_export.data.prepare import Data
from model_export.evaluation.evaluate import evaluate
from model_export.evaluation.explanations import Figures
from model_export.reports.report import RunResult, rl_verdicts, write_report
from model_export.stages import StageRecord
from tests.model_export.reports.made_systems import PAIRS, SECRETS, predict
from tests.tiny_teacher import micro_recipe

SYSTEMS = [predict("label_only_sft", 7), predict("cot_sft", 2), predict("rl", 5)]
SYSTEMS.append(predict("student", 1))
LOG: list[dict[str, Any]] = [
    {"stage": stage, "step": step, "loss": 1 / step, "reward": 0.5, "parse_rate": 1.0, "step_accuracy/topic": 0.5}
    for stage in ("rl",)
    for step in (1, 2)
]  # fmt: skip
RUN = RunResult(
    recipe=micro_recipe().model_copy(update={"name": "tiny <1>"}),
    recipe_text='name = "tiny"',
    data=Data((), tuple(PAIRS), frozenset(), (), {}, left_out=("p&1",)),
    pairs=PAIRS,
    systems=SYSTEMS,
    evaluation=evaluate(SYSTEMS, PAIRS, frozenset({"p0", "p1", "p2", "p3"}), seed=1, draws=50),
    stages=[
        StageRecord("data", "0123abcd", 1.25, "done"),
        StageRecord("rl", "4567cdef", 83.4, "done"),
        StageRecord("label", "89ab0123", 2.0, "kept"),
    ],
    log=LOG,
    explained={"shop": Figures(300, 1.0, 0.99, 0.98, 0.9, 0.97, 0.125, 0.1, 0.15, 0.6, 0.95, 0.8)},
)


class Tags(HTMLParser):
    """Collects a page's start tags; fails on an end tag without its start tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def render(run: RunResult, folder: Path) -> str:
    write_report(folder / "report.html", run)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(RUN, tmp_path_factory.mktemp("report"))


def test_page_is_well_formed_and_makes_no_network_requests(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    assert not {tag for tag, _ in tags.all} & {"script", "link", "iframe", "object", "base"}
    sources = [
        value for _, attributes in tags.all for name in ("src", "href") if (value := attributes.get(name))
    ]
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", page)


def test_every_image_has_alternative_text(page: str) -> None:
    images = [attributes for tag, attributes in Tags(page).all if tag == "img"]
    assert all(image["alt"] and int(image["width"] or 0) > 200 for image in images)


def test_page_has_no_text_of_queries_and_notes(page: str) -> None:
    assert not [secret for secret in SECRETS if secret in page]


def test_findings_come_first_and_text_is_escaped(page: str) -> None:
    assert "Run tiny &lt;1&gt;" in page
    dropped = "1 dev pairs were dropped because another source trains on their query: p&amp;1."
    assert page.index(dropped) < page.index("<h2>Summary</h2>")


def test_winner_may_be_a_control(page: str) -> None:
    sentence = RUN.evaluation.winners["accuracy"].sentence
    assert sentence.startswith("accuracy: best is label_only_sft (0.875); student is 0.750 below")
    assert f'<li>{sentence}. <span class="control">A control is best.</span></li>' in page


def test_intervals_that_exclude_zero_are_bold(page: str) -> None:
    difference = RUN.evaluation.differences["label_only_sft"]["student"]["accuracy"]
    assert difference.excludes_zero
    assert '<td>0.125<small class="sure">−0.750 [' in page
    assert ">label_only_sft</th><td" in page.replace("\n", "")


def test_every_split_has_a_table(page: str) -> None:
    splits = ["all", "long_tail", "forum", "shop", "shop_long_tail"]
    assert re.findall(r"<h3>(\w+)</h3>\n<div", page) == splits


def test_page_has_stage_times_and_the_recipe(page: str) -> None:
    assert ">0:00:01<" in page
    assert ">0:01:23<" in page
    assert ">kept<" in page
    assert "<pre>name = &#34;tiny&#34;</pre>" in page


def test_plot_without_data_says_so(page: str, tmp_path: Path) -> None:
    assert page.count("Not logged in this run.") == 1  # no stage logged a correlation
    bare = render(replace(RUN, log=[], systems=SYSTEMS[:1]), tmp_path)
    assert (bare.count("Not logged in this run."), bare.count("<img")) == (5, 1)


def test_explanations_are_shown_where_they_were_measured(page: str, tmp_path: Path) -> None:
    assert "0.125 [0.100, 0.150]" in page
    assert "Explanations" not in render(replace(RUN, explained={}), tmp_path)


def test_verdicts_state_whether_rl_helped() -> None:
    [verdict] = rl_verdicts(RUN.evaluation)
    assert verdict.startswith("RL helped: the exact-grade accuracy of rl minus that of cot_sft is +0.375 [")
    worse = evaluate([predict("cot_sft", 5), predict("rl", 2)], PAIRS, frozenset(), seed=1, draws=10)
    assert rl_verdicts(worse)[0].startswith("RL did not help: ")


def test_verdicts_need_a_teacher() -> None:
    assert rl_verdicts(evaluate(SYSTEMS[:2], PAIRS, frozenset(), seed=1, draws=10)) == []
