"""Distributes tests over several workers (`pytest -n 3`): some files share a worker, some tests run alone."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
# These files share a service, which stays there, idle, until the worker ends.
SERVICE = (
    "end_to_end/test_serving.py",
    "end_to_end/test_readme.py",
    "end_to_end/test_console_pictures.py",
)
# These start three engines each, which share three replicas or would need too much memory at the same time.
REPLICAS = (
    "deploy/test_stack.py",
    *(f"end_to_end/test_{name}.py" for name in ("explaining", "console", "runbooks", "shadow")),
)
# These import vLLM, which takes ten seconds, only to read its requests and answers.
VLLM = ("load_tests/bench/peers/test_vllm.py", "service/http/test_vllm_score.py")
# These share a Redis Cluster, which takes two seconds to start.
CLUSTER = (
    *(f"service/caches/test_{name}.py" for name in ("cache_behaviour", "redis_cluster")),
    "service/vectors/test_store_behaviour.py",
    "service/explaining/test_store_behaviour.py",
    "end_to_end/test_redis_cluster_faults.py",
)
# These share a base image and the packages that the other's build has downloaded.
IMAGES = ("deploy/test_trainer_image.py", "deploy/test_image.py")
# These have tests that run alone, one after the other.
WITH_TESTS_ALONE = (
    "load_tests/bench/test_saturation.py",
    "end_to_end/test_overload.py",
    "load_tests/bench/test_regression.py",
)
# One worker runs all files of a group.
GROUPS = {
    **dict.fromkeys(WITH_TESTS_ALONE, "alone"),
    **dict.fromkeys(SERVICE, "service"),
    **dict.fromkeys(REPLICAS, "replicas"),
    **dict.fromkeys(VLLM, "vllm"),
    **dict.fromkeys(CLUSTER, "cluster"),
    **dict.fromkeys(IMAGES, "images"),
}
# First those whose tests run alone, before the other workers have begun a test that they would wait for; then the longest files.
FIRST = (
    *WITH_TESTS_ALONE,
    "end_to_end/test_engine_faults.py",
    *REPLICAS,
    "end_to_end/test_process_faults.py",
    *SERVICE,
    "end_to_end/test_redis_faults.py",
    "model_export/test_run_and_resume.py",
    "deploy/test_alerts.py",
    "deploy/test_experiment.py",
    "service/http/test_generated_input.py",
    # Of the slow tests.
    *IMAGES,
    "end_to_end/test_training.py",
    "model_export/scale_out/test_ray_run.py",
    "model_export/scale_out/test_run_in_two_processes.py",
    "end_to_end/test_soak.py",
)
ALONE = "alone"


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # mypy does not read xdist
    """Gives one worker all tests of a file, or of files that run together, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return GROUPS.get(file, file)


def arrange(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def rank(item: pytest.Item) -> int:
        file = item.path.relative_to(HERE).as_posix()
        return FIRST.index(file) if file in FIRST else len(FIRST)

    items.sort(key=rank)


@contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Hold this machine, alone or with others; waits until it is available. A test that runs alone has all cores.

    It locks two existing files. A test that runs alone is not overtaken while it waits.
    """
    with (HERE / "workers.py").open() as queue, (HERE / "conftest.py").open() as held:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        with pytest.MonkeyPatch.context() as environment:
            if alone:
                environment.delenv("OMP_NUM_THREADS", raising=False)  # the Makefile sets it to 1
            yield
