"""Makes a checkpoint around a tiny random model without an engine, and a request for it."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from load_tests.bench.peer import Request
from service.contract.checkpoint import Checkpoint
from service.contract.manifest import Manifest
from service.contract.prompt import Note, PromptRenderer
from service.contract.tokenizer import ContractTokenizer
from tests.checkpoints import manifest_data
from tests.tiny_base import make_tiny_base

NOTES: tuple[dict[str, Any], ...] = (
    {"id": "n1", "title": "Cafes", "body": "A quiet cafe with good light."},
    {"id": "n2", "title": None, "body": ""},
    {"id": "n3", "title": "静かなカフェ", "body": "電源あり 🎧"},
)


def make_tiny_checkpoint(folder: Path, **changes: Any) -> Checkpoint:
    """Make a checkpoint with a calibration temperature of 2; `changes` replace top-level manifest keys."""
    make_tiny_base(folder)
    tokenizer = ContractTokenizer.load(folder)
    data = manifest_data(folder, tokenizer)
    data["calibration"] = {"name": "t-2", "method": "temperature", "temperature": 2.0}
    manifest = Manifest.model_validate({**data, **changes})
    return Checkpoint(folder, manifest, tokenizer, PromptRenderer(manifest, tokenizer), (), ())


def make_request(checkpoint: Checkpoint, notes: int = len(NOTES)) -> Request:
    """Render a query and the first notes."""
    texts = [Note(note["title"] or "", note["body"]) for note in NOTES[:notes]]
    prompts = checkpoint.renderer.render("quiet cafes", texts, checkpoint.renderer.default_criteria)
    return Request("quiet cafes", NOTES[:notes], tuple(prompt.token_ids for prompt in prompts))


def forward(checkpoint: Checkpoint, prompt: tuple[int, ...]) -> list[float]:
    """Compute one prompt's raw label probabilities, in float32, without a batch."""
    with torch.inference_mode():
        logits = _load(checkpoint.folder)(input_ids=torch.tensor([prompt])).logits[0, -1]
    found: list[float] = logits[list(checkpoint.manifest.label_token_ids)].softmax(-1).tolist()
    return found


@cache
def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
