"""`auto` chooses a CPU's faster number format by its bfloat16 units, formats that vLLM can't compute are refused, and devices are named."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.engines.vllm.profile import choose_cpu_dtype, describe_device

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


@dataclass
class Platform:
    """Stands for vLLM's platform of a CPU, or of a GPU with this name."""

    gpu: str = ""

    def is_cpu(self) -> bool:
        return not self.gpu

    def get_device_name(self) -> str:
        return self.gpu or "cpu"


def test_devices_are_named_by_what_chooses_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_device(Platform("NVIDIA H100 80GB HBM3")) == "NVIDIA H100 80GB HBM3"
    described = []
    genoa = {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
    for other in ({"cpu_name": "AMD EPYC"}, {"cpu_name": "another", "clwb": True}, {"amx_bf16": True}):
        capabilities = {**genoa, **other}
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda capabilities=capabilities: capabilities)
        described.append(describe_device(Platform()))
    assert described == [
        *["x86_64 avx2 avx512_f avx512_bf16"] * 2,
        "x86_64 avx2 avx512_f avx512_bf16 amx_bf16",
    ]


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
