"""vLLM on Ray Data's LLM batch inference: the only file that imports `ray`.

Turned off in a processor of `ray.data.llm`: chat template, tokenizing and detokenizing (our prompts and completions are
token ids), metrics on Ray's Prometheus endpoint, dashboard and usage reports.
"""

import contextlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model_export.data.pairs import Pair
from model_export.scale_out.label_plan import LabelError
from model_export.scale_out.trace_engine import Completion, EngineSetup, MakeRequests
from service.contract.vllm_settings import cpu_environment

_BLOCK = 64  # pairs per block: few, because a block's rows arrive only when its last row is done
_BATCH = 64
_BATCHED_TOKENS = 2048
_MOST_RESTARTS = 2  # of an engine, and of a batch; by default Ray retries forever
_LOCAL = "local"
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The number of engines and the Ray cluster to start them on. Each engine gets its own GPU if there are GPUs.

    `address` names a running Ray cluster, whose machines see the teacher's folder under the same path; `local` starts Ray
    here and stops it afterwards.
    """

    engines: int = 1
    address: str = _LOCAL


class RayEngine:
    """A `TraceEngine` on a running Ray. Its vLLM engines live for one call of `complete`."""

    def __init__(self, setup: EngineSetup, engines: int, *, gpu: bool) -> None:
        self._setup = setup
        self._engines = engines
        self._gpu = gpu

    def complete(self, pairs: Sequence[Pair], make_requests: MakeRequests) -> Iterator[list[Completion]]:
        import ray

        rows = [{"index": index, "pair": pair} for index, pair in enumerate(pairs)]
        requests = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // _BLOCK)).flat_map(
            partial(_to_requests, make_requests=make_requests, params=self._sampling_params())
        )
        try:
            yield from _by_pair(self._processor()(requests).iter_rows(), len(pairs))
        except ray.exceptions.RayError as error:
            raise LabelError(f"the engine failed: {reason_of(error)}") from error

    def _processor(self) -> Any:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config = vLLMEngineProcessorConfig(
            model_source=str(self._setup.teacher.absolute()),
            engine_kwargs=self._engine_options(),
            batch_size=_BATCH,
            concurrency=(self._engines, self._engines),
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
            # Without this, each engine requires a GPU.
            placement_group_config={"bundles": [{"CPU": 1, "GPU": int(self._gpu)}]},
        )
        processor = build_processor(
            config, postprocess=partial(_to_answer, label_token_ids=self._setup.label_token_ids)
        )
        restarts = {"max_restarts": _MOST_RESTARTS, "max_task_retries": _MOST_RESTARTS}
        processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(restarts)
        return processor

    def _engine_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "max_model_len": self._setup.max_prompt_tokens + self._setup.max_tokens,
            "generation_config": "vllm",  # the folder's own settings would change the sampling
            "logprobs_mode": "raw_logprobs",
            "enable_prefix_caching": True,  # paths of a pair, and pairs of a note, share a prefix
        }
        on_cpu = {
            "dtype": "float32",
            "block_size": 32,
            "enforce_eager": True,
            # With chunked prefill, vLLM 0.32 rewinds the request's random generator, which CPU generators don't support
            # ("CPU Generator does not use offset"), and the engine dies.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_BATCHED_TOKENS, options["max_model_len"]),
        }
        return options if self._gpu else options | on_cpu

    def _sampling_params(self) -> dict[str, Any]:
        return {
            "max_tokens": self._setup.max_tokens,
            "temperature": self._setup.temperature,
            "stop_token_ids": [self._setup.end_token_id],
            "logprob_token_ids": list(self._setup.label_token_ids),
            "detokenize": False,
        }


@contextlib.contextmanager
def start_ray_engine(setup: EngineSetup, options: RayOptions) -> Iterator[RayEngine]:
    """Start an engine on a local Ray, which is stopped after the block, or on a running cluster.

    Raises LabelError where vLLM is not installed or Ray has fewer GPUs than engines.
    """
    if importlib.util.find_spec("vllm") is None:
        raise LabelError("vLLM is not installed here: install it to label at scale")
    # Ray reads this only from the environment, when it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="ng-", ignore_cleanup_errors=True) as folder:
        gpus = _start_ray(options, Path(folder))
        try:
            if 0 < gpus < options.engines:
                raise LabelError(f"{options.engines} engines need {options.engines} GPUs, and Ray has {gpus}")
            yield RayEngine(setup, options.engines, gpu=gpus > 0)
        finally:
            import ray

            ray.shutdown()


def _start_ray(options: RayOptions, folder: Path) -> int:
    """Connect to Ray or start it, and return its number of GPUs."""
    import ray

    shared: dict[str, Any] = {
        "address": options.address,
        "runtime_env": {"env_vars": _environment(options.engines)},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    own: dict[str, Any] = {
        # Ray's CPUs are a count of slots, not cores: each engine holds one, and the tasks around it need others.
        "num_cpus": options.engines + _cores(),
        "include_dashboard": False,
        "_temp_dir": str(folder),
    }
    try:
        ray.init(**shared, **(own if options.address == _LOCAL else {}))
    except (ConnectionError, ValueError) as error:
        raise LabelError(f"no Ray cluster at {options.address}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    _quiet()
    return int(ray.cluster_resources().get("GPU", 0))


def _quiet() -> None:
    # Only now, after Ray has set up its own logging: these loggers would print every step on stderr.
    for name in ("ray.data", "ray.llm", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Without a handler here, the modules below add their own, which always log at INFO.
    logging.getLogger("ray.llm").handlers = [logging.StreamHandler()]


def _environment(engines: int) -> dict[str, str]:
    defaults = cpu_environment(threads=max(1, _cores() // engines)) | {"HF_HUB_OFFLINE": "1"}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _to_requests(
    row: dict[str, Any], make_requests: MakeRequests, params: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    requests = make_requests(row["pair"])
    for path, each in enumerate(requests):
        yield {
            "index": row["index"],
            "last": path == len(requests) - 1,
            "tokenized_prompt": each.prompt,
            "sampling_params": {**params, "seed": each.seed},
        }


def _to_answer(row: dict[str, Any], label_token_ids: Sequence[int]) -> dict[str, Any]:
    return {
        "index": row["index"],
        "last": row["last"],
        "token_ids": row["generated_tokens"],
        "label_logprobs": [
            [float(found[token_id]["logprob"]) for token_id in label_token_ids] for found in row["logprobs"]
        ],
    }


def _by_pair(rows: Iterator[dict[str, Any]], count: int) -> Iterator[list[Completion]]:
    completions: list[Completion] = []
    index = 0
    for row in rows:
        if row["index"] != index:
            raise LabelError(f"Ray returned pair {row['index']} in place of pair {index}")
        completions.append(
            Completion([int(token) for token in row["token_ids"]], [list(at) for at in row["label_logprobs"]])
        )
        if row["last"]:
            yield completions
            completions, index = [], index + 1
    if index != count:
        raise LabelError(f"Ray returned {index} of {count} pairs")


def reason_of(error: Exception) -> str:
    """Return the original exception of a Ray error in one line. Ray's own text is tracebacks, which end with it."""
    lines = str(error).strip().splitlines()
    starts = [index for index, line in enumerate(lines) if _EXCEPTION.match(line)]
    return " ".join(line.strip() for line in lines[starts[-1] if starts else -1 :])
