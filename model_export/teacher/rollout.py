"""Samples traces and computes answer distributions with transformers, in batches of similar lengths."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from transformers import DynamicCache, PreTrainedModel

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.rollout_reader import RolloutReader
from model_export.models.constrained import Grammars
from model_export.models.decoding import decode, make_cache
from model_export.models.model_io import load_model, speed_up
from model_export.models.packing import pack, pack_prompts, places_of_rows, split_rows
from model_export.recipe import Precision
from service.contract.trace import Trace, write_step

OnBatch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling parameters; a temperature of 0 decodes greedily."""

    max_tokens: int
    temperature: float
    batch_size: int


class Sampler:
    """A model, its labels' token ids (lowest grade first) and its end token."""

    def __init__(self, model: PreTrainedModel, label_token_ids: Sequence[int], end_token_id: int) -> None:
        self._model = model.eval()
        speed_up(model, compiled=False)
        self._label_token_ids = list(label_token_ids)
        self._end = end_token_id

    @classmethod
    def load(cls, folder: Path, prompting: Prompting, precision: Precision = "float32") -> "Sampler":
        """Load a transformers folder."""
        return cls(load_model(folder, precision), prompting.label_token_ids, prompting.end_token_id)

    def sample(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        on_batch: OnBatch = lambda *_: None,
        grammars: Grammars | None = None,
    ) -> list[list[int]]:
        """Return one completion per prompt, in order, with its end token if it reached one; within its grammar, if given."""
        completions: dict[int, list[int]] = {}
        for batch in self._batches(prompts, sampling.batch_size):
            rows = [prompts[index] for index in batch]
            allowed = grammars.of(batch) if grammars else None
            completions |= zip(batch, self._complete(rows, sampling, allowed), strict=True)
            on_batch(len(completions), len(prompts))
        return [completions[index] for index in range(len(prompts))]

    def distributions(
        self,
        sequences: Sequence[list[int]],
        batch_size: int,
        on_batch: OnBatch = lambda *_: None,
        *,
        in_order: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the label probabilities of the token after each sequence, and their label mass.

        The probabilities are (sequences, grades), and each row sums to 1. Sequences that repeat are computed once. Batches are
        of similar lengths or, `in_order`, of neighbours, which pays where these share more than their criteria.
        """
        distinct = {sequence: number for number, sequence in enumerate(dict.fromkeys(map(tuple, sequences)))}
        rows = list(map(list, distinct))
        found = torch.zeros(len(rows), len(self._label_token_ids))
        done = 0
        for batch in self._batches(rows, batch_size, in_order=in_order):
            found[batch] = self._label_probabilities([rows[index] for index in batch])
            done += len(batch)
            on_batch(done, len(rows))
        found = found[[distinct[tuple(sequence)] for sequence in sequences]]
        mass = found.sum(-1)
        return found / mass.unsqueeze(-1), mass

    @staticmethod
    def _batches(
        rows: Sequence[list[int]], batch_size: int, *, in_order: bool = False
    ) -> Iterator[list[int]]:
        order = list(range(len(rows)))
        if not in_order:
            order.sort(key=lambda index: len(rows[index]))
        for start in range(0, len(rows), batch_size):
            yield order[start : start + batch_size]

    def _complete(
        self, prompts: Sequence[list[int]], sampling: Sampling, grammars: Grammars | None
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        last = torch.tensor([prompt[-1:] for prompt in prompts])
        device = self._model.device
        with torch.inference_mode():
            return decode(
                self._model,
                self._prefill(prompts, sampling.max_tokens),
                last.to(device),
                mask.to(device),
                temperature=sampling.temperature,
                end=self._end,
                max_tokens=sampling.max_tokens,
                grammars=grammars,
            )

    def _prefill(self, prompts: Sequence[list[int]], room: int) -> DynamicCache:
        """Return the keys and values of the prompts but their last tokens, padded on the left, with room for tokens.

        A prefix that prompts share is computed once, and so is a prompt that repeats, as those of a group of rollouts do.
        """
        places, read = self._read([prompt[:-1] for prompt in prompts])
        width = max(map(len, places))
        index = torch.tensor([[0] * (width - len(row)) + row for row in places], device=self._model.device)

        def pad(states: torch.Tensor) -> torch.Tensor:
            return states[0][:, index].transpose(0, 1)

        return make_cache(self._model, ((pad(keys), pad(values)) for keys, values, _ in read), room)

    def _read(self, rows: Sequence[list[int]]) -> tuple[list[list[int]], DynamicCache]:
        """Return the keys and values of a packed batch, and where in it each row's tokens are."""
        distinct = list(dict.fromkeys(map(tuple, rows)))
        segments = split_rows(distinct, list(map(len, distinct)))
        packed = send_to_device(pack(distinct, segments, self._model.config), self._model.device)
        cache = DynamicCache()  # of all tokens, also where the model's layers see a window of a row
        self._model(**packed, past_key_values=cache, logits_to_keep=1)
        places = dict(zip(distinct, places_of_rows(segments, len(distinct)), strict=True))
        return [places[tuple(row)] for row in rows], cache

    def _label_probabilities(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        with torch.inference_mode():
            batch = send_to_device(pack_prompts(sequences, self._model.config), self._model.device)
            logits = self._model(**batch, use_cache=False).logits[0]
        return logits.float().softmax(-1)[:, self._label_token_ids].cpu()


@dataclass(frozen=True, slots=True)
class ReasoningPath:
    """A sampled reasoning path that parses: its trace, the text of its steps, and all tokens before the answer's."""

    trace: Trace
    steps: str
    before_answer: list[int]


def read_path(
    prompt: list[int], completion: list[int], reader: RolloutReader, criteria: Sequence[str]
) -> ReasoningPath | None:
    """Parse a completion into its path; None where it does not parse."""
    rollout = reader.read(completion, criteria)
    if rollout.trace is None:
        return None
    steps = "".join(write_step(step.criterion, step.finding, step.grade) for step in rollout.trace.steps)
    # The answer's digit is a token of its own, as every digit is (checked at load).
    answer = [end for _, end in rollout.spans].index(rollout.trace.answer_span[1])
    return ReasoningPath(rollout.trace, steps, prompt + completion[:answer])


def sample_paths(
    pairs: Sequence[Pair], prompting: Prompting, sampler: Sampler, sampling: Sampling, on_batch: OnBatch
) -> list[ReasoningPath | None]:
    """Sample one path per pair, in order; None where it does not parse."""
    prompts = [prompting.teacher_prompt(pair) for pair in pairs]
    completions = sampler.sample(prompts, sampling, on_batch)
    return [
        read_path(prompt, completion, prompting.reader, prompting.steps(pair.criteria))
        for pair, prompt, completion in zip(pairs, prompts, completions, strict=True)
    ]
