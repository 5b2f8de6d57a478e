"""The number format that a model is computed in where there is no GPU. Imports torch when it is asked."""

import json
import logging
import statistics
import time
from pathlib import Path
from typing import Literal

from service.contract.vllm_settings import refuses_float32

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# bf16 must be clearly faster to be worth its rounding (label probabilities move by up to 0.016).
BF16_WORTHWHILE_SPEEDUP = 1.2


def choose_cpu_dtype(folder: Path, asked: Dtype) -> Dtype:
    """What was asked for, and for `auto` the faster one that vLLM can compute this checkpoint in on this processor.

    Raises ValueError where it can't compute it in what was asked for.
    """
    import torch

    if not refuses_float32(folder, torch.cpu.get_capabilities()):
        return _measure_faster(folder) if asked == "auto" else asked
    if asked == "float32":
        raise ValueError(
            "it can't compute int8 weights in float32 on this processor: ask for auto or bfloat16"
        )
    return "bfloat16" if asked == "auto" else asked


def _measure_faster(folder: Path) -> Literal["float32", "bfloat16"]:
    """The faster of fp32 and bf16 for this model's matrix sizes on this processor, by trying (0.2 s).

    Which one wins differs between processors of the same price; bf16 must win by BF16_WORTHWHILE_SPEEDUP.
    """
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows, inner, columns = 512, config.get("hidden_size", 576), config.get("intermediate_size", 1536)

    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    operands = [(a.to(dtype), b.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    times = []
    for _ in range(12):  # in turn, so that what else the machine does meanwhile slows both of them down
        marks = [time.perf_counter()]
        for left, right in operands:
            torch.mm(left, right)
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    fp32_s, bf16_s = (statistics.median(column) for column in zip(*times[2:], strict=True))  # two warm up
    faster: Literal["float32", "bfloat16"] = (
        "bfloat16" if fp32_s > BF16_WORTHWHILE_SPEEDUP * bf16_s else "float32"
    )
    logger.info(
        "measured dtypes",
        extra={"fp32_us": round(fp32_s * 1e6), "bf16_us": round(bf16_s * 1e6), "chosen": faster},
    )
    return faster
