import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution, check_labels
from service.contract.manifest import Manifest
from service.contract.tokenizer import ContractTokenizer
from service.errors import LabelTokenError
from tests.checkpoints import make_vector_checkpoint

LOGPROB = st.floats(-2000, 0)


@given(st.lists(LOGPROB, min_size=2, max_size=8))
def test_distribution_sums_to_one_at_any_scale(logprobs: list[float]) -> None:
    distribution = LabelDistribution.from_logprobs(logprobs)
    assert math.isclose(sum(distribution.probabilities), 1.0, abs_tol=1e-9)
    assert 0 <= distribution.label_mass <= 1


def test_label_mass_is_the_labels_share_of_the_vocabulary() -> None:
    distribution = LabelDistribution.from_logprobs([math.log(0.1), math.log(0.3)])
    assert distribution.label_mass == pytest.approx(0.4)
    assert distribution.probabilities == pytest.approx((0.25, 0.75))


def test_a_label_with_logprob_minus_infinity_has_probability_zero() -> None:
    assert LabelDistribution.from_logprobs([-math.inf, 0.0]).probabilities == (0.0, 1.0)


@pytest.mark.parametrize("logprobs", [[math.nan, -1.0], [-1.0, math.nan], [-math.inf, -math.inf]])
def test_unusable_logprobs_are_refused(logprobs: list[float]) -> None:
    with pytest.raises(ValueError, match="must be numbers"):
        LabelDistribution.from_logprobs(logprobs)


def check_with(checkpoint: Checkpoint, labels: list[dict[str, Any]], cue: str | None = None) -> None:
    data = checkpoint.manifest.model_dump(mode="json")
    data["labels"] = [{"grade": grade, "gain": grade, **label} for grade, label in enumerate(labels)]
    if cue is not None:
        data["template"]["pieces"][-1]["text"] = cue
    check_labels(Manifest.model_validate(data), checkpoint.tokenizer)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([("0", 999), ("1", 1)], r"label '0' \(grade 0\) must be the single token 999"),
        ([("12", 1), ("1", 1)], r"label '12' .* encodes to \[\d+, \d+\]"),
        ([("0", None), ("0", None)], "must be distinct"),
    ],
    ids=["wrong id", "several tokens", "one token twice"],
)
def test_labels_that_are_not_single_distinct_tokens_are_refused(
    checkpoint: Checkpoint, tokens: list[tuple[str, int | None]], message: str
) -> None:
    zero = checkpoint.manifest.labels[0].token_id
    labels = [{"token": token, "token_id": zero if given is None else given} for token, given in tokens]
    with pytest.raises(LabelTokenError, match=message):
        check_with(checkpoint, labels)


def test_label_that_merges_with_the_cue_is_refused(checkpoint: Checkpoint) -> None:
    # " a" is one word for this tokenizer: after a cue that ends in a space, "a" is not a token.
    a = checkpoint.tokenizer.encode_template("a")[0]
    zero = checkpoint.manifest.labels[0].token_id
    with pytest.raises(LabelTokenError, match="label 'a'"):
        check_with(
            checkpoint, [{"token": "a", "token_id": a}, {"token": "0", "token_id": zero}], cue="Grade: "
        )


def test_label_that_merges_with_the_cue_of_vectors_is_refused(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(make_vector_checkpoint(tmp_path / "with-vectors"))
    a, zero = (checkpoint.tokenizer.encode_template(text)[0] for text in ("a", "0"))
    labels = [{"token": "a", "token_id": a}, {"token": "0", "token_id": zero}]
    with pytest.raises(LabelTokenError, match=r"label 'a' .* after the cue ' '"):
        check_with(checkpoint, labels, cue="Grade:")


def test_cue_without_a_token_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContractTokenizer, "encode_template", lambda *_: ())
    with pytest.raises(LabelTokenError, match="encodes to no token"):
        check_labels(checkpoint.manifest, checkpoint.tokenizer)
