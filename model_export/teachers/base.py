"""The port for teachers: anything that says something about a pair's grade."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from model_export.data.pairs import Pair


class Teacher(Protocol):
    """Turns pairs into features, from which the stack predicts their grades.

    Attributes:
        name: its row in the table.
        learns: whether it is trained, once for each fold, on the pairs of the other folds; else it is used as it is, and
            `train` does nothing.
    """

    name: str
    learns: bool

    def train(self, pairs: Sequence[Pair], folder: Path) -> None:
        """Learn from gold grades and write everything that `features` needs to `folder`.

        The same pairs give the same weights, also after a kill: called again, it may resume from what it saved in `folder`.
        """

    def features(self, pairs: Sequence[Pair], folder: Path) -> np.ndarray:
        """Compute finite features, (pairs, width) float64 in the pairs' order.

        The width is the same for all pairs. Labels are not read. `folder` is the one that `train` wrote to.
        """
