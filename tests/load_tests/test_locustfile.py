"""Tests run locust in a separate process, since importing it replaces sockets and threads by gevent's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.contract.checkpoint import Checkpoint
from service.http.auth import hash_key
from tests.served import served

ROOT = Path(__file__).parent.parent.parent
KEY = "a-key-of-a-test"


def locust(folder: Path, url: str, *more: str) -> tuple[int, dict[str, int], str]:
    """Run locust; return its exit status, its counts of /score requests and failures, and its output."""
    # Users finish open requests (-s), so that none is open when locust counts.
    command = [
        sys.executable, "-m", "locust", "-f", str(ROOT / "load_tests" / "locustfile.py"), "--headless", "--host", url,
        "-u", "3", "-r", "3", "-t", "2s", "-s", "30", "--pace", "6", "--json-file", str(folder / "stats"),
        "--notes-per-request", "4", *more,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOTEGRADE_")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    output = done.stdout + done.stderr
    rows = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == ["/score"], output
    return done.returncode, {"requests": rows[0]["num_requests"], "failures": rows[0]["num_failures"]}, output


def test_zipf_traffic_repeats_pairs_and_cold_traffic_does_not(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with served(checkpoint) as service:
        status, counts, output = locust(tmp_path, service.url, "--traffic", "cold")
        assert (status, counts["failures"]) == (0, 0), output
        # Each of the three users sends at least one request, however busy the machine is.
        assert counts["requests"] >= 3
        scored = service.count("pair_source_total", source="engine")
        assert scored == 4 * counts["requests"]
        assert service.count("pair_source_total", source="local") == 0

        small = ("--traffic", "zipf", "--zipf-queries", "1", "--zipf-notes", "4")
        status, counts, output = locust(tmp_path, service.url, *small)
        assert (status, counts["failures"]) == (0, 0), output
        # There are four pairs; the three users' first requests may arrive at the same moment.
        assert 4 <= service.count("pair_source_total", source="engine") - scored <= 12


def test_key_is_sent_and_unscored_notes_count_as_failures(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with served(checkpoint, keys=f"score:{hash_key(KEY)}") as service:
        status, counts, output = locust(tmp_path, service.url, "--traffic", "cold", "--api-key", KEY)
        assert (status, counts["failures"]) == (0, 0), output
        assert counts["requests"] >= 3
        status, counts, output = locust(tmp_path, service.url, "--traffic", "cold", "--api-key", "another")
        assert status == 1
        assert counts["failures"] == counts["requests"] >= 3
        service.engine.hold()
        status, counts, output = locust(
            tmp_path, service.url, "--traffic", "cold", "--api-key", KEY, "--deadline-ms", "50"
        )
        assert (status, counts["failures"]) == (1, counts["requests"])
        service.engine.let_go()


def run_beside(code: str) -> None:
    """Run code in a separate process that has imported the locustfile."""
    done = subprocess.run(
        [sys.executable, "-c", f"from load_tests.locustfile import *\n{code}\nprint('done')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


def test_streams_share_the_traffic() -> None:
    """Several locust processes together send the requests that one would send, and none twice."""
    run_beside("""
from types import SimpleNamespace
def first(stream, streams, traffic):
    options = SimpleNamespace(
        traffic_seed="7", streams=streams, notes_per_request=3, note_tokens=30, traffic=traffic,
        zipf_exponent=1.0, zipf_queries=20, zipf_notes=50,
    )
    return list(itertools.islice(make_traffic(options, stream), 12 // streams))
for traffic in ("cold", "zipf"):
    alone = first(0, 1, traffic)
    assert alone[0] != alone[1]
    assert alone[0::3] == first(0, 3, traffic)
    assert alone[2::3] == first(2, 3, traffic)
""")


def test_equal_failures_have_equal_descriptions() -> None:
    run_beside("""
from types import SimpleNamespace
def describe(status, text, error=None):
    return problem_of(SimpleNamespace(status_code=status, text=text, error=error))
def results(*outcomes):
    return json.dumps({"results": [{"outcome": outcome} for outcome in outcomes]})
assert describe(200, results("scored", "scored")) is None
assert describe(200, results("shed", "scored", "failed", "shed")) == "notes not scored: failed, shed"
assert describe(503, json.dumps({"type": "urn:x:overloaded"})) == "503: urn:x:overloaded"
assert describe(502, "<html>") == "502: no JSON"
assert describe(0, None, TimeoutError("after 3 s")) == "no answer: TimeoutError"
""")


def test_locust_does_not_patch_other_tests(pytestconfig: pytest.Config) -> None:
    """Its pytest plugin is off (pyproject.toml), and nothing here has imported it."""
    assert not pytestconfig.pluginmanager.hasplugin("locust")
    assert "locust" not in sys.modules
    assert "gevent" not in sys.modules
