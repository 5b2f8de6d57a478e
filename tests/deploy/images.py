"""A plugin of the tests that build images: a session has one storage and one base, whichever of them runs first."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.deploy.containers import ROOT, Containers, missing_packages
from tests.tools import lacks


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    missing = missing_packages()
    if os.geteuid() != 0:
        reason = "images are built and run by root here"
    elif missing and subprocess.run([ROOT / "scripts/install_debian.sh", *missing], check=False).returncode:
        reason = f"no {', '.join(missing)} here, and they could not be installed"
    else:
        containers = Containers()
        yield containers
        containers.remove()
        return
    lacks(reason)


@pytest.fixture(scope="session")
def base_image(containers: Containers) -> str:
    """The name of what stands for python:3.x-slim."""
    name = "localhost/python-slim"
    containers.run("tests/deploy/base_image.sh", name, sys.executable)
    return name
