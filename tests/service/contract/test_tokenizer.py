import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from service.contract.tokenizer import ContractTokenizer
from service.errors import CheckpointError, ManifestError
from tests.byte_tokens import TOKENIZER, any_tokens, byte_tokens, encode
from tests.checkpoints import SPECIAL_TOKENS

SPECIAL_IDS = {TOKENIZER.encode_template(token)[0] for token in SPECIAL_TOKENS}


def test_template_text_gets_its_special_tokens() -> None:
    assert all(len(TOKENIZER.encode_template(token)) == 1 for token in SPECIAL_TOKENS)
    assert len(SPECIAL_IDS) == len(SPECIAL_TOKENS)


@given(
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "<", "|", "im_start", "|>", "é", "🎧"])).map("".join)
)
def test_user_text_never_becomes_a_special_token(text: str) -> None:
    [encoded] = TOKENIZER.encode_user_texts([text])
    assert not SPECIAL_IDS.intersection(encoded.token_ids)
    assert TOKENIZER.decode(encoded.token_ids) == text


@given(st.text(max_size=60), st.integers(0, 80))
def test_head_is_a_whole_prefix_of_the_text(text: str, max_tokens: int) -> None:
    [encoded] = TOKENIZER.encode_user_texts([text])
    head = encoded.head(max_tokens)
    assert len(head) <= max_tokens
    assert text.startswith(TOKENIZER.decode(head))


def test_head_never_splits_a_character() -> None:
    [encoded] = TOKENIZER.encode_user_texts(["ab🎧"])
    assert len(encoded.token_ids) == 6  # the emoji is four bytes, each of which is a token
    assert [len(encoded.head(n)) for n in range(7)] == [0, 1, 2, 2, 2, 2, 6]


def test_tokenizer_that_gives_user_text_a_special_token_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "word": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    with pytest.raises(ManifestError, match=r"lets user text become the special token '\[SEP\]'"):
        ContractTokenizer(tokenizer.to_str())


def test_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"not": "a tokenizer"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="can't be read as a tokenizer"):
        ContractTokenizer.load(tmp_path)


@given(st.text(max_size=40).filter(lambda text: "\ufffd" not in text).flatmap(any_tokens))
def test_a_token_ends_after_the_last_character_that_it_completes(token_ids: list[int]) -> None:
    text, ends = TOKENIZER.decode_with_ends(token_ids)
    so_far = [TOKENIZER.decode(token_ids[: index + 1]) for index in range(len(token_ids))]
    # An incomplete character decodes to U+FFFD, which the text does not contain.
    assert ends == tuple(len(prefix.rstrip("\ufffd")) for prefix in so_far)
    assert all(text.startswith(prefix.rstrip("\ufffd")) for prefix in so_far)
    assert ends[-1:] == ((len(text),) if token_ids else ())


def test_ends_of_an_emoji_spread_over_tokens() -> None:
    assert TOKENIZER.decode_with_ends(byte_tokens("a🎧b".encode())) == ("a🎧b", (1, 1, 1, 1, 2, 3))


def test_special_tokens_have_no_width() -> None:
    start, end, think = (TOKENIZER.encode_template(token)[0] for token in SPECIAL_TOKENS)
    ids = [start, *encode("1"), think, *encode("2"), end]
    assert TOKENIZER.decode_with_ends(ids) == ("1<think>2", (0, 1, 8, 9, 9))


@given(st.binary(max_size=30))
def test_ends_never_decrease_for_bytes_that_are_not_utf_8(data: bytes) -> None:
    text, ends = TOKENIZER.decode_with_ends(byte_tokens(data))
    assert text == data.decode(errors="replace")
    assert list(ends) == sorted(ends)
    assert ends[-1:] == ((len(text),) if data else ())


def test_added_tokens_of_line_breaks_may_be_user_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "\n": 1, "word": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_tokens(["\n"])
    tokenizer.add_special_tokens(["[UNK]"])
    [encoded] = ContractTokenizer(tokenizer.to_str()).encode_user_texts(["word \n"])
    assert encoded.token_ids == (2, 1)
