"""Chooses the number format for a CPU, and names the device. It imports torch only when it is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from service.contract.vllm_settings import multiplies_bfloat16, refuses_float32
from service.engines.vllm.options import Dtype

# Units that vLLM, torch and oneDNN choose their kernels by; each kernel rounds in its own way. `torch.cpu.get_capabilities`
# documents the names. The processor's name is no help: equal kernels run on processors of different names.
_KERNEL_UNITS = (
    *("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx10_1", "avx10_2"),
    *("amx_bf16", "amx_int8", "amx_fp16"),
    *("neon", "bf16", "i8mm", "sve", "sve2", "sve_bf16", "sme", "sme2"),
)


class Platform(Protocol):
    """The part of vLLM's `current_platform` that is used here."""

    def is_cpu(self) -> bool: ...

    def get_device_name(self) -> str: ...


def choose_cpu_dtype(folder: Path, requested: Dtype) -> Dtype:
    """Return the requested format, and for `auto` the faster one that vLLM supports for this checkpoint on this processor.

    Raises ValueError when vLLM can't compute the checkpoint in the requested format.
    """
    import torch

    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    if refuses_float32(folder, capabilities):
        if requested == "float32":
            raise ValueError(
                "vLLM can't compute int8 weights in float32 on this processor: set auto or bfloat16"
            )
        return "bfloat16" if requested == "auto" else requested
    if requested != "auto":
        return requested
    return fast_cpu_dtype()


def fast_cpu_dtype() -> Literal["bfloat16", "float32"]:
    """Return the faster format of this processor: without a unit for it, bfloat16 is emulated, and oneDNN may refuse it.

    bfloat16 rounds: probabilities move by up to 0.016.
    """
    import torch

    return "bfloat16" if multiplies_bfloat16(torch.cpu.get_capabilities()) else "float32"


def describe_device(platform: Platform) -> str:
    """Return the GPU's name, or the CPU's architecture and vector units: replicas of equal devices run equal kernels."""
    if not platform.is_cpu():
        return platform.get_device_name()
    import torch

    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    units = (unit for unit in _KERNEL_UNITS if capabilities.get(unit))
    return " ".join((str(capabilities["architecture"]), *units))
