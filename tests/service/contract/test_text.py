import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.text import canonicalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        ("", ""),
        (" \t\n ", ""),
        ("quiet  cafes\n\tlisbon ", "quiet cafes lisbon"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x1bc", "abc"),
        ("a \x00 b", "a b"),
        ("e\x00\u0301", "\u00e9"),
        ("no\u00a0break", "no break"),
        ("line\u2028separator", "line separator"),
    ],
)
def test_equivalent_texts_have_one_canonical_form(text: str | None, expected: str) -> None:
    assert canonicalize(text) == expected


@pytest.mark.parametrize(
    "text", ["👩\u200d💻", "می\u200cخواهم", "שלום\u200f!", "हिन्दी", "日本語", "👍🏽", "🇵🇹"]
)
def test_scripts_and_emoji_keep_their_joiners(text: str) -> None:
    assert canonicalize(text) == unicodedata.normalize("NFC", text)


@given(st.text())
def test_canonical_text_is_idempotent_and_without_control_characters(text: str) -> None:
    canonical = canonicalize(text)
    assert canonicalize(canonical) == canonical
    assert not any(unicodedata.category(c) == "Cc" for c in canonical)
    assert canonical == canonical.strip()
    assert "  " not in canonical
    assert unicodedata.is_normalized("NFC", canonical)
