from collections.abc import Callable, Sequence

import numpy as np
import pytest

from model_export.data.encoder import Encoder
from model_export.data.pairs import Pair
from model_export.evaluation.baselines import bm25, by_cosine, majority
from model_export.evaluation.evaluate import EvaluationError, Predictions
from model_export.models.encoders import MINILM
from service.contract.prompt import Note


def pair(query: str, body: str, label: int, source: str = "shop", title: str = "") -> Pair:
    return Pair(f"{source} {query} {body}", query, Note(title, body), label, source, "general-1")


ANIMALS = ("heron", "otter", "badger", "lynx", "marten", "osprey")
TRAIN = [
    pair(one, f"a {other} by the water", 3 if one == other else 0) for one in ANIMALS for other in ANIMALS
]
DEV = [pair("dipper", "a dipper by the stream", 3), pair("dipper", "a crane by the stream", 0)]


def test_majority_predicts_the_training_prior_and_ranks_all_equally() -> None:
    predictions = majority(TRAIN, DEV, grades=4)
    assert predictions.probabilities.tolist() == [[30 / 36, 0, 0, 6 / 36]] * 2
    assert predictions.ranking.tolist() == [0, 0]
    assert (predictions.system, predictions.parsed) == ("majority", None)


def test_each_source_has_its_own_prior_and_a_new_source_the_overall_one() -> None:
    train = [pair("a", "b", 0), pair("a", "c", 2, "forum"), pair("b", "c", 2, "forum")]
    dev = [pair("q", "n", 1, "forum"), pair("q", "n", 1, "new"), pair("q", "n", 1)]
    assert majority(train, dev, grades=3).probabilities == pytest.approx(
        np.array([[0, 0, 1], [1 / 3, 0, 2 / 3], [1, 0, 0]])
    )


def test_bm25_ranks_and_grades_a_matching_note_higher() -> None:
    predictions = bm25(TRAIN, DEV, grades=4)
    assert predictions.ranking[0] > predictions.ranking[1] == 0
    assert predictions.probabilities.argmax(axis=1).tolist() == [3, 0]
    assert predictions.probabilities.sum(axis=1) == pytest.approx(np.ones(2))
    # Grades that do not occur in training have probability 0.
    assert (predictions.probabilities[:, 1:3] == 0).all()


def test_bm25_reads_titles() -> None:
    dev = [pair("dipper", "", 3, title="The dipper"), pair("dipper", "", 0, title="The crane")]
    ranking = bm25(TRAIN, dev, grades=4).ranking
    assert ranking[0] > ranking[1]


def test_bm25_weighs_rare_words_more() -> None:
    dev = [pair("water otter", "the water", 0), pair("water otter", "the otter", 3)]
    ranking = bm25(TRAIN, dev, grades=4).ranking
    assert ranking[1] > ranking[0]


def test_cosine_ranks_and_grades_a_note_of_the_same_meaning_higher() -> None:
    dev = [pair("automobile", "the sea", 0), pair("automobile", "a car", 3)]
    predictions = by_cosine("minilm", Encoder(MINILM, lambda *_: None).cosines, TRAIN, dev, grades=4)
    assert predictions.system == "minilm"
    assert predictions.ranking[0] < predictions.ranking[1]
    assert predictions.probabilities[0, 3] < predictions.probabilities[1, 3]


def test_bm25_of_a_source_with_one_grade_predicts_its_prior() -> None:
    train = [*TRAIN, pair("a", "b", 1, "forum")]
    predictions = bm25(train, [*DEV, pair("a", "b", 2, "forum")], grades=4)
    assert predictions.probabilities[2].tolist() == [0, 1, 0, 0]
    assert predictions.probabilities[:2].argmax(axis=1).tolist() == [3, 0]


@pytest.mark.parametrize("text", ["", "?!", "unknown"])
def test_query_without_known_words_ranks_all_equally(text: str) -> None:
    assert bm25(TRAIN, [pair(text, "a heron", 0)], grades=4).ranking.tolist() == [0]


def test_notes_without_words_rank_equally() -> None:
    pairs = [pair("heron", "!", 0), pair("heron", "?", 1)]
    assert bm25(pairs, pairs, grades=2).ranking.tolist() == [0, 0]


def test_bm25_matches_chinese() -> None:
    train = [pair("感冒发烧", "感冒发烧怎么办", 2), pair("感冒发烧", "牙齿疼痛", 0)]
    dev = [pair("牙齿疼", "牙齿疼痛的原因", 2), pair("牙齿疼", "感冒的原因", 0)]
    ranking = bm25(train, dev, grades=3).ranking
    assert ranking[0] > ranking[1] == 0


@pytest.mark.parametrize("control", [majority, bm25])
def test_baselines_need_training_pairs(
    control: Callable[[Sequence[Pair], Sequence[Pair], int], Predictions],
) -> None:
    with pytest.raises(EvaluationError, match="need training pairs"):
        control([], DEV, 4)
