from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from model_export.models.packing import (
    PACKED_ATTENTION,
    Segment,
    pack,
    pack_prompts,
    places_of_rows,
    split_rows,
)
from tests.model_export.training.test_frozen_outputs import make_micro_gemma
from tests.tiny_base import make_micro_model

A, B = [1, 2, 3, 4], [1, 2, 9, 9]


def test_prefixes_form_a_tree_and_each_saves_enough() -> None:
    rows = [[*A, 5], [*B, 6, 7], [*A, 8, 8], [*B, 6, 7, 1], [0]]
    shareable = [len(row) - 1 for row in rows]
    # Four rows share two tokens. Of these, two share two more, which saves two, and two share three more, which saves three.
    assert split_rows(rows, shareable, 3) == [
        Segment(0, 0, 2),
        Segment(1, 2, 5, 0),
        Segment(0, 2, 5, 0),
        Segment(1, 5, 6, 1),
        Segment(2, 2, 6, 0),
        Segment(3, 5, 7, 1),
        Segment(4, 0, 1),
    ]
    assert split_rows(rows, shareable, 2)[:3] == [Segment(0, 0, 2), Segment(0, 2, 4, 0), Segment(1, 2, 5, 0)]
    assert split_rows(rows, shareable, 7) == [Segment(number, 0, len(row)) for number, row in enumerate(rows)]


token_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=6)


@given(token_rows, st.data())
def test_segments_are_the_rows_and_no_token_is_computed_twice_in_vain(
    rows: list[list[int]], data: st.DataObject
) -> None:
    shareable = [data.draw(st.integers(0, len(row))) for row in rows]
    segments = split_rows(rows, shareable, 1)
    ids = [token for row, start, stop, _ in segments for token in rows[row][start:stop]]
    assert [[ids[place] for place in places] for places in places_of_rows(segments, len(rows))] == rows
    found, prefixes = segments[-len(rows) :], segments[: -len(rows)]
    assert all(sum(segment.prefix == number for segment in segments) > 1 for number in range(len(prefixes)))
    assert [(segment.row, segment.stop) for segment in found] == [
        (number, len(row)) for number, row in enumerate(rows)
    ]
    assert all(segment.start <= most for segment, most in zip(found, shareable, strict=True))
    heads = [tuple(row[:most]) for row, most in zip(rows, shareable, strict=True)]
    shared = {head[:length] for head in heads for length in range(1, len(head) + 1)}
    assert len(ids) == len(shared) + sum(len(row) - len(head) for row, head in zip(rows, heads, strict=True))


@pytest.fixture(params=["grouped heads", "sliding layers"], scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_micro_model(layers=2) if request.param == "grouped heads" else make_micro_gemma()


# Three rows share three tokens, and two of them share two more; two others share one.
ROWS = [[1, 2, 3, 4, 5], [1, 2, 3, 9, 4, 6], [7, 8], [1, 2, 3, 9, 4, 4], [7, 8, 9]]


@pytest.mark.parametrize("shareable", [5, 0], ids=["shared", "nothing shared"])
def test_outputs_and_gradients_are_those_of_whole_rows(model: PreTrainedModel, shareable: int) -> None:
    model.set_attn_implementation("eager")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    whole = [model(torch.tensor([row])).logits[0, -1] for row in ROWS]
    expected = torch.autograd.grad(torch.stack(whole).log_softmax(-1)[:, 3].sum(), weights, allow_unused=True)
    segments = split_rows(ROWS, [min(shareable, len(row) - 1) for row in ROWS], 1)
    model.set_attn_implementation(PACKED_ATTENTION)
    packed = pack(ROWS, segments, model.config)
    assert packed["input_ids"].numel() == sum(map(len, ROWS)) - (9 if shareable else 0)
    last = torch.tensor([segment.stop - segment.start for segment in segments]).cumsum(0)[-len(ROWS) :] - 1
    logits = model(**packed, logits_to_keep=last, use_cache=False).logits[0]
    found = torch.autograd.grad(logits.log_softmax(-1)[:, 3].sum(), weights, allow_unused=True)
    torch.testing.assert_close(logits, torch.stack(whole), atol=1e-5, rtol=1e-4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_prompts_are_read_in_bfloat16_too(model: PreTrainedModel) -> None:
    small = deepcopy(model).bfloat16()
    small.set_attn_implementation(PACKED_ATTENTION)
    with torch.inference_mode():
        found = small(**pack_prompts(ROWS, small.config), use_cache=False).logits[0]
        model.set_attn_implementation("eager")
        whole = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in ROWS])
    torch.testing.assert_close(found.float(), whole, atol=0.05, rtol=0.05)


def test_batches_that_are_not_packed_are_read_as_usual(model: PreTrainedModel) -> None:
    ids, mask = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    found = []
    for attention in (PACKED_ATTENTION, "eager"):
        model.set_attn_implementation(attention)
        found.append(model(ids, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
