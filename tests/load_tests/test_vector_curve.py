import json
import sys
from pathlib import Path
from typing import Any

import pytest

from load_tests import vector_curve
from load_tests.vector_curve import Point, read_points

METRICS = ("macro_f1", "qwk", "ndcg_at_10")


def figures(value: float) -> dict[str, Any]:
    return {"all": dict.fromkeys(METRICS, value)}


def difference(value: float) -> dict[str, Any]:
    return {name: {"difference": value, "low": value - 0.02, "high": value + 0.03} for name in METRICS}


COMPARED = {
    "controls": ["student"],
    "rows": {
        "student": figures(0.5),
        "vectors_1": figures(0.4),
        "vectors_4": figures(0.48),
        "minilm": figures(0.42),
    },
    "differences": {
        "student": {
            "vectors_1": difference(-0.1),
            "vectors_4": difference(-0.02),
            "minilm": difference(-0.08),
        }
    },
}
RATES = {"text": [6.0, 7.0, 8.0], "1 vectors": [90.0, 100.0, 120.0], "4 vectors": [60.0, 61.0, 62.0]}


def test_each_reading_has_its_interval_and_its_rates() -> None:
    text, one, four, encoder = read_points(COMPARED, RATES, "qwk")
    assert text == Point("text", (0.5, 0.5, 0.5), (6.0, 7.0, 8.0))
    assert (one.name, one.rates) == ("1 vectors", (90.0, 100.0, 120.0))
    assert one.quality == pytest.approx((0.38, 0.4, 0.43))
    assert (four.name, four.rates) == ("4 vectors", (60.0, 61.0, 62.0))
    assert (encoder.name, encoder.rates) == ("minilm", None)


def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: Any) -> Path:
    results, rates, out = (tmp_path / name for name in ("results.json", "rates.json", "curve.png"))
    results.write_text(json.dumps({"vectors": compared}), encoding="utf-8")
    rates.write_text(json.dumps({"figures": {"pairs_per_s": RATES}}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["vector_curve", str(results), str(rates), "--out", str(out)])
    vector_curve.main()
    return out


def test_the_curve_is_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw(tmp_path, monkeypatch, COMPARED).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_encoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"results\.json compares no readings: its recipe has no \[encode\]"):
        draw(tmp_path, monkeypatch, None)
