"""`auto` chooses a CPU's faster number format by its bfloat16 units, and formats that vLLM can't compute are refused."""

import json
from pathlib import Path

import pytest

from service.engines.vllm.profile import choose_cpu_dtype

pytestmark = pytest.mark.engine


def make_config(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, "float32"),
        ({"avx2": True}, "float32"),
        ({}, "float32"),  # another architecture
    ],
)
def test_auto_is_bfloat16_only_where_the_processor_has_a_unit_for_it(
    capabilities: dict[str, bool], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert choose_cpu_dtype(make_config(tmp_path), "auto") == dtype


def test_a_requested_format_has_precedence(tmp_path: Path) -> None:
    folder = make_config(tmp_path)
    assert choose_cpu_dtype(folder, "float32") == "float32"
    assert choose_cpu_dtype(folder, "float16") == "float16"


def test_int8_in_float32_is_refused_where_vllm_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_int8": True})
    folder = make_config(tmp_path, quantization_config={})
    with pytest.raises(ValueError, match="set auto or bfloat16"):
        choose_cpu_dtype(folder, "float32")
    assert choose_cpu_dtype(folder, "auto") == "bfloat16"
