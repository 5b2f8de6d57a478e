"""Gives fixtures to tests that build images: all tests of a session share one storage and one base image."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.deploy.containers import Containers
from tests.tools import CONTAINER_TOOLS, lacks, require


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    if os.geteuid() != 0:
        lacks("images are built and run by root here")
    for tool in CONTAINER_TOOLS:
        require(tool)
    containers = Containers()
    yield containers
    containers.remove()


@pytest.fixture(scope="session")
def base_image(containers: Containers) -> str:
    """Build an image that replaces python:3.x-slim, and return its name."""
    name = "localhost/python-slim"
    containers.run("tests/deploy/base_image.sh", name, sys.executable)
    return name
