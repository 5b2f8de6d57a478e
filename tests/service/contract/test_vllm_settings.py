import json
import os
from pathlib import Path

import pytest

from service.contract.vllm_settings import ENVIRONMENT, cpu_environment, has_compiler, refuses_float32
from tests.page_faults import page_faults


def test_the_cpu_environment_extends_the_common_environment() -> None:
    environment = cpu_environment(threads=3, kv_cache_gib=5)
    assert ENVIRONMENT.items() < environment.items()
    assert environment.items() - cpu_environment(3, 5, compiled=True).items() == {
        ("TORCHDYNAMO_DISABLE", "1")
    }
    assert (environment["OMP_NUM_THREADS"], environment["VLLM_CPU_KVCACHE_SPACE"]) == ("3", "5")


def test_glibc_keeps_the_freed_memory_of_a_step() -> None:
    kept = {name: value for name, value in cpu_environment(1).items() if name.startswith("MALLOC_")}
    without = {name: value for name, value in os.environ.items() if name not in kept}
    faults = [page_faults(environment) for environment in (without, without | kept)]
    assert faults[0] > 20 * faults[1], faults


@pytest.mark.parametrize(("command", "there"), [("sh", True), ("a-compiler-that-is-not-there", False)])
def test_cxx_names_the_compiler(command: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
