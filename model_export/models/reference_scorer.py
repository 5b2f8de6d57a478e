"""Label log-probabilities by plain transformers in float32: the reference for every engine."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from service.contract.labels import LabelDistribution


class ReferenceScorer:
    """Scores one prompt at a time, without padding, batching or cache, which could change a number."""

    def __init__(self, model: Any, label_token_ids: Sequence[int]) -> None:
        """Take a transformers causal model in evaluation mode and the labels' token ids, lowest grade first."""
        self._model = model
        self._label_token_ids = list(label_token_ids)

    @classmethod
    def load(cls, folder: Path, label_token_ids: Sequence[int]) -> Self:
        """Load a checkpoint folder. For an int8 one, the engine's rounding is computed in float32."""
        from model_export.models.quantize import load_as_served

        return cls(load_as_served(folder), label_token_ids)

    def label_logprobs(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Return the natural-log probability of each label as the next token, over the whole vocabulary."""
        import torch

        with torch.inference_mode():
            prompt = torch.tensor([list(token_ids)], device=self._model.device)
            last = self._model(prompt, use_cache=False, logits_to_keep=1).logits[0, -1].float()
            logprobs = torch.log_softmax(last, dim=-1)[self._label_token_ids]
        return tuple(float(value) for value in logprobs)

    def distributions(self, prompts: Sequence[Sequence[int]]) -> Iterator[LabelDistribution]:
        """Yield the raw label distribution of each prompt, in order."""
        for token_ids in prompts:
            yield LabelDistribution.from_logprobs(self.label_logprobs(token_ids))
