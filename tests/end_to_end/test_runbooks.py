"""Runs every command of the runbook on explanations exactly as written."""

import json
import re

import pytest

from tests.deploy.prometheus_rig import RUNBOOKS, commands_of
from tests.end_to_end.replicas import ADMIN_KEY, Replicas
from tests.processes import output_of
from tests.tools import CURL, require

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(1800)]


def run(command: str, replicas: Replicas) -> str:
    require(CURL)
    environment = {"NOTEGRADE_URL": replicas.processes[0].url, "NOTEGRADE_KEY": ADMIN_KEY}
    return output_of("bash", "-euc", command, within_s=60, **environment)


def test_the_commands_work_from_the_first_to_the_last(replicas: Replicas) -> None:
    replicas.flip("off")
    exports, look, turn_on, explain, score, kept, turn_off = commands_of(RUNBOOKS / "explanations.md")
    assert run(exports, replicas) == ""
    assert run(look, replicas).startswith("off")
    assert run(turn_on, replicas).startswith("on_request (1800 s left)\nlast flip:")
    events = run(explain, replicas)
    assert re.findall("^event: (score|explanation)$", events, re.MULTILINE) == ["score", "explanation"]
    [result] = json.loads(run(score, replicas))["results"]
    assert result["outcome"] == "scored"
    assert result["explanation"]["outcome"] in ("made", "deferred")
    run(kept, replicas)  # either a problem or a deferred explanation: curl exits with 0 for both
    assert run(turn_off, replicas).startswith("off (no end)")
    assert "page 8812" in run(look, replicas)
