import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from service.caches.keys import CHECKSUM_BYTES, checksum
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors
from service.vectors.packing import is_sound, pack_vectors, unpack_vectors, vectors_key

PER_NOTE, WIDTH = 4, 3
KEY = vectors_key(Note("Cafes", "A quiet cafe."), "sha256:a")
WHOLE = NoteVectors(np.arange(1, 7, dtype="<f2").tobytes(), truncated=True)

any_text = st.text(st.characters() | st.sampled_from("ab\x00\ud800"))
notes = st.builds(Note, any_text, any_text)
matrices = st_numpy.arrays(
    "<f2", st.tuples(st.integers(1, PER_NOTE), st.just(WIDTH)), elements=st.floats(width=16)
)


def unpack(packed: bytes, key: bytes = KEY) -> NoteVectors | None:
    return unpack_vectors(packed, PER_NOTE, WIDTH, key)


@given(notes, notes, st.sampled_from(["a", "b"]), st.sampled_from(["a", "b"]))
def test_different_notes_or_encoders_have_different_keys(
    note: Note, note2: Note, encoder: str, encoder2: str
) -> None:
    same = vectors_key(note, encoder) == vectors_key(note2, encoder2)
    assert same == ((note, encoder) == (note2, encoder2))


def test_keys_do_not_change_between_releases() -> None:
    """A change of the key loses every stored vector, so it must be intended."""
    assert KEY.hex() == "65fcac79495bfc6914c741e801d9aa1d43eb395b6da06efba299390d713f4fc2"


@settings(max_examples=40)  # matrices are slow to make
@given(matrices, st.booleans())
def test_sound_vectors_are_unpacked_exactly(rows: "np.ndarray[tuple[int, int]]", truncated: bool) -> None:
    vectors = NoteVectors(rows.tobytes(), truncated)
    is_sound_here = bool(np.isfinite(rows).all() and rows.any(axis=1).all())
    assert unpack(pack_vectors(vectors, WIDTH, KEY)) == (vectors if is_sound_here else None)


@given(st.binary(max_size=60))
def test_foreign_bytes_are_refused(packed: bytes) -> None:
    assert unpack(packed) is None


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[1, 2, 3]] * (PER_NOTE + 1),
        [[1, 2, 3], [0, 0, 0]],
        [[0, -0.0, 0]],
        [[1, math.nan, 3]],
        [[1, math.inf, 3]],
        [[1, -math.inf, 3]],
    ],
    ids=["none", "too many", "zeros", "negative zeros", "nan", "inf", "-inf"],
)
def test_unsound_vectors_are_refused(rows: list[list[float]]) -> None:
    poisoned = NoteVectors(np.array(rows, dtype="<f2").tobytes())
    assert not is_sound(poisoned.rows, PER_NOTE, WIDTH)
    assert unpack(pack_vectors(poisoned, WIDTH, KEY)) is None


@pytest.mark.parametrize("width", [1, 2, 6])
def test_vectors_of_another_width_are_refused(width: int) -> None:
    """The rows have the right number of bytes for either width."""
    assert unpack(pack_vectors(WHOLE, width, KEY)) is None
    assert unpack(pack_vectors(WHOLE, WIDTH, KEY)) == WHOLE


@pytest.mark.parametrize("cut", [slice(0), slice(1), slice(-1), slice(1, None)])
def test_a_truncated_entry_is_refused(cut: slice) -> None:
    packed = pack_vectors(WHOLE, WIDTH, KEY)
    assert unpack(packed[cut]) is None
    assert unpack(packed + b"\x00") is None


def test_an_entry_with_a_flipped_bit_is_refused() -> None:
    packed = pack_vectors(WHOLE, WIDTH, KEY)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        assert unpack(bytes(flipped)) is None


@pytest.mark.parametrize(
    ("offset", "value"), [(0, b"\x02"), (2, b"\x03\x00")], ids=["another version", "another count"]
)
def test_a_valid_checksum_does_not_save_a_wrong_header(offset: int, value: bytes) -> None:
    packed = bytearray(pack_vectors(WHOLE, WIDTH, KEY)[:-CHECKSUM_BYTES])
    packed[offset : offset + len(value)] = value
    assert unpack(bytes(packed) + checksum(b"vectors", bytes(packed), KEY)) is None


@pytest.mark.parametrize(
    "elsewhere",
    [
        vectors_key(Note("Cafes", "A loud cafe."), "sha256:a"),
        vectors_key(Note("Cafes", "A quiet cafe."), "b"),
    ],
    ids=["note", "encoder"],
)
def test_an_entry_of_another_key_is_refused(elsewhere: bytes) -> None:
    assert unpack(pack_vectors(WHOLE, WIDTH, elsewhere)) is None
