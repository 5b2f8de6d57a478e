"""Work on Ray: vLLM on Ray Data's LLM batch inference, and teachers' features on actors. The only file that imports `ray`.

Turned off in a processor of `ray.data.llm`: chat template, tokenizing and detokenizing (our prompts and completions are
token ids), metrics on Ray's Prometheus endpoint, dashboard and usage reports.
"""

import importlib.util
import logging
import os
import re
import socket
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from model_export.data.pairs import Pair
from model_export.progress import OnProgress
from model_export.scale_out.label_plan import Completion, LabelError, TraceJob, path_seed
from model_export.teachers.base import Loader
from service.contract.vllm_settings import ENVIRONMENT, cpu_environment

_BLOCK = 64  # pairs per block: few, because a block's rows arrive only when its last row is done
_BATCH = 64
_BATCHED_TOKENS = 2048
# Restarts of an engine or worker, and of a batch; by default Ray Data retries forever.
_RESTARTS = {"max_restarts": 2, "max_task_retries": 2}
_LOCAL = "local"
_CONNECT_S = 10.0
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")


def complete_on_ray(
    pairs: Sequence[Pair], job: TraceJob, *, engines: int, address: str
) -> Generator[list[Completion]]:
    """Sample the job's paths on vLLM engines that Ray starts; each gets its own GPU if there are GPUs.

    `address` names a running Ray cluster, whose machines see the teacher's folder under the same path; `local` starts Ray
    here and stops it afterwards. Raises LabelError where vLLM is not installed, Ray has fewer GPUs than engines, or an
    engine fails.
    """
    if importlib.util.find_spec("vllm") is None:
        raise LabelError("vLLM is not installed here: install it to label at scale")
    with _ray(engines, address) as on_gpu:
        processor = _build_processor(job, engines, on_gpu=on_gpu)
        answers = iter(processor(_requests(pairs, job, engines)).iter_rows())
        for index in range(len(pairs)):
            yield _next_pair(answers, index, job.paths)


def features_on_ray(
    load: Loader, chunks: Sequence[Sequence[Pair]], on_progress: OnProgress, *, workers: int, address: str
) -> Generator[tuple[int, np.ndarray]]:
    """Compute a teacher's features on workers that Ray starts, each with its own GPU if there are GPUs.

    Each worker loads the teacher once. `address` as for `complete_on_ray`. Raises LabelError where Ray has fewer GPUs than
    workers, or a worker fails.
    """
    if not chunks:
        return
    stage, started = "Features on Ray", min(workers, len(chunks))
    with _ray(started, address) as on_gpu:
        import ray

        # As many threads as all workers would have, also for fewer chunks: other threads would change the last bits.
        options = {"num_gpus": int(on_gpu), "runtime_env": _environment(workers, on_gpu=on_gpu), **_RESTARTS}
        worker = ray.remote(**options)(_Worker)
        pool = ray.util.ActorPool([worker.remote(load) for _ in range(started)])
        on_progress(stage, 0, len(chunks))
        computed = pool.map_unordered(lambda worker, chunk: worker.compute.remote(*chunk), enumerate(chunks))
        for done, found in enumerate(computed, 1):
            yield found
            on_progress(stage, done, len(chunks))


class _Worker:
    def __init__(self, load: Loader) -> None:
        self._features = load(lambda *_: None)

    def compute(self, index: int, pairs: Sequence[Pair]) -> tuple[int, np.ndarray]:
        return index, self._features(pairs)


@contextmanager
def _ray(workers: int, address: str) -> Iterator[bool]:
    """Connect to Ray or start it, and yield whether it has GPUs."""
    # Ray reads this only from the environment, when it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    with tempfile.TemporaryDirectory(prefix="ng-", ignore_cleanup_errors=True) as folder:
        gpus = _start_ray(workers, address, folder)
        try:
            if 0 < gpus < workers:
                raise LabelError(f"{workers} workers need {workers} GPUs, and Ray has {gpus}")
            # The workers need the GPU memory that this process keeps for itself.
            torch.cuda.empty_cache()
            yield gpus > 0
        except ray.exceptions.RayError as error:
            raise LabelError(f"a worker on Ray failed: {reason_of(error)}") from error
        finally:
            ray.shutdown()


