"""Computes a pair's cache keys, and packs its reading for the cache.

All hashes are cryptographic and cover length-prefixed fields, so a caller can't make one pair hit another pair's entry.
Texts must already be canonical (`contract.text.canonicalize`), as they are rendered: these functions hash them unchanged.
"""

import hashlib
import math
import struct
from collections.abc import Mapping

from service.contract.labels import LabelDistribution, Reading
from service.contract.manifest import ReadingKind

# Increase it when a change of the code that renders prompts or reads distributions changes their numbers:
# a checkpoint's fingerprint covers its files, not our code.
SCORING_VERSION = 1

_PACK_VERSION = 2
_TRUNCATED, _VECTORS = 1, 2  # flags
CHECKSUM_BYTES = 8
_MAX_SUM_ERROR = 1e-6


def query_key(query: str, fingerprint: str) -> str:
    """Return the cache key of a query under a `scoring_fingerprint`.

    The braces are a Redis Cluster hash tag: the keys of one query under all fingerprints are in one slot.
    """
    return f"ng:{{{hash_fields(b'query', 32, query).hex()}}}:{fingerprint}"


def note_key(title: str, body: str) -> bytes:
    """Return the 32-byte key of a note under its query's key."""
    return hash_fields(b"note", 32, title, body)


def scoring_fingerprint(checkpoint_fingerprint: str, criteria: str, numbers: Mapping[str, str]) -> str:
    """Return 32 hex digits that change whenever a pair's raw distribution may change.

    It leaves out calibration and decisions (`Manifest.grading_version`): the cache stores readings from before both, so
    checkpoints that differ in nothing else share their entries.

    Args:
        criteria: the name of the checkpoint's criteria that the prompt contains.
        numbers: what changes a probability in the engine, its version and device included (`EngineProfile.numbers`).
    """
    settings = [part for item in sorted(numbers.items()) for part in item]
    return hash_fields(
        b"scoring", 16, str(SCORING_VERSION), checkpoint_fingerprint, criteria, *settings
    ).hex()


def pack_reading(reading: Reading, query_key: str, note_key: bytes) -> bytes:
    """Pack a version byte, flags, the label mass, the probabilities and a checksum.

    Floats are little-endian float64, not float32: a cached score must equal the computed one in every digit.
    """
    values = (reading.distribution.label_mass, *reading.distribution.probabilities)
    flags = _TRUNCATED * reading.truncated | _VECTORS * (reading.kind == "vectors")
    packed = struct.pack(f"<BB{len(values)}d", _PACK_VERSION, flags, *values)
    return packed + checksum(b"reading", packed, query_key.encode("utf-8"), note_key)


def unpack_reading(packed: bytes, labels: int, query_key: str, note_key: bytes) -> Reading | None:
    """Unpack the reading that was packed for these keys; None where the bytes are not a valid one.

    The cache is shared and outlives releases: a foreign, damaged, misplaced or poisoned entry is a miss, not an error.
    """
    layout = struct.Struct(f"<BB{labels + 1}d")
    packed, found = packed[:-CHECKSUM_BYTES], packed[-CHECKSUM_BYTES:]
    expected = checksum(b"reading", packed, query_key.encode("utf-8"), note_key)
    if len(packed) != layout.size or found != expected:
        return None
    version, flags, label_mass, *probabilities = layout.unpack(packed)
    # NaN fails every comparison, so it is caught here too.
    in_range = all(0.0 <= value <= 1.0 for value in (label_mass, *probabilities))
    if (
        version != _PACK_VERSION
        or flags & ~(_TRUNCATED | _VECTORS)
        or not in_range
        or abs(math.fsum(probabilities) - 1.0) > _MAX_SUM_ERROR
    ):
        return None
    kind: ReadingKind = "vectors" if flags & _VECTORS else "text"
    return Reading(LabelDistribution(tuple(probabilities), label_mass), bool(flags & _TRUNCATED), kind)


def checksum(kind: bytes, packed: bytes, *keys: bytes) -> bytes:
    """Return CHECKSUM_BYTES bytes that detect a damaged entry, and one that was copied to other keys.

    A flipped bit in a float usually gives another valid float, and a copied entry is intact. The checksum detects such
    accidents; it does not stop an attacker who can write to Redis.
    """
    digest = hashlib.blake2b(packed, digest_size=CHECKSUM_BYTES, person=kind)
    for key in keys:
        digest.update(key)
    return digest.digest()


def hash_fields(kind: bytes, size: int, *fields: str) -> bytes:
    """Return `size` bytes that differ for other texts, for texts split at another place, and for another `kind`."""
    # `person` gives a query, a note and a fingerprint of the same text different hashes.
    digest = hashlib.blake2b(digest_size=size, person=kind)
    for field in fields:
        # UTF-8 can't encode lone surrogates; they must neither raise nor give two texts one key.
        data = field.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
