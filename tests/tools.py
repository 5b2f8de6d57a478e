"""Programs that tests need and a machine may lack."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent


def lacks(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI, where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def debian_tool(package: str) -> str:
    """The program that is called as its Debian package, which is installed where that may be done."""

    def find() -> str | None:
        # Some are in /usr/sbin, which not everybody's PATH holds.
        return shutil.which(package) or shutil.which(package, path="/usr/sbin")

    if find() is None:
        subprocess.run([ROOT / "scripts/install_debian.sh", package], check=False)
    return find() or lacks(f"no {package} here, and it could not be installed")
