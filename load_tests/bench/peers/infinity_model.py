"""Converts a checkpoint for infinity-emb (transformers 4): a classifier whose classes are the grades.

The weights are linked, not copied. Only the label tokens' rows of the head are written to a new file.
"""

import json
from pathlib import Path
from typing import Any

from load_tests.bench.measure import read_tensors
from load_tests.processes import Unavailable
from service.contract.checkpoint import Checkpoint


def write_classifier(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the classifier into an empty folder. Raises Unavailable for int8 weights, which infinity-emb does not load."""
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
    """Return the tokens of the cue, with which every prompt ends."""
    return checkpoint.tokenizer.encode_template(checkpoint.manifest.template.cue)


def _append(token_ids: tuple[int, ...]) -> dict[str, Any]:
    # The tokenizer appends the cue, since infinity strips its input texts and a cue may end with a space.
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
    # transformers 5 writes theta and scaling in one entry, which transformers 4 does not read.
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
        # Renamed, because a file called model.safetensors would be loaded as the whole model.
        link = folder / f"backbone-{number}.safetensors"
        link.symlink_to(source.absolute())
        places |= dict.fromkeys(read_tensors(link)[0], link.name)
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    _write_rows(
        folder / places[head], head, checkpoint.manifest.label_token_ids, folder / "score.safetensors"
    )
    places.pop("lm_head.weight", None)
    places["score.weight"] = "score.safetensors"
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _write_rows(source: Path, tensor: str, rows: tuple[int, ...], target: Path) -> None:
    tensors, data_start = read_tensors(source)
    found = tensors[tensor]
    height, width = found["shape"]
    start, end = found["data_offsets"]
    row_bytes = (end - start) // height
    with source.open("rb") as opened:
        copied = b""
        for row in rows:
            opened.seek(data_start + start + row * row_bytes)
            copied += opened.read(row_bytes)
    described = {"dtype": found["dtype"], "shape": [len(rows), width], "data_offsets": [0, len(copied)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "score.weight": described}).encode()
    target.write_bytes(len(header).to_bytes(8, "little") + header + copied)


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
