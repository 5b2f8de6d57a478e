"""Devices by their data sheets, and models by their config."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from load_tests.bench.measure import count_multiplied_parameters


@dataclass(frozen=True, slots=True)
class Rates:
    """Notes per second that a whole replica was measured at, over HTTP: of new pairs only, and of pairs from Redis only."""

    new: float
    known: float


@dataclass(frozen=True, slots=True)
class Device:
    """The device of one replica.

    Attributes:
        flops: peak of dense bf16 operations per second (data sheets often give twice that, "with sparsity").
        bandwidth: memory bandwidth in bytes per second.
        memory: bytes.
        price: US dollars per hour. AN ASSUMPTION: use your own.
        source: source of the figures, except the price.
        shared_cores: cores that the engine shares with HTTP and everything else; 0 for a separate device.
        rates: measured rates, used instead of everything above.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    price: float
    source: str
    shared_cores: int = 0
    rates: Rates | None = None


def _nvidia(name: str, tflops: float, gb_per_s: float, gb: float, price: float, sheet: str) -> Device:
    return Device(name, tflops * 1e12, gb_per_s * 1e9, gb * 1e9, price, sheet)


# Compiled, and known pairs from Redis; the memory leaves 2 GiB for the prefix cache. The new notes did not repeat: it does better
# where they do.
_TWO_CORES = Device(
    "2-cores",
    math.inf,
    math.inf,
    2.95e9,
    0.1,
    "docs/benchmarks.md: two AMD EPYC cores",
    rates=Rates(18.3, 13_403),
)
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _TWO_CORES,
        _nvidia("L4", 121, 300, 24, 0.8, "NVIDIA L4 data sheet: 242 TFLOPS bf16 with sparsity"),
        _nvidia("A10G", 70, 600, 24, 1.0, "NVIDIA A10G data sheet (AWS): 140 TFLOPS bf16 with sparsity"),
        _nvidia("A100", 312, 2039, 80, 2.5, "NVIDIA A100 data sheet, 80 GB SXM: 312 TFLOPS bf16"),
        _nvidia("H100", 989, 3350, 80, 4.0, "NVIDIA H100 data sheet, SXM: 1979 TFLOPS bf16 with sparsity"),
        _nvidia("H200", 989, 4800, 141, 5.0, "NVIDIA H200 data sheet, SXM: 1979 TFLOPS bf16 with sparsity"),
    )
}


@dataclass(frozen=True, slots=True)
class Model:
    """The dimensions of a model.

    Attributes:
        parameters: parameters that each token is multiplied by: all but embedding and lm_head.
        attention: number of heads times the head size.
        kv: the same for the heads of keys and values.
        bytes_per_number: size of weights, activations, keys and values.
    """

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    kv: int
    vocabulary: int
    bytes_per_number: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """The bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.kv * self.bytes_per_number

    @property
    def weight_bytes(self) -> int:
        """The bytes of all weights, with an embedding tied to lm_head."""
        return (self.parameters + self.vocabulary * self.hidden) * self.bytes_per_number

    def flops(self, tokens: float, reused: float) -> float:
        """Count the operations for a pair of `tokens` tokens, of which `reused` need not be computed.

        Two per parameter and computed token, four per attended token and dimension of attention, and lm_head at the last token.
        """
        attended = (tokens**2 - reused**2) / 2
        multiplied = 2 * self.parameters * (tokens - reused) + 2 * self.hidden * self.vocabulary
        return multiplied + 4 * self.layers * self.attention * attended

    def bytes_moved(self, tokens: float, reused: float, step_tokens: float) -> float:
        """Count the bytes moved to and from memory for a pair: weights once per step, reused keys and values, activations.

        Activations are a lower bound, the reads and writes of each layer's kernels: norms and residuals (8 x hidden),
        attention projections, gate, up and their product (6 x intermediate).
        """
        layer = 8 * self.hidden + 4 * (self.attention + self.kv) + 6 * self.intermediate
        activations = self.layers * layer * self.bytes_per_number
        computed = tokens - reused
        return computed * (activations + self.weight_bytes / step_tokens) + reused * self.kv_bytes_per_token


# Source: config.json, and count_multiplied_parameters of the default checkpoint.
SMOLLM2_135M = Model("SmolLM2-135M", 106_203_456, 30, 576, 1536, 576, 192, 49_152)


def read_model(checkpoint: Path) -> Model:
    """Read the model of a checkpoint folder with a Llama-like config.json, assuming two bytes per number."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return Model(
        name=checkpoint.name,
        parameters=count_multiplied_parameters(checkpoint),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        attention=config["num_attention_heads"] * head,
        kv=config["num_key_value_heads"] * head,
        vocabulary=config["vocab_size"],
    )
