"""Batches without padding, in which prefixes that rows share are computed once.

Prompts start with their criteria, a quarter of their tokens. All layers but attention take each token alone, so the tokens of a
batch form one sequence of segments: each prefix, and the rest of each row. In attention each segment is a row again, and the
rest of a row sees its prefixes too. Outputs and gradients are those of whole rows, as in Prefix Grouper
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

_LEAST_SAVED = 64  # tokens: about what one more row of attention costs
_UNSEEN = torch.finfo(torch.bfloat16).min  # finite in float32 too


class Segment(NamedTuple):
    """The tokens of a row from `start` to `stop`, and the number of the segment that holds the last of those before, if any."""

    row: int
    start: int
    stop: int
    prefix: int | None = None


def split_rows(
    rows: Sequence[Sequence[int]], shareable: Sequence[int], least_saved: int = _LEAST_SAVED
) -> list[Segment]:
    """Split rows of token ids into segments: first the prefixes that rows share, then the rest of each row, in order.

    A prefix has at most the `shareable` first tokens of each of its rows. Prefixes form a tree: some of the rows that share one
    may share more. Each saves at least `least_saved` tokens.
    """
    heads = [tuple(row[:most]) for row, most in zip(rows, shareable, strict=True)]
    order = sorted(range(len(rows)), key=heads.__getitem__)
    # commonprefix works on any sequences, not only on paths.
    shared = [len(commonprefix([heads[one], heads[other]])) for one, other in pairwise(order)]  # noqa: RUF071
    prefixes: list[Segment] = []
    rest: dict[int, Segment] = {}

    def share(first: int, last: int, start: int, prefix: int | None) -> None:
        """Split the sorted rows from first to last, whose tokens up to `start` other segments hold."""
        if first == last:
            row = order[first]
            rest[row] = Segment(row, start, len(rows[row]), prefix)
            return
        least = min(shared[first:last])
        if (least - start) * (last - first) >= least_saved:
            prefixes.append(Segment(order[first], start, least, prefix))
            start, prefix = least, len(prefixes) - 1
        cuts = [at for at in range(first, last) if shared[at] == least]
        for left, right in pairwise([first - 1, *cuts, last]):
            share(left + 1, right, start, prefix)

    share(0, len(rows) - 1, 0, None)
    return prefixes + [rest[row] for row in range(len(rows))]


def places_of_rows(segments: Sequence[Segment], rows: int) -> list[list[int]]:
    """Return the places of each row's tokens in a packed batch; the last `rows` segments are the rests of the rows."""
    return [before + list(own) for before, own in _places(segments)[-rows:]]


def _places(segments: Sequence[Segment]) -> list[tuple[list[int], range]]:
    """Return the places in a packed batch of the tokens before each segment and of its own."""
    ends = accumulate(stop - start for _, start, stop, _ in segments)
    places: list[tuple[list[int], range]] = []
    for (_, start, stop, prefix), end in zip(segments, ends, strict=True):
        before = [] if prefix is None else [*places[prefix][0], *places[prefix][1]]
        places.append((before, range(end - stop + start, end)))
    return places


def pack(
    rows: Sequence[Sequence[int]], segments: Sequence[Segment], config: PretrainedConfig
) -> dict[str, Any]:
    """Return what a causal model takes to read the rows' segments, one after the other, as one row.

    `input_ids`: (1, tokens). `attention_mask`: (segments, 1, length, tokens before + length), added to the
    scores; where a model has sliding layers, such a mask for each kind of layer. `position_ids`: (1, tokens).
    `packing`: `before` (segments, tokens before), the places in the row of the tokens before each segment; `prefixes` (tokens),
    the places of all prefixes, which come first; `places` (tokens), the place of each token among the flattened segments.
    """
    before, own = zip(*_places(segments), strict=True)
    lengths, starts = torch.tensor(list(map(len, own))), torch.tensor(list(map(len, before)))
    columns = torch.arange(int(lengths.max()))
    columns_before = torch.arange(int(starts.max()))
    real = columns < lengths[:, None]
    positions = starts[:, None] + columns
    seen = torch.cat([columns_before < starts[:, None], real], dim=1)
    keys = torch.cat([columns_before.expand(len(segments), -1), positions], dim=1)
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
            "before": torch.tensor(
                [[*row, *[0] * (len(columns_before) - len(row))] for row in before]
            ).long(),
            "prefixes": torch.arange(max((row[-1] + 1 for row in before if row), default=0)),
            "places": real.flatten().nonzero()[:, 0],
        },
    }


def pack_prompts(rows: Sequence[Sequence[int]], config: PretrainedConfig) -> dict[str, Any]:
    """Return what a causal model takes to predict the token after each row: `logits_to_keep` are the places of the rows' ends."""
    segments = split_rows(rows, [len(row) - 1 for row in rows])
    ends = torch.tensor([segment.stop - segment.start for segment in segments]).cumsum(0) - 1
    return {**pack(rows, segments, config), "logits_to_keep": ends[-len(rows) :]}


def pack_whole(rows: Sequence[Sequence[int]], config: PretrainedConfig) -> dict[str, Any]:
    """Return what a causal model takes to read each row alone. `packing` has no prefixes."""
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
    before, prefixes = packing["before"], packing["prefixes"]

    def by_segment(states: torch.Tensor) -> torch.Tensor:
        return unpack(states[0].transpose(0, 1), attention_mask.shape[2], packing).transpose(1, 2)

    def with_prefix(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([_copies(states[0], before, prefixes), by_segment(states)], dim=2)

    key, value = with_prefix(key), with_prefix(value)
    mask = attention_mask.to(query.dtype)
    output, _ = attend(module, by_segment(query), key, value, mask, **settings)
    # On a CPU plain indexing has a slower backward pass.
    return output.flatten(0, 1).index_select(0, packing["places"])[None], None


def unpack(states: torch.Tensor, length: int, packing: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the states of each segment, (segments, length, ...), of those of a packed row, (tokens, ...); zeros beyond its end."""
    segments, others = len(packing["before"]), states.shape[1:]
    rows = states.new_zeros(segments * length, *others).index_copy(0, packing["places"], states)
    return rows.view(segments, length, *others)


def _copies(states: torch.Tensor, before: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
    """Return the keys or values before each segment, (segments, heads, tokens before, width), of (heads, tokens, width).

    Where there is a backward pass, a product copies them, since that of an index would add rows in any order, and so round in
    any way.
    """
    if not torch.is_grad_enabled():
        return states[:, before].transpose(0, 1)
    chosen = (before[:, :, None] == prefixes).to(states.dtype)
    return torch.einsum("sbt,htw->shbw", chosen, states[:, : len(prefixes)])


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
# Plain operations add a mask of numbers.
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask if torch.cuda.is_available() else eager_mask)
