"""The engine on vLLM. This is the only file that imports `vllm`.

The model runs in vLLM's engine-core process; this process sends token ids to it and receives logprobs.
"""

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import itertools
import logging
import math
import multiprocessing
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.contract.vector_prompt import VectorPrompt
from service.contract.vllm_settings import ENVIRONMENT, cpu_environment, has_compiler
from service.engines.base import (
    CHECK_EVERY_S,
    EngineAnswer,
    EngineModel,
    EngineProfile,
    EnginePrompt,
    TraceChunk,
)
from service.engines.calls import EngineCalls
from service.engines.vllm.options import VllmOptions
from service.engines.vllm.plugin import skip_modules_in_collections
from service.engines.vllm.profile import choose_cpu_dtype, describe_device
from service.engines.vllm.shutdown import run_in_thread, shut_down, stop_load
from service.engines.vllm.vectors import embed_prompt
from service.errors import CommandError, EngineLostError, EngineRequestError

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.inputs.engine import EmbedsInput, TokensInput
    from vllm.v1.engine.async_llm import AsyncLLM

# Before vLLM reads vllm_logging.json, it logs that Triton has no CPU backend, in text. Here because the engine core imports
# this module, too, and imports it before vLLM.
logging.getLogger("vllm").setLevel(logging.ERROR)

# The engine core imports vLLM next. Collections would take a quarter of that time and free next to nothing: the plugin
# enables them again.
if multiprocessing.current_process().name.startswith("EngineCore"):
    gc.disable()

START_TIMEOUT_S = 600
_FIRST = -1  # before every pair, whose priorities start at 0
# Finish reasons of a request that vLLM gave up. A grammar that it can't compile is such an error.
_FAILED = ("abort", "error")
# For the calls in flight to abort their requests in the engine core, which is shut down in any case.
ABORT_TIMEOUT_S = 2.0


