from collections.abc import Sequence

import pytest
import torch
from transformers import DynamicCache

from model_export.models.constrained import Grammars
from model_export.models.decoding import decode, make_cache
from tests.byte_tokens import TOKENIZER, encode
from tests.tiny_base import make_micro_model

[END] = TOKENIZER.encode_template("<|im_end|>")
STATES = torch.arange(24.0).reshape(2, 1, 3, 4)  # 2 rows, 1 head, 3 tokens


class Chain:
    """A model that predicts the token after the last one by a table of chances, and notes how many rows it computes."""

    def __init__(self, chances: Sequence[Sequence[float]]) -> None:
        self.logits = torch.tensor(chances).log()
        self.rows: list[int] = []

    def __call__(self, ids: torch.Tensor, **_: object) -> "Chain.Output":
        self.rows.append(len(ids))
        return Chain.Output(self.logits[ids])

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits


def run(chain: Chain, first: Sequence[int], temperature: float, max_tokens: int = 9) -> list[list[int]]:
    last = torch.tensor(first)[:, None]
    cache = DynamicCache()
    return decode(
        chain, cache, last, torch.ones_like(last), temperature=temperature, end=0, max_tokens=max_tokens
    )


def test_rows_stop_at_their_end_and_are_dropped() -> None:
    countdown = Chain([[0.0] * (token - 1) + [1.0] + [0.0] * (8 - max(token, 1)) for token in range(8)])
    found = run(countdown, [1, 7, 2, 3, 1], temperature=0.0)
    assert found == [[0], [6, 5, 4, 3, 2, 1, 0], [1, 0], [2, 1, 0], [0]]
    assert countdown.rows == [5, 3, 2, 1, 1, 1, 1]


def test_a_row_that_has_not_ended_stops_at_the_most_tokens() -> None:
    assert run(Chain([[1.0, 0.0], [0.0, 1.0]]), [1], temperature=0.0, max_tokens=3) == [[1, 1, 1]]


def test_rows_write_what_their_grammars_allow() -> None:
    [a], [b], [c], [d] = map(encode, "abcd")
    # Whatever the last token, b is the likeliest and the end the least likely.
    chances = torch.ones(512)
    chances[b], chances[END] = 2.0, 0.5
    last = torch.tensor([[a], [a], [a]])
    found = decode(
        Chain([chances.tolist()] * 512),
        DynamicCache(),
        last,
        torch.ones_like(last),
        temperature=0.0,
        end=END,
        max_tokens=9,
        grammars=Grammars.read(TOKENIZER, END, ['start: "ab" | "b"', 'start: "cd"', 'start: "ab" | "b"']),
    )
    assert found == [[b, END], [c, d, END], [b, END]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_by_their_chances(temperature: float) -> None:
    chances = torch.tensor([0.0, 0.1, 0.6, 0.0, 0.3, 0.0])
    torch.manual_seed(1)
    rows = 20_000
    found = run(Chain([chances.tolist()]), [0] * rows, temperature, max_tokens=1)
    shares = torch.tensor(found)[:, 0].bincount(minlength=6) / rows
    expected = chances ** (1 / temperature) / (chances ** (1 / temperature)).sum()
    assert (shares[expected == 0] == 0).all()
    # Six standard errors of a share.
    assert (shares - expected).abs().max() < 6 * 0.5 / rows**0.5


def test_the_room_is_filled_without_a_copy() -> None:
    cache = make_cache(make_micro_model(layers=1), [(STATES, -STATES)], room=2)
    before = cache.layers[0].keys.data_ptr()
    for token in (7.0, 8.0):
        keys, values = cache.update(torch.full((2, 1, 1, 4), token), torch.full((2, 1, 1, 4), -token), 0)
    assert keys.data_ptr() == before
    assert keys[:, :, :3].equal(STATES)
    assert keys[0, 0, :, 0].tolist() == [0, 4, 8, 7, 8]
    assert values.equal(-keys)
    assert cache.get_seq_length() == 5


def test_dropped_rows_leave_the_others_their_room() -> None:
    cache = make_cache(make_micro_model(layers=1), [(STATES, -STATES)], room=1)
    cache.batch_select_indices(torch.tensor([1]))
    keys, values = cache.update(torch.ones(1, 1, 1, 4), -torch.ones(1, 1, 1, 4), 0)
    assert keys[0, 0].equal(torch.cat([STATES[1, 0], torch.ones(1, 4)]))
    assert values.equal(-keys)
