"""The number format is what was asked for, the faster one, or the only one that vLLM can compute."""

import json
from pathlib import Path

import pytest

from service.engines.vllm.profile import choose_cpu_dtype

pytestmark = pytest.mark.engine


def config(folder: Path, **more: object) -> Path:
    shape = {"hidden_size": 64, "intermediate_size": 128}
    (folder / "config.json").write_text(json.dumps(shape | more), encoding="utf-8")
    return folder


def test_auto_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    chosen = choose_cpu_dtype(config(tmp_path), "auto")
    assert chosen in ("float32", "bfloat16")
    assert [record.__dict__["chosen"] for record in caplog.records] == [chosen]


def test_what_was_asked_for_is_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = config(tmp_path)
    assert [choose_cpu_dtype(folder, "float32"), choose_cpu_dtype(folder, "float16")] == [
        "float32",
        "float16",
    ]
    assert not caplog.records


def test_int8_in_float32_is_refused_where_vllm_would_die_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_int8": True})
    folder = config(tmp_path, quantization_config={})
    with pytest.raises(ValueError, match="ask for auto or bfloat16"):
        choose_cpu_dtype(folder, "float32")
    assert choose_cpu_dtype(folder, "auto") == "bfloat16"
