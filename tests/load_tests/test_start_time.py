import json
import sys
from pathlib import Path

import pytest

from load_tests import start_time
from service.contract.checkpoint import Checkpoint


def test_both_sides_are_printed_without_their_first_start(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = {"off": iter([100.0, 16.0, 18.0]), "on": iter([200.0, 80.0, 72.0])}
    monkeypatch.setattr(start_time, "ready_after", lambda _, compiled: next(seconds[compiled]))
    monkeypatch.setattr(start_time, "has_compiler", lambda: True)
    out = tmp_path / "start.json"
    options = ["--checkpoint", str(checkpoint.folder), "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["start_time.py", *options])
    start_time.main()
    shown = capsys.readouterr().out
    assert "as it is: 16.00 / 17.00 / 18.00 s" in shown
    assert "compiled / as it is: 4.00 / 4.50 / 5.00" in shown
    found = json.loads(out.read_text(encoding="utf-8"))["figures"]["ready_s"]
    assert found == {"as it is": [16.0, 18.0], "compiled": [80.0, 72.0]}
