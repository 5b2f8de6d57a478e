"""Behaviour of the vLLM engine alone: its exceptions, and what it can't load."""

import asyncio
import inspect
import multiprocessing
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.contract.checkpoint import Checkpoint
from service.engines.base import EngineModel
from service.engines.vllm.engine import VllmEngine, translate_vllm_errors
from service.engines.vllm.options import Compile, VllmOptions
from service.errors import EngineError, EngineLostError, EngineRequestError
from tests.checkpoints import engine_model
from tests.waiting import until

pytestmark = pytest.mark.engine


def vllm_errors() -> list[type[Exception]]:
    import vllm.exceptions
    import vllm.v1.engine.exceptions

    modules = (vllm.exceptions, vllm.v1.engine.exceptions)
    found = {
        thing
        for module in modules
        for _, thing in inspect.getmembers(module, inspect.isclass)
        if issubclass(thing, Exception) and thing.__module__ == module.__name__
    }
    return sorted(found, key=lambda error: error.__name__)


def test_every_vllm_error_is_translated() -> None:
    errors = vllm_errors()
    assert {"EngineDeadError", "EngineGenerateError", "VLLMValidationError"} <= {e.__name__ for e in errors}
    for error in errors:
        expected = EngineLostError if error.__name__ == "EngineDeadError" else EngineRequestError
        # Created without its constructor: their arguments differ, and only the class matters.
        with pytest.raises(EngineError) as caught, translate_vllm_errors():
            raise error.__new__(error)
        assert type(caught.value) is expected, error


class GivingUp:
    """Stands for an AsyncLLM that gives a request up: its error is an ordinary output."""

    def __init__(self, reason: str) -> None:
        self._completion = SimpleNamespace(finish_reason=reason, token_ids=[])

    async def generate(self, *_: object, **__: object) -> AsyncGenerator[SimpleNamespace]:
        yield SimpleNamespace(outputs=[self._completion], num_cached_tokens=0)


@pytest.mark.parametrize("reason", ["error", "abort"])
async def test_a_trace_that_vllm_gives_up_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    engine = VllmEngine(EngineModel(tmp_path, (1, 2), 10), VllmOptions(engine_dtype="float32"))
    monkeypatch.setattr(engine, "_running", lambda: (GivingUp(reason), engine.profile))
    with pytest.raises(EngineRequestError, match=f"vLLM ended the trace: {reason}"):
        await anext(engine.write((1, 2), 5, 0))


@pytest.mark.parametrize(
    ("environment", "compiled", "why"),
    [
        ({}, "auto", "vLLM can't load"),
        ({"CXX": "a-compiler-that-is-not-there"}, "on", r"needs a C\+\+ compiler"),
        ({"CXX": "sh", "TORCHDYNAMO_DISABLE": "1"}, "on", "TORCHDYNAMO_DISABLE=1 forbids"),
    ],
    ids=["empty config", "no compiler", "compiling disabled"],
)
async def test_what_vllm_can_not_load_is_a_lost_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], compiled: Compile, why: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    engine = VllmEngine(
        EngineModel(tmp_path, (1, 2), 10), VllmOptions(engine_dtype="float32", engine_compile=compiled)
    )
    with pytest.raises(EngineLostError, match=why):
        await engine.start()
    await engine.close()


async def test_closing_while_loading_returns_soon_and_leaves_no_process(
    default_checkpoint: Checkpoint,
) -> None:
    engine = VllmEngine(engine_model(default_checkpoint), VllmOptions(engine_dtype="float32"))
    starting = asyncio.create_task(engine.start())
    await until(lambda: bool(multiprocessing.active_children()), within_s=120)
    await engine.close()
    with pytest.raises(EngineLostError):
        await starting
    assert multiprocessing.active_children() == []
