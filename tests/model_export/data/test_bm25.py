import pytest

from model_export.data.bm25 import Bm25, tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Cafés, OPEN 24h", ["cafés", "open", "24h"]),
        ("感冒发烧", ["感冒", "冒发", "发烧"]),
        ("药", ["药"]),
        ("iPhone15手机壳", ["iphone15", "手机", "机壳"]),
        ("ＡＢＣ ﬁsh", ["abc", "fish"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
    ],
)
def test_tokenize_folds_case_and_splits_cjk_into_bigrams(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_text_with_more_and_rarer_words_of_the_query_scores_higher() -> None:
    scores = Bm25(["a red lamp", "a red coat", "a red hat", "tea"]).scores("Red LAMP")
    assert scores[0] > scores[1] == scores[2] > scores[3] == 0


def test_chinese_is_matched_by_bigrams() -> None:
    assert Bm25(["感冒药", "手机壳", "冒险"]).scores("感冒发烧").nonzero()[0].tolist() == [0]


@pytest.mark.parametrize(("texts", "query"), [(["a lamp", "tea"], "?!"), (["...", "-"], "lamp")])
def test_query_or_collection_without_words_scores_0(texts: list[str], query: str) -> None:
    assert Bm25(texts).scores(query).tolist() == [0, 0]
