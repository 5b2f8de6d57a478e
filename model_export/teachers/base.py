"""The ports of the stack's teachers. Add one in a file of its own, and name it in `recipe_stack.py` and `roster.py`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from model_export.data.pairs import Pair
from model_export.progress import OnProgress

# Computes (pairs, width) float64 features, finite. A probability is given as its logarithm: the stack is linear in them.
Features = Callable[[Sequence[Pair]], np.ndarray]
Loader = Callable[[OnProgress], Features]
# Computes the features of each chunk of pairs: yields the chunk's index and its features, in any order, until it is closed.
FeatureEngine = Callable[[Loader, Sequence[Sequence[Pair]], OnProgress], Generator[tuple[int, np.ndarray]]]


class Teacher(Protocol):
    """Describes pairs by numbers from which the stack predicts their grades. It is used as it is.

    Attributes:
        name: its name in the table.
        settings: what its features depend on besides the pairs, JSON-like: a change computes them again.
        chunk: how many pairs to describe at a time, each chunk kept on disk; None where it has to see all at once.
        parallel: whether several processes may compute its chunks. They get the teacher pickled.
    """

    name: str
    settings: Mapping[str, object]
    chunk: int | None
    parallel: bool

    def load(self, on_progress: OnProgress) -> Features:
        """Load what it needs for any number of chunks, and return the function that computes their features."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A teacher that is trained once for each fold, on the pairs of the other folds, and describes the pairs of its fold.

    So it has never seen the query of a pair that it describes.

    Attributes:
        name, settings, chunk, parallel: as for `Teacher`.
        starts_from: the learner whose model of the same fold it is trained from, if any.
    """

    name: str
    settings: Mapping[str, object]
    chunk: int | None
    parallel: bool
    starts_from: "Learner | None"

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path, on_progress: OnProgress) -> None:
        """Train on judged pairs and write the model to the folder, where an interrupted training resumes.

        `start` is the folder with the model of `starts_from`.
        """
        ...

    def load(self, model: Path, on_progress: OnProgress) -> Features:
        """Load the model in this folder, as a `Teacher` loads what it needs."""
        ...


def features_here(
    load: Loader, chunks: Sequence[Sequence[Pair]], on_progress: OnProgress
) -> Generator[tuple[int, np.ndarray]]:
    """Compute features in this process. `scale_out/ray_engine.py` has the engine for several."""
    if chunks:
        yield from enumerate(map(load(on_progress), chunks))


def finite_logs(probabilities: np.ndarray) -> np.ndarray:
    """Compute finite logarithms: a probability below one in a million counts as that."""
    found: np.ndarray = np.log(np.clip(probabilities, 1e-6, None))
    return found
