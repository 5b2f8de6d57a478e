from collections.abc import Sequence

import numpy as np
import pytest

from model_export.data.neighbours import Encode, rank_notes

NOTES = ["a red lamp", "a lamp", "a red coat", "tea"]


def encode_by(**directions: float) -> Encode:
    """Return an encoder that gives each text the direction, in degrees, of the first name that it contains."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        angles = np.radians(
            [next(each for name, each in directions.items() if name in text) for text in texts]
        )
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    return encode


@pytest.mark.parametrize(
    ("most", "excluded", "expected"),
    [(9, set(), [0, 1, 2]), (2, set(), [0, 1]), (1, set(), [0]), (2, {0}, [1, 2]), (9, {0, 1, 2}, [])],
)
def test_bm25_alone_ranks_notes_that_share_words(most: int, excluded: set[int], expected: list[int]) -> None:
    assert list(rank_notes(NOTES, {"red lamp": excluded}, most, None)) == [expected]


def test_encoder_finds_notes_without_a_shared_word() -> None:
    encode = encode_by(brew=0, tea=1, lamp=80, coat=90)
    assert list(rank_notes(NOTES, {"brew": ()}, 2, encode)) == [[3, 0]]
    assert list(rank_notes(NOTES, {"brew": {3}}, 4, encode)) == [[0, 1, 2]]


def test_note_that_both_rank_high_is_before_one_that_either_ranks_first() -> None:
    notes = ["red lamp", "a red lamp or two", "tea", "coat"]
    encode = encode_by(dusk=0, two=2, tea=1, coat=90, lamp=80)
    # BM25 ranks 0, 1; the encoder ranks 2, 1.
    assert list(rank_notes(notes, {"red lamp dusk": ()}, 2, encode)) == [[1, 0]]


def test_each_of_many_queries_is_ranked_by_its_own_vector() -> None:
    notes = [f"note{number}." for number in range(150)]
    queries = {f"query{number}.": () for number in range(150)}
    encode = encode_by(**{f"{kind}{number}.": number for number in range(150) for kind in ("note", "query")})
    assert [ranked[0] for ranked in rank_notes(notes, queries, 3, encode)] == list(range(150))


def test_notes_of_equal_score_are_in_their_order() -> None:
    assert list(rank_notes(["lamp"] * 20, {"lamp": {3}}, 19, None)) == [[n for n in range(20) if n != 3]]
