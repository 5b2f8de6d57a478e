"""Batches without padding, in which a prefix that rows share is computed once.

Prompts start with their criteria, a quarter of their tokens. All layers but attention take each token alone, so the tokens of a
batch form one sequence of segments: each prefix, and the rest of each row. In attention each segment is a row again, and the
rest of a row sees its prefix too. Outputs and gradients are those of whole rows, as in Prefix Grouper
(https://arxiv.org/abs/2506.05433).
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from model_export.models.cpu_attention import grouped_attention

PACKED_ATTENTION = "packed"
"""The name under which the attention is registered; a model that has it takes what `pack` returns, and other batches too."""

_UNSEEN = torch.finfo(torch.bfloat16).min  # finite in float32 too


class Segment(NamedTuple):
    """The tokens of a row from `start` to `stop`, and the number of the segment that holds those before, if there are any."""

    row: int
    start: int
    stop: int
    prefix: int | None = None


def split_rows(rows: Sequence[Sequence[int]], shareable: Sequence[int]) -> list[Segment]:
    """Split rows of token ids into segments: first the prefixes that rows share, then the rest of each row, in order.

    A prefix has at most the `shareable` first tokens of each of its rows.
    """
    heads = [tuple(row[:most]) for row, most in zip(rows, shareable, strict=True)]
    order = sorted(range(len(rows)), key=heads.__getitem__)
    # commonprefix works on any sequences, not only on paths.
    shared = [len(commonprefix([heads[one], heads[other]])) for one, other in pairwise(order)]  # noqa: RUF071
    prefixes: list[Segment] = []
    rest = [Segment(row, 0, len(ids)) for row, ids in enumerate(rows)]
    for first, last, length in _groups(shared, 0, len(shared)):
        for row in order[first : last + 1]:
            rest[row] = Segment(row, length, len(rows[row]), len(prefixes))
        prefixes.append(Segment(order[first], 0, length))
    return prefixes + rest


def _groups(shared: Sequence[int], first: int, last: int) -> list[tuple[int, int, int]]:
    """Choose the groups, (first row, last row, length of its prefix), that save most tokens among the rows from first to last.

    `shared[i]` is what rows i and i + 1 of the sorted rows have in common.
    """
    if first == last:
        return []
    least = min(shared[first:last])
    cuts = [at for at in range(first, last) if shared[at] == least]
    edges = [first - 1, *cuts, last]
    parts = [group for left, right in pairwise(edges) for group in _groups(shared, left + 1, right)]
    if least * (last - first) > sum(length * (end - start) for start, end, length in parts):
        return [(first, last, least)]
    return parts


def places_of_rows(segments: Sequence[Segment], rows: int) -> list[list[int]]:
    """Return the places of each row's tokens in a packed batch; the last `rows` segments are the rests of the rows."""
    lengths = [segment.stop - segment.start for segment in segments]
    own = [range(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]
    rest = zip(segments[-rows:], own[-rows:], strict=True)
    return [[*(() if segment.prefix is None else own[segment.prefix]), *places] for segment, places in rest]


def pack(
    rows: Sequence[Sequence[int]], segments: Sequence[Segment], config: PretrainedConfig
) -> dict[str, Any]:
    """Return what a causal model takes to read the rows' segments, one after the other, as one row.

    `input_ids`: (1, tokens). `attention_mask`: (segments, 1, length, prefix length + length), added to the
    scores; where a model has sliding layers, such a mask for each kind of layer. `position_ids`: (1, tokens).
    `packing`: `tokens` (segments, length), the place in the row of each segment's tokens; `prefixes` (segments, prefixes), 1
    where a segment has that prefix; `places` (tokens), the place of each token among the flattened segments.
    """
    lengths = torch.tensor([segment.stop - segment.start for segment in segments])
    columns = torch.arange(int(lengths.max()))
    real = columns < lengths[:, None]
    positions = torch.tensor([segment.start for segment in segments])[:, None] + columns
    own = torch.tensor([-1 if segment.prefix is None else segment.prefix for segment in segments])
    prefixes = own[:, None] == torch.arange(int(own.max()) + 1)
    before = torch.arange(int(lengths[: prefixes.shape[1]].max()) if prefixes.shape[1] else 0)
    seen = torch.cat([before < (prefixes * lengths[: prefixes.shape[1]]).sum(1)[:, None], real], dim=1)
    keys = torch.cat([before.expand(len(segments), -1), positions], dim=1)
    distance = positions[:, :, None] - keys[:, None]
    causal = seen[:, None] & (distance >= 0)
    mask: torch.Tensor | dict[str, torch.Tensor] = _mask(causal)
    if getattr(config, "layer_types", None) and config.sliding_window:
        near = _mask(causal & (distance < config.sliding_window))
        mask = {"full_attention": mask, "sliding_attention": near}
    ids = [id_ for row, start, stop, _ in segments for id_ in rows[row][start:stop]]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": mask,
        "position_ids": positions[real][None],
        "packing": {
            "tokens": torch.where(real, (lengths.cumsum(0) - lengths)[:, None] + columns, 0),
            "prefixes": prefixes.float(),
            "places": real.flatten().nonzero()[:, 0],
        },
    }


def pack_prompts(rows: Sequence[Sequence[int]], config: PretrainedConfig) -> dict[str, Any]:
    """Return what a causal model takes to predict the token after each row: `logits_to_keep` are the places of the rows' ends."""
    segments = split_rows(rows, [len(row) - 1 for row in rows])
    ends = torch.tensor([segment.stop - segment.start for segment in segments]).cumsum(0) - 1
    return {**pack(rows, segments, config), "logits_to_keep": ends[-len(rows) :]}


def pack_whole(rows: Sequence[Sequence[int]], config: PretrainedConfig) -> dict[str, Any]:
    """Return what a causal model takes to read each row alone. `packing` has no prefixes, and its `tokens` are the rows'."""
    return pack(rows, [Segment(number, 0, len(row)) for number, row in enumerate(rows)], config)


def with_outputs(packed: Mapping[str, Any], outputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the batch with activations, (tokens, hidden) of each segment, in place of token ids."""
    found = {name: value for name, value in packed.items() if name != "input_ids"}
    return {**found, "inputs_embeds": torch.cat(list(outputs)).float()[None]}


def _mask(seen: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, 0.0, _UNSEEN)[:, None]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    packing: Mapping[str, torch.Tensor] | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return (1, tokens, heads, width) outputs of (1, heads, tokens, width) queries of a packed batch, and of others as usual."""
    attend = grouped_attention if query.device.type == "cpu" else sdpa_attention_forward
    if packing is None:
        output, _ = attend(module, query, key, value, attention_mask, **settings)
        return output, None
    tokens, prefixes = packing["tokens"], packing["prefixes"]
    before = attention_mask.shape[-1] - tokens.shape[1]

    def unpack(states: torch.Tensor) -> torch.Tensor:
        return states[0][:, tokens].transpose(0, 1)

    def with_prefix(states: torch.Tensor) -> torch.Tensor:
        # A product, since the backward pass of an index would add its rows in any order, and so round in any way.
        copies = torch.einsum(
            "sp,phlw->shlw", prefixes.to(states.dtype), states[: prefixes.shape[1], :, :before]
        )
        return torch.cat([copies, states], dim=2)

    key, value = (with_prefix(unpack(states)) for states in (key, value))
    mask = attention_mask.to(query.dtype)
    output, _ = attend(module, unpack(query), key, value, mask, **settings)
    return output.flatten(0, 1)[packing["places"]][None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
# Plain operations add a mask of numbers.
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask if torch.cuda.is_available() else eager_mask)
