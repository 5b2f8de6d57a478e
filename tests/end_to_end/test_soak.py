"""Runs the soak test for three minutes. For an hour, run `python -m load_tests.soak --seconds 3600`."""

import random
from pathlib import Path

import pytest

from load_tests.soak.__main__ import soak
from load_tests.soak.report import Plan
from service.contract.checkpoint import Checkpoint

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_three_minutes_lose_no_request_and_leak_nothing(
    default_checkpoint: Checkpoint, redis_binary: str, tmp_path: Path
) -> None:
    report = soak(
        Plan(180, seed=random.randrange(1_000_000)),
        checkpoint=default_checkpoint.folder,
        redis_server=redis_binary,
        out=tmp_path,
    )
    print(report.to_text())
    assert report.wrong == [], report.to_text()
    assert len(report.faults) == 7
