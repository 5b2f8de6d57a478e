import math
from typing import Any

import pytest

from load_tests.bench.peer import Request
from load_tests.bench.peers.notegrade import Notegrade, NotegradeVectors
from service.cli.encode import NoteSender
from service.contract.checkpoint import Checkpoint
from service.http.schemas import BodyChecks, ScoreBody
from service.scoring.types import ScoringNote
from service.settings import load_settings


def result(note_id: str, distribution: list[float] | None) -> dict[str, Any]:
    scored = {"outcome": "scored", "distribution": distribution, "source": "engine"}
    return {"id": note_id, **(scored if distribution else {"outcome": "shed", "distribution": None})}


def test_call_is_a_valid_request(tiny: Checkpoint, request_of_three: Request) -> None:
    path, sent = Notegrade(tiny, "default", cached=False).call(request_of_three)
    body = ScoreBody.model_validate(sent, context=BodyChecks(load_settings()))
    assert path == "/score"
    assert [note.id for note in body.notes] == ["n1", "n2", "n3"]
    assert body.deadline_ms == load_settings().max_deadline_ms


def test_distributions_are_not_calibrated_again(tiny: Checkpoint) -> None:
    answer = {"results": [result("n1", [0.64, 0.36, 0.0, 0.0]), result("n2", [0.0, 0.0, 0.5, 0.5])]}
    assert Notegrade(tiny, "default", cached=False).grades(answer) == pytest.approx([0.36, 2.5])


def test_note_without_a_score_has_no_grade(tiny: Checkpoint) -> None:
    answer = {"results": [result("n1", [0.25] * 4), result("n2", None)]}
    scored, missing = Notegrade(tiny, "default", cached=False).grades(answer)
    assert scored == pytest.approx(1.5)
    assert math.isnan(missing)


def test_inherited_settings_are_removed(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEGRADE_REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = Notegrade(tiny, "default", cached=True).environment()
    assert {name for name in environment if name.startswith("NOTEGRADE_")} == {
        "NOTEGRADE_DRAIN_DELAY_S",
        "NOTEGRADE_MAX_NOTES",
        "NOTEGRADE_READING",
    }
    assert environment["OMP_NUM_THREADS"] == "1"


def test_notes_are_encoded_once_before_a_turn(
    tiny: Checkpoint, request_of_three: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[ScoringNote] = []
    monkeypatch.setattr(NoteSender, "encode", lambda _, notes: sent.extend(notes))
    peer = NotegradeVectors(tiny, "tuned", cached=False)
    peer.encode("http://127.0.0.1:1", [request_of_three, request_of_three])
    assert [note.id for note in sent] == ["n1", "n2", "n3"]
    assert peer.environment()["NOTEGRADE_READING"] == "vectors"


@pytest.mark.parametrize("tuning", ["default", "tuned"])
@pytest.mark.parametrize("cached", [True, False])
def test_settings_are_valid(
    tiny: Checkpoint, tuning: Any, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "sh")  # any program that is there
    for name, value in Notegrade(tiny, tuning, cached).environment().items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.local_cache_pairs == (100_000 if cached else 1)
    assert settings.log_level == ("warning" if tuning == "tuned" else "info")
    assert settings.engine_compile == ("on" if tuning == "tuned" else "auto")


def test_eager_without_a_compiler(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    assert "NOTEGRADE_ENGINE_COMPILE" not in Notegrade(tiny, "tuned", cached=False).environment()
