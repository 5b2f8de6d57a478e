"""The ports of the stack's teachers. Add one in a file of its own, and name it in `recipe_stack.py` and `roster.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from model_export.data.pairs import Pair


class Teacher(Protocol):
    """Describes pairs by numbers from which the stack predicts their grades. It is used as it is.

    Attributes:
        name: its name in the table.
        settings: what its features depend on besides the pairs, JSON-like: a change computes them again.
        chunk: how many pairs to describe at a time, each chunk kept on disk; None where it has to see all at once.
    """

    name: str
    settings: Mapping[str, object]
    chunk: int | None

    def features(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Compute (pairs, width) float64 features, finite.

        A probability is given as its logarithm: the stack is linear in the features.
        """
        ...


@runtime_checkable
class Learner(Protocol):
    """A teacher that is trained once for each fold, on the pairs of the other folds, and describes the pairs of its fold.

    So it has never seen the query of a pair that it describes.

    Attributes:
        name, settings, chunk: as for `Teacher`.
        starts_from: the learner whose model of the same fold it is trained from, if any.
    """

    name: str
    settings: Mapping[str, object]
    chunk: int | None
    starts_from: "Learner | None"

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path) -> None:
        """Train on judged pairs and write the model to the folder, where an interrupted training resumes.

        `start` is the folder with the model of `starts_from`.
        """
        ...

    def features(self, pairs: Sequence[Pair], model: Path) -> np.ndarray:
        """Compute features as a `Teacher` does, with the model in this folder."""
        ...


def finite_logs(probabilities: np.ndarray) -> np.ndarray:
    """Compute finite logarithms: a probability below one in a million counts as that."""
    found: np.ndarray = np.log(np.clip(probabilities, 1e-6, None))
    return found
