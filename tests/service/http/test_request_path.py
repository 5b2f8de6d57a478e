"""The path of a request, which docs/request-path.svg draws, stays short enough to follow."""

import inspect
import sys
from pathlib import Path
from types import FrameType

from tests.service.http.conftest import Service

PACKAGE = Path(__file__).parents[3] / "service"


async def test_one_score_passes_through_at_most_25_coroutines(service: Service) -> None:
    """The engine's own are not counted: here it is the in-memory twin."""
    passed: set[str] = set()

    def count(frame: FrameType, event: str, _: object) -> None:
        code, file = frame.f_code, Path(frame.f_code.co_filename)
        if event == "call" and code.co_flags & inspect.CO_COROUTINE and file.is_relative_to(PACKAGE):
            passed.add(f"{file.relative_to(PACKAGE)} {code.co_qualname}")

    sys.setprofile(count)
    try:
        response = await service.score()
    finally:
        sys.setprofile(None)
    assert {result["source"] for result in response.json()["results"]} == {"engine"}
    counted = sorted(each for each in passed if not each.startswith("engines/"))
    assert "scoring/scorer.py Scorer.score" in counted
    assert len(counted) <= 25, counted
