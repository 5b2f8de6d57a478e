import json
import sys
from pathlib import Path

import pytest

from load_tests import encoding_rate
from load_tests.bench.peers.notegrade import Notegrade
from service.contract.checkpoint import Checkpoint
from tests.checkpoints import make_vector_checkpoint


@pytest.mark.timeout(300)
def test_rates_and_coverage_of_a_service_on_the_fake_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = encoding_rate.service

    def on_fake_engine(checkpoint: Checkpoint, name: str, share: str) -> Notegrade:
        found = made(checkpoint, name, share)
        found.settings = {**found.settings, "NOTEGRADE_ENGINE": "fake"}
        return found

    monkeypatch.setattr(encoding_rate, "service", on_fake_engine)
    folder, out = make_vector_checkpoint(tmp_path / "checkpoint"), tmp_path / "out.json"
    options = ["--rounds", "1", "--notes", "4", "--seconds", "10", "--pairs-per-s", "40", "--seed", "7"]
    monkeypatch.setattr(
        sys, "argv", ["encoding_rate.py", "--checkpoint", str(folder), *options, "--out", str(out)]
    )
    encoding_rate.main()
    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert all(rate > 0 for [rate] in figures["notes_per_s"].values())
    first, *_, last = figures["coverage"]
    assert first < last <= 1
    shown = capsys.readouterr().out
    assert "100,000 notes, all of the time: " in shown
    assert f"{last:.0%}" in shown.splitlines()[-1]
