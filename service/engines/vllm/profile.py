"""Chooses the number format for a CPU. It imports torch only when it is called."""

from collections.abc import Mapping
from pathlib import Path

from service.contract.vllm_settings import refuses_float32
from service.engines.vllm.options import Dtype

# Units that multiply bfloat16 matrices: AMX is in Intel's servers since 2023, AVX512-BF16 also in AMD's since 2022.
_BF16_UNITS = ("amx_bf16", "avx512_bf16")


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
    # Without such a unit bfloat16 is emulated, and slower than float32. It also rounds: probabilities move by up to 0.016.
    return "bfloat16" if any(capabilities.get(unit) for unit in _BF16_UNITS) else "float32"
