from pathlib import Path

import numpy as np

from model_export.data.encoder import Encoder
from model_export.data.pairs import Pair
from model_export.models.encoders import MINILM
from service.contract.prompt import Note


def pair(query: str, title: str, body: str) -> Pair:
    return Pair("1", query, Note(title, body), 0, "shop", "general-1")


def nothing(*_: object) -> None:
    pass


def test_cosines_are_in_the_order_of_the_pairs() -> None:
    near = pair("quiet cafes to work in lisbon", "Cafes for laptops in Lisbon", "Three quiet places.")
    far = pair("quiet cafes to work in lisbon", "", "Our sourdough needs 24 hours in the fridge.")
    encoder = Encoder(MINILM, nothing)
    assert encoder.name == "minilm"
    found = encoder.cosines([far, near, far])
    assert found.shape == (3,)
    assert found[0] == found[2] < 0.4 < 0.7 < found[1] <= 1


def test_folder_gives_its_name_and_cosines_of_equal_texts_are_1(tiny_encoder: Path) -> None:
    encoder = Encoder(str(tiny_encoder), nothing)
    assert encoder.name == "tiny-encoder"
    assert np.allclose(encoder.cosines([pair("red lamp", "", "red lamp")]), 1)


def test_vectors_are_in_the_order_of_the_texts_and_repeated_texts_are_encoded_once(
    tiny_encoder: Path,
) -> None:
    encoded: list[int] = []
    encoder = Encoder(str(tiny_encoder), lambda _, __, total: encoded.append(total))
    lamp, long, again = encoder.encode(["lamp", "a long text about tea", "lamp"])
    assert encoded == [2]
    assert np.array_equal(lamp, again)
    assert np.allclose(long, encoder.encode(["a long text about tea"]), atol=1e-6)
    assert np.allclose([lamp @ lamp, long @ long], 1)
