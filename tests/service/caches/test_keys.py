import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caches.keys import note_key, pack_reading, query_key, scoring_fingerprint, unpack_reading
from service.contract.labels import LabelDistribution, Reading

# With lone surrogates, since no text may make a key fail. With few letters, so that equal parts are frequent.
any_text = st.text(st.characters() | st.sampled_from("ab\x00\ud800"))
settings = st.dictionaries(any_text, any_text, max_size=3)
logprobs = st.lists(st.floats(-1000, 0), min_size=2, max_size=10)


@given(any_text, any_text, any_text, any_text)
def test_different_notes_have_different_keys(title: str, body: str, title2: str, body2: str) -> None:
    assert (note_key(title, body) == note_key(title2, body2)) == ((title, body) == (title2, body2))


@given(any_text, st.data())
def test_moving_text_from_title_to_body_changes_the_key(text: str, data: st.DataObject) -> None:
    cuts = st.integers(0, len(text))
    here, there = data.draw(cuts), data.draw(cuts)
    same = note_key(text[:here], text[here:]) == note_key(text[:there], text[there:])
    assert same == (here == there)


@pytest.mark.parametrize("twin", ["?", "\ufffd", "\\ud800", ""])
def test_a_lone_surrogate_has_its_own_key(twin: str) -> None:
    assert note_key("\ud800", "") != note_key(twin, "")
    assert query_key("\ud800", "0a") != query_key(twin, "0a")


@given(any_text, any_text, st.sampled_from(["0a", "0b"]), st.sampled_from(["0a", "0b"]))
def test_different_queries_or_fingerprints_have_different_keys(
    query: str, query2: str, fingerprint: str, fingerprint2: str
) -> None:
    same = query_key(query, fingerprint) == query_key(query2, fingerprint2)
    assert same == ((query, fingerprint) == (query2, fingerprint2))


def test_keys_do_not_change_between_releases() -> None:
    """A change of these keys invalidates every running cache, so it must be intended."""
    assert query_key("quiet cafes", "0a") == (
        "ng:{4129d726586926e6e411c2a3edb97c1873461106296e771070fed08fa05622bf}:0a"
    )
    assert (
        note_key("Cafes", "for laptops").hex()
        == "909a7003f20a994d7513a835055f10ca8da106ba2345b5412f6c908fdaa35a44"
    )
    assert (
        scoring_fingerprint("sha256:0", "general-3", {"dtype": "float32"})
        == "2f51a0db71ee010651323f68e0215c0a"
    )


def test_all_fingerprints_of_a_query_share_a_cluster_slot() -> None:
    tags = {query_key("}{", fingerprint).split("{")[1].split("}")[0] for fingerprint in ("0a", "0b")}
    assert len(tags) == 1
    assert len(tags.pop()) == 64


@given(any_text, any_text, settings, any_text, any_text, settings)
def test_every_setting_that_changes_numbers_changes_the_fingerprint(
    checkpoint: str,
    criteria: str,
    numbers: dict[str, str],
    checkpoint2: str,
    criteria2: str,
    numbers2: dict[str, str],
) -> None:
    same = scoring_fingerprint(checkpoint, criteria, numbers) == scoring_fingerprint(
        checkpoint2, criteria2, numbers2
    )
    assert same == ((checkpoint, criteria, numbers) == (checkpoint2, criteria2, numbers2))


def test_the_order_of_settings_does_not_matter() -> None:
    one, other = {"dtype": "float32", "kv": "fp8"}, {"kv": "fp8", "dtype": "float32"}
    assert scoring_fingerprint("c", "general", one) == scoring_fingerprint("c", "general", other)


KEYS = (query_key("quiet cafes", "fingerprint"), note_key("Cafes", "A quiet cafe."))
WHOLE = Reading(LabelDistribution((0.5, 0.5), 0.9), truncated=False)


@given(logprobs, st.booleans())
def test_a_reading_is_unpacked_exactly(values: list[float], truncated: bool) -> None:
    reading = Reading(LabelDistribution.from_logprobs(values), truncated)
    assert unpack_reading(pack_reading(reading, *KEYS), len(values), *KEYS) == reading


@given(st.binary(max_size=60), st.integers(2, 6))
def test_foreign_bytes_are_a_miss(packed: bytes, labels: int) -> None:
    assert unpack_reading(packed, labels, *KEYS) is None


@pytest.mark.parametrize(
    "values",
    [
        (math.nan, 0.5, 0.5), (0.9, math.nan, 1.0), (0.9, math.inf, 0.0), (0.9, -0.5, 1.5), (1.1, 0.5, 0.5),
        (-0.1, 0.5, 0.5), (0.9, 0.5, 0.4), (0.9, 0.0, 0.0), (0.9, 0.5, 0.25, 0.25), (0.9, 1.0),
    ],
)  # fmt: skip
def test_an_entry_that_is_not_a_distribution_is_a_miss(values: tuple[float, ...]) -> None:
    poisoned = Reading(LabelDistribution(values[1:], values[0]), truncated=False)
    assert unpack_reading(pack_reading(poisoned, *KEYS), 2, *KEYS) is None
    assert unpack_reading(pack_reading(WHOLE, *KEYS), 2, *KEYS) == WHOLE


def test_an_entry_of_another_version_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.caches.keys._PACK_VERSION", 1)
    packed = pack_reading(WHOLE, *KEYS)
    monkeypatch.undo()
    assert unpack_reading(packed, 2, *KEYS) is None


@pytest.mark.parametrize("cut", [slice(0), slice(1), slice(-1), slice(1, None)])
def test_a_truncated_entry_is_a_miss(cut: slice) -> None:
    packed = pack_reading(WHOLE, *KEYS)
    assert unpack_reading(packed[cut], 2, *KEYS) is None
    assert unpack_reading(packed + b"\x00", 2, *KEYS) is None


def test_an_entry_with_a_flipped_bit_is_a_miss() -> None:
    packed = pack_reading(WHOLE, *KEYS)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        assert unpack_reading(bytes(flipped), 2, *KEYS) is None


@pytest.mark.parametrize(
    "elsewhere",
    [
        (query_key("quiet cafes", "another-fingerprint"), KEYS[1]),
        (query_key("loud cafes", "fingerprint"), KEYS[1]),
        (KEYS[0], note_key("Cafes", "A loud cafe.")),
    ],
    ids=["fingerprint", "query", "note"],
)
def test_an_entry_of_other_keys_is_a_miss(elsewhere: tuple[str, bytes]) -> None:
    assert unpack_reading(pack_reading(WHOLE, *elsewhere), 2, *KEYS) is None
