"""The settings of the vLLM engine. The others of vLLM's options are chosen from the hardware."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]


class VllmOptions(BaseModel):
    """The settings of the engine that an operator may change."""

    model_config = ConfigDict(frozen=True)

    engine_dtype: Dtype = Field(
        "auto",
        description="Number format of the engine; `auto` on a CPU is bf16 where the processor has AMX-BF16 or AVX512-BF16, else fp32; on a GPU it is the checkpoint's. Int8 checkpoints need bf16 or fp16 on processors with AMX",
    )
    engine_compile: Compile = Field(
        "auto",
        description="Whether the model is compiled (`torch.compile`); `auto` compiles on a GPU only. On a CPU it needs a C++ compiler, takes a minute at each start, and makes scoring about 1.1 times as fast",
    )
    engine_max_batched_tokens: int = Field(1024, ge=32, description="Most tokens in one engine step")
    engine_max_sequences: int = Field(64, ge=1, description="Most prompts in one engine step")
    engine_kv_cache_gib: int = Field(2, ge=1, description="Memory for the prefix cache on a CPU, in GiB")
    engine_hang_s: float = Field(
        30.0,
        ge=1,
        description="How long the engine may have work and answer none of it before it counts as lost",
    )
