import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from load_tests.bench.peer import Request
from load_tests.bench.peers.infinity_model import write_classifier
from service.contract.checkpoint import Checkpoint
from tests.load_tests.bench.peers.tiny import forward


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_classifier_agrees_with_the_checkpoint(
    tiny: Checkpoint, request_of_three: Request, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_classifier(tiny, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    cue = tiny.tokenizer.encode_template(tiny.manifest.template.cue)
    texts = [tiny.tokenizer.decode(prompt[: -len(cue)]) for prompt in request_of_three.prompts]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = [forward(tiny, prompt) for prompt in request_of_three.prompts]
    assert logits.softmax(-1).tolist() == [pytest.approx(row, abs=1e-5) for row in expected]
    assert read_json(tmp_path / "config.json")["id2label"] == {"0": "0", "1": "1", "2": "2", "3": "3"}


def test_rope_settings_are_written_for_transformers_4(tiny: Checkpoint, tmp_path: Path) -> None:
    rope = {"rope_theta": 123.0, "rope_type": "llama3", "factor": 2.0}
    scaled, made = tmp_path / "scaled", tmp_path / "made"
    shutil.copytree(tiny.folder, scaled)
    config = {**read_json(scaled / "config.json"), "rope_parameters": rope}
    (scaled / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made.mkdir()
    write_classifier(dataclasses.replace(tiny, folder=scaled), made)
    config = read_json(made / "config.json")
    assert (config["rope_theta"], config["rope_scaling"]) == (123.0, rope)
