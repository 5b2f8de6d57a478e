import math
from pathlib import Path

import pytest

from model_export.models.base_model import load_base, locate_base
from model_export.models.reference_scorer import ReferenceScorer

LABELS = (16, 17, 18, 19)


@pytest.fixture(scope="module")
def scorer(tiny_base: Path) -> ReferenceScorer:
    return ReferenceScorer.load(tiny_base, LABELS)


def test_logprobs_are_of_the_token_after_the_prompt(tiny_base: Path, scorer: ReferenceScorer) -> None:
    import torch

    prompt = [5, 9, 260, 33]
    with torch.inference_mode():
        logits = load_base(locate_base(str(tiny_base))).model(torch.tensor([prompt])).logits
    expected = torch.log_softmax(logits[0, -1].double(), dim=-1)[list(LABELS)].tolist()
    assert scorer.label_logprobs(prompt) == pytest.approx(expected, abs=1e-5)


def test_order_of_the_labels_is_kept(tiny_base: Path, scorer: ReferenceScorer) -> None:
    backwards = ReferenceScorer.load(tiny_base, LABELS[::-1])
    assert backwards.label_logprobs([1, 2, 3]) == scorer.label_logprobs([1, 2, 3])[::-1]


def test_distributions_are_in_order(scorer: ReferenceScorer) -> None:
    prompts = [[1, 2, 3], [4] * 300, [7]]
    found = list(scorer.distributions(prompts))
    for prompt, distribution in zip(prompts, found, strict=True):
        logprobs = scorer.label_logprobs(prompt)
        assert sum(distribution.probabilities) == pytest.approx(1)
        assert distribution.label_mass == pytest.approx(sum(map(math.exp, logprobs)))
