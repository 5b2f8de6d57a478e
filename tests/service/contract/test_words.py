import pytest

from service.contract.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("red lamp-post, 2 pieces", ["red", "lamp", "post", "2", "pieces"]),
        ("lamp_post", ["lamp", "post"]),
        ("iphone15手机壳", ["iphone15", "手机", "机壳"]),
        ("灯", ["灯"]),
        ("カメラ", ["カメ", "メラ"]),
        ("한국어 usb", ["한국", "국어", "usb"]),
        ("\U00020000\U00020001\U00020002", ["\U00020000\U00020001", "\U00020001\U00020002"]),
        (" .,_", []),
    ],
)
def test_words_are_runs_and_cjk_runs_are_bigrams(text: str, words: list[str]) -> None:
    assert list(split_words(text)) == words


def test_cjk_runs_can_be_split_into_characters() -> None:
    assert list(split_words("usb手机壳", cjk_characters=1)) == ["usb", "手", "机", "壳"]
