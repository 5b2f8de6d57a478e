"""The command line refuses invalid commands with clear messages, without an engine."""

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.__main__ import app, main
from service.http.auth import Keyring
from tests.checkpoints import fake_engine_for, make_checkpoint, make_vector_checkpoint


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restore logging: commands configure it for the whole process, on a captured stream that is closed after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["notegrade", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_complete_checkpoint_passes_the_check(folder: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 0
    assert "tiny-1 can be served" in result.output
    assert "at most 64 tokens of a query and 48 of a note" in result.output
    assert "vectors" not in result.output


def test_the_check_names_the_second_reading(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(make_vector_checkpoint(tmp_path / "both"))])
    assert result.exit_code == 0
    assert "a note is also read as 2 vectors" in result.output


@pytest.mark.parametrize(
    "command", [["check"], ["serve", "--checkpoint"], ["score", "--query", "q", "--notes"]]
)
def test_a_broken_checkpoint_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (folder / "model.safetensors").unlink()
    arguments = [*command, str(folder)]
    if command[0] == "score":
        (folder / "notes.jsonl").write_text("", encoding="utf-8")
        arguments = [*command, str(folder / "notes.jsonl"), "--checkpoint", str(folder)]
    assert run_main(monkeypatch, *arguments) == 2
    written = capsys.readouterr().err
    assert "model.safetensors is missing" in written
    assert len(written.strip().splitlines()) == 1


def test_scores_are_printed_as_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is fake; tests/end_to_end/test_commands.py runs the command on the real engine."""
    monkeypatch.setattr(
        "service.app._build_engine", lambda _settings, checkpoint: fake_engine_for(checkpoint)
    )
    query, notes = "quiet cafes to work in lisbon", Path(__file__).parents[2] / "examples" / "notes.jsonl"
    command = ["score", "--query", query, "--notes", str(notes), "--checkpoint", str(folder)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "20 notes answer" in result.output
    assert result.output.count("n0") >= 9
    assert "Traceback" not in result.output


def test_serving_wider_than_loopback_needs_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "serve", "--host", "0.0.0.0", "--checkpoint", str(folder)) == 2
    assert "only loopback is served" in capsys.readouterr().err


def test_a_new_key_is_accepted_and_may_have_a_name() -> None:
    result = CliRunner().invoke(app, ["key", "--role", "admin", "--name", "ranker"])
    found = re.search(r"key: +(\S+)\nentry: +(\S+)", result.output)
    assert found
    assert Keyring.parse(found[2]).check(found[1], "admin").key_id == "ranker"
    assert CliRunner().invoke(app, ["key"]).exit_code == 0


@pytest.mark.parametrize("arguments", [["--role", "root"], ["--name", "a:b"]])
def test_a_role_or_name_that_no_entry_can_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_main(monkeypatch, "key", *arguments) == 2
    assert "entry 1 must be" in capsys.readouterr().err


def test_an_unreachable_service_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "mode", "--url", "http://127.0.0.1:1") == 2
    written = capsys.readouterr().err
    assert "http://127.0.0.1:1 did not answer" in written
    assert len(written.strip().splitlines()) == 1
