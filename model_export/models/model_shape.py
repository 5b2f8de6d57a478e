"""The shape of a base, for estimates of size and time: without loading it, and without torch."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_export.models.base_model import DEFAULT_BASE, PRUNED, BaseModelError
from model_export.recipe import TINY_BASE, TinyConfig

_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)
_UNITS = {"b": 1e9, "m": 1e6}
# Guessed where a name tells of the parameters alone: layers of 12 hidden^2 parameters, 128 wide for each layer there
# is, and the vocabulary of a model for many languages.
_GUESSED_ASPECT, _GUESSED_VOCABULARY, _GUESSED_IN_LAYERS = 128, 150_000, 0.9


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder such as Llama's.

    Attributes:
        parameters: all of them.
        linear: those in the linear maps of all layers.
        key_value: width of a layer's keys, and of its values.
        source: where this was read.
    """

    parameters: int
    linear: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int
    source: str

    def keep_layers(self, layers: int) -> "Shape":
        """With fewer of the layers."""
        kept = self.linear * layers // self.layers
        return replace(self, parameters=self.parameters - self.linear + kept, linear=kept, layers=layers)


def find_shape(name: str, tiny: TinyConfig) -> Shape | None:
    """The shape of a base as recipes name it; None where neither a file here nor its name tells.

    Raises BaseModelError for a folder whose config.json is not that of a decoder.
    """
    if pruned := PRUNED.fullmatch(name):
        whole = find_shape(pruned[1], tiny)
        return whole and whole.keep_layers(min(int(pruned[2]), whole.layers))
    if name == TINY_BASE:
        return _of_config(_tiny_config(tiny), "the recipe")
    if name == DEFAULT_BASE:
        return _of_config(_SMOLLM2, "what is known of it")
    config = Path(name).expanduser() / "config.json"
    return _of_file(config) if config.is_file() else _of_name(Path(name).name)


# Reading it off the GGUF file takes seconds.
_SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def _tiny_config(tiny: TinyConfig) -> dict[str, Any]:
    return {
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.intermediate,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "vocab_size": tiny.vocabulary,
        "tie_word_embeddings": True,
    }


def _of_file(path: Path) -> Shape:
    try:
        return _of_config(json.loads(path.read_text(encoding="utf-8")), "its config.json")
    except (KeyError, TypeError, ValueError) as error:
        raise BaseModelError(f"{path} is not the configuration of a decoder") from error


def _of_config(config: dict[str, Any], source: str) -> Shape:
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, vocabulary = config["num_attention_heads"], config["vocab_size"]
    head = config.get("head_dim") or hidden // heads
    key_value = head * (config.get("num_key_value_heads") or heads)
    linear = layers * hidden * (2 * heads * head + 2 * key_value + 3 * inner)
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    norms = (2 * layers + 1) * hidden
    return Shape(embeddings + linear + norms, linear, layers, hidden, inner, key_value, vocabulary, source)


def _of_name(name: str) -> Shape | None:
    if not (stated := _IN_NAME.search(name)):
        return None
    parameters = int(float(stated[1]) * _UNITS[stated[2].lower()])
    layers = max(1, round((parameters / (12 * _GUESSED_ASPECT**2)) ** (1 / 3)))
    hidden = layers * _GUESSED_ASPECT
    return Shape(
        parameters=parameters,
        linear=int(parameters * _GUESSED_IN_LAYERS),
        layers=layers,
        hidden=hidden,
        intermediate=hidden * 3,
        key_value=hidden // 4,
        vocabulary=_GUESSED_VOCABULARY,
        source="its name, the rest is guessed",
    )