def _requests(pairs: Sequence[Pair], job: TraceJob, engines: int) -> Any:
    import ray

    rows = [{"index": index, "pair": pair} for index, pair in enumerate(pairs)]
    blocks = max(-(-len(rows) // _BLOCK), min(engines, len(rows)))
    return ray.data.from_items(rows, override_num_blocks=blocks).flat_map(partial(_to_requests, job=job))


def _build_processor(job: TraceJob, engines: int, *, on_gpu: bool) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=str(job.teacher.absolute()),
        engine_kwargs=_engine_options(job, on_gpu=on_gpu),
        batch_size=_BATCH,
        concurrency=(engines, engines),
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        # Without this, each engine requires a GPU.
        placement_group_config={"bundles": [{"CPU": 1, "GPU": int(on_gpu)}]},
        runtime_env=_environment(engines, on_gpu=on_gpu),
    )
    processor = build_processor(
        config, postprocess=partial(_to_answer, label_token_ids=job.prompting.label_token_ids)
    )
    processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(_RESTARTS)
    return processor


def _engine_options(job: TraceJob, *, on_gpu: bool) -> dict[str, Any]:
    longest = job.prompting.max_teacher_tokens + job.max_tokens
    options: dict[str, Any] = {
        "max_model_len": longest,
        "dtype": job.precision,
        "generation_config": "vllm",  # the folder's own settings would change the sampling
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,  # paths of a pair, and pairs of a note, share a prefix
    }
    on_cpu = {
        "block_size": 32,
        "enforce_eager": True,
        # With chunked prefill, vLLM 0.32 rewinds the request's random generator, which CPU generators don't support
        # ("CPU Generator does not use offset"), and the engine dies.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_BATCHED_TOKENS, longest),
    }
    return options if on_gpu else options | on_cpu


def _start_ray(engines: int, address: str, folder: str) -> int:
    """Connect to Ray or start it, and return its number of GPUs."""
    import ray

    shared: dict[str, Any] = {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    own: dict[str, Any] = {
        # Ray's CPUs are a count of slots, not cores: each engine holds one, and the tasks around it need others.
        "num_cpus": engines + _cores(),
        "include_dashboard": False,
        "_temp_dir": folder,
    }
    try:
        _reach(address)
        ray.init(**shared, **(own if address == _LOCAL else {}))
    except (ConnectionError, ValueError) as error:
        raise LabelError(f"no Ray cluster at {address}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    _quiet()
    return int(ray.cluster_resources().get("GPU", 0))


def _reach(address: str) -> None:
    """Raise ConnectionError where nothing listens at host:port. Ray itself tries for more than five minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise ConnectionError(error) from error


def _quiet() -> None:
    # Only now, after Ray has set up its own logging: these loggers would print every step on stderr.
    for name in ("ray.data", "ray.llm", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Without a handler here, the modules below add their own, which always log at INFO.
    logging.getLogger("ray.llm").handlers = [logging.StreamHandler()]


def _environment(workers: int, *, on_gpu: bool) -> dict[str, dict[str, str]]:
    defaults = ENVIRONMENT if on_gpu else cpu_environment(threads=max(1, _cores() // workers))
    defaults = {**defaults, "HF_HUB_OFFLINE": "1"}
    return {"env_vars": {name: os.environ.get(name, value) for name, value in defaults.items()}}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _to_requests(row: dict[str, Any], job: TraceJob) -> Iterator[dict[str, Any]]:
    pair = row["pair"]
    request = {"index": row["index"], "tokenized_prompt": job.prompting.teacher_prompt(pair)}
    for path in range(job.paths):
        sampling = {
            "max_tokens": job.max_tokens,
            "temperature": job.temperature,
            "stop_token_ids": [job.prompting.end_token_id],
            "logprob_token_ids": list(job.prompting.label_token_ids),
            "detokenize": False,
            "seed": path_seed(job.seed, pair.id, path),
        }
        yield {**request, "sampling_params": sampling}


def _to_answer(row: dict[str, Any], label_token_ids: Sequence[int]) -> dict[str, Any]:
    return {
        "index": row["index"],
        "token_ids": row["generated_tokens"],
        "label_logprobs": [
            [float(found[token_id]["logprob"]) for token_id in label_token_ids] for found in row["logprobs"]
        ],
    }


def _next_pair(answers: Iterator[dict[str, Any]], index: int, paths: int) -> list[Completion]:
    rows = list(islice(answers, paths))
    if (found := [row["index"] for row in rows]) != [index] * paths:
        raise LabelError(f"Ray returned paths of the pairs {found} in place of {paths} of pair {index}")
    return [
        Completion([int(token) for token in row["token_ids"]], [list(at) for at in row["label_logprobs"]])
        for row in rows
    ]


def reason_of(error: Exception) -> str:
    """Return the original exception of a Ray error in one line. Ray's own text is tracebacks, which end with it."""
    lines = str(error).strip().splitlines()
    starts = [index for index, line in enumerate(lines) if _EXCEPTION.match(line)]
    return " ".join(line.strip() for line in lines[starts[-1] if starts else -1 :])
