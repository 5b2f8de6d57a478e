"""Memory and hours of a stage on H100 GPUs, from the model's size and published throughput.

The figures are for planning: this project measured none of them.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

GIB = 1024**3
# NVIDIA, H100 SXM: 80 GB, of which 79.6 GiB can be allocated, at 3.35 TB/s. https://www.nvidia.com/en-us/data-center/h100/
GPU_BYTES, GPU_BYTES_PER_S = 79.6 * GIB, 3.35e12
# TorchTitan: Llama 3.1 8B (8.03B parameters), FSDP2 without torch.compile on 8 H100, 5,762 tokens a second and GPU.
# https://github.com/pytorch/torchtitan, docs/performance.md, table 1
_TRAINED_PER_S, _TRAINED_PARAMETERS = 5762, 8.03e9
# GPUStack: Qwen3-8B (8.19B) in bfloat16, vLLM 0.9.2 on an H100, ShareGPT: 13,305 tokens a second, of prompts and answers.
# https://github.com/gpustack/gpustack, docs/performance-lab/references/the-impact-of-quantization-on-vllm-inference-performance.md
_GENERATED_PER_S, _GENERATED_PARAMETERS = 13305, 8.19e9
# Bytes: of a float32 weight; of the gradient and Adam's two moments of one that learns; of a bfloat16 weight.
WEIGHT, LEARNING, HALF = 4, 12, 2
_ADAM = 8
# Bytes a token: of a layer's activations for each unit of its width (arXiv 2205.05198, without the attention matrix, which
# fused attention does not keep); of the logits for each token of the vocabulary (bfloat16, float32, and their gradients).
_ACTIVATION, _LOGIT = 34, 16
_CUDA_BYTES = 2 * GIB  # CUDA's context, NCCL's buffers


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a model, in parameters and tokens."""

    parameters: int
    learning: int
    layers: int
    layer_parameters: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Size":
        """Measure a model, which may be on the meta device. Only weights with `requires_grad` learn."""
        config, layers = model.config, model.model.layers
        return cls(
            model.num_parameters(),
            sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            config.num_hidden_layers,
            sum(weight.numel() for weight in layers[0].parameters()),
            config.hidden_size,
            config.vocab_size,
        )

    @property
    def state_bytes(self) -> int:
        """Size on disk of a saved state: weights and Adam's moments."""
        return WEIGHT * self.parameters + _ADAM * self.learning


@dataclass(frozen=True, slots=True)
class Tokens:
    """The longest prompt and completion of a stage's examples."""

    prompt: int
    completion: int

    @property
    def both(self) -> int:
        """Length of a whole example."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Training:
    """A training stage: `batch` examples a step, of which a process computes `micro_batch` at once.

    Attributes:
        group: examples that one process must hold together.
        passes: forward passes besides the one that learns.
        sampled: whether the examples of each step are sampled first.
        server_gpus: GPUs of a server that samples them, beside those that train; 0 where the latter sample.
        engine_share: share of each GPU's memory that engines take.
        engine_sleeps: whether they give it back while the stage trains.
    """

    name: str
    size: Size
    tokens: Tokens
    steps: int
    batch: int
    micro_batch: int | None
    sharded: bool
    save_steps: int | None
    group: int = 1
    passes: int = 0
    sampled: bool = False
    server_gpus: int = 0
    engine_share: float = 0.0
    engine_sleeps: bool = False

    def can_share(self, gpus: int) -> bool:
        """Return whether that many processes can divide the batch."""
        return self.batch % (gpus * self.group) == 0

    def bytes_per_gpu(self, gpus: int) -> float:
        """Estimate the memory of one GPU."""
        size, at_once = self.size, min(self.micro_batch or self.batch, self.batch // gpus)
        state: float = WEIGHT * size.parameters + LEARNING * size.learning
        activations = at_once * self.tokens.both * size.hidden * _ACTIVATION
        if self.sharded:
            # Whole at a time: two layers, and what is outside of layers. Kept: each layer's input.
            outside = size.parameters - size.layers * size.layer_parameters
            state = state / gpus + HALF * (2 * size.layer_parameters + outside)
            activations += at_once * self.tokens.both * size.hidden * HALF * size.layers
        else:
            state += HALF * size.parameters
            activations *= size.layers
        logits = at_once * (1 + self.tokens.completion) * size.vocabulary * _LOGIT
        engine = self.engine_share * GPU_BYTES
        training = activations + logits + (0 if self.engine_sleeps else engine)
        # At the start each process holds all weights, which are sharded after the engines have started.
        starting = WEIGHT * size.parameters + engine
        return max(starting, state + max(training, engine)) + _CUDA_BYTES

    def hours(self, gpus: int) -> float:
        """Estimate the time of the stage."""
        tokens = self.batch * self.tokens.both
        rate = gpus * _TRAINED_PER_S * _TRAINED_PARAMETERS / self.size.parameters
        # A forward pass computes a third of a training step.
        seconds = tokens * (1 + self.passes / 3) / rate
        if self.sampled:
            seconds += sampling_seconds(self.size, self.tokens, self.batch, self.server_gpus or gpus)
        return self.steps * seconds / 3600

    def hours_between_states(self, gpus: int) -> float | None:
        """Estimate the time from one saved state to the next; None where none is saved."""
        return self.hours(gpus) * self.save_steps / self.steps if self.save_steps else None


def sampling_seconds(size: Size, tokens: Tokens, paths: int, gpus: int) -> float:
    """Estimate the time in which vLLM samples this many paths: at the published rate, and no token faster than it reads the weights."""
    rate = gpus * _GENERATED_PER_S * _GENERATED_PARAMETERS / size.parameters
    return max(paths * tokens.both / rate, tokens.completion * HALF * size.parameters / GPU_BYTES_PER_S)


@dataclass(frozen=True, slots=True)
class SampledStage:
    """A stage that samples paths and trains nothing, on all GPUs or on one."""

    name: str
    size: Size
    tokens: Tokens
    paths: int
    on_all: bool

    def hours(self, gpus: int) -> float:
        """Estimate the time of the stage."""
        return sampling_seconds(self.size, self.tokens, self.paths, gpus if self.on_all else 1) / 3600


Stage = Training | SampledStage
