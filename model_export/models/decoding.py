"""Decodes token by token after prompts whose keys and values are known.

transformers' `generate` copies all keys and values for each token, draws a random number for each token of the vocabulary, and
computes rows that have ended until the last one ends.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from model_export.models.constrained import Grammars

_SHRINK_AT = 0.75  # the share of rows that go on at which the others are dropped; each drop copies the keys and values that stay


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # mypy does not read transformers
    """The keys and values of a layer, (rows, heads, tokens, width), with room for the tokens to come."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._all_keys, self._all_values = (pad(states, (0, 0, 0, room)) for states in (keys, values))
        self._show(keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._all_keys[:, :, start:stop] = key_states
        self._all_values[:, :, start:stop] = value_states
        return self._show(stop)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._show(self.get_seq_length())

    def _show(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = self._all_keys[:, :, :tokens], self._all_values[:, :, :tokens]
        return self.keys, self.values


def make_cache(
    model: PreTrainedModel, states: Iterable[tuple[torch.Tensor, torch.Tensor]], room: int
) -> DynamicCache:
    """Return a cache of each layer's keys and values, with room for tokens; a layer that sees a window keeps only that."""
    cache = DynamicCache(config=model.config)
    for number, (keys, values) in enumerate(states):
        if cache.layers[number].is_sliding:
            cache.update(keys, values, number)
        else:
            cache.layers[number] = _RoomyLayer(keys, values, room)
    return cache


def decode(
    model: PreTrainedModel,
    cache: DynamicCache,
    last: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float,
    end: int,
    max_tokens: int,
    grammars: Grammars | None = None,
) -> list[list[int]]:
    """Return each row's completion, with its end token if it reached one within `max_tokens`; a temperature of 0 is greedy.

    `last`: (rows, 1) last tokens of the prompts, which `cache` does not hold. `mask`: (rows, tokens) of the whole prompts,
    padded on the left. `grammars`: what each row may write, else anything.
    """
    completions: list[list[int]] = [[] for _ in last]
    rows = list(range(len(completions)))
    for _ in range(max_tokens):
        places = mask.sum(-1, keepdim=True) - 1
        logits = model(last, attention_mask=mask, position_ids=places, past_key_values=cache).logits[:, -1]
        if grammars:
            grammars.restrict(logits, rows)
        last, mask = _next_tokens(logits, temperature), pad(mask, (0, 1), value=1)
        for row, token in zip(rows, last[:, 0].tolist(), strict=True):
            if end not in completions[row][-1:]:
                completions[row].append(token)
                if grammars:
                    grammars.write(row, token)
        going = [place for place, row in enumerate(rows) if completions[row][-1] != end]
        if not going:
            break
        if len(going) <= _SHRINK_AT * len(rows):
            kept = torch.tensor(going, device=last.device)
            cache.batch_select_indices(kept)
            rows, last, mask = [rows[place] for place in going], last[kept], mask[kept]
    return completions


def _next_tokens(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (rows, 1) tokens drawn from (rows, vocabulary) logits; a token of a chance below 6e-8 may never be drawn."""
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    below = (logits.float() / temperature).softmax(-1).cumsum(-1)
    drawn = torch.rand(len(below), 1, device=below.device) * below[:, -1:]
    return torch.searchsorted(below, drawn, right=True)
