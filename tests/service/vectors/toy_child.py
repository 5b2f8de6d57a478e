"""The encoder's process with a model of three lines, for tests of everything but the model.

Some tokens make it misbehave. What it prints must not be taken for an answer.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from service.vectors.encoder_child import Encode, main
from service.vectors.fake_encoder import FakeEncoder

RAISE, DIE, HANG = 101, 102, 103


def load(folder: Path, per_note: int, _threads: int) -> Encode:
    """Load nothing. A folder named `broken` can't be loaded, and one named `hung` takes for ever."""
    if folder.name == "broken":
        raise ValueError("no weights")
    if folder.name == "hung":
        time.sleep(600)
    print('{"rows": []}', flush=True)
    twin = FakeEncoder(per_note, width=4)

    def encode(token_ids: Sequence[int]) -> bytes:
        if RAISE in token_ids:
            raise ValueError("quiet cafes")
        if DIE in token_ids:
            os._exit(3)
        if HANG in token_ids:
            time.sleep(600)
        return twin.rows(tuple(token_ids))

    return encode


if __name__ == "__main__":
    main(load)
