"""Runs verl_checks.py where verl can be imported: beside our own versions, which are newer than those that verl asks for."""

import os
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, output_of
from tests.test_locks import pins
from tests.tools import VENV_BIN

# What verl's trainer imports beyond our locks. Its other requirements are for GPUs and for code that we do not use.
IMPORTED = (
    *("antlr4-python3-runtime", "codetiming", "hydra-core", "omegaconf", "orjson", "pyvers"),
    *("tensordict", "torchdata", "transferqueue", "verl"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reward_mask_and_recipe_work_in_verl(tmp_path: Path) -> None:
    locked = pins("verl")
    settings = output_of(sys.executable, "scripts/pip_settings_for_uv.py").split("\0")
    install = (VENV_BIN / "uv", "pip", "install", "-q", "--no-deps", "--python", sys.executable)
    chosen = [f"{name}=={locked[name]}" for name in IMPORTED]
    output_of("env", *filter(None, settings), *install, "--target", tmp_path / "verl", *chosen)
    # verl and its libraries warn in many places; the project's own code is checked for warnings elsewhere.
    checks = ("-n", "0", "-q", "-o", "filterwarnings=default", Path(__file__).with_name("verl_checks.py"))
    path = os.pathsep.join((str(ROOT), str(tmp_path / "verl")))
    output_of(sys.executable, "-m", "pytest", *checks, within_s=1500, PYTHONPATH=path)
