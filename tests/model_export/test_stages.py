import json
from pathlib import Path

import pytest

from model_export.stages import RunError, Stages, hash_of, lock


class Writer:
    """A stage's work, which writes a file and counts its calls."""

    def __init__(self, text: str) -> None:
        self.text, self.calls = text, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "out").write_text(self.text, encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_done_stage_is_kept(tmp_path: Path) -> None:
    work, again = Writer("a"), Stages(tmp_path)
    first = Stages(tmp_path).do("sft", {"steps": 3}, work)
    assert again.do("sft", {"steps": 3}, work) == first
    assert work.calls == 1
    assert (first / "out").read_text(encoding="utf-8") == "a"
    assert [record.status for record in again.records] == ["kept"]
    assert names(tmp_path) == [first.name]


@pytest.mark.parametrize(
    ("name", "inputs"), [("sft", {"steps": 4}), ("rl", {"steps": 3}), ("sft", {"steps": 3, "x": 0})]
)
def test_changed_input_is_another_stage(tmp_path: Path, name: str, inputs: dict[str, object]) -> None:
    stages, work = Stages(tmp_path), Writer("a")
    first = stages.do("sft", {"steps": 3}, work)
    assert stages.do(name, inputs, work) != first
    assert work.calls == 2


def test_changed_input_reruns_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    def run(steps: int) -> list[str]:
        stages = Stages(tmp_path)
        data = stages.do("data", {"seed": 1}, Writer("d"))
        sft = stages.do("sft", {"data": data.name, "steps": steps}, Writer("s"))
        stages.do("rl", {"start": sft.name}, Writer("r"))
        stages.do("control", {"data": data.name}, Writer("c"))
        return [record.name for record in stages.records if record.status == "done"]

    assert run(1) == ["data", "sft", "rl", "control"]
    assert run(1) == []
    assert run(2) == ["sft", "rl"]
    assert run(1) == []


def test_killed_stage_resumes_from_its_partial_folder(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        (folder / "half").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).do("sft", {}, killed)
    [partial] = names(tmp_path)
    assert partial.endswith(".partial")
    found: list[list[str]] = []
    stages = Stages(tmp_path)
    done = stages.do("sft", {}, lambda folder: found.append(names(folder)))
    assert found == [["half"]]
    assert names(tmp_path) == [done.name] == [partial.removesuffix(".partial")]
    assert [record.status for record in stages.records] == ["done"]


def test_stage_killed_before_the_rename_is_done_again(tmp_path: Path) -> None:
    done = Stages(tmp_path).do("sft", {}, Writer("a"))
    done.rename(tmp_path / f"{done.name}.partial")
    work = Writer("b")
    assert (Stages(tmp_path).do("sft", {}, work) / "out").read_text(encoding="utf-8") == "b"
    assert work.calls == 1


def test_record_is_of_the_attempt_that_finished(tmp_path: Path) -> None:
    done = Stages(tmp_path).do("sft", {"steps": 1}, Writer("a"))
    record = json.loads((done / "stage.json").read_text(encoding="utf-8"))
    assert (record["name"], record["status"]) == ("sft", "done")
    assert done.name == f"sft-{record['hash'].removeprefix('sha256:')[:12]}"
    assert record["seconds"] >= 0


def test_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    with (
        lock(folder),
        pytest.raises(RunError, match=r"another run works in .*tiny: wait for it"),
        lock(folder),
    ):
        pass
    with lock(folder):
        assert names(folder) == [".lock"]


def test_hash_depends_on_values_and_not_on_key_order() -> None:
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": [1, 2], "a": 1})
    values: list[object] = [{"a": 1}, {"a": 2}, {"a": [1]}, {"b": 1}, {"a": "1"}, []]
    assert len({hash_of(value) for value in values}) == len(values)
    assert hash_of({}).startswith("sha256:")
