"""Converts a checkpoint for infinity-emb (transformers 4): a classifier whose classes are the grades.

    .venv/bin/python -m load_tests.bench.peers.infinity_model checkpoints/default runs/classifier

It is a separate process to keep torch out of the load generator.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from service.contract.checkpoint import Checkpoint, load_checkpoint


def write_classifier(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the classifier's weights, config and tokenizer into an empty folder."""
    config = _read_json(checkpoint.folder / "config.json")
    tokenizer_config = _read_json(checkpoint.folder / "tokenizer_config.json")
    padding = tokenizer_config.get("pad_token") or tokenizer_config["eos_token"]
    [padding_id] = checkpoint.tokenizer.encode_template(padding)
    _write_json(folder / "config.json", _classifier_config(checkpoint, config, padding_id))
    made = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": padding}
    _write_json(folder / "tokenizer_config.json", made)
    _write_tokenizer(checkpoint, folder)
    _write_weights(checkpoint, config, folder)


def _classifier_config(checkpoint: Checkpoint, config: dict[str, Any], padding_id: int) -> dict[str, Any]:
    [architecture] = config["architectures"]
    grades = [label.grade for label in checkpoint.manifest.labels]
    # transformers 5 writes theta and scaling in one entry, which transformers 4 does not read.
    rope = config.get("rope_parameters") or {}
    return {
        **config,
        "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": {str(grade): str(grade) for grade in grades},
        "label2id": {str(grade): grade for grade in grades},
        "pad_token_id": padding_id,
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else config.get("rope_scaling"),
    }


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    # The tokenizer appends the cue, since infinity strips its input texts and a cue may end with a space.
    ids = checkpoint.tokenizer.encode_template(checkpoint.manifest.template.cue)
    cue = {"id": "cue", "ids": list(ids), "tokens": [f"cue {place}" for place in range(len(ids))]}
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A cue", pair="$A $B cue", special_tokens=[cue])
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_weights(checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> None:
    weights: dict[str, Any] = {}
    for path in checkpoint.folder.glob("*.safetensors"):
        weights |= load_file(path)
    head = weights["model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"]
    weights["score.weight"] = head[list(checkpoint.manifest.label_token_ids)]
    weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    write_classifier(load_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]))
