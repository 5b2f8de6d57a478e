import pytest

from load_tests.bench.peers import vllm_server
from load_tests.bench.peers.vllm_server import default_settings, tuned_settings
from service.contract.checkpoint import Checkpoint


@pytest.fixture
def _with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh")  # any program that is there


@pytest.fixture(autouse=True)
def _float32_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "ask_faster_dtype", lambda _: "float32")


def option(flags: tuple[str, ...], name: str) -> str:
    return flags[flags.index(name) + 1]


@pytest.mark.usefixtures("_with_compiler")
def test_default_settings_set_no_options() -> None:
    settings = default_settings()
    assert settings.flags == ()
    assert set(settings.environment) == {
        "VLLM_NO_USAGE_STATS",
        "HF_HUB_OFFLINE",
        "VLLM_CPU_KVCACHE_SPACE",
    }


@pytest.mark.usefixtures("_with_compiler")
def test_tuned_settings_equal_those_of_our_engine(tiny: Checkpoint) -> None:
    settings = tuned_settings(tiny)
    longest = tiny.renderer.max_prompt_tokens + 1
    assert option(settings.flags, "--dtype") == "float32"
    assert option(settings.flags, "--block-size") == "32"
    assert option(settings.flags, "--max-model-len") == str(longest)
    assert int(option(settings.flags, "--max-num-batched-tokens")) == max(1024, longest)
    assert settings.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "TORCHDYNAMO_DISABLE" not in settings.environment
    assert "--enforce-eager" not in settings.flags


def test_eager_without_a_compiler(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    for settings in (default_settings(), tuned_settings(tiny)):
        assert "--enforce-eager" in settings.flags
        assert settings.environment["TORCHDYNAMO_DISABLE"] == "1"
