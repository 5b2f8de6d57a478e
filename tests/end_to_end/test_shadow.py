"""One replica mirrors requests to another with the same checkpoint: the comparison finds no difference."""

import re

import pytest

from tests.end_to_end.replicas import ADMIN_KEY, Replicas
from tests.processes import output_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(1800)]
NOTES = [
    {"id": f"n{number}", "title": f"large chair {number}", "body": f"colour red . also amber chair {number}"}
    for number in range(6)
]


def test_a_shadow_with_the_same_checkpoint_agrees(replicas: Replicas) -> None:
    before = _compared(replicas)
    for number in range(12):
        replicas.score(1, query=f"amber chair {number}", notes=NOTES)
    wait_until(lambda: _compared(replicas) == before + 12)
    found = replicas.clients[1].get("/admin/shadow").json()
    assert found["shadow"] == found["served"]
    assert found["comparison"]["pairs"] >= 72
    assert found["comparison"]["same_grade"]["mean"] == 1
    assert found["comparison"]["score_distance"]["mean"] < 1e-4

    environment = {"NOTEGRADE_URL": replicas.processes[1].url, "NOTEGRADE_KEY": ADMIN_KEY}
    printed = output_of(".venv/bin/notegrade", "shadow", within_s=60, **environment)
    assert "same grade        100.0 % [100.0, 100.0]" in printed
    assert re.search(
        r"^shadow  \S+ sha256:\w{64}, grading version sha256:\w{64}, since ", printed, re.MULTILINE
    )
    assert replicas.clients[0].get("/admin/shadow").status_code == 404


def _compared(replicas: Replicas) -> int:
    return int(replicas.clients[1].get("/admin/shadow").json()["mirrored"]["compared"])
