"""Options that several load tests have."""

import argparse
import random
from pathlib import Path


def make_parser(description: str | None, program: str | None = None) -> argparse.ArgumentParser:
    """Make a parser that shows the module's docstring as it is formatted."""
    return argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed, by default a new one for each run."""
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(0, 10**9))


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint."""
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
