"""How scripts print figures of several rounds."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> str:
    """Least, median and greatest."""
    return f"{min(values):,.2f} / {statistics.median(values):,.2f} / {max(values):,.2f}"
