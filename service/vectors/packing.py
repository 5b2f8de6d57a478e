"""Computes a note's key in the vector store, and packs its vectors for the store."""

import struct

import numpy as np

from service.caches.keys import CHECKSUM_BYTES, checksum, hash_fields
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors

# Increase it when a change of the code that makes vectors changes them: the encoder's fingerprint covers its files, not our code.
_PACK_VERSION = 1
_HEADER = struct.Struct("<B?HH")  # version, whether the note was truncated, number of vectors, width
_KIND = b"vectors"
_INFINITY = 0x7C00


def vectors_key(note: Note, encoder_fingerprint: str) -> bytes:
    """Return the 32-byte key of a note's vectors. The texts must be canonical."""
    return hash_fields(_KIND, 32, encoder_fingerprint, note.title, note.body)


def is_sound(rows: bytes, per_note: int, width: int) -> bool:
    """Return whether these are 1 to `per_note` whole rows of finite numbers, and no row is all zeros.

    A wrong width can crash the engine. Rows of zeros stand for tokens in it (`engines.vllm.vectors`).
    """
    row = 2 * width
    if not 0 < len(rows) <= per_note * row or len(rows) % row:
        return False
    # The bits of a float16 without its sign are ordered as its size; infinity comes before all NaNs. Three times as fast as isfinite.
    largest = (np.frombuffer(rows, "<u2") & 0x7FFF).reshape(-1, width).max(axis=1)
    return bool(largest.min() > 0 and largest.max() < _INFINITY)


def pack_vectors(vectors: NoteVectors, width: int, key: bytes) -> bytes:
    """Pack a header, the rows unchanged, and a checksum."""
    packed = _HEADER.pack(_PACK_VERSION, vectors.truncated, vectors.count(width), width) + vectors.rows
    return packed + checksum(_KIND, packed, key)


def unpack_vectors(packed: bytes, per_note: int, width: int, key: bytes) -> NoteVectors | None:
    """Unpack the vectors that were packed for this key; None where the bytes are not valid ones.

    The store is shared and outlives releases: a foreign, damaged, misplaced or poisoned entry must never reach the engine.
    """
    packed, found = packed[:-CHECKSUM_BYTES], packed[-CHECKSUM_BYTES:]
    if len(packed) < _HEADER.size or found != checksum(_KIND, packed, key):
        return None
    version, truncated, count, packed_width = _HEADER.unpack_from(packed)
    rows = packed[_HEADER.size :]
    if (version, packed_width, 2 * count * width) != (_PACK_VERSION, width, len(rows)):
        return None
    return NoteVectors(rows, truncated) if is_sound(rows, per_note, width) else None
