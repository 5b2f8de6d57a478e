import json
from pathlib import Path

import pytest

from service.contract.vllm_settings import ENVIRONMENT, cpu_environment, has_compiler, refuses_float32


def test_processors_need_what_all_need_and_more() -> None:
    environment = cpu_environment(threads=3, kv_cache_gib=5)
    assert ENVIRONMENT.items() < environment.items()
    assert environment.items() - cpu_environment(3, 5, compiled=True).items() == {
        ("TORCHDYNAMO_DISABLE", "1")
    }
    assert (environment["OMP_NUM_THREADS"], environment["VLLM_CPU_KVCACHE_SPACE"]) == ("3", "5")


@pytest.mark.parametrize(("command", "there"), [("sh", True), ("a-compiler-that-is-not-there", False)])
def test_a_compiler_is_what_cxx_names(command: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    assert has_compiler() is there


@pytest.mark.parametrize(
    ("config", "capabilities", "refused"),
    [
        ({"quantization_config": {}}, {"amx_int8": True}, True),
        ({"quantization_config": {}}, {"amx_int8": False}, False),
        ({"quantization_config": {}}, {}, False),  # another architecture
        ({}, {"amx_int8": True}, False),
    ],
)
def test_only_int8_on_amx_refuses_float32(
    config: dict[str, object], capabilities: dict[str, bool], refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert refuses_float32(tmp_path, capabilities) is refused
