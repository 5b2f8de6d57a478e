"""The comparison runs on a tiny base and in this process, where it says nothing about speed."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from load_tests import kept_memory
from tests.tiny_base import make_tiny_base


def test_each_round_measures_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_memory, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    out = tmp_path / "kept.json"
    options = argparse.Namespace(rounds=2, prompts=3, seed=1, out=out)
    kept_memory.measure(options, make_tiny_base(tmp_path / "base"))
    assert "kept / returned: " in capsys.readouterr().out
    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert set(figures) == {"reading_s", "training_s", "page_faults", "peak_mib"}
    for sides in figures.values():
        assert {side: len(found) for side, found in sides.items()} == {"returned": 2, "kept": 2}
