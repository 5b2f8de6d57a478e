"""The wheel, built from this tree and installed in an empty environment, serves, and names the extra that a command needs."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import make_checkpoint
from tests.end_to_end.service_process import ServiceProcess, start_service
from tests.processes import ROOT, output_of
from tests.tiny_base import make_tiny_base
from tests.tools import VENV_BIN

# Half a minute of building and installing.
pytestmark = pytest.mark.slow

PACKAGES = ("service", "model_export")
NOTES = ROOT / "examples" / "notes.jsonl"


def uv(*arguments: str | Path) -> str:
    """Run uv with pip's settings, as scripts/setup.sh does."""
    settings = output_of(sys.executable, "scripts/pip_settings_for_uv.py").split("\0")
    return output_of("env", *filter(None, settings), VENV_BIN / "uv", "--no-progress", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    output_of("make", "wheel", f"DIST={folder}")
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel without an extra, on the locked versions; return the environment's folder."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    uv("venv", "--python", sys.executable, folder)
    uv("pip", "install", "--python", folder, "--constraint", "locks/cpu.lock", wheel)
    return folder


@pytest.fixture(scope="module")
def served(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Serve on the fake engine until the service is ready."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = make_checkpoint(folder / "checkpoint")
    with serve(bare, folder / "log", checkpoint, NOTEGRADE_ENGINE="fake") as service:
        service.wait_until_ready()
        yield service


def serve(environment: Path, log: Path, checkpoint: Path, **settings: str) -> ServiceProcess:
    command = (str(environment / "bin" / "notegrade"), "serve", "--port", "{port}")
    return start_service(log, command, NOTEGRADE_CHECKPOINT=str(checkpoint), **settings)


def score(service: ServiceProcess) -> dict[str, object]:
    body = {"query": "quiet cafes", "notes": [{"id": "n1", "body": "A quiet cafe."}], "deadline_ms": 60_000}
    [result] = httpx.post(f"{service.url}/score", json=body, timeout=90).raise_for_status().json()["results"]
    return dict(result)


def test_the_wheel_holds_the_files_of_both_packages_and_no_others(wheel: Path) -> None:
    listed = output_of("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES)
    names = zipfile.ZipFile(wheel).namelist()
    installed = {name for name in names if ".dist-info/" not in name}
    assert installed == {file for file in listed.splitlines() if "/Dockerfile" not in file}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("notegrade", "serve"), "notegrade[cpu]"),
        (("notegrade", "score", "--query", "q", "--notes", str(NOTES)), "notegrade[cpu]"),
        (("notegrade", "experiment", "--control", "a", "--treatment", "b"), "notegrade[experiments]"),
        (("notegrade-train", "assemble", "--out", "checkpoint"), "notegrade[train]"),
        (("notegrade-train", "run", str(ROOT / "recipes" / "tiny.toml")), "notegrade[train]"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    bare: Path, tmp_path: Path, command: tuple[str, ...], named: str
) -> None:
    program, *arguments = command
    done = subprocess.run(
        [bare / "bin" / program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert named in line


def test_it_scores_on_the_fake_engine(served: ServiceProcess) -> None:
    result = score(served)
    assert (result["outcome"], result["source"]) == ("scored", "engine")
    assert httpx.get(f"{served.url}/version").json()["engine"]["numbers"]["engine"] == "fake"


@pytest.mark.parametrize("path", ["/console", "/docs"])
def test_its_pages_are_whole(served: ServiceProcess, path: str) -> None:
    assert httpx.get(f"{served.url}{path}", follow_redirects=True).status_code == 200


@pytest.fixture(scope="module")
def with_extras(bare: Path) -> Path:
    """Let the environment import what .venv has: the engine and the trainer's libraries, and no code of this tree."""
    locked = output_of(VENV_BIN / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    [own] = bare.glob("lib/python3*/site-packages")
    (own / "extras.pth").write_text(locked, encoding="utf-8")
    return bare


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_it_assembles_a_checkpoint_and_serves_it_on_vllm(with_extras: Path, tmp_path: Path) -> None:
    """This is the last use of the environment."""
    base, made = make_tiny_base(tmp_path / "base"), tmp_path / "checkpoint"
    output_of(with_extras / "bin" / "notegrade-train", "assemble", "--base", base, "--out", made)
    with serve(with_extras, tmp_path / "log", made, NOTEGRADE_ENGINE_DTYPE="float32") as service:
        service.wait_until_ready()
        assert score(service)["source"] == "engine"
