"""Installs infinity-emb into a separate virtual environment, since it needs transformers 4.

The environment is build/infinity, from infinity.lock, made at first use and again when the lock changes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from load_tests.processes import Unavailable

ROOT = Path(__file__).parent.parent.parent.parent
LOCK = Path(__file__).with_name("infinity.lock")


def ensure_infinity(folder: Path = ROOT / "build" / "infinity") -> Path:
    """Return the `infinity_emb` command, installing it if needed. Raises Unavailable when that fails."""
    command, stamp = folder / "bin" / "infinity_emb", folder / "lock.sha256"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        _install(folder)
        stamp.write_text(wanted, encoding="utf-8")
    return command


def _install(folder: Path) -> None:
    # uv from our environment, found by path since the environment may not be activated.
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise Unavailable("infinity-emb can't be installed: there is no uv")
    environment = _environment(folder)
    install = [uv, "pip", "install", "--quiet", "--no-deps"]
    # torch alone first, as in scripts/setup.sh: with a torch backend, uv looks for other packages in that index only.
    torch = next(line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], environment)
    _run([*install, *_backend(environment), torch], environment)
    _run([*install, "-r", str(LOCK)], environment)


def _environment(folder: Path) -> dict[str, str]:
    # uv does not read pip's settings, so they are passed as variables.
    script = [sys.executable, str(ROOT / "scripts" / "pip_settings_for_uv.py")]
    found = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    settings = dict(setting.split("=", 1) for setting in found.split("\0") if setting)
    return {**os.environ, **settings, "VIRTUAL_ENV": str(folder)}


def _backend(environment: Mapping[str, str]) -> list[str]:
    # The default torch of the package index is a CUDA build of several gigabytes.
    folders = environment.get("UV_FIND_LINKS", "").split(",")
    on_disk = any(any(Path(folder).glob("torch-*+cpu-*.whl")) for folder in folders if folder)
    return [] if on_disk else ["--torch-backend", "cpu"]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"infinity-emb can't be installed: {done.stderr.strip()}")
