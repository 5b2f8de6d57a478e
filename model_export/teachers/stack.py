"""The stack: a logistic regression from the teachers' features to the grade, for each fold and source.

Each regression is fitted on the other folds and predicts this one, as the teachers do: no label of a pair's query has any
part in its prediction. Source: stacked generalization, Wolpert 1992; with cross-entropy its probabilities are calibrated
on pairs like those it was fitted on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from model_export.data.pairs import GRADES, UNJUDGED, Pair
from model_export.data.sampling import fold_of
from service.errors import NotegradeError


class StackError(NotegradeError):
    """Raised where there is nothing to fit the stack on."""


def predict_stack(
    features: np.ndarray, pairs: Sequence[Pair], fitted_on: Sequence[bool], folds: int, strength: float
) -> np.ndarray:
    """Compute (pairs, grades) probabilities of all pairs from their (pairs, width) features.

    Args:
        fitted_on: for each pair, whether its label may be used: dev pairs are measured, so theirs may not.
        strength: inverse of the L2 penalty, as scikit-learn's `C`.
    Raises StackError for a source without judged pairs in the other folds.
    """
    sources = np.array([pair.source for pair in pairs])
    labels = np.array([pair.label for pair in pairs])
    fold = np.array([fold_of(pair, folds, "stack") for pair in pairs])
    usable = np.array(fitted_on) & (labels != UNJUDGED)
    scaled = _standardise(features, sources, fold)
    found = np.zeros((len(pairs), len(GRADES)))
    for source in np.unique(sources):
        for number in np.unique(fold[sources == source]):
            here = (sources == source) & (fold == number)
            others = (sources == source) & (fold != number) & usable
            if not others.any():
                raise StackError(
                    f"source {source} has no judged pairs outside fold {number} to fit the stack on: "
                    "raise stack.pairs, or lower stack.folds"
                )
            model = _fit(scaled[others], labels[others], strength)
            found[np.ix_(here, model.classes_)] = model.predict_proba(scaled[here])
    return found


def _standardise(features: np.ndarray, sources: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Scale features to mean 0 and variance 1 within each source and fold: the models of two folds differ in offset and scale."""
    scaled = np.zeros_like(features)
    for source in np.unique(sources):
        for number in np.unique(fold[sources == source]):
            own = (sources == source) & (fold == number)
            scaled[own] = StandardScaler().fit_transform(features[own])
    return scaled


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    model: Any = LogisticRegression(C=strength, max_iter=1000)
    if len(np.unique(labels)) == 1:
        model = DummyClassifier(strategy="prior")
    return model.fit(features, labels)
