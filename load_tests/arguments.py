"""Command lines of the load tests."""

import argparse
import random
from pathlib import Path
from typing import Any

# A new seed for each run.
SEED = random.SystemRandom().randint(0, 10**9)
CHECKPOINT = Path("checkpoints/default")


def make_parser(description: str | None, *urls: str, **defaults: Any) -> argparse.ArgumentParser:
    """Make a parser that shows the module's docstring, with URLs in order, and an option of each default's type."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in urls:
        parser.add_argument(name, metavar=name.upper(), type=_url)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"(default {default})")
    if "out" not in defaults:
        parser.add_argument("--out", type=Path, help="JSON file for the raw results")
    return parser


def _url(text: str) -> str:
    return text.rstrip("/")
