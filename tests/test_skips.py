"""The summary lists the tests that did not run by reason."""

import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, output_of

TESTS = """
import pytest

@pytest.fixture
def haproxy():
    pytest.skip("no HAProxy here: sudo apt-get install haproxy")

@pytest.mark.parametrize("number", [1, 2, 3])
def test_routes(haproxy, number): ...

def test_in_a_browser():
    pytest.skip("no Chromium here: sudo apt-get install chromium")

@pytest.mark.slow
def test_image(): ...

def test_runs(): ...
"""
CONFTEST = """
from tests.skips import Skips

def pytest_configure(config):
    config.pluginmanager.register(Skips())
"""
SUMMARY = """\
3 skipped, no HAProxy here: sudo apt-get install haproxy (test_some.py)
1 skipped, no Chromium here: sudo apt-get install chromium (test_some.py)
1 not selected, they are slow: `make test-slow` runs them
"""


def run(folder: Path, *options: str, tests: str = "test_some.py") -> str:
    """Return what pytest prints of the tests above, with this project's settings."""
    (folder / "test_some.py").write_text(TESTS, encoding="utf-8")
    (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    command += ["-p", "no:cacheprovider", *options, str(folder / tests)]
    return output_of(*command)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_reason_has_a_line(tmp_path: Path, workers: str) -> None:
    printed = run(tmp_path, "-n", workers, "-m", "not slow")
    assert SUMMARY in printed
    assert "SKIPPED [" not in printed


def test_nothing_is_printed_when_every_test_ran(tmp_path: Path) -> None:
    assert "did not run" not in run(tmp_path, tests="test_some.py::test_runs")
