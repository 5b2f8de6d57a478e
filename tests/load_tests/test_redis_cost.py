"""The service's calls are measured on a real Redis."""

import json
import sys
from pathlib import Path

import pytest

from load_tests.redis_cost import main
from tests.redis_server import RedisServer


@pytest.mark.redis
def test_a_call_costs_more_with_more_notes(
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "cost.json"
    options = ["--rounds", "1", "--calls", "50", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", ["load_tests/redis_cost.py", redis_server.url, *options])
    main()
    assert capsys.readouterr().out.count("lookup") == 6
    costs = {(cost["call"], cost["notes"]): cost for cost in json.loads(file.read_text())["figures"]}
    one, many = costs["lookup", 1], costs["lookup", 100]
    # The key and the reading of each note, and what frames them.
    assert (many["received"] - one["received"]) / 99 == pytest.approx(39, abs=1)
    assert (many["sent"] - one["sent"]) / 99 == pytest.approx(57, abs=2)
    assert costs["write", 100]["memory"] > 50 * 100
    vectors = 4 * 2 * 576
    assert costs["lookup of vectors", 100]["sent"] == pytest.approx(100 * vectors, rel=0.02)
    assert costs["write vectors", 100]["memory"] > 100 * vectors
    assert redis_server.url not in file.read_text()
