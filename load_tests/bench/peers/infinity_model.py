"""A checkpoint as infinity-emb (transformers 4) loads it: a classifier whose classes are the grades.

Its weights are not copied: the folder links to them, and adds the label tokens' rows of the head as a file of their own.
"""

import json
from pathlib import Path
from typing import Any

from load_tests.bench.peers.process import Unavailable
from service.contract.checkpoint import Checkpoint

# The format of safetensors: eight bytes that tell the header's length, the header as JSON, the tensors.
_LENGTH_BYTES = 8


def write_classifier(checkpoint: Checkpoint, folder: Path) -> None:
    """Write it into an existing, empty folder. Raises Unavailable for int8 weights, which infinity-emb does not load."""
    config = _read_json(checkpoint.folder / "config.json")
    if "quantization_config" in config:
        raise Unavailable("infinity-emb does not load quantized weights")
    tokenizer_config = _read_json(checkpoint.folder / "tokenizer_config.json")
    padding = tokenizer_config.get("pad_token") or tokenizer_config["eos_token"]
    [padding_id] = checkpoint.tokenizer.encode_template(padding)
    _write_json(folder / "config.json", _classifier_config(checkpoint, config, padding_id))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": padding}
    _write_json(folder / "tokenizer_config.json", tokenizer)
    tokenizer_json = _read_json(checkpoint.folder / "tokenizer.json")
    _write_json(folder / "tokenizer.json", {**tokenizer_json, "post_processor": _append(cue_ids(checkpoint))})
    _write_weights(checkpoint, config, folder)


def cue_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The tokens that every prompt ends with."""
    return checkpoint.tokenizer.encode_template(checkpoint.manifest.template.cue)


def _append(token_ids: tuple[int, ...]) -> dict[str, Any]:
    # By the tokenizer, since infinity strips the texts that it is sent, and a cue may end with a blank.
    cue = {"id": "cue", "ids": list(token_ids), "tokens": [f"cue {place}" for place in range(len(token_ids))]}
    text, tail = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "cue", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 0}}, tail]
    return {
        "type": "TemplateProcessing",
        "single": [text, tail],
        "pair": pair,
        "special_tokens": {"cue": cue},
    }


def _classifier_config(checkpoint: Checkpoint, config: dict[str, Any], padding_id: int) -> dict[str, Any]:
    [architecture] = config["architectures"]
    names = {str(label.grade): str(label.grade) for label in checkpoint.manifest.labels}
    # transformers 5 writes both in one; 4 would go on with its default theta.
    rope = config.get("rope_parameters") or {}
    return {
        **config,
        "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": names,
        "label2id": {name: int(index) for index, name in names.items()},
        "pad_token_id": padding_id,
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else config.get("rope_scaling"),
    }


def _write_weights(checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> None:
    places: dict[str, str] = {}
    sources = sorted(checkpoint.folder.glob("*.safetensors"))
    for number, source in enumerate(sources):
        # Not under its own name: a model.safetensors would be taken for the whole model.
        link = folder / f"backbone-{number}.safetensors"
        link.symlink_to(source.absolute())
        places |= dict.fromkeys(_read_header(link), link.name)
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    _write_rows(
        folder / places[head], head, checkpoint.manifest.label_token_ids, folder / "score.safetensors"
    )
    places.pop("lm_head.weight", None)
    places["score.weight"] = "score.safetensors"
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _read_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header


def _write_rows(source: Path, tensor: str, rows: tuple[int, ...], target: Path) -> None:
    found = _read_header(source)[tensor]
    height, width = found["shape"]
    start, end = found["data_offsets"]
    row_bytes = (end - start) // height
    with source.open("rb") as opened:
        first = _LENGTH_BYTES + int.from_bytes(opened.read(_LENGTH_BYTES), "little") + start
        copied = b""
        for row in rows:
            opened.seek(first + row * row_bytes)
            copied += opened.read(row_bytes)
    described = {"dtype": found["dtype"], "shape": [len(rows), width], "data_offsets": [0, len(copied)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "score.weight": described}).encode()
    target.write_bytes(len(header).to_bytes(_LENGTH_BYTES, "little") + header + copied)


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
