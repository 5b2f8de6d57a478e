"""What a pair is called in the cache, and how its reading is written there.

All hashes are cryptographic and over length-prefixed fields: no caller can aim one pair at another's entry. Text must
be canonical (`contract.text.canonicalize`) already, the same text that is rendered: these functions hash what they get.
"""

import hashlib
import math
import struct
from collections.abc import Mapping

from service.contract.labels import LabelDistribution, Reading

# Raise it when the code that turns a pair into a prompt, or logprobs into a distribution, changes numbers:
# a checkpoint's fingerprint covers its files, not our code.
SCORING_VERSION = 1

_PACK_VERSION = 2
_SEAL_BYTES = 8
_MAX_SUM_ERROR = 1e-6


def query_key(query: str, fingerprint: str) -> str:
    """The cache key of a query under a `scoring_fingerprint`.

    The braces are a Redis Cluster hash tag: all fingerprints of one query live in one slot.
    """
    return f"ng:{{{_hash(b'query', 32, query).hex()}}}:{fingerprint}"


def note_key(title: str, body: str) -> bytes:
    """The 32-byte key of a note under its query's key."""
    return _hash(b"note", 32, title, body)


def scoring_fingerprint(checkpoint_fingerprint: str, criteria: str, numbers: Mapping[str, str]) -> str:
    """32 hex digits that change whenever a pair's raw distribution may.

    Args:
        criteria: the name of the checkpoint's criteria that the prompt carries.
        numbers: the engine's settings that change a probability (`EngineProfile.numbers`).

    Calibration is left out: it is applied to what the cache holds, so a new one reuses the entries.
    """
    settings = [part for item in sorted(numbers.items()) for part in item]
    return _hash(b"scoring", 16, str(SCORING_VERSION), checkpoint_fingerprint, criteria, *settings).hex()


def pack_reading(reading: Reading, query_key: str, note_key: bytes) -> bytes:
    """A version byte, whether the note was cut, the label mass, the probabilities as little-endian float64, and a seal.

    Not float32: a cached score must equal the computed one to the last digit that is served.
    """
    values = (reading.distribution.label_mass, *reading.distribution.probabilities)
    packed = struct.pack(f"<B?{len(values)}d", _PACK_VERSION, reading.truncated, *values)
    return packed + _seal(packed, query_key, note_key)


def unpack_reading(packed: bytes, labels: int, query_key: str, note_key: bytes) -> Reading | None:
    """The reading over that many labels that was packed for these keys; None for bytes that can't be it.

    A cache is shared and outlives releases, so a foreign, damaged, misplaced or poisoned entry is a miss, never an error.
    """
    layout = struct.Struct(f"<B?{labels + 1}d")
    packed, seal = packed[:-_SEAL_BYTES], packed[-_SEAL_BYTES:]
    if len(packed) != layout.size or seal != _seal(packed, query_key, note_key):
        return None
    version, truncated, label_mass, *probabilities = layout.unpack(packed)
    # NaN fails every comparison, so it is caught here too.
    in_range = all(0.0 <= value <= 1.0 for value in (label_mass, *probabilities))
    if version != _PACK_VERSION or not in_range or abs(math.fsum(probabilities) - 1.0) > _MAX_SUM_ERROR:
        return None
    return Reading(LabelDistribution(tuple(probabilities), label_mass), truncated)


def _seal(packed: bytes, query_key: str, note_key: bytes) -> bytes:
    # A flipped bit of a float mostly gives another good float, and an entry copied under another fingerprint is whole.
    # It keeps out accidents, not whoever may write to Redis and knows this code.
    digest = hashlib.blake2b(packed, digest_size=_SEAL_BYTES, person=b"reading")
    digest.update(query_key.encode("utf-8"))
    digest.update(note_key)
    return digest.digest()


def _hash(kind: bytes, size: int, *fields: str) -> bytes:
    # `person` keeps a query, a note and a fingerprint of the same text apart.
    digest = hashlib.blake2b(digest_size=size, person=kind)
    for field in fields:
        # Lone surrogates can't be UTF-8; they must not make a key fail, nor two texts one.
        data = field.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