def require_vllm() -> None:
    """Raise CommandError, which names the extras, if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise CommandError(
            "vLLM is not installed: with a GPU pip install 'notegrade[gpu]', without one 'notegrade[cpu]' "
            "as docs/deploy.md says, in a clone `make setup`"
        )


class VllmEngine:
    """An engine on one `AsyncLLM`, whose engine core is a process of its own."""

    def __init__(self, model: EngineModel, options: VllmOptions) -> None:
        self._model = model
        self._options = options
        self._loading: asyncio.Task[tuple[AsyncLLM, EngineProfile]] | None = None
        self._calls = EngineCalls(self._ask, math.ceil(options.engine_hang_s / CHECK_EVERY_S))
        self._closed = False
        self._ids = itertools.count()

    @property
    def profile(self) -> EngineProfile:
        loaded = self._loaded()
        return loaded[1] if loaded else EngineProfile(dtype="unknown")

    async def start(self) -> None:
        self._loading = asyncio.create_task(self._load())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(self._loading)
                await self._warm_up()
        except Exception as error:  # whatever vLLM, torch or the driver raise, there is no engine
            raise EngineLostError(
                f"vLLM can't load {self._model.folder}: {type(error).__name__}: {error}"
            ) from error

    async def _warm_up(self) -> None:
        # At its first grammar vLLM reads the tokenizer, which would hold up scoring for half a second.
        async with contextlib.aclosing(
            self.write(self._model.label_token_ids, 1, 0, 'start: "a"')
        ) as written:
            async for _ in written:
                break

    async def _load(self) -> "tuple[AsyncLLM, EngineProfile]":
        # In threads: loading takes seconds to minutes, and /livez must answer meanwhile. In two threads: something
        # that vLLM imports keeps a reference to the importing frames, which would keep the engine alive for ever.
        try:
            await run_in_thread(_import_vllm)
            if not self._closed:
                return await run_in_thread(partial(_load, self._model, self._options))
        except asyncio.CancelledError:  # by `close`, after its timeout
            pass
        raise EngineLostError("the engine was closed while it was loading")

    async def score(self, prompt: EnginePrompt, priority: int) -> EngineAnswer:
        llm, _ = self._running()
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, temperature=0, detokenize=False, logprob_token_ids=list(self._model.label_token_ids)
        )
        inputs = _inputs(prompt, self._model.vector_width)
        outputs = llm.generate(inputs, params, f"pair-{next(self._ids)}", priority=priority)
        with translate_vllm_errors():
            # aclosing: closing the stream for any reason, such as cancellation, aborts the request in the engine.
            async with self._calls.until_lost(), contextlib.aclosing(outputs) as stream:
                async for output in stream:  # one token makes one output
                    return self._answer(output)
        raise EngineRequestError("vLLM ended the request without an output")

    async def write(
        self, prompt: tuple[int, ...], max_tokens: int, priority: int, grammar: str | None = None
    ) -> AsyncGenerator[TraceChunk]:
        llm, _ = self._running()
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        ends = self._model.end_token_ids
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0,
            detokenize=False,
            stop_token_ids=list(ends),
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(grammar=grammar) if grammar else None,
        )
        outputs = llm.generate(
            tokens_input(list(prompt)), params, f"trace-{next(self._ids)}", priority=priority
        )
        is_first = True
        with translate_vllm_errors():
            async with contextlib.aclosing(outputs) as stream:
                while output := await self._next(stream):
                    computed = len(prompt) - (output.num_cached_tokens or 0) if is_first else 0
                    is_first = False
                    [completion] = output.outputs
                    if completion.finish_reason in _FAILED:
                        raise EngineRequestError(f"vLLM ended the trace: {completion.finish_reason}")
                    token_ids = tuple(t for t in completion.token_ids if t not in ends)
                    yield TraceChunk(token_ids, computed)

    async def _next(self, stream: "AsyncGenerator[RequestOutput]") -> "RequestOutput | None":
        # Around each chunk, not the whole stream: a slow reader does not mean that the engine hangs.
        async with self._calls.until_lost():
            return await anext(stream, None)

    async def _ask(self) -> None:
        await self.score(self._model.label_token_ids, _FIRST)

    async def check(self) -> None:
        llm, _ = self._running()
        self._calls.check()
        with translate_vllm_errors():
            await llm.check_health()

    async def close(self) -> None:
        self._closed = True
        if self._loading is not None:
            await stop_load(self._loading)
        loaded, self._loading = self._loaded(), None
        if loaded is not None:
            # vLLM does not end the calls in flight, which would wait for ever. They end first, to abort their requests.
            self._calls.lose("the engine is closed")
            await self._calls.wait_until_idle(ABORT_TIMEOUT_S)
            await _shut_down(loaded[0])

    def _loaded(self) -> "tuple[AsyncLLM, EngineProfile] | None":
        loading = self._loading
        if loading is None or not loading.done() or loading.cancelled() or loading.exception():
            return None
        return loading.result()

    def _running(self) -> "tuple[AsyncLLM, EngineProfile]":
        loaded = self._loaded()
        if loaded is None or self._closed:
            raise EngineLostError("the engine is not running")
        return loaded

    def _answer(self, output: "RequestOutput") -> EngineAnswer:
        if not output.outputs or not output.outputs[0].logprobs:
            raise EngineRequestError("vLLM ended the request without a token")
        logprobs = output.outputs[0].logprobs[0]
        stats = output.metrics
        return EngineAnswer(
            label_logprobs=tuple(logprobs[token_id].logprob for token_id in self._model.label_token_ids),
            prompt_tokens=len(output.prompt_token_ids or ()),
            reused_tokens=output.num_cached_tokens or 0,
            queued_s=max(0.0, stats.scheduled_ts - stats.queued_ts) if stats else 0.0,
        )


def _inputs(prompt: EnginePrompt, vector_width: int) -> "TokensInput | EmbedsInput":
    from vllm.inputs.engine import embeds_input, tokens_input

    if not isinstance(prompt, VectorPrompt):
        return tokens_input(list(prompt))
    embeds, token_ids, is_token = embed_prompt(prompt, vector_width)
    return embeds_input(embeds, prompt_token_ids=token_ids, is_token_ids=is_token)


async def _shut_down(llm: "AsyncLLM") -> None:
    if llm.output_handler is not None:
        # The handler would log the planned end of the engine core as a crash.
        llm.output_handler.cancel()
    await shut_down(llm.shutdown)


@contextlib.contextmanager
def translate_vllm_errors() -> Iterator[None]:
    """Translate vLLM's exceptions: a dead engine is lost, any other error concerns only this request."""
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError:
        # Not chained: vLLM raises one object for all requests in flight, which collects all their tracebacks.
        raise EngineLostError("vLLM's engine core died: the service must be restarted") from None
    except VLLMError as error:
        raise EngineRequestError(f"vLLM failed on this prompt: {type(error).__name__}") from error


