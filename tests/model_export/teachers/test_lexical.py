import numpy as np

from model_export.data.pairs import Pair
from model_export.teachers.lexical import LexicalTeacher
from service.contract.prompt import Note


def features(query: str, title: str, body: str) -> list[float]:
    pair = Pair("1", query, Note(title, body), 0, "shop", "general-1")
    other = Pair("2", "green chair", Note("", "green chair"), 0, "shop", "general-1")
    found: list[float] = LexicalTeacher().load(lambda *_: None)([pair, other])[0].tolist()
    return found


def test_shares_and_phrase_are_of_words() -> None:
    _, title, body, both, phrase, *_ = features("red lamp", "Red shade", "a lamp, not a lampshade")
    assert (title, body, both, phrase) == (0.5, 0.5, 1.0, 0.0)
    assert features("red lamp", "The red lamp", "")[4] == 1.0
    assert features("red lamp", "The red lamps", "")[4] == 0.0


def test_note_without_the_words_scores_nothing() -> None:
    assert features("red lamp", "", "blue sofa")[:5] == [0.0] * 5


def test_lengths_are_on_a_logarithmic_scale() -> None:
    assert np.allclose(features("red lamp", "one", "two three")[5:], np.log1p([2, 3]))
