"""Checks label tokens, and computes the distribution over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.manifest import Label, Manifest, ReadingKind
from service.contract.tokenizer import ContractTokenizer
from service.errors import LabelTokenError


@dataclass(frozen=True, slots=True)
class LabelDistribution:
    """The raw (uncalibrated) probabilities of the labels, lowest grade first.

    `probabilities` sum to 1. `label_mass` in [0, 1] is the labels' total probability in the whole vocabulary before
    renormalising: near 0, the model is not answering with a grade.
    """

    probabilities: tuple[float, ...]
    label_mass: float

    @classmethod
    def from_logprobs(cls, logprobs: Sequence[float]) -> "LabelDistribution":
        """Compute it from natural-log probabilities over the whole vocabulary, one per label.

        Raises ValueError if any is not a number or all are minus infinity.
        """
        top = max(logprobs)
        if any(math.isnan(value) for value in logprobs) or not math.isfinite(top):
            raise ValueError(f"label logprobs must be numbers, at least one of them finite: {list(logprobs)}")
        # Relative to the largest one, so that logprobs like -800 do not underflow to a sum of 0.
        weights = [math.exp(value - top) for value in logprobs]
        total = sum(weights)
        mass = min(1.0, math.exp(top) * total)
        return cls(tuple(weight / total for weight in weights), mass)


@dataclass(frozen=True, slots=True)
class Reading:
    """A pair's raw distribution, whether its note was truncated to the limit, and whether it was read as text or as vectors."""

    distribution: LabelDistribution
    truncated: bool
    kind: ReadingKind = "text"


def check_labels(manifest: Manifest, tokenizer: ContractTokenizer) -> None:
    """Check that each label is a single, distinct token right after the cue of each reading.

    Raises LabelTokenError, which names the first label that is not.
    """
    _check_cue(manifest.template.cue, manifest.labels, tokenizer)
    if manifest.vectors:
        _check_cue(manifest.vectors.template.cue, manifest.labels, tokenizer)
    if len(set(manifest.label_token_ids)) < len(manifest.labels):
        raise LabelTokenError(f"labels must be distinct tokens, not {list(manifest.label_token_ids)}")


def _check_cue(cue: str, labels: Sequence[Label], tokenizer: ContractTokenizer) -> None:
    cue_ids = tokenizer.encode_template(cue)
    if not cue_ids:
        raise LabelTokenError(f"the cue {cue!r} encodes to no token")
    for label in labels:
        after_cue = tokenizer.encode_template(cue + label.token)
        if after_cue != (*cue_ids, label.token_id):
            tail = after_cue[len(cue_ids) :] if after_cue[: len(cue_ids)] == cue_ids else after_cue
            raise LabelTokenError(
                f"label {label.token!r} (grade {label.grade}) must be the single token {label.token_id} "
                f"right after the cue {cue!r}, and encodes to {list(tail)}"
            )
