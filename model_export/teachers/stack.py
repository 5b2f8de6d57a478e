"""The stack: a logistic regression from the teachers' features to the grade, for each fold and source.

Each regression is fitted on the other folds and predicts this one, as the teachers do: no label of a pair's query has any
part in its prediction. Source: stacked generalization, Wolpert 1992; with cross-entropy its probabilities are calibrated
on pairs like those it was fitted on.
"""

from collections.abc import Iterable, Mapping, Sequence
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


class Stack:
    """The teachers' features of some pairs, from which any of the teachers together predict the pairs' grades."""

    def __init__(
        self,
        features: Mapping[str, np.ndarray],
        pairs: Sequence[Pair],
        fitted_on: Sequence[bool],
        folds: int,
        strength: float,
    ) -> None:
        """Scale features to mean 0 and variance 1 in each source and fold: the models of two folds differ in offset and scale.

        Args:
            features: (pairs, width) features by the teacher's name.
            fitted_on: for each pair, whether it may be fitted on: dev pairs are measured, so they may not.
            strength: inverse of the L2 penalty, as scikit-learn's `C`.
        Raises StackError for a source without pairs to scale by in a fold, or without judged pairs in the others.
        """
        sources = np.array([pair.source for pair in pairs])
        fold = np.array([fold_of(pair, folds, "stack") for pair in pairs])
        self._labels = np.array([pair.label for pair in pairs])
        self._strength = strength
        self._fitted_on = np.array(fitted_on)
        usable = self._fitted_on & (self._labels != UNJUDGED)
        # Masks of the pairs of each fold and source, and of those that its regression is fitted on.
        self._fits: list[tuple[np.ndarray, np.ndarray]] = []
        for source in np.unique(sources):
            for number in np.unique(fold[sources == source]):
                own = (sources == source) & (fold == number)
                others = (sources == source) & (fold != number) & usable
                if not others.any() or not (own & self._fitted_on).any():
                    raise StackError(
                        f"source {source} has no training pairs in fold {number}, or no judged ones outside, to fit the "
                        "stack on: raise stack.pairs, or lower stack.folds"
                    )
                self._fits.append((own, others))
        self._scaled = {name: self._standardise(found) for name, found in features.items()}

    def predict(self, teachers: Iterable[str]) -> np.ndarray:
        """Compute the (pairs, grades) probabilities of all pairs from the features of these teachers."""
        together = np.concatenate([self._scaled[name] for name in teachers], axis=1)
        found = np.zeros((len(together), len(GRADES)))
        for own, others in self._fits:
            model = _fit(together[others], self._labels[others], self._strength)
            found[np.ix_(own, model.classes_)] = model.predict_proba(together[own])
        return found

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        scaled = np.zeros_like(features)
        for own, _ in self._fits:
            scaler = StandardScaler().fit(features[own & self._fitted_on])
            scaled[own] = scaler.transform(features[own])
        return scaled


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    model: Any = LogisticRegression(C=strength, max_iter=1000)
    if len(np.unique(labels)) == 1:
        model = DummyClassifier(strategy="prior")
    return model.fit(features, labels)
