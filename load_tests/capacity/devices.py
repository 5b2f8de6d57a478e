"""What the engine runs on: accelerators by their makers' data sheets, models by their config."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from load_tests.bench.measure import count_multiplied_parameters


@dataclass(frozen=True, slots=True)
class Device:
    """What one replica has.

    Attributes:
        flops: bf16 operations a second at most, dense (data sheets often give twice that, "with sparsity").
        bandwidth: of its memory, bytes a second.
        memory: bytes.
        price: US dollars an hour. AN ASSUMPTION, for the size of a bill: use your own.
        source: of the figures but the price.
        shared_cores: cores that the engine shares with HTTP and everything else; 0 where it has a device of its own.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    price: float
    source: str
    shared_cores: int = 0


def _nvidia(name: str, tflops: float, gb_per_s: float, gb: float, price: float, sheet: str) -> Device:
    return Device(name, tflops * 1e12, gb_per_s * 1e9, gb * 1e9, price, sheet)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _nvidia("L4", 121, 300, 24, 0.8, "NVIDIA L4 data sheet: 242 TFLOPS bf16 with sparsity"),
        _nvidia("A10G", 70, 600, 24, 1.0, "NVIDIA A10G data sheet (AWS): 140 TFLOPS bf16 with sparsity"),
        _nvidia("A100", 312, 2039, 80, 2.5, "NVIDIA A100 data sheet, 80 GB SXM: 312 TFLOPS bf16"),
        _nvidia("H100", 989, 3350, 80, 4.0, "NVIDIA H100 data sheet, SXM: 1979 TFLOPS bf16 with sparsity"),
        _nvidia("H200", 989, 4800, 141, 5.0, "NVIDIA H200 data sheet, SXM: 1979 TFLOPS bf16 with sparsity"),
    )
}


@dataclass(frozen=True, slots=True)
class Model:
    """What is computed for a token.

    Attributes:
        parameters: that each token is multiplied by: all but the embedding and lm_head.
        attention: heads times the length of a head.
        kv: the same for the heads of keys and values.
        bytes_per_number: of weights, activations, keys and values.
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
        """Keys and values of all layers."""
        return 2 * self.layers * self.kv * self.bytes_per_number

    @property
    def weight_bytes(self) -> int:
        """With the embedding, tied to lm_head."""
        return (self.parameters + self.vocabulary * self.hidden) * self.bytes_per_number

    def flops(self, tokens: float, reused: float) -> float:
        """Operations for a pair of so many tokens, of which some need not be computed.

        Two for each parameter and computed token; four for each token that it attends to and each dimension of attention; and
        lm_head once, at the last token.
        """
        attended = (tokens**2 - reused**2) / 2
        multiplied = 2 * self.parameters * (tokens - reused) + 2 * self.hidden * self.vocabulary
        return multiplied + 4 * self.layers * self.attention * attended

    def bytes_moved(self, tokens: float, reused: float, step_tokens: float) -> float:
        """Bytes between the device and its memory for a pair: weights once a step, keys and values that are reused, activations.

        Activations are what every kernel of a layer reads and writes, a lower bound: norms and residuals (8 x hidden), the
        projections in and out of attention, gate, up and their product (6 x intermediate).
        """
        layer = 8 * self.hidden + 4 * (self.attention + self.kv) + 6 * self.intermediate
        activations = self.layers * layer * self.bytes_per_number
        computed = tokens - reused
        return computed * (activations + self.weight_bytes / step_tokens) + reused * self.kv_bytes_per_token


# Source: its config.json, and count_multiplied_parameters of the default checkpoint.
SMOLLM2_135M = Model("SmolLM2-135M", 106_203_456, 30, 576, 1536, 576, 192, 49_152)


def read_model(checkpoint: Path) -> Model:
    """Of a checkpoint folder with a Llama-like config.json; numbers of two bytes are assumed."""
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
