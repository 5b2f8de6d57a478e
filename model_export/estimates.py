"""Estimates of memory and compute before anything runs, from shapes and lengths alone.

Activations are held to what torch keeps by a test. Left out: what the libraries take, a gigabyte or two a process.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from model_export.models.model_shape import Shape
from model_export.recipe import LaunchConfig

GIB = 1024**3
_FLOAT32, _BFLOAT16 = 4, 2
_ADAM = 8  # two moments in float32
_PER_LOGIT = 12  # the logit, its float32 copy and its gradient
# FLOPs for each parameter and token (arXiv 2001.08361, 2.1): forward, and backward twice that.
FORWARD, BACKWARD = 2, 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that one process works on at once: their number and, in tokens, their lengths.

    `predicted` is of how many positions a sequence the logits are kept.
    """

    sequences: int
    length: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in bytes. Activations and logits are gone when the rollouts' keys and values are there."""

    weights: float
    gradients: float = 0
    adam: float = 0
    activations: float = 0
    logits: float = 0
    key_value_cache: float = 0

    @property
    def peak(self) -> float:
        """The most at any time."""
        passing = max(self.activations + self.logits, self.key_value_cache)
        return self.weights + self.gradients + self.adam + passing

    def parts(self) -> Iterable[tuple[str, float]]:
        """Name and size of each part that there is."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "Adam": self.adam,
            "activations": self.activations,
            "logits": self.logits,
            "KV cache": self.key_value_cache,
        }
        return ((name, size) for name, size in named.items() if size)


@dataclass(frozen=True, slots=True)
class Training:
    """What a training stage holds in memory.

    Attributes:
        learning: parameters that learn.
        generates: whether rollouts are sampled by the model in training itself.
        reference: whether a frozen copy lies beside it, for the KL term.
    """

    shape: Shape
    learning: int
    batch: Batch
    bfloat16: bool
    generates: bool = False
    reference: bool = False

    def memory(self, launch: LaunchConfig) -> Memory:
        """Of one of the processes; with FSDP the states are shared out, and activations computed twice."""
        shards = launch.processes if launch.fsdp else 1
        width = _BFLOAT16 if self.bfloat16 else _FLOAT32
        tokens = self.batch.sequences * self.batch.length
        copies = 2 if self.reference else 1
        return Memory(
            weights=copies * _FLOAT32 * self.shape.parameters / shards + self._cast_weights(launch),
            gradients=_FLOAT32 * self.learning / shards,
            adam=_ADAM * self.learning / shards,
            activations=tokens * _kept_bytes(self.shape, bfloat16=self.bfloat16, checkpoints=launch.fsdp),
            logits=self.batch.sequences * self.batch.predicted * self.shape.vocabulary * _PER_LOGIT,
            key_value_cache=tokens * _key_values(self.shape) * width if self.generates else 0,
        )

    def _cast_weights(self, launch: LaunchConfig) -> int:
        # Autocast keeps copies until the backward pass is done; FSDP casts one layer at a time.
        return _BFLOAT16 * self.shape.linear if self.bfloat16 and not launch.fsdp else 0


def inference_memory(shape: Shape, batch: Batch) -> Memory:
    """Of the run's own process, which loads float32 weights."""
    cache = batch.sequences * batch.length * _key_values(shape) * _FLOAT32 if batch.predicted > 1 else 0
    return Memory(
        weights=_FLOAT32 * shape.parameters,
        logits=batch.sequences * shape.vocabulary * _PER_LOGIT,
        key_value_cache=cache,
    )


def _kept_bytes(shape: Shape, *, bfloat16: bool, checkpoints: bool) -> int:
    """What is kept of each token for the backward pass. Norms and the sums between layers stay in float32."""
    width = _BFLOAT16 if bfloat16 else _FLOAT32
    layer = 8 * _FLOAT32 * shape.hidden + width * (2 * shape.key_value + 4 * shape.intermediate)
    return shape.layers * _FLOAT32 * shape.hidden + layer if checkpoints else shape.layers * layer


def _key_values(shape: Shape) -> int:
    return 2 * shape.key_value * shape.layers
