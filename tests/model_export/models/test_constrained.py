import pytest
import torch

from model_export.models.constrained import Grammars
from tests.byte_tokens import TOKENIZER, encode

[END] = TOKENIZER.encode_template("<|im_end|>")


def test_only_allowed_tokens_keep_their_logits() -> None:
    [a], [b] = encode("a"), encode("b")
    grammars = Grammars.read(TOKENIZER, END, ['start: "a" "a"', 'start: "b" "b"'])
    assert grammars.write(1, b)
    assert grammars.write(1, b)
    logits = torch.arange(2.0 * 600).reshape(2, -1)  # a model may have more tokens than its tokenizer
    before = logits.clone()
    grammars.restrict(logits, [0, 1])
    kept = [row.isfinite().nonzero()[:, 0].tolist() for row in logits]
    assert a in kept[0]
    assert all(TOKENIZER.decode([token]) in ("a", "aa") for token in kept[0])
    assert kept[1] == [END]  # it is whole
    assert logits[1, END] == before[1, END]


def test_rows_keep_their_grammars_in_a_batch_of_some() -> None:
    grammars = Grammars.read(TOKENIZER, END, ['start: "a"', 'start: "b"', 'start: "c"'])
    some = grammars.of([2, 0])
    assert not some.write(0, encode("a")[0])
    assert some.write(1, encode("a")[0])


def test_a_grammar_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="the grammar can't be read"):
        Grammars.read(TOKENIZER, END, ["start: LINE"])
