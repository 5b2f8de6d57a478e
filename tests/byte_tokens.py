"""Makes token ids that a byte-level tokenizer would not choose for a text, but a model may generate."""

import json
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import strategies as st

from service.contract.tokenizer import ContractTokenizer
from tests.checkpoints import tiny_tokenizer_json

TOKENIZER = ContractTokenizer(tiny_tokenizer_json())


def _byte_level_alphabet() -> Iterator[str]:
    # As in GPT-2's tokenizer: printable bytes are their own characters, the others are characters after Latin-1.
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    for byte in range(256):
        yield chr(byte if byte in printing else next(others))


_VOCABULARY: dict[str, int] = json.loads(tiny_tokenizer_json())["model"]["vocab"]
_ID_OF_BYTE = [_VOCABULARY[character] for character in _byte_level_alphabet()]


def byte_tokens(data: bytes) -> list[int]:
    """Return one token for each byte."""
    return [_ID_OF_BYTE[byte] for byte in data]


def encode(text: str) -> list[int]:
    """Return the tokens that the tokenizer chooses."""
    return list(TOKENIZER.encode_user_texts([text])[0].token_ids)


@st.composite
def any_tokens(draw: st.DrawFn, text: str) -> list[int]:
    """Draw tokens that decode to the text: split between characters, each part as tokens or as bytes."""
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)) | {0, len(text)})
    token_ids: list[int] = []
    for start, end in pairwise(cuts):
        part = text[start:end]
        token_ids += byte_tokens(part.encode()) if draw(st.booleans()) else encode(part)
    return token_ids
