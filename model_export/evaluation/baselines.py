"""Baselines that are not trained here: the majority prior, BM25, and the cosines of an encoder, with grades fitted to their scores.

They are fitted per source, because the same grade means different things in different sources. A source without
training pairs uses the fit over all sources.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_export.data.bm25 import bm25_scores
from model_export.data.pairs import Pair
from model_export.data.sampling import sample_each
from model_export.evaluation.evaluate import EvaluationError, Predictions

_PRIOR = DummyClassifier(strategy="prior")
_BY_SCORE = make_pipeline(StandardScaler(), LogisticRegression())
Cosines = Callable[[Sequence[Pair]], np.ndarray]
"""Computes the cosine of each pair's query and note, (pairs,) in [-1, 1]."""

# Encoding all training notes would take longer than everything else, and one slope and intercept a grade need few.
_ENCODED_PAIRS = 500


def majority(train: Sequence[Pair], dev: Sequence[Pair], grades: int) -> Predictions:
    """Predict the share of each grade in training for every dev pair of a source, and rank all notes equally.

    Raises: EvaluationError without training pairs.
    """
    scores = np.zeros(len(train) + len(dev))
    return Predictions("majority", _by_source(train, dev, scores, _PRIOR, grades), scores[len(train) :])


def bm25(train: Sequence[Pair], dev: Sequence[Pair], grades: int) -> Predictions:
    """Rank by the BM25 score of the note (title and body), and grade by a logistic regression on that score.

    The regression is multinomial and fitted on the training pairs. The idf is over all distinct notes of the source,
    in training and dev.
    Raises: EvaluationError without training pairs.
    """
    scores = bm25_scores([*train, *dev])
    return Predictions("bm25", _by_source(train, dev, scores, _BY_SCORE, grades), scores[len(train) :])


def by_cosine(
    system: str, cosines: Cosines, train: Sequence[Pair], dev: Sequence[Pair], grades: int
) -> Predictions:
    """Rank by an encoder's cosine of query and note, and grade by the same regression as BM25.

    The regression is fitted on at most 500 training pairs of each source, always the same ones.
    Raises: EvaluationError without training pairs.
    """
    sampled = sample_each(train, _ENCODED_PAIRS, Random(0))
    scores = cosines([*sampled, *dev])
    probabilities = _by_source(sampled, dev, scores, _BY_SCORE, grades)
    return Predictions(system, probabilities, scores[len(sampled) :])


def _by_source(
    train: Sequence[Pair], dev: Sequence[Pair], scores: np.ndarray, model: Any, grades: int
) -> np.ndarray:
    """Compute (dev, grades) probabilities with a fit of the scikit-learn model per source.

    `scores` holds the scores of the training pairs, then of the dev pairs. A source with one grade takes the prior.
    """
    if not train:
        raise EvaluationError("the majority and BM25 baselines need training pairs, and there are none")
    labels = np.array([pair.label for pair in train])
    train_sources, dev_sources = (np.array([pair.source for pair in pairs]) for pairs in (train, dev))
    train_scores, dev_scores = np.split(scores[:, None], [len(train)])
    probabilities = np.zeros((len(dev), grades))
    for source in np.unique(dev_sources):
        own = train_sources == source
        fitted_on = own if own.any() else np.ones_like(own)
        known = labels[fitted_on]
        fitted = (model if len(np.unique(known)) > 1 else _PRIOR).fit(train_scores[fitted_on], known)
        here = dev_sources == source
        probabilities[np.ix_(here, fitted.classes_)] = fitted.predict_proba(dev_scores[here])
    return probabilities
