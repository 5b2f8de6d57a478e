"""An encoder whose process is `toy_child.py`."""

import sys
from pathlib import Path
from typing import Any

from service.vectors.process_encoder import ProcessEncoder

TOY = (sys.executable, str(Path(__file__).with_name("toy_child.py")))
PER_NOTE, WIDTH = 2, 4


def toy_encoder(folder: str = "toy", **options: Any) -> ProcessEncoder:
    """Make an encoder that waits hardly before it starts a process again."""
    return ProcessEncoder(Path(folder), PER_NOTE, command=TOY, **{"backoff_s": 0.001, **options})
