"""Controls that read no model: the training prior, and BM25 with grades fitted to its scores.

Both fit each source on its own, since grades mean different things from one source to the next;
a source without training pairs takes what all sources together give.
"""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import groupby

import bm25s
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_export.data.pairs import Pair
from model_export.data.words import split_words
from model_export.evaluation.evaluate import EvaluationError, Predictions
from service.contract.prompt import Note

# Of training (scores, labels), dev scores and the number of grades, the (dev, grades) probabilities.
_Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def tokenize(text: str) -> list[str]:
    """Lower-cased NFKC words, no stemming and no stop words; runs of Chinese, Japanese and Korean as bigrams."""
    return list(split_words(unicodedata.normalize("NFKC", text).lower()))


def majority(train: Sequence[Pair], dev: Sequence[Pair], grades: int) -> Predictions:
    """The share of each grade in training, the same for every dev pair of a source; ranks nothing.

    Raises: EvaluationError without training pairs.
    """
    scores = np.zeros(len(train) + len(dev))
    return Predictions("majority", _by_source(train, dev, scores, _prior, grades), scores[len(train) :])


def bm25(train: Sequence[Pair], dev: Sequence[Pair], grades: int) -> Predictions:
    """BM25 of the note (title and body) for its query; grades by a logistic regression on that score.

    The regression is multinomial and fitted on the training pairs; idf is over the distinct notes of the
    source, of both sets.
    Raises: EvaluationError without training pairs.
    """
    scores = _bm25_scores([*train, *dev])
    return Predictions("bm25", _by_source(train, dev, scores, _grade_by_score, grades), scores[len(train) :])


def _by_source(
    train: Sequence[Pair], dev: Sequence[Pair], scores: np.ndarray, fit: _Fit, grades: int
) -> np.ndarray:
    """(dev, grades) probabilities, each source's by what was fitted on its own training pairs.

    `scores` are those of the training pairs, then those of the dev pairs.
    """
    if not train:
        raise EvaluationError("the majority and BM25 controls need training pairs, and there are none")
    labels = np.array([pair.label for pair in train])
    train_sources, dev_sources = (np.array([pair.source for pair in pairs]) for pairs in (train, dev))
    train_scores, dev_scores = np.split(scores, [len(train)])
    probabilities = np.empty((len(dev), grades))
    for source in np.unique(dev_sources):
        own = train_sources == source
        fitted_on = own if own.any() else np.ones_like(own)
        here = dev_sources == source
        probabilities[here] = fit(train_scores[fitted_on], labels[fitted_on], dev_scores[here], grades)
    return probabilities


def _prior(_scores: np.ndarray, labels: np.ndarray, to: np.ndarray, grades: int) -> np.ndarray:
    return np.tile(np.bincount(labels, minlength=grades) / len(labels), (len(to), 1))


def _grade_by_score(scores: np.ndarray, labels: np.ndarray, to: np.ndarray, grades: int) -> np.ndarray:
    if len(np.unique(labels)) < 2:
        return _prior(scores, labels, to, grades)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(scores[:, None], labels)
    probabilities = np.zeros((len(to), grades))
    probabilities[:, model.classes_] = model.predict_proba(to[:, None])
    return probabilities


def _bm25_scores(pairs: Sequence[Pair]) -> np.ndarray:
    """(pairs,) float64, in the pairs' order; each source is a collection of its own."""
    sources = np.array([pair.source for pair in pairs])
    scores = np.zeros(len(pairs))
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        scores[rows] = _score_collection([pairs[row] for row in rows])
    return scores


def _score_collection(pairs: Sequence[Pair]) -> np.ndarray:
    number_of = {note: number for number, note in enumerate(dict.fromkeys(pair.note for pair in pairs))}
    tokens = [_note_tokens(note) for note in number_of]
    scores = np.zeros(len(pairs))
    if not any(tokens):
        return scores
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    by_query = sorted(range(len(pairs)), key=lambda row: pairs[row].query)
    for query, group in groupby(by_query, key=lambda row: pairs[row].query):
        # One pass over the notes answers for all of a query's pairs. bm25s can't take a query without words.
        if words := tokenize(query):
            rows = list(group)
            scores[rows] = index.get_scores(words)[[number_of[pairs[row].note] for row in rows]]
    return scores


def _note_tokens(note: Note) -> list[str]:
    return tokenize(f"{note.title}\n{note.body}")