def _import_vllm() -> None:
    # vLLM reads these variables while it is imported and started. Values that the operator set have precedence.
    # vLLM's processes log errors alone, as JSON lines: on a CPU, vLLM logs hundreds of warnings about intended settings.
    os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("vllm_logging.json")))
    # Python warns of locks that the engine core left behind when it was killed, after it has removed them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore:resource_tracker:UserWarning")
    _set_defaults(ENVIRONMENT)
    gc.disable()
    try:
        importlib.import_module("vllm.v1.engine.async_llm")
    finally:
        skip_modules_in_collections()


def _set_defaults(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _load(model: EngineModel, options: VllmOptions) -> "tuple[AsyncLLM, EngineProfile]":
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = _cpu_arguments(model, options) if current_platform.is_cpu() else _gpu_arguments(options)
    # The prompt, the grade, and the trace after it.
    longest = model.max_prompt_tokens + 1 + model.max_trace_tokens
    args = AsyncEngineArgs(
        model=str(model.folder),
        served_model_name="notegrade",
        structured_outputs_config={"backend": "guidance"},  # the one that reads llguidance's grammars
        generation_config="vllm",
        max_model_len=longest,
        max_num_batched_tokens=max(options.engine_max_batched_tokens, longest),
        max_num_seqs=options.engine_max_sequences,
        enable_prefix_caching=True,
        use_tqdm_on_load=False,
        scheduling_policy="priority",
        max_logprobs=max(20, len(model.label_token_ids)),
        enable_prompt_embeds=bool(model.vector_width),
        **arguments,
    )
    llm = AsyncLLM.from_engine_args(args)
    return llm, _describe(llm, describe_device(current_platform), vllm.__version__)


def _cpu_arguments(model: EngineModel, options: VllmOptions) -> dict[str, Any]:
    compiled = options.engine_compile == "on"
    if compiled and not has_compiler():
        raise ValueError(
            "compiling the model on a CPU needs a C++ compiler: install g++, or turn compiling off"
        )
    if compiled and os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise ValueError("TORCHDYNAMO_DISABLE=1 forbids compiling: unset it, or turn compiling off")
    cores = len(os.sched_getaffinity(0))
    _set_defaults(cpu_environment(cores, options.engine_kv_cache_gib, compiled=compiled))
    return {
        "dtype": choose_cpu_dtype(model.folder, options.engine_dtype),
        # The CPU's default of 128 tokens shares nothing between short prompts, and vLLM refuses 16.
        "block_size": 32,
        "enforce_eager": not compiled,
        "distributed_executor_backend": "uni",
    }


def _gpu_arguments(options: VllmOptions) -> dict[str, Any]:
    return {
        "dtype": options.engine_dtype,
        "gpu_memory_utilization": 0.9,
        "enforce_eager": options.engine_compile == "off",
    }


def _describe(llm: "AsyncLLM", device: str, version: str) -> EngineProfile:
    config = llm.vllm_config
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    return EngineProfile(
        dtype=dtype,
        numbers={
            "engine": "vllm",
            # Replicas of a rollout may differ in these two, and other kernels round differently.
            "version": version,
            "device": device,
            "dtype": dtype,
            "quantization": str(config.model_config.quantization),
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            # Fused kernels of a compiled model round less often.
            "eager": str(config.model_config.enforce_eager),
        },
        speed={
            "block_size": str(config.cache_config.block_size),
            "executor": str(config.parallel_config.distributed_executor_backend),
            "max_batched_tokens": str(config.scheduler_config.max_num_batched_tokens),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        },
    )
