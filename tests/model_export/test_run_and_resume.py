"""The smallest recipe runs uninterrupted, is killed and resumed, and is refused."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from model_export.dry_run import describe_plan
from model_export.recipe_file import load_recipe
from service.contract.checkpoint import load_checkpoint
from tests.killable_run import command, run_killed_at
from tests.tiny_teacher import MICRO

STACK = """
[unlabelled]
pairs = 20
encoder = ""

[stack]
teachers = ["lexical", "reasoning", "label_only"]
folds = 2
label_only_steps = 4

[encode]
steps = 6
batch_size = 8
save_steps = 2
vectors = [1, 2]
served = 2
min_share = 0.0
"""
SYSTEMS = ["majority", "bm25", "zero_shot", "label_only_sft", "cot_sft", "rl", "stack", "student"]
READINGS = ["student", "text_student", "vectors_1", "vectors_2", "mixed", "encoder_cosine"]
# Of each kind of stage, in the order that a run comes to them.
MOMENTS = [
    ("Train label_only_sft", 6),  # between a saved state and the next
    ("Train cot_sft", 20),  # a stage that keeps no state
    ("Train rl", 2),
    ("Soft labels", 8),
    ("Train teacher_reasoning_1", 20),
    ("Features of reasoning", 4),
    ("Train distil", 12),  # its last step
    ("Read texts", 32),
    ("Train encode", 5),
    ("Predict rl", 16),
    ("Compute probes", 8),  # in the middle of the export
    ("Compute vector probes", 8),
]
START, END = MICRO.index("[data.synthetic]"), MICRO.index("[label_only_sft]")
SOURCE = '[[data.sources]]\nname = "mine"\ntrain = "train.jsonl"\ndev = "dev.jsonl"\n\n'
ON_OWN_FILES = MICRO[:START] + SOURCE + MICRO[END:]


def write_recipe(folder: Path, text: str = MICRO + STACK) -> Path:
    path = folder / "micro.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def visible_names(out: Path) -> list[str]:
    """List the names without the hidden folder that a killed export leaves behind."""
    return sorted(path.name for path in out.iterdir() if not path.name.startswith(".checkpoint.partial-"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run without interruption, and return the folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    log = folder / "log.txt"
    recipe, out = write_recipe(folder), folder / "out"
    assert command(log, "run", str(recipe), "--out", str(out)) == 0, log.read_text(encoding="utf-8")
    return out


def test_run_leaves_table_report_and_checkpoint(undisturbed: Path) -> None:
    results = read_json(undisturbed / "results.json")
    assert list(results["rows"]) == SYSTEMS
    assert results["sizes"]["all"]["pairs"] == 16
    assert "<html" in (undisturbed / "report.html").read_text(encoding="utf-8")
    manifest = read_json(undisturbed / "checkpoint" / "manifest.json")
    assert manifest["name"] == "micro"
    assert results["vectors"]["rows"].keys() == set(READINGS)
    second = load_checkpoint(undisturbed / "checkpoint").vectors
    assert second
    assert (second.reading.per_note, second.reading.width) == (2, 64)
    assert manifest["lineage"]["recipe_hash"].startswith("sha256:")
    assert [name for name in visible_names(undisturbed) if "partial" in name] == []


def planned_stages(plan: str) -> list[str]:
    return re.findall(r"^  (\w+) {2,}", plan, re.MULTILINE)


def test_run_goes_through_the_stages_of_its_plan(undisturbed: Path) -> None:
    plan = describe_plan(load_recipe(undisturbed.parent / "micro.toml"), Path())
    stages = [stage["name"] for stage in read_json(undisturbed / "results.json")["stages"]]
    assert planned_stages(plan) == [*stages, "export"]


def test_killed_run_resumes_to_the_same_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    recipe, out, log = write_recipe(tmp_path), tmp_path / "out", tmp_path / "log.txt"
    for stage, step in MOMENTS:
        assert run_killed_at(log, recipe, out, stage, step) == -signal.SIGKILL, (
            stage,
            log.read_text("utf-8"),
        )
    assert command(log, "run", str(recipe), "--out", str(out)) == 0, log.read_text(encoding="utf-8")
    assert visible_names(out) == visible_names(undisturbed)
    for name in ("results.json", "checkpoint/manifest.json"):
        killed, whole = read_json(out / name), read_json(undisturbed / name)
        assert killed.get("rows") == whole.get("rows")
        assert killed.get("fingerprint") == whole.get("fingerprint")


def test_finished_run_keeps_all_its_stages(undisturbed: Path) -> None:
    recipe, log = undisturbed.parent / "micro.toml", undisturbed.parent / "again.txt"
    before = read_json(undisturbed / "checkpoint" / "manifest.json")["fingerprint"]
    assert command(log, "run", str(recipe), "--out", str(undisturbed)) == 0, log.read_text(encoding="utf-8")
    assert {stage["status"] for stage in read_json(undisturbed / "results.json")["stages"]} == {"kept"}
    assert read_json(undisturbed / "checkpoint" / "manifest.json")["fingerprint"] == before


def test_without_rl_the_sft_teacher_that_learned_from_its_own_traces_labels(
    undisturbed: Path, tiny_bert: Path
) -> None:
    """It reuses stages of the uninterrupted run's folder and replaces its checkpoint. A cross-encoder is a further control."""
    log, out = undisturbed.parent / "without_rl.txt", undisturbed
    changes = ["rl.steps=0", "label.teacher=self_sft", "self_sft.steps=8", "evaluate.max_pairs=8"]
    changes += ["cot_sft.steps=200", "own_traces.temperature=0.3"]  # else no trace has the data's findings
    changes += ["cross_encoder.steps=2", "cross_encoder.max_tokens=48", f"cross_encoder.base={tiny_bert}"]
    options = [option for change in changes for option in ("--set", change)]
    ended = command(log, "run", str(undisturbed.parent / "micro.toml"), "--out", str(out), *options)
    assert ended == 0, log.read_text(encoding="utf-8")
    results = read_json(out / "results.json")
    rows = ["self_sft" if system == "rl" else system for system in SYSTEMS]
    assert list(results["rows"]) == [*rows[:2], "cross_encoder", *rows[2:]]
    assert results["controls"][:2] == ["label_only_sft", "cross_encoder"]
    plan = describe_plan(load_recipe(undisturbed.parent / "micro.toml", changes), Path())
    assert planned_stages(plan) == [*(stage["name"] for stage in results["stages"]), "export"]
    assert "Reward and parse rate" not in (out / "report.html").read_text(encoding="utf-8")
    card = (out / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "no RL" in card
    # What is exported is measured on all dev pairs, however few the table is about.
    assert results["sizes"]["all"]["pairs"] == 8
    assert read_json(out / "checkpoint" / "manifest.json")["dev_metrics"]["pairs"] == 16
    assert "Measured on 16 dev pairs" in card
    assert "on 8 of them" in card
    assert "Cross-encoder: 2 steps from tiny-bert." in card
    for control in ("bm25", "cross_encoder"):
        assert re.search(rf"^\| all: 16 \| {control} \| [−+]0\.", card, re.MULTILINE)


def test_control_only_measures_and_exports_nothing(tiny_encoder: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log.txt", tmp_path / "out"
    encoder = f'evaluate.encoders=["{tiny_encoder}"]'
    change = ("--control-only", "--set", "label_only_sft.steps=2", "--set", "name=lever", "--set", encoder)
    ended = command(log, "run", str(write_recipe(tmp_path)), "--out", str(out), *change)
    assert ended == 0, log.read_text(encoding="utf-8")
    results = read_json(out / "results.json")
    assert list(results["rows"]) == [*SYSTEMS[:2], "tiny-encoder", *SYSTEMS[2:4]]
    assert results["recipe"] == "lever"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "# --set label_only_sft.steps=2" in page
    assert not (out / "checkpoint").exists()
    assert [name for name in visible_names(out) if name.startswith("cot_sft")] == []
    assert "The report is" in log.read_text(encoding="utf-8")


def refusal(tmp_path: Path, recipe: str, *arguments: str) -> str:
    """Run, check the exit code 2, and return the last line."""
    log = tmp_path / "log.txt"
    path = write_recipe(tmp_path, recipe)
    assert command(log, "run", str(path), "--out", str(tmp_path / "out"), *arguments) == 2
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.startswith("notegrade-train: ") for line in lines].count(True) == 1
    assert not (tmp_path / "out" / "checkpoint").exists()
    return lines[-1]


def test_low_parse_rate_stops_the_run_and_a_lower_limit_resumes_it(tmp_path: Path) -> None:
    line = refusal(tmp_path, MICRO.replace("min_parse_rate = 0.0", "min_parse_rate = 1.0"))
    assert re.fullmatch(
        r"notegrade-train: \d+% of the SFT teacher's sampled traces parse, below cot_sft.min_parse_rate = 100%: "
        r"raise cot_sft\.steps",
        line,
    )
    log, out = tmp_path / "log.txt", tmp_path / "out"
    less = ("--set", "cot_sft.min_parse_rate=0.0")
    ended = command(log, "run", str(tmp_path / "micro.toml"), "--out", str(out), *less)
    assert ended == 0, log.read_text(encoding="utf-8")
    kept = {stage["name"]: stage["status"] for stage in read_json(out / "results.json")["stages"]}
    assert (kept["label_only_sft"], kept["cot_sft"], kept["rl"]) == ("kept", "kept", "done")


def test_too_long_query_is_refused_before_training(tmp_path: Path) -> None:
    good = {"query": "tea", "note": {"title": None, "body": "green tea"}, "label": 0}
    train = [{**good, "id": "1"}, {**good, "id": "2", "query": "tea " * 1000}]
    for name, rows in (("train", train), ("dev", [{**good, "id": "3", "query": "coffee"}])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    line = refusal(tmp_path, ON_OWN_FILES, "--data", str(tmp_path))
    assert "pairs whose query is too long: 2 of mine: the query has 1,000 tokens" in line
