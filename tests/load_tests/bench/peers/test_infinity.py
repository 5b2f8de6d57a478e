from typing import Any

import pytest

from load_tests.bench.peer import Request
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.infinity import Infinity
from service.contract.checkpoint import Checkpoint


def answer() -> dict[str, Any]:
    """Make an answer like infinity-emb 0.0.78: the classes of each text, the most probable first."""
    first = [("3", 0.4), ("2", 0.3), ("1", 0.2), ("0", 0.1)]
    second = [("0", 0.7), ("3", 0.15), ("1", 0.1), ("2", 0.05)]
    data = [[{"score": score, "label": label} for label, score in found] for found in (first, second)]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return {"object": "classify", "data": data, "model": "model", "usage": usage, "id": "infinity-1"}


def test_classes_are_sorted_by_grade(tiny: Checkpoint) -> None:
    raw = ([0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.05, 0.15])
    assert Infinity(tiny, "tuned").grades([answer()]) == pytest.approx(
        [calibrated_grade(r, tiny) for r in raw]
    )


def test_texts_and_cue_tokenise_to_the_prompts(tiny: Checkpoint, request_of_three: Request) -> None:
    [call] = Infinity(tiny, "tuned").calls(request_of_three)
    cue = tiny.manifest.template.cue
    # infinity strips its input.
    prompts = [tiny.tokenizer.encode_template(text.strip() + cue) for text in call.body["input"]]
    assert call.path == "/classify"
    assert tuple(prompts) == request_of_three.prompts
